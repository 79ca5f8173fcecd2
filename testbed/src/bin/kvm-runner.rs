//! `kvm-runner PROGRAM [ARGUMENT…]`: runs one program of this machine in a throw-away guest that has `/dev/kvm`.
//!
//! See `testbed::runner` for how, and for its settings.

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.is_empty() || arguments[0] == "--help" {
        eprint!("{}", testbed::runner::HELP);
        return ExitCode::from(if arguments.is_empty() { 2 } else { 0 });
    }
    match testbed::runner::main(&arguments) {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(125)),
        Err(error) => {
            eprintln!("kvm-runner: {error:#}");
            ExitCode::from(125)
        }
    }
}
