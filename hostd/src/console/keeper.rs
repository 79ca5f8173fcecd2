//! Keeps a console process on each of the machine's terminals, for as long as the daemon lives.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Between the end of a console and the next one: a terminal that is not there must not cost a CPU.
const RESTART_AFTER: Duration = Duration::from_secs(3);

/// The terminals that the kernel was told to use as consoles: `console=tty0` means the first virtual terminal.
pub fn terminals(sys: &Path) -> Vec<PathBuf> {
    let active = std::fs::read_to_string(sys.join("class/tty/console/active")).unwrap_or_default();
    let names = active.split_whitespace().map(|name| match name {
        "tty0" => "tty1",
        other => other,
    });
    names.map(|name| Path::new("/dev").join(name)).collect()
}

/// Runs `hostd console` on `tty` again and again until shutdown.
pub async fn keep(tty: PathBuf, socket: PathBuf, shutdown: CancellationToken) {
    loop {
        let mut console = Command::new("/proc/self/exe");
        console.arg("console").arg("--tty").arg(&tty);
        console.arg("--socket").arg(&socket);
        console.env("TERM", "linux").kill_on_drop(true);
        let ended = match console.spawn() {
            Ok(mut child) => tokio::select! {
                status = child.wait() => status.map(|status| status.to_string()),
                () = shutdown.cancelled() => return,
            },
            Err(error) => Err(error),
        };
        match ended {
            Ok(status) => info!(tty = %tty.display(), status, "the console ended"),
            Err(error) => warn!(tty = %tty.display(), %error, "the console could not be run"),
        }
        tokio::select! {
            () = tokio::time::sleep(RESTART_AFTER) => {}
            () = shutdown.cancelled() => return,
        }
    }
}
