//! Guest networks on this host: what the reconcilers need ([`Links`]), and bridges that do it ([`bridge`]).
//!
//! ```text
//!            uplink                                     isolated
//!   eth0 ─┐                                        10.77.0.1 (host, gateway, DHCP)
//!         ├─ bridge (the host's address)                └─ bridge ─┬─ tap (guest)
//!   tap ──┘                                                        └─ tap (guest)
//! ```
//! The names of our bridges are short forms of the network's id; what they are for is in their alias, so that the
//! kernel itself remembers what is ours. The host's own addresses are [`address`]'s work, not ours.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError, RwLock};

use api::ids::NetworkId;
use futures_util::future::BoxFuture;
use hostd_state::Fault;
use hostd_state::networks::Subnet;

pub mod address;
pub mod bridge;
pub mod dhcp_server;
pub mod firewall;
pub mod netlink;
pub mod tap;

/// A hardware address.
pub type Mac = [u8; 6];

/// A network that shall be on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkPlan {
    /// Which.
    pub network: NetworkId,
    /// What it is made of.
    pub kind: PlanKind,
    /// The NICs of this host's VMs on it, the longest known first.
    pub guests: Vec<Guest>,
}

/// What a network is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlanKind {
    /// A bridge on a physical NIC.
    Uplink {
        /// The NIC's name.
        nic: String,
    },
    /// A bridge of its own.
    Isolated {
        /// Its addresses.
        subnet: Subnet,
        /// The host hands them out.
        dhcp: bool,
    },
}

/// A NIC of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// Its hardware address.
    pub mac: Mac,
    /// The VM's name.
    pub name: String,
}

/// The hands that make links. The other implementation is `fake::FakeLinks`.
pub trait Links: Send + Sync + 'static {
    /// The networks that are on this host, complete or not.
    fn list(&self) -> impl Future<Output = Result<Vec<NetworkId>, Fault>> + Send;

    /// Makes a network as planned, or repairs what is missing of it. Twice is once.
    fn ensure(&self, plan: NetworkPlan) -> impl Future<Output = Result<(), Fault>> + Send;

    /// Removes a network. Absent is fine.
    fn remove(&self, network: NetworkId) -> impl Future<Output = Result<(), Fault>> + Send;

    /// Makes a tap and attaches it. It is gone with the last copy of its descriptor.
    fn tap(
        &self,
        network: NetworkId,
        name: &str,
    ) -> impl Future<Output = Result<OwnedFd, Fault>> + Send;
}

/// The host's own addresses, as far as a bridge on an uplink has to do with them.
pub trait HostAddress: Send + Sync + 'static {
    /// The host's addresses and routes on the link `from` belong on the link `to` from now on, also after a restart.
    /// Twice is once; a link without addresses is fine.
    fn move_to<'a>(&'a self, from: &'a str, to: &'a str) -> BoxFuture<'a, Result<(), String>>;
}

impl HostAddress for address::Management {
    fn move_to<'a>(&'a self, from: &'a str, to: &'a str) -> BoxFuture<'a, Result<(), String>> {
        let here = self.state().interface;
        Box::pin(async move {
            // It may be there already, or live on quite another NIC.
            match here.as_deref() == Some(from) {
                true => Self::move_to(self, to)
                    .await
                    .map_err(|error| error.to_string()),
                false => Ok(()),
            }
        })
    }
}

/// Which address was handed to which NIC. Not agreed: only this host knows, and only since its daemon runs.
#[derive(Debug, Clone, Default)]
pub struct Leases {
    leases: Arc<RwLock<BTreeMap<Mac, Ipv4Addr>>>,
}

impl Leases {
    /// The address this NIC took.
    pub fn address(&self, mac: Mac) -> Option<Ipv4Addr> {
        self.leases
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&mac)
            .copied()
    }

    pub(crate) fn record(&self, mac: Mac, address: Ipv4Addr) {
        self.leases
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(mac, address);
    }
}
