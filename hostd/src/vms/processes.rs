//! The way into a VM process for those who only look: its serial console, whose ring it keeps and serves to each viewer by
//! itself, and its counters.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::ids::VmId;
use futures_util::future::BoxFuture;
use tokio::net::UnixStream;
use vmm::control::{Answer, Operation};

use super::launch::VmFolder;
use super::plan::parse_mac;
use crate::http::hands::VmProcesses;
use crate::network::Leases;

/// How long one VM may keep the page of all counters waiting.
const COUNTERS_WITHIN: Duration = Duration::from_secs(1);

/// The VM processes of this host.
#[derive(Debug, Clone)]
pub struct LocalProcesses {
    run: PathBuf,
    leases: Leases,
}

impl LocalProcesses {
    /// Of the VMs whose folders lie in `run`, and the addresses their NICs took.
    pub fn new(run: &Path, leases: Leases) -> Self {
        Self {
            run: run.to_owned(),
            leases,
        }
    }
}

impl VmProcesses for LocalProcesses {
    fn connect(&self, vm: VmId) -> BoxFuture<'_, io::Result<UnixStream>> {
        Box::pin(UnixStream::connect(VmFolder::of(&self.run, vm).serial()))
    }

    fn leased_address(&self, mac: &str) -> Option<String> {
        Some(self.leases.address(parse_mac(mac)?)?.to_string())
    }

    fn counters(&self, vm: VmId) -> BoxFuture<'_, BTreeMap<String, u64>> {
        let path = VmFolder::of(&self.run, vm).control();
        Box::pin(async move {
            let asked = super::control::ask(&path, Operation::Metrics);
            match tokio::time::timeout(COUNTERS_WITHIN, asked).await {
                Ok(Ok(Answer::Metrics { counters })) => counters,
                Ok(Ok(Answer::Done | Answer::Status(_)) | Err(_)) | Err(_) => BTreeMap::new(),
            }
        })
    }
}
