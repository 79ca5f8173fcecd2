//! Which applet? Chosen by the first argument before any thread or runtime exists.

use std::process::ExitCode;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("vmm") => hostd::vmm_child::main(),
        _ => {
            eprintln!("usage: hostd vmm");
            ExitCode::from(2)
        }
    }
}
