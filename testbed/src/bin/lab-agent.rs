//! PID 1 of a test guest. See `testbed::agent`.

fn main() {
    if let Err(error) = testbed::agent::main() {
        eprintln!("lab-agent: {error:#}");
        // PID 1 must not end without a word the host can read; the kernel panics, QEMU ends, the log has the line.
        std::process::exit(1);
    }
}
