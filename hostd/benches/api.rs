//! How long the API takes under 32 clients, against what the same disk needs for an fsync.
//!
//! The daemon's own code from the socket to the disk: TLS 1.3, HTTP/2, router, policy, Raft with one voter, its log; only
//! the hands are fake, so that nothing but the API is measured. Each client has a connection of its own and sends its next
//! request when the last is answered. Clients and server share the machine's CPUs.
//!
//! `cargo bench --workspace --bench api`, on the disk of `API_DIR` or of the temporary directory; `API_SAMPLES=FILE` keeps
//! all samples as JSON, in milliseconds by kind.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use api::ApiError;
use api::client::Client;
use api::hosts::Inventory;
use api::ids::{HostId, VmId};
use api::images::{ImageCreate, ImageFormat, ImageKind};
use api::system::{LogLine, Mode, NetworkSettings, PowerAction, System};
use api::units::{Mib, Millis};
use api::users::{Secret, SessionCreate, SetupRequest};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use hostd::auth::{Auth, AuthConfig, HashCost};
use hostd::cluster::{Cluster, ClusterConfig};
use hostd::fake;
use hostd::http::{
    Context, HostNames, Limits, ServerConfig, SystemApi, TlsIdentity, VmProcesses, serve,
};
use hostd::install::fetch::hex;
use hostd::metrics::Metrics;
use hostd::reconcile::{Hands, Reconcilers};
use hostd::storage::images::FileImages;
use hostd_state::{Command, Meta};
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use sha2::{Digest as _, Sha256};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::runtime::{Builder, Runtime};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

const CLIENTS: usize = 32;
/// In the state while measuring; each client changes its own share of them.
const VMS: usize = 200;
/// Between two requests of a client that works as a dashboard does.
const PACE: Duration = Duration::from_millis(250);
const PASSWORD: &str = "correct horse battery";

type Samples = BTreeMap<&'static str, Vec<f64>>;

fn main() -> Result<()> {
    let mut rounds = 100;
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            // The harness is asked for its tests: there are none here.
            "--list" => return Ok(()),
            "--test" => rounds = 2,
            _ => {}
        }
    }
    let dir = match std::env::var_os("API_DIR") {
        Some(dir) => tempfile::tempdir_in(dir)?,
        None => tempfile::tempdir()?,
    };
    let server_runtime = runtime("server")?;
    let client_runtime = runtime("clients")?;
    let host = server_runtime.block_on(Host::start(dir.path()))?;
    let mut samples = Samples::new();
    let all = client_runtime.block_on(async {
        let token = host.enrol().await?;
        let mut clients = Vec::new();
        for number in 0..CLIENTS {
            clients.push(Caller::connect(&host, &token, number).await?);
        }
        for number in 0..VMS {
            let at = number % CLIENTS;
            clients[at].vm_create(number).await?;
        }
        anyhow::Ok(clients)
    });
    let mut clients = all?;
    for (kind, pace, call) in [
        ("vm get, at once", None, Call::Get),
        ("vm get, paced", Some(PACE), Call::Get),
        ("vm list, at once", None, Call::List),
        ("vm list, paced", Some(PACE), Call::List),
        ("vm update, one client", None, Call::UpdateAlone),
        ("vm update, at once", None, Call::Update),
        ("vm update, paced", Some(PACE), Call::Update),
    ] {
        let writes = matches!(call, Call::Update | Call::UpdateAlone);
        if writes {
            fsyncs(dir.path(), rounds * 2, &mut samples)?;
        }
        let rounds = if pace.is_some() { rounds / 2 } else { rounds };
        let many = match call {
            Call::UpdateAlone => 1,
            _ => CLIENTS,
        };
        let rest = clients.split_off(many);
        let running: Vec<_> = clients
            .into_iter()
            .map(|client| client_runtime.spawn(client.run(call, rounds, pace)))
            .collect();
        clients = Vec::new();
        for client in running {
            let (client, taken) = client_runtime.block_on(client)??;
            clients.push(client);
            samples.entry(kind).or_default().extend(taken);
        }
        clients.extend(rest);
        if writes {
            fsyncs(dir.path(), rounds * 2, &mut samples)?;
        }
    }
    print(&samples);
    if let Some(path) = std::env::var_os("API_SAMPLES") {
        serde_json::to_writer(File::create(path)?, &samples)?;
    }
    drop(clients);
    server_runtime.block_on(host.stop());
    Ok(())
}

fn runtime(name: &str) -> Result<Runtime> {
    let runtime = Builder::new_multi_thread()
        .enable_all()
        .thread_name(name)
        .build();
    runtime.context("starting a runtime")
}

fn print(samples: &Samples) {
    let base = samples.get("fsync").map(|all| percentile(all, 50));
    let worst = samples.get("fsync").map(|all| percentile(all, 99));
    for (kind, all) in samples {
        let (p50, p99) = (percentile(all, 50), percentile(all, 99));
        println!(
            "{kind:22} n={:5}  p50 {p50:7.2} ms  p99 {p99:7.2} ms  p99 / fsync: {:5.1} of its median, {:4.1} of its p99",
            all.len(),
            p99 / base.unwrap_or(f64::NAN),
            p99 / worst.unwrap_or(f64::NAN),
        );
    }
}

fn percentile(samples: &[f64], percent: usize) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// What the same disk takes for an append of about an entry's size, and its sync.
fn fsyncs(dir: &Path, count: usize, samples: &mut Samples) -> Result<()> {
    use std::io::Write as _;
    let mut file = File::create(dir.join("fsync"))?;
    let all = samples.entry("fsync").or_default();
    for at in 0..count {
        let page = [u8::try_from(at % 251)?; 4096];
        let start = Instant::now();
        file.write_all(&page)?;
        file.sync_data()?;
        all.push(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok(())
}

/// The daemon, without its hands.
struct Host {
    address: SocketAddr,
    tls: TlsIdentity,
    context: Arc<Context>,
    cluster: Cluster,
    reconcilers: Reconcilers,
    shutdown: CancellationToken,
    server: tokio::task::JoinHandle<()>,
}

impl Host {
    async fn start(dir: &Path) -> Result<Self> {
        let host = HostId::mint();
        let names = HostNames {
            name: Some("bench".parse()?),
            addresses: vec![Ipv4Addr::LOCALHOST.into()],
        };
        let tls = TlsIdentity::open(&dir.join("tls"), &names)?;
        let cluster = Cluster::start(ClusterConfig {
            dir: dir.join("raft"),
            host,
            heartbeat: Duration::from_millis(250),
            election_min: Duration::from_secs(1),
            election_max: Duration::from_secs(2),
        })
        .await?;
        let register = Command::HostRegister {
            host,
            name: "bench".parse()?,
            version: "0".to_owned(),
            inventory: Inventory {
                cpus: 64,
                memory: Mib(1 << 20),
                kvm: true,
                ..Inventory::default()
            },
            fingerprint: String::new(),
        };
        let meta = Meta::host(Millis::now());
        cluster.propose(meta, register).await?;
        let images = FileImages::open_store(&dir.join("data"))?;
        let fake = fake::hands();
        let hands = Hands {
            launcher: fake.launcher,
            volumes: fake.volumes,
            images: images.clone(),
            links: fake.links,
        };
        let reconcilers = Reconcilers::spawn(&cluster, host, hands);
        let auth = AuthConfig {
            hash_cost: HashCost::CHEAPEST,
            ..AuthConfig::default()
        };
        let context = Arc::new(Context {
            mode: Mode::Run,
            version: "0".to_owned(),
            host: Some(host),
            cluster: Some(cluster.clone()),
            auth: Auth::open(auth)?,
            system: Arc::new(Nothing),
            installer: None,
            vms: Arc::new(Nothing),
            images: Arc::new(images),
            tls: Some(tls.clone()),
            metrics: Metrics::default(),
        });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let shutdown = CancellationToken::new();
        let config = ServerConfig {
            tls_listener: Some(listener),
            tls: Some(tls.clone()),
            unix_listener: None,
            context: context.clone(),
            limits: Limits::default(),
            shutdown: shutdown.clone(),
        };
        let server = tokio::spawn(async move {
            if let Err(error) = serve(config).await {
                eprintln!("the server ended: {error}");
            }
        });
        Ok(Self {
            address,
            tls,
            context,
            cluster,
            reconcilers,
            shutdown,
            server,
        })
    }

    /// The first administrator's session.
    async fn enrol(&self) -> Result<String> {
        let client = Client::https(&self.address.to_string(), self.tls.fingerprint())?;
        let token = self.context.auth.setup_token.show();
        let request = SetupRequest {
            token: Secret(token.context("no setup token")?),
            name: "admin".parse()?,
            password: Secret(PASSWORD.to_owned()),
        };
        client.setup_create(&request).await?;
        let session = SessionCreate {
            name: "admin".parse()?,
            password: Secret(PASSWORD.to_owned()),
        };
        let secret = client.session_create(&session).await?.secret;
        let client = client.with_token(secret.clone());
        // What VMs boot from; nothing ever reads it.
        let image = ImageCreate {
            name: "bench".parse()?,
            kind: ImageKind::Kernel,
            format: ImageFormat::Raw,
            size_bytes: 4,
            sha256: hex(&Sha256::digest(b"boot")),
        };
        let made = client.image_create(&image).await?.object.id;
        let upload = std::io::Cursor::new(b"boot".to_vec());
        client.image_upload(made, upload, 4, None).await?;
        Ok(secret.0)
    }

    async fn stop(self) {
        self.shutdown.cancel();
        let _ = self.server.await;
        self.reconcilers.shutdown().await;
        self.cluster.shutdown().await;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Get,
    List,
    Update,
    UpdateAlone,
}

/// One client: one connection, HTTP/2 over TLS 1.3.
struct Caller {
    sender: SendRequest<Full<Bytes>>,
    token: String,
    address: SocketAddr,
    number: usize,
    turn: usize,
}

impl Caller {
    async fn connect(host: &Host, token: &str, number: usize) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(host.tls.authority().clone())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let tcp = TcpStream::connect(host.address).await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from("127.0.0.1")?;
        let tls = TlsConnector::from(Arc::new(config));
        let stream = tls.connect(name, tcp).await?;
        let (sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self {
            sender,
            token: token.to_owned(),
            address: host.address,
            number,
            turn: 0,
        })
    }

    async fn send(&mut self, method: &str, path: &str, body: String) -> Result<usize> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("https://{}/api/v1{path}", self.address))
            .header("authorization", format!("Bearer {}", self.token));
        if !body.is_empty() {
            request = request
                .header("content-type", "application/json")
                .header("idempotency-key", uuid::Uuid::new_v4().to_string());
        }
        let request = request.body(Full::new(Bytes::from(body)))?;
        self.sender.ready().await?;
        let reply = self.sender.send_request(request).await?;
        let status = reply.status();
        let body = reply.into_body().collect().await?.to_bytes();
        ensure!(status.is_success(), "{method} {path}: {status}: {body:?}");
        Ok(body.len())
    }

    async fn vm_create(&mut self, number: usize) -> Result<()> {
        let body = serde_json::json!({
            "name": format!("vm-{number}"),
            "memory": 256,
            "vcpus": 1,
            "boot": { "kernel": { "kernel": "bench" } },
        });
        self.send("POST", "/vms", body.to_string()).await?;
        Ok(())
    }

    /// One after the other, at once or at a pace, each client beginning at another moment of it.
    async fn run(
        mut self,
        call: Call,
        rounds: usize,
        pace: Option<Duration>,
    ) -> Result<(Self, Vec<f64>)> {
        let mut samples = Vec::with_capacity(rounds);
        let share = VMS / CLIENTS;
        let mut next = tokio::time::Instant::now();
        if let Some(pace) = pace {
            // Spread without a pattern that would keep two clients in step.
            next += pace.mul_f64((self.number * 19 % CLIENTS) as f64 / CLIENTS as f64);
        }
        for _ in 0..rounds {
            if let Some(pace) = pace {
                tokio::time::sleep_until(next).await;
                // Between half and one and a half of it.
                let dice = (self.turn * 7919 + self.number * 104_729) % 100;
                next += pace.mul_f64(0.5 + dice as f64 / 100.0);
            }
            self.turn += 1;
            let vm = self.turn % share * CLIENTS + self.number;
            let start = Instant::now();
            match call {
                Call::Get => {
                    self.send("GET", &format!("/vms/vm-{vm}"), String::new())
                        .await?;
                }
                Call::List => {
                    let length = self.send("GET", "/vms", String::new()).await?;
                    ensure!(length > VMS * 100, "the list is too short");
                }
                Call::Update | Call::UpdateAlone => {
                    let memory = 256 + self.turn % 64;
                    let body = serde_json::json!({ "memory": memory }).to_string();
                    self.send("PATCH", &format!("/vms/vm-{vm}"), body).await?;
                }
            }
            samples.push(start.elapsed().as_secs_f64() * 1e3);
        }
        Ok((self, samples))
    }
}

/// No machine behind the API.
struct Nothing;

fn not_here() -> ApiError {
    ApiError::new(api::ErrorCode::NotImplemented, "not in a bench", "")
}

impl VmProcesses for Nothing {
    fn connect(&self, _: VmId) -> BoxFuture<'_, std::io::Result<UnixStream>> {
        Box::pin(async { Err(std::io::ErrorKind::NotFound.into()) })
    }
}

impl SystemApi for Nothing {
    fn system(&self) -> BoxFuture<'_, Result<System, ApiError>> {
        Box::pin(async { Err(not_here()) })
    }

    fn power(&self, _: PowerAction) -> BoxFuture<'_, Result<(), ApiError>> {
        Box::pin(async { Err(not_here()) })
    }

    fn network_get(&self) -> BoxFuture<'_, Result<NetworkSettings, ApiError>> {
        Box::pin(async { Err(not_here()) })
    }

    fn network_set(&self, _: NetworkSettings) -> BoxFuture<'_, Result<NetworkSettings, ApiError>> {
        Box::pin(async { Err(not_here()) })
    }

    fn logs(&self, _: Option<u64>) -> Vec<LogLine> {
        Vec::new()
    }
}
