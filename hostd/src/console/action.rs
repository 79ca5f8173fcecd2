//! All that can be asked of the API.

use api::install::InstallRequest;
use api::system::{NetworkSettings, PowerAction};

/// One request to the daemon, made by a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Install onto a disk.
    Install(InstallRequest),
    /// Restart or switch off.
    Power(PowerAction),
    /// Set the management address.
    NetworkSet(NetworkSettings),
    /// Start a VM, by id.
    VmStart(String),
    /// Ask a VM's guest to power off, by id.
    VmStop(String),
}
