//! The `vmm` applet: one virtual machine, locked in. Inherited descriptors, the jail, `vmm::run`; no tokio, no threads
//! before, no path opened after.
//!
//! Its standard error is the VM's log file; what it says there last is what the supervisor tells when it ends badly.

use std::io::Read;
use std::os::fd::RawFd;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};
use vmm::config::VmmConfig;
use vmm::control::ExitReason;

use crate::vms::jail::{self, JailConfig, Landlocked};

/// Where the configuration document is.
pub const CONFIG_FD: RawFd = jail::FIRST_FD;
/// Where the go-ahead comes from: one byte once the daemon has written down that this child exists.
pub const GO_FD: RawFd = jail::FIRST_FD + 1;
/// The first descriptor that the configuration names.
pub const DEVICE_FDS: RawFd = jail::FIRST_FD + 2;

/// What the daemon hands over on [`CONFIG_FD`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChildConfig {
    /// How to lock itself in.
    pub jail: JailConfig,
    /// What to run then.
    pub vmm: VmmConfig,
}

/// Why the child did not get as far as running its machine.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// The document could not be read.
    #[error("could not read the configuration")]
    Read(#[source] std::io::Error),
    /// The document is not one.
    #[error("the configuration is not valid")]
    Parse(#[from] serde_json::Error),
    /// The daemon died before it had written down that this child exists.
    #[error("the daemon went away before the go-ahead")]
    NoGo,
    /// The jail.
    #[error("could not enter the jail")]
    Jail(#[from] jail::EnterError),
}

/// Runs the machine until it ends. The exit status is 0 however the guest ended, 1 when the VMM failed, 2 when it was
/// never run.
pub fn main() -> ExitCode {
    match run() {
        Ok(ExitReason::Error { message }) => {
            eprintln!("{message}");
            ExitCode::from(1)
        }
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", crate::report::chain(&error));
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<ExitReason, ChildError> {
    let config = {
        let mut text = String::new();
        jail::inherited_file(CONFIG_FD)
            .read_to_string(&mut text)
            .map_err(ChildError::Read)?;
        serde_json::from_str::<ChildConfig>(&text)?
    };
    let mut go = [0; 1];
    jail::inherited_file(GO_FD)
        .read_exact(&mut go)
        .map_err(|_| ChildError::NoGo)?;
    match jail::enter(&config.jail)? {
        Landlocked::Fully | Landlocked::Partly => {}
        Landlocked::No => eprintln!("this kernel has no Landlock; the other walls stand"),
    }
    Ok(vmm::run(config.vmm))
}
