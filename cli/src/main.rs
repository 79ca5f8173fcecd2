//! `lqx`: limiquantix from the operator's desk.
//!
//! Read `options` (what can be said), then the file of a noun in `commands`. The program knows nothing but the API: what it
//! may do and why not comes from there. Only `output` prints to stdout.
//!
//! Exit status: 0 done, 1 refused or failed, 2 wrong usage, 3 not reachable or not the pinned appliance, 4 not in time.
#![forbid(unsafe_code)]

mod commands;
mod config;
mod failure;
mod options;
mod output;
mod size;
mod terminal;
mod waiting;

use clap::Parser;

use options::Options;

fn main() {
    let options = Options::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("lqx: could not start: {error}");
            std::process::exit(1);
        }
    };
    let status = match runtime.block_on(commands::run(options)) {
        Ok(()) => 0,
        Err(failure) => {
            eprintln!("{}", failure::Report(&failure));
            failure.status()
        }
    };
    // Not by returning: a thread that waits for the keyboard would keep us.
    std::process::exit(status);
}
