//! The daemon: builds every part, starts them in order, joins them in reverse. The only folder that knows all of them.
//!
//! ```text
//! log ─► which install did we boot from? ─┬─ none of ours ─► install: installer, local API, consoles, seed
//!                                         ├─ ours ─────────► serve: disks, address, cluster, VMs, API, consoles
//!                                         └─ ours, broken ─► rescue: says why, writes nothing
//! ```

mod install;
mod serve;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use api::system::PowerAction;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use crate::console::keeper;
use crate::host::Roots;
use crate::host::cmdline::Cmdline;
use crate::host::discover::{Discovered, came_from_disk, discover};
use crate::host::logs::Ring;
use crate::http::SystemApi;

/// Our folder of sockets and the like; gone with a restart of the machine.
const RUN: &str = "/run/lqx";
/// The local API's socket.
const SOCKET: &str = "/run/lqx/api.sock";
/// Log lines kept in memory: about 2 MiB.
const LOG_LINES: usize = 10_000;
/// Disks may appear late after power-on.
const DISK_WAIT: Duration = Duration::from_secs(20);
/// How often it is looked for them.
const DISK_POLL: Duration = Duration::from_millis(100);

/// What every mode needs.
struct Base {
    roots: Roots,
    cmdline: Cmdline,
    version: String,
    logs: Ring,
    shutdown: CancellationToken,
}

/// Runs until SIGTERM. VMs are left running: init or the next daemon sees to them.
pub fn run() -> Result<()> {
    let logs = Ring::new(LOG_LINES);
    start_log(&logs)?;
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow!("a second TLS provider is linked in"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(start(logs))
}

fn start_log(logs: &Ring) -> Result<()> {
    let filter = || EnvFilter::new("info,openraft=warn");
    // Init keeps the last lines of standard error, and shows them when the daemon does not live.
    let stderr = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .without_time()
        .with_filter(EnvFilter::new("warn,openraft=error"));
    tracing_subscriber::registry()
        .with(logs.layer().with_filter(filter()))
        .with(stderr)
        .try_init()
        .context("starting the log")
}

async fn start(logs: Ring) -> Result<()> {
    let roots = Roots::default();
    let base = Base {
        cmdline: Cmdline::of_kernel(&roots),
        version: crate::host::version(),
        logs,
        shutdown: CancellationToken::new(),
        roots,
    };
    info!(version = %base.version, "hostd starts");
    for word in &base.cmdline.unknown {
        warn!(%word, "the kernel command line has a word that is not known");
    }
    std::fs::create_dir_all(RUN).with_context(|| format!("making {RUN}"))?;
    let end = tokio::spawn(end_on_signal(base.shutdown.clone()));
    let outcome = match find_install(&base).await {
        Discovered::Install { why } => {
            info!(%why, "install mode");
            install::run(&base).await
        }
        Discovered::Run(install) => serve::run(&base, &install).await,
        Discovered::Rescue { cause, hint } => Err(anyhow!("{cause}; {hint}")),
    };
    end.abort();
    outcome
}

/// Looks until the answer cannot become better.
async fn find_install(base: &Base) -> Discovered {
    let until = tokio::time::Instant::now() + DISK_WAIT;
    loop {
        let found = discover(&base.roots, &base.cmdline);
        let settled = matches!(found, Discovered::Run(_))
            || !came_from_disk(&base.roots, &base.cmdline)
            || tokio::time::Instant::now() > until;
        if settled {
            return found;
        }
        tokio::time::sleep(DISK_POLL).await;
    }
}

async fn end_on_signal(shutdown: CancellationToken) {
    let (Ok(mut term), Ok(mut int)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        warn!("signals cannot be received");
        return;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    info!("asked to end");
    shutdown.cancel();
}

/// Init's way to say that the machine is to end: the power button was pressed, for instance. Ends with the daemon.
fn end_when_init_asks(system: Arc<dyn SystemApi>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let (Ok(mut off), Ok(mut restart)) = (
            signal(SignalKind::user_defined1()),
            signal(SignalKind::user_defined2()),
        ) else {
            warn!("signals of init cannot be received");
            return;
        };
        loop {
            let action = tokio::select! {
                _ = off.recv() => PowerAction::PowerOff,
                _ = restart.recv() => PowerAction::Reboot,
            };
            info!(?action, "init asks for the end of the machine");
            if let Err(error) = system.power(action).await {
                warn!(error = %error.message, "the machine could not be switched");
            }
        }
    })
}

/// The local socket: only root may connect, and is the administrator at the console.
fn local_socket() -> Result<UnixListener> {
    // Left by a daemon that was killed.
    match std::fs::remove_file(SOCKET) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).context("removing the old local socket");
        }
        _ => {}
    }
    let listener = UnixListener::bind(SOCKET).context("making the local socket")?;
    std::fs::set_permissions(SOCKET, std::fs::Permissions::from_mode(0o600))
        .context("protecting the local socket")?;
    Ok(listener)
}

/// A console on each terminal of the machine.
fn consoles(base: &Base) -> Vec<JoinHandle<()>> {
    let keep = |tty| {
        let socket = Path::new(SOCKET).to_path_buf();
        tokio::spawn(keeper::keep(tty, socket, base.shutdown.clone()))
    };
    keeper::terminals(&base.roots.sys)
        .into_iter()
        .map(keep)
        .collect()
}

/// Joins what ends by itself after shutdown.
async fn join(tasks: Vec<JoinHandle<()>>) {
    for task in tasks {
        if let Err(error) = task.await
            && error.is_panic()
        {
            warn!(%error, "a part of the daemon panicked");
        }
    }
}
