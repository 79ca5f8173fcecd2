//! The installed host: disks, address, cluster, VMs, API, consoles; in this order, and down in reverse.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use api::ApiError;
use api::system::{LogLine, Mode, NetworkSettings, PowerAction, System};
use api::units::Millis;
use futures_util::future::BoxFuture;
use hostd_state::{Command, Meta};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Base, consoles, end_when_init_asks, join, local_socket};
use crate::auth::{Auth, AuthConfig};
use crate::cluster::{Cluster, ClusterConfig};
use crate::config::HostConfig;
use crate::host::discover::Install;
use crate::host::power::Power;
use crate::host::system::Machine;
use crate::host::{filesystems, inventory, time, update};
use crate::http::tls::{HostNames, TlsIdentity};
use crate::http::{self, Context, ServerConfig, SystemApi};
use crate::metrics::Metrics;
use crate::network::address::{Management, ManagementState};
use crate::network::bridge::BridgeLinks;
use crate::reconcile::{Hands, Reconcilers};
use crate::storage::file::FileVolumes;
use crate::storage::images::FileImages;
use crate::vms::launch::LaunchConfig;
use crate::vms::{Launcher as _, Phase, Supervisors, VmRequest};

const STATE: &str = "/state";
const DATA: &str = "/data";
const PORT: u16 = 443;
const HEARTBEAT: Duration = Duration::from_millis(250);
const ELECTION: Duration = Duration::from_secs(1);
/// How long guests get to power themselves off before the host goes down.
const DRAIN_WITHIN: Duration = Duration::from_secs(60);

pub(super) async fn run(base: &Base, install: &Install) -> Result<()> {
    filesystems::mount_install(&base.roots, install, Path::new(STATE), Path::new(DATA))
        .context("mounting the state and data partitions")?;
    let config = HostConfig::read(Path::new(STATE))?;
    info!(install = %install.id, host = %config.host, name = %config.name, "booted from its own disk");

    let (management, address) = Management::start(
        config.network.clone(),
        Some(config.name.to_string()),
        "/run/resolv.conf".into(),
    )
    .context("starting the management address")?;
    let tls = TlsIdentity::open(
        &Path::new(STATE).join("tls"),
        &names(&config, &management.state()),
    )
    .context("opening the host's certificate")?;

    let heartbeat = base.cmdline.heartbeat.unwrap_or(HEARTBEAT);
    let election = base.cmdline.election.unwrap_or(ELECTION);
    let cluster = Cluster::start(ClusterConfig {
        dir: Path::new(STATE).join("raft"),
        host: config.host,
        heartbeat,
        election_min: election,
        election_max: election * 2,
    })
    .await
    .context("starting the cluster")?;
    register(base, &config, &cluster, &tls).await?;

    let links = BridgeLinks::open(Arc::new(management.clone())).context("opening the network")?;
    let supervisors =
        Supervisors::start(LaunchConfig::appliance()).context("starting the VM supervisors")?;
    let volumes = FileVolumes::open_pool(Path::new(DATA)).context("opening the volumes")?;
    let images = FileImages::open_store(Path::new(DATA)).context("opening the images")?;
    let vm_processes = supervisors.processes(links.leases());
    let hands = Hands {
        launcher: supervisors.clone(),
        volumes,
        images: images.clone(),
        links,
    };
    let reconcilers = Reconcilers::spawn(&cluster, config.host, hands);
    let (drain, drained) = watch::channel(None);

    let machine = Machine {
        roots: base.roots.clone(),
        version: base.version.clone(),
        mode: Mode::Run,
        hostname: Some(config.name.clone()),
        state: Some(STATE.into()),
        management: Some(management.clone()),
        logs: base.logs.clone(),
        power: Power::of_machine(),
    };
    let auth = AuthConfig {
        setup_token: Some(Path::new(STATE).join("setup-token")),
        ..AuthConfig::default()
    };
    let system: Arc<dyn SystemApi> = Arc::new(Draining {
        machine: machine.clone(),
        drain,
    });
    let asked = end_when_init_asks(system.clone());
    let context = Context {
        mode: Mode::Run,
        version: base.version.clone(),
        host: Some(config.host),
        cluster: Some(cluster.clone()),
        auth: Auth::open(auth).context("reading the setup token")?,
        system,
        installer: None,
        vms: Arc::new(vm_processes),
        images: Arc::new(images),
        tls: Some(tls.clone()),
        metrics: Metrics::default(),
    };
    let listener = TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT)))
        .await
        .context("listening for the API")?;
    let server = ServerConfig {
        tls_listener: Some(listener),
        tls: Some(tls.clone()),
        unix_listener: Some(local_socket()?),
        context: Arc::new(context),
        limits: http::Limits::default(),
        shutdown: base.shutdown.clone(),
    };
    let renewing = tokio::spawn(renew_certificate(
        tls,
        config.clone(),
        management.watch(),
        base.shutdown.clone(),
    ));
    let blessing = tokio::spawn(bless(base.roots.clone(), install.clone()));
    let consoles = consoles(base);
    let draining = tokio::spawn(drain_guests(
        drained,
        supervisors.clone(),
        machine,
        reconcilers,
    ));

    tokio::select! {
        served = http::serve(server) => served.context("serving the API")?,
        // Only a fresh start finds out what the disk has; init gives us one.
        reason = cluster.fatal() => anyhow::bail!("the cluster's log has failed: {reason}"),
    }

    asked.abort();
    draining.abort();
    blessing.abort();
    join(consoles).await;
    join(vec![renewing]).await;
    supervisors.shutdown().await;
    cluster.shutdown().await;
    address.abort();
    info!("hostd ends; VMs are left as they are");
    Ok(())
}

/// Tells the cluster who we are, and which boot this is: what ran on an earlier one has ended.
async fn register(
    base: &Base,
    config: &HostConfig,
    cluster: &Cluster,
    tls: &TlsIdentity,
) -> Result<()> {
    let commands = [
        Command::HostRegister {
            host: config.host,
            name: config.name.clone(),
            version: base.version.clone(),
            inventory: inventory::inventory(&base.roots),
            fingerprint: tls.fingerprint().to_string(),
        },
        Command::HostBooted {
            host: config.host,
            boot_id: time::boot_id(&base.roots),
        },
    ];
    for command in commands {
        cluster
            .propose(Meta::host(Millis::now()), command)
            .await
            .context("registering this host")?;
    }
    Ok(())
}

fn names(config: &HostConfig, state: &ManagementState) -> HostNames {
    HostNames {
        name: Some(config.name.clone()),
        addresses: state
            .address
            .map(|net| IpAddr::V4(net.address))
            .into_iter()
            .collect(),
    }
}

/// The certificate names the address; a new address means a new certificate under the same key.
async fn renew_certificate(
    tls: TlsIdentity,
    config: HostConfig,
    mut state: watch::Receiver<ManagementState>,
    shutdown: CancellationToken,
) {
    loop {
        let names = names(&config, &state.borrow_and_update().clone());
        if !names.addresses.is_empty() {
            match tls.renew(&names) {
                Ok(true) => info!("the certificate names the new address"),
                Ok(false) => {}
                Err(error) => {
                    warn!(error = %crate::report::chain(&error), "the certificate could not be renewed")
                }
            }
        }
        tokio::select! {
            changed = state.changed() => if changed.is_err() { return },
            () = shutdown.cancelled() => return,
        }
    }
}

/// We serve, so this version is good: the boot loader need not count any more.
async fn bless(roots: crate::host::Roots, install: Install) {
    match tokio::task::spawn_blocking(move || update::bless(&roots, &install)).await {
        Ok(Ok(blessed)) => info!(?blessed, "this version is good"),
        Ok(Err(error)) => {
            warn!(error = %crate::report::chain(&error), "this version could not be marked as good");
        }
        Err(error) => warn!(%error, "marking this version as good did not end"),
    }
}

/// The machine, whose power switch first lets the guests power off.
struct Draining {
    machine: Machine,
    drain: watch::Sender<Option<PowerAction>>,
}

impl SystemApi for Draining {
    fn system(&self) -> BoxFuture<'_, Result<System, ApiError>> {
        self.machine.system()
    }

    fn power(&self, action: PowerAction) -> BoxFuture<'_, Result<(), ApiError>> {
        self.drain.send_replace(Some(action));
        Box::pin(async { Ok(()) })
    }

    fn network_get(&self) -> BoxFuture<'_, Result<NetworkSettings, ApiError>> {
        self.machine.network_get()
    }

    fn network_set(
        &self,
        settings: NetworkSettings,
    ) -> BoxFuture<'_, Result<NetworkSettings, ApiError>> {
        self.machine.network_set(settings)
    }

    fn logs(&self, since: Option<u64>) -> Vec<LogLine> {
        self.machine.logs(since)
    }
}

/// Waits for a power action. The reconcilers end first: what guests do now is not what their users want, so the VMs
/// that run today are wanted running after the restart.
async fn drain_guests(
    mut asked: watch::Receiver<Option<PowerAction>>,
    supervisors: Supervisors,
    machine: Machine,
    reconcilers: Reconcilers,
) {
    let action = match asked.wait_for(Option::is_some).await {
        Ok(action) => *action,
        Err(_) => return,
    };
    let Some(action) = action else { return };
    reconcilers.shutdown().await;
    let mut changed = supervisors.changed();
    let living = || {
        let vms = supervisors.list().into_iter();
        vms.filter(|vm| !matches!(vm.phase, Phase::Ended(_)))
            .map(|vm| vm.vm)
            .collect::<Vec<_>>()
    };
    info!(
        guests = living().len(),
        ?action,
        "guests are asked to power off"
    );
    for vm in living() {
        supervisors.request(vm, VmRequest::PowerButton).await;
    }
    let down = async { while !living().is_empty() && changed.changed().await.is_ok() {} };
    if tokio::time::timeout(DRAIN_WITHIN, down).await.is_err() {
        warn!(guests = living().len(), "guests did not power off in time");
    }
    if let Err(error) = machine.power(action).await {
        warn!(error = %error.message, "the machine could not be switched");
    }
}
