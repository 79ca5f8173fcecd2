//! Install mode: the installer behind the local API and the consoles; a seed answers by itself.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use api::ids::{ImageId, VmId};
use api::system::{Mode, NetworkSettings};
use api::{ApiError, ErrorCode};
use futures_util::future::BoxFuture;
use tokio::net::UnixStream;
use tracing::{info, warn};

use super::{Base, consoles, end_when_init_asks, join, local_socket};
use crate::auth::{Auth, AuthConfig};
use crate::host::power::Power;
use crate::host::system::Machine;
use crate::http::hands::{NotReceived, Promise};
use crate::http::{self, Context, ImageStore, ServerConfig, SystemApi, Upload, VmProcesses};
use crate::install::seed::SeedPlace;
use crate::install::{Environment, Installer};
use crate::metrics::Metrics;
use crate::network::address::Management;

/// How long a volume with a seed may take to appear.
const SEED_WAIT: Duration = Duration::from_secs(5);
/// How often it is looked for.
const SEED_POLL: Duration = Duration::from_millis(500);

pub(super) async fn run(base: &Base) -> Result<()> {
    let installer = Installer::new(Environment::of_machine());
    let (management, address) =
        Management::start(NetworkSettings::default(), None, "/run/resolv.conf".into())
            .context("starting the management address")?;
    let system: Arc<dyn SystemApi> = Arc::new(Machine {
        roots: base.roots.clone(),
        version: base.version.clone(),
        mode: Mode::Install,
        hostname: None,
        state: None,
        management: Some(management),
        logs: base.logs.clone(),
        power: Power::of_machine(),
    });
    let asked = end_when_init_asks(system.clone());
    let context = Context {
        mode: Mode::Install,
        version: base.version.clone(),
        host: None,
        cluster: None,
        auth: Auth::open(AuthConfig::default()).context("making the setup token")?,
        system,
        installer: Some(Arc::new(installer.clone())),
        vms: Arc::new(NoVms),
        images: Arc::new(NoVms),
        tls: None,
        metrics: Metrics::default(),
    };
    let server = ServerConfig {
        tls_listener: None,
        tls: None,
        unix_listener: Some(local_socket()?),
        context: Arc::new(context),
        limits: http::Limits::default(),
        shutdown: base.shutdown.clone(),
    };
    let consoles = consoles(base);
    let seed = tokio::spawn(from_seed(
        base.roots.clone(),
        base.cmdline.clone(),
        installer,
    ));
    http::serve(server).await.context("serving the local API")?;
    asked.abort();
    seed.abort();
    join(consoles).await;
    address.abort();
    Ok(())
}

/// Installs as the seed says, when there is one. A bad seed is shown, and a person may install by hand.
async fn from_seed(
    roots: crate::host::Roots,
    cmdline: crate::host::cmdline::Cmdline,
    installer: Installer,
) {
    let until = tokio::time::Instant::now() + SEED_WAIT;
    let place = loop {
        match SeedPlace::find(&roots, &cmdline) {
            Ok(Some(place)) => break place,
            Ok(None) if tokio::time::Instant::now() > until => {
                info!("no seed: waiting for a person");
                return;
            }
            Ok(None) => tokio::time::sleep(SEED_POLL).await,
            Err(error) => return refuse(&installer, &error),
        }
    };
    match place.load().await {
        Ok(seed) => {
            info!("a seed answers the installer's questions");
            if let Err(error) = installer.unattended(seed).await {
                warn!(error = %error.message, hint = %error.hint, "the unattended install failed");
            }
        }
        Err(error) => refuse(&installer, &error),
    }
}

fn refuse(installer: &Installer, error: &dyn std::error::Error) {
    let message = crate::report::chain(error);
    warn!(error = %message, "the seed is no good");
    installer.fail(&ApiError::new(
        ErrorCode::Invalid,
        message,
        "mend the seed and restart, or install by hand",
    ));
}

/// A machine that is not installed has neither VMs nor images. The routes refuse before these are asked.
struct NoVms;

impl VmProcesses for NoVms {
    fn connect(&self, _: VmId) -> BoxFuture<'_, io::Result<UnixStream>> {
        Box::pin(async { Err(io::ErrorKind::NotFound.into()) })
    }
}

impl ImageStore for NoVms {
    fn receive(
        &self,
        _: ImageId,
        _: Promise,
        _: Upload,
    ) -> BoxFuture<'_, Result<Option<u64>, NotReceived>> {
        Box::pin(async {
            Err(NotReceived::Refused(ApiError::new(
                ErrorCode::NotInstalled,
                "this machine is not installed yet",
                "install it first",
            )))
        })
    }
}
