//! One binary, four applets, chosen before any thread or runtime exists.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use hostd::report::chain;

/// The local socket of the daemon's API.
const SOCKET: &str = "/run/lqx/api.sock";

#[derive(Debug, Parser)]
#[command(name = "hostd", version, about = "limiquantix host daemon")]
struct Arguments {
    #[command(subcommand)]
    applet: Applet,
}

#[derive(Debug, Subcommand)]
enum Applet {
    /// The daemon: started by init, as root.
    Daemon,
    /// The sandboxed process of one VM: started by the daemon, configured through inherited descriptors.
    Vmm,
    /// The sandboxed process that reads one disk image: started by the daemon, configured likewise.
    Convert,
    /// The text console.
    Console {
        /// The terminal to take over; the one it was started on when absent.
        #[arg(long)]
        tty: Option<PathBuf>,
        /// The daemon's local socket.
        #[arg(long, default_value = SOCKET)]
        socket: PathBuf,
    },
}

fn main() -> ExitCode {
    match Arguments::parse().applet {
        Applet::Vmm => hostd::vmm_child::main(),
        Applet::Convert => hostd::convert_child::main(),
        Applet::Console { tty, socket } => match hostd::console::run(tty.as_deref(), &socket) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error),
        },
        Applet::Daemon => match hostd::daemon::run() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(error.as_ref()),
        },
    }
}

fn fail(error: &(dyn std::error::Error + 'static)) -> ExitCode {
    // Init keeps the last lines of standard error and shows them when we do not live.
    let printed = std::io::Write::write_all(
        &mut std::io::stderr(),
        format!("hostd: {}\n", chain(error)).as_bytes(),
    );
    drop(printed);
    ExitCode::FAILURE
}
