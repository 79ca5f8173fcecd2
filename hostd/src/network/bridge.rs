//! Networks as Linux bridges.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use api::ids::NetworkId;
use hostd_state::Fault;
use hostd_state::networks::Subnet;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::dhcp_server::{self, Scope};
use super::netlink::{Link, Netlink, NetlinkError};
use super::{Guest, HostAddress, Leases, Links, NetworkPlan, PlanKind, tap};
use crate::report::chain;
use crate::vms::fault;
use crate::vms::plan::MTU;

/// What our bridges' aliases begin with.
const ALIAS: &str = "lqx:network:";

/// The bridges of this host.
#[derive(Clone)]
pub struct BridgeLinks {
    netlink: Netlink,
    host: Arc<dyn HostAddress>,
    leases: Leases,
    // One change at a time; held over await on purpose, it guards the kernel's state, not ours.
    servers: Arc<Mutex<BTreeMap<NetworkId, Server>>>,
}

impl std::fmt::Debug for BridgeLinks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BridgeLinks")
            .field("netlink", &self.netlink)
            .finish_non_exhaustive()
    }
}

/// A DHCP server that runs, and for which bridge.
struct Server {
    bridge: u32,
    scope: watch::Sender<Arc<Scope>>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Why a network is not as planned.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// The kernel.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// No such NIC.
    #[error("this host has no NIC `{0}`")]
    NoNic(String),
    /// The NIC is part of something else.
    #[error("`{0}` is a port of another bridge or bond")]
    NicTaken(String),
    /// The host's own address.
    #[error("the host's address could not be moved to the bridge: {0}")]
    Address(String),
    /// The network is not there yet.
    #[error("the network's bridge is not there")]
    NoBridge,
    /// The tap.
    #[error("could not make the tap `{name}`")]
    Tap {
        /// Its name.
        name: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The DHCP server.
    #[error("could not start the DHCP server")]
    Dhcp(#[source] std::io::Error),
}

impl From<BridgeError> for Fault {
    fn from(error: BridgeError) -> Self {
        let (code, next) = match &error {
            BridgeError::NoNic(_) => ("no_such_nic", "name one of the NICs the host's page lists"),
            BridgeError::NicTaken(_) => ("nic_in_use", "one NIC can be the uplink of one network"),
            BridgeError::NoBridge => (
                "network_not_ready",
                "it is tried again when the network is up",
            ),
            BridgeError::Netlink(_)
            | BridgeError::Address(_)
            | BridgeError::Tap { .. }
            | BridgeError::Dhcp(_) => ("network_error", "it is tried again; see the host's log"),
        };
        fault(code, chain(&error), next)
    }
}

impl BridgeLinks {
    /// In this thread's network namespace. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// No routing socket.
    pub fn open(host: Arc<dyn HostAddress>) -> Result<Self, NetlinkError> {
        Ok(Self {
            netlink: Netlink::open()?,
            host,
            leases: Leases::default(),
            servers: Arc::default(),
        })
    }

    /// Who took which address.
    pub fn leases(&self) -> Leases {
        self.leases.clone()
    }

    async fn ensure_now(&self, plan: &NetworkPlan) -> Result<(), BridgeError> {
        let mut servers = self.servers.lock().await;
        match &plan.kind {
            PlanKind::Uplink { nic } => self.ensure_uplink(plan.network, nic).await,
            PlanKind::Isolated { subnet, dhcp } => {
                let bridge = self.ensure_bridge(plan.network, None).await?;
                let address = (subnet.gateway(), subnet.prefix);
                if !self.netlink.addresses(&bridge).await?.contains(&address) {
                    self.netlink
                        .address_add(&bridge, address.0, address.1)
                        .await?;
                }
                match dhcp {
                    true => self.ensure_server(
                        &mut servers,
                        plan.network,
                        &bridge,
                        *subnet,
                        &plan.guests,
                    )?,
                    false => drop(servers.remove(&plan.network)),
                }
                Ok(())
            }
        }
    }

    async fn ensure_uplink(&self, network: NetworkId, nic: &str) -> Result<(), BridgeError> {
        let no_nic = || BridgeError::NoNic(nic.to_owned());
        let port = self
            .netlink
            .link(nic)
            .await?
            .filter(|link| !link.bridge)
            .ok_or_else(no_nic)?;
        // With the NIC's own hardware address, the host keeps its lease and its neighbours' caches stay true.
        let bridge = self.ensure_bridge(network, Some(&port.mac)).await?;
        match port.controller {
            Some(index) if index == bridge.index => {}
            Some(_) => return Err(BridgeError::NicTaken(nic.to_owned())),
            None => {
                info!(%network, nic, bridge = bridge.name, "NIC joins the bridge");
                self.netlink.set_controller(&port, Some(&bridge)).await?;
            }
        }
        if !port.up {
            self.netlink.set_up(&port).await?;
        }
        self.host
            .move_to(nic, &bridge.name)
            .await
            .map_err(BridgeError::Address)
    }

    async fn ensure_bridge(
        &self,
        network: NetworkId,
        mac: Option<&[u8]>,
    ) -> Result<Link, BridgeError> {
        let name = bridge_name(network);
        let alias = format!("{ALIAS}{network}");
        if self.netlink.link(&name).await?.is_none() {
            self.netlink.bridge_create(&name, mac).await?;
            info!(%network, bridge = name, "bridge created");
        }
        let bridge = self
            .netlink
            .link(&name)
            .await?
            .ok_or(BridgeError::NoBridge)?;
        if bridge.alias.as_deref() != Some(&alias) {
            self.netlink.set_alias(&bridge, &alias).await?;
        }
        if !bridge.up {
            self.netlink.set_up(&bridge).await?;
        }
        Ok(bridge)
    }

    fn ensure_server(
        &self,
        servers: &mut BTreeMap<NetworkId, Server>,
        network: NetworkId,
        bridge: &Link,
        subnet: Subnet,
        guests: &[Guest],
    ) -> Result<(), BridgeError> {
        let scope = Arc::new(Scope::new(subnet, guests));
        if scope_is_short(&scope, guests) {
            warn!(%network, "more NICs than addresses: some get none");
        }
        if let Some(server) = servers.get(&network)
            && server.bridge == bridge.index
            && !server.task.is_finished()
        {
            server
                .scope
                .send_if_modified(|now| std::mem::replace(now, Arc::clone(&scope)) != scope);
            return Ok(());
        }
        // The old one first: it may hold the port.
        servers.remove(&network);
        let socket = dhcp_server::bind(&bridge.name).map_err(BridgeError::Dhcp)?;
        let (sender, receiver) = watch::channel(scope);
        let task = tokio::spawn(dhcp_server::serve(socket, receiver, self.leases.clone()));
        servers.insert(
            network,
            Server {
                bridge: bridge.index,
                scope: sender,
                task,
            },
        );
        Ok(())
    }

    async fn remove_now(&self, network: NetworkId) -> Result<(), BridgeError> {
        let mut servers = self.servers.lock().await;
        servers.remove(&network);
        let links = self.netlink.links().await?;
        let name = bridge_name(network);
        let Some(bridge) = links.iter().find(|link| link.name == name && link.bridge) else {
            return Ok(());
        };
        for port in links
            .iter()
            .filter(|link| link.controller == Some(bridge.index))
        {
            // Taps go with their VMs, which are gone before their network is; a NIC goes back to being the host's.
            self.netlink.set_controller(port, None).await?;
            self.host
                .move_to(&bridge.name, &port.name)
                .await
                .map_err(BridgeError::Address)?;
        }
        self.netlink.delete(bridge).await?;
        info!(%network, bridge = name, "bridge removed");
        Ok(())
    }

    async fn tap_now(&self, network: NetworkId, name: &str) -> Result<OwnedFd, BridgeError> {
        let bridge = self
            .netlink
            .link(&bridge_name(network))
            .await?
            .ok_or(BridgeError::NoBridge)?;
        let failed = |source| BridgeError::Tap {
            name: name.to_owned(),
            source,
        };
        let tap = tap::create(name).map_err(failed)?;
        // The host has no business on a guest's end, not even a link-local address.
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
        let link = self.netlink.link(name).await?;
        let link = link.ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))?;
        self.netlink.set_mtu(&link, u32::from(MTU)).await?;
        self.netlink.set_controller(&link, Some(&bridge)).await?;
        self.netlink.set_up(&link).await?;
        Ok(tap)
    }
}

fn scope_is_short(scope: &Scope, guests: &[Guest]) -> bool {
    guests
        .iter()
        .any(|guest| scope.address(guest.mac).is_none())
}

/// Names of links are short, ids are long: the random end of the id.
pub(crate) fn bridge_name(network: NetworkId) -> String {
    let hex: String = network.0.as_bytes()[10..]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("b{hex}")
}

impl Links for BridgeLinks {
    async fn list(&self) -> Result<Vec<NetworkId>, Fault> {
        let links = self.netlink.links().await.map_err(BridgeError::from)?;
        let ours = links
            .iter()
            .filter_map(|link| link.alias.as_deref()?.strip_prefix(ALIAS)?.parse().ok());
        Ok(ours.collect())
    }

    async fn ensure(&self, plan: NetworkPlan) -> Result<(), Fault> {
        Ok(self.ensure_now(&plan).await?)
    }

    async fn remove(&self, network: NetworkId) -> Result<(), Fault> {
        Ok(self.remove_now(network).await?)
    }

    async fn tap(&self, network: NetworkId, name: &str) -> Result<OwnedFd, Fault> {
        Ok(self.tap_now(network, name).await?)
    }
}
