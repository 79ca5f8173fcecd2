//! A host with fake hands, served over TLS and over a unix socket.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::client::Client;
use api::hosts::Inventory;
use api::ids::{HostId, VmId};
use api::install::{InstallPhase, InstallRequest, InstallStatus};
use api::system::{LogLine, Mode, NetworkSettings, PowerAction, System};
use api::units::{Mib, Millis};
use api::users::{Role, Secret, SessionCreate, SetupRequest, UserCreate};
use api::{ApiError, ErrorCode};
use futures_util::future::BoxFuture;
use hostd::auth::{Auth, AuthConfig, HashCost};
use hostd::cluster::{Cluster, ClusterConfig};
use hostd::fake::{FakeLauncher, FakeLinks, FakeVolumes, OpenConverter};
use hostd::http::{
    Context, HostNames, InstallerApi, Limits, ServerConfig, SystemApi, TlsIdentity, VmProcesses,
    serve,
};
use hostd::metrics::Metrics;
use hostd::reconcile::{Hands, Reconcilers};
use hostd::storage::images::FileImages;
use hostd_state::{Command, Meta};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The administrator's password in all tests.
pub const PASSWORD: &str = "correct horse battery";
/// What every fake console has to show.
pub const SCROLLBACK: &[u8] = b"Linux version 6.18\r\n";

/// Everything a test needs; dropped, it is gone.
pub struct Lab {
    pub dir: TempDir,
    pub address: SocketAddr,
    pub socket: PathBuf,
    pub tls: TlsIdentity,
    pub context: Arc<Context>,
    pub system: Arc<FakeSystem>,
    shutdown: CancellationToken,
    server: JoinHandle<()>,
    reconcilers: Option<Reconcilers>,
}

/// What may differ between tests.
pub struct Wish {
    pub mode: Mode,
    pub limits: Limits,
    pub attempts_max: u32,
}

impl Default for Wish {
    fn default() -> Self {
        Self {
            mode: Mode::Run,
            limits: Limits::default(),
            // Most tests share one address; the throttle has a test of its own.
            attempts_max: 1000,
        }
    }
}

impl Lab {
    pub async fn new() -> Self {
        Self::wish(Wish::default()).await
    }

    pub async fn wish(wish: Wish) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let host = HostId::mint();
        let names = HostNames {
            name: Some("lqx-test".parse().unwrap()),
            addresses: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
        };
        let tls = TlsIdentity::open(&dir.path().join("tls"), &names).unwrap();
        let cluster = match wish.mode {
            Mode::Run => Some(cluster(&dir, host).await),
            Mode::Install => None,
        };
        let images = FileImages::open_store(&dir.path().join("data")).unwrap();
        let images = images.with_converter(Arc::new(OpenConverter));
        let reconcilers = cluster.as_ref().map(|cluster| {
            let hands = Hands {
                launcher: FakeLauncher::default(),
                volumes: FakeVolumes::default(),
                images: images.clone(),
                links: FakeLinks::default(),
            };
            Reconcilers::spawn(cluster, host, hands)
        });
        let auth = Auth::open(AuthConfig {
            hash_cost: HashCost::CHEAPEST,
            setup_token: Some(dir.path().join("setup-token")),
            attempts_max: wish.attempts_max,
            ..AuthConfig::default()
        });
        let system = Arc::new(FakeSystem::default());
        let context = Arc::new(Context {
            mode: wish.mode,
            version: "0.0.0-test".to_owned(),
            host: cluster.is_some().then_some(host),
            cluster,
            auth: auth.unwrap(),
            system: system.clone(),
            installer: (wish.mode == Mode::Install)
                .then(|| Arc::new(FakeInstaller) as Arc<dyn InstallerApi>),
            vms: Arc::new(FakeVms),
            images: Arc::new(images),
            tls: Some(tls.clone()),
            metrics: Metrics::default(),
        });
        let tls_listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = tls_listener.local_addr().unwrap();
        let socket = dir.path().join("api.sock");
        let shutdown = CancellationToken::new();
        let server = tokio::spawn({
            let config = ServerConfig {
                tls_listener: Some(tls_listener),
                tls: Some(tls.clone()),
                unix_listener: Some(UnixListener::bind(&socket).unwrap()),
                context: context.clone(),
                limits: wish.limits,
                shutdown: shutdown.clone(),
            };
            async move { serve(config).await.unwrap() }
        });
        Self {
            dir,
            address,
            socket,
            tls,
            context,
            system,
            shutdown,
            server,
            reconcilers,
        }
    }

    /// Nobody yet, over TLS.
    pub fn stranger(&self) -> Client {
        Client::https(&self.address.to_string(), self.tls.fingerprint()).unwrap()
    }

    /// The machine's console: only for root.
    pub fn console(&self) -> Client {
        Client::unix(&self.socket)
    }

    /// The setup token, as the console shows it.
    pub fn setup_token(&self) -> Secret {
        Secret(self.context.auth.setup_token.show().unwrap())
    }

    /// Enrols the administrator and signs in.
    pub async fn admin(&self) -> Client {
        let token = self.setup_token();
        let request = SetupRequest {
            token,
            name: "admin".parse().unwrap(),
            password: Secret(PASSWORD.to_owned()),
        };
        self.stranger().setup_create(&request).await.unwrap();
        self.sign_in("admin").await
    }

    pub async fn sign_in(&self, name: &str) -> Client {
        let request = SessionCreate {
            name: name.parse().unwrap(),
            password: Secret(PASSWORD.to_owned()),
        };
        let session = self.stranger().session_create(&request).await.unwrap();
        self.stranger().with_token(session.secret)
    }

    /// Another user, signed in, and the token's secret for raw requests.
    pub async fn user(&self, admin: &Client, name: &str, role: Role) -> Client {
        let request = UserCreate {
            name: name.parse().unwrap(),
            password: Secret(PASSWORD.to_owned()),
            role,
        };
        admin.user_create(&request).await.unwrap();
        self.sign_in(name).await
    }

    /// A session's secret, for raw requests.
    pub async fn secret(&self, name: &str) -> String {
        let request = SessionCreate {
            name: name.parse().unwrap(),
            password: Secret(PASSWORD.to_owned()),
        };
        self.stranger()
            .session_create(&request)
            .await
            .unwrap()
            .secret
            .0
    }

    /// Goes down in order, and must do so quickly.
    pub async fn shutdown(mut self) {
        self.shutdown.cancel();
        let server = std::mem::replace(&mut self.server, tokio::spawn(async {}));
        tokio::time::timeout(Duration::from_secs(8), server)
            .await
            .unwrap()
            .unwrap();
        if let Some(reconcilers) = self.reconcilers.take() {
            reconcilers.shutdown().await;
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.shutdown.cancel();
        self.server.abort();
    }
}

async fn cluster(dir: &TempDir, host: HostId) -> Cluster {
    let config = ClusterConfig {
        dir: dir.path().join("raft"),
        host,
        heartbeat: Duration::from_millis(50),
        election_min: Duration::from_millis(150),
        election_max: Duration::from_millis(300),
    };
    let cluster = Cluster::start(config).await.unwrap();
    let inventory = Inventory {
        cpus: 8,
        memory: Mib(16 * 1024),
        kvm: true,
        ..Inventory::default()
    };
    let register = Command::HostRegister {
        host,
        name: "lqx-test".parse().unwrap(),
        version: "0.0.0-test".to_owned(),
        inventory,
        fingerprint: String::new(),
    };
    let booted = Command::HostBooted {
        host,
        boot_id: "boot".to_owned(),
    };
    for command in [register, booted] {
        cluster
            .propose(Meta::host(Millis::now()), command)
            .await
            .unwrap();
    }
    cluster
}

/// Processes whose consoles show a line and answer what is typed in capitals, and which have counted a little.
struct FakeVms;

impl VmProcesses for FakeVms {
    fn connect(&self, _: VmId) -> BoxFuture<'_, io::Result<UnixStream>> {
        Box::pin(async {
            let (ours, mut guest) = UnixStream::pair()?;
            tokio::spawn(async move {
                guest.write_all(SCROLLBACK).await?;
                let mut typed = [0; 256];
                loop {
                    match guest.read(&mut typed).await? {
                        0 => return io::Result::Ok(()),
                        length => {
                            guest
                                .write_all(&typed[..length].to_ascii_uppercase())
                                .await?
                        }
                    }
                }
            });
            Ok(ours)
        })
    }

    fn leased_address(&self, _: &str) -> Option<String> {
        Some("10.77.0.9".to_owned())
    }

    fn counters(&self, _: VmId) -> BoxFuture<'_, BTreeMap<String, u64>> {
        let counters = BTreeMap::from([("disk.root.reads_total".to_owned(), 5)]);
        Box::pin(std::future::ready(counters))
    }
}

/// A machine that only remembers what it was told.
#[derive(Default)]
pub struct FakeSystem {
    pub powered: Mutex<Vec<PowerAction>>,
    network: Mutex<NetworkSettings>,
}

impl SystemApi for FakeSystem {
    fn system(&self) -> BoxFuture<'_, Result<System, ApiError>> {
        Box::pin(async {
            Ok(System {
                version: String::new(),
                mode: Mode::Run,
                host: None,
                hostname: None,
                kernel: "6.18".to_owned(),
                uptime_seconds: 7,
                fingerprint: None,
                addresses: Vec::new(),
                revision: 0,
                memory_promised: Mib(0),
                memory_total: Mib(16 * 1024),
                secure_boot: false,
                tpm: false,
                conditions: Vec::new(),
            })
        })
    }

    fn power(&self, action: PowerAction) -> BoxFuture<'_, Result<(), ApiError>> {
        self.powered.lock().unwrap().push(action);
        Box::pin(async { Ok(()) })
    }

    fn network_get(&self) -> BoxFuture<'_, Result<NetworkSettings, ApiError>> {
        let network = self.network.lock().unwrap().clone();
        Box::pin(async { Ok(network) })
    }

    fn network_set(
        &self,
        settings: NetworkSettings,
    ) -> BoxFuture<'_, Result<NetworkSettings, ApiError>> {
        *self.network.lock().unwrap() = settings.clone();
        Box::pin(async { Ok(settings) })
    }

    fn logs(&self, since: Option<u64>) -> Vec<LogLine> {
        let line = |seq| LogLine {
            seq,
            at: Millis(seq),
            level: "info".to_owned(),
            message: "started".to_owned(),
        };
        (1..=3).filter(|seq| Some(*seq) > since).map(line).collect()
    }
}

struct FakeInstaller;

impl InstallerApi for FakeInstaller {
    fn status(&self) -> BoxFuture<'_, Result<InstallStatus, ApiError>> {
        Box::pin(async {
            Ok(InstallStatus {
                version: "0.0.0-test".to_owned(),
                disks: Vec::new(),
                phase: InstallPhase::Waiting,
            })
        })
    }

    fn start(&self, request: InstallRequest) -> BoxFuture<'_, Result<InstallStatus, ApiError>> {
        Box::pin(async move {
            let message = format!("there is no disk `{}`", request.disk);
            Err(ApiError::new(
                ErrorCode::NotFound,
                message,
                "choose one of the disks that are there",
            ))
        })
    }
}

/// The console's uid 0 is only to be had by root.
pub fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!(
            "skipped: the console's socket trusts uid 0 only, and this test does not run as root"
        );
    }
    root
}

/// Bodies that each JSON endpoint takes, for tests that walk the table.
pub fn good_bodies() -> BTreeMap<&'static str, serde_json::Value> {
    use serde_json::json;
    BTreeMap::from([
        (
            "setup_create",
            json!({"token": "x", "name": "eve", "password": "long enough"}),
        ),
        (
            "session_create",
            json!({"name": "eve", "password": "long enough"}),
        ),
        (
            "token_create",
            json!({"name": "t", "role": "viewer", "days": 1}),
        ),
        (
            "user_create",
            json!({"name": "eve", "password": "long enough", "role": "viewer"}),
        ),
        (
            "image_create",
            json!({"name": "i", "kind": "kernel", "size_bytes": 1, "sha256": "0".repeat(64)}),
        ),
        ("volume_create", json!({"name": "v", "size": 1})),
        ("volume_update", json!({"size": 2})),
        (
            "network_create",
            json!({"name": "n", "kind": {"isolated": {"subnet": "10.77.0.0/24"}}}),
        ),
        (
            "vm_create",
            json!({"name": "w", "memory": 64, "vcpus": 1, "boot": {"kernel": {"kernel": "k"}}}),
        ),
        ("vm_update", json!({"vcpus": 2})),
        ("system_power", json!({"action": "reboot"})),
        ("system_network_set", json!({"dns": []})),
        ("install_start", json!({"disk": "vda"})),
    ])
}
