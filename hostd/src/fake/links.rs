//! Networks that are entries in a table.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use api::ids::NetworkId;
use futures_util::future::BoxFuture;
use hostd_state::Fault;

use super::{empty_file, lock};
use crate::network::{HostAddress, Links, NetworkPlan};
use crate::vms::fault;

/// Makes no links.
#[derive(Debug, Clone, Default)]
pub struct FakeLinks {
    table: Arc<Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    networks: BTreeMap<NetworkId, NetworkPlan>,
    failing: Option<Fault>,
    made: u64,
}

impl FakeLinks {
    /// The networks there are, as they were last planned.
    pub fn networks(&self) -> Vec<NetworkPlan> {
        lock(&self.table).networks.values().cloned().collect()
    }

    /// How often a network that was not there was made.
    pub fn made(&self) -> u64 {
        lock(&self.table).made
    }

    /// From now on making a network fails so, or works again.
    pub fn fail(&self, fault: Option<Fault>) {
        lock(&self.table).failing = fault;
    }
}

impl Links for FakeLinks {
    async fn list(&self) -> Result<Vec<NetworkId>, Fault> {
        Ok(lock(&self.table).networks.keys().copied().collect())
    }

    async fn ensure(&self, plan: NetworkPlan) -> Result<(), Fault> {
        let mut table = lock(&self.table);
        if let Some(fault) = &table.failing {
            return Err(fault.clone());
        }
        if table.networks.insert(plan.network, plan).is_none() {
            table.made += 1;
        }
        Ok(())
    }

    async fn remove(&self, network: NetworkId) -> Result<(), Fault> {
        lock(&self.table).networks.remove(&network);
        Ok(())
    }

    async fn tap(&self, network: NetworkId, _name: &str) -> Result<OwnedFd, Fault> {
        if !lock(&self.table).networks.contains_key(&network) {
            return Err(fault(
                "network_not_ready",
                "the network's bridge is not there",
                "it is tried again",
            ));
        }
        Ok(empty_file()?.into())
    }
}

/// A host whose own address is nobody's business: for tests in namespaces of their own.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoHostAddress;

impl HostAddress for NoHostAddress {
    fn move_to<'a>(&'a self, _from: &'a str, _to: &'a str) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }
}
