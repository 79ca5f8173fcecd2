//! The way to a VM's serial console: the VM process keeps the ring and serves each viewer by itself.

use std::io;
use std::path::{Path, PathBuf};

use api::ids::VmId;
use futures_util::future::BoxFuture;
use tokio::net::UnixStream;

use super::launch::VmFolder;
use super::plan::parse_mac;
use crate::http::hands::Consoles;
use crate::network::Leases;

/// Serial consoles of this host's VMs.
#[derive(Debug, Clone)]
pub struct SerialConsoles {
    run: PathBuf,
    leases: Leases,
}

impl SerialConsoles {
    /// Of the VMs whose folders lie in `run`, and the addresses their NICs took.
    pub fn new(run: &Path, leases: Leases) -> Self {
        Self {
            run: run.to_owned(),
            leases,
        }
    }
}

impl Consoles for SerialConsoles {
    fn connect(&self, vm: VmId) -> BoxFuture<'_, io::Result<UnixStream>> {
        Box::pin(UnixStream::connect(VmFolder::of(&self.run, vm).serial()))
    }

    fn leased_address(&self, mac: &str) -> Option<String> {
        Some(self.leases.address(parse_mac(mac)?)?.to_string())
    }
}
