//! Links, addresses and the default route, over rtnetlink.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use futures_util::TryStreamExt as _;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

use super::Ipv4Net;

/// The kernel refused.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// No netlink socket.
    #[error("could not open a netlink socket")]
    Open(#[source] std::io::Error),
    /// A request failed.
    #[error("could not {0}")]
    Request(&'static str, #[source] rtnetlink::Error),
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mac: Vec<u8>,
    pub(super) is_up: bool,
    pub(super) has_carrier: bool,
    /// The bridge it is a port of.
    pub(super) controller: Option<u32>,
    /// There is a device behind it.
    pub(super) is_physical: bool,
}

/// A netlink socket of our own.
#[derive(Debug)]
pub(super) struct Kernel {
    handle: Handle,
}

impl Kernel {
    pub(super) fn open() -> Result<Self, KernelError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(KernelError::Open)?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// All links, by name.
    pub(super) async fn links(&self) -> Result<Vec<Link>, KernelError> {
        let messages: Vec<LinkMessage> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|e| KernelError::Request("list the links", e))?;
        let mut links: Vec<Link> = messages.into_iter().filter_map(link).collect();
        links.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(links)
    }

    pub(super) async fn set_up(&self, link: &Link) -> Result<(), KernelError> {
        let message = LinkUnspec::new_with_index(link.index).up().build();
        let done = self.handle.link().set(message).execute().await;
        done.map_err(|e| KernelError::Request("set a link up", e))
    }

    /// The IPv4 addresses of a link.
    pub(super) async fn addresses(&self, link: &Link) -> Result<Vec<Ipv4Net>, KernelError> {
        let found = self
            .handle
            .address()
            .get()
            .set_link_index_filter(link.index);
        let messages: Vec<_> = found
            .execute()
            .try_collect()
            .await
            .map_err(|e| KernelError::Request("list the addresses", e))?;
        let nets = messages.into_iter().filter_map(|message| {
            let prefix = message.header.prefix_len;
            message
                .attributes
                .into_iter()
                .find_map(|attribute| match attribute {
                    AddressAttribute::Local(IpAddr::V4(address)) => {
                        Some(Ipv4Net { address, prefix })
                    }
                    _ => None,
                })
        });
        Ok(nets.collect())
    }

    /// The link has exactly this IPv4 address, and the default route goes over it.
    pub(super) async fn apply(
        &self,
        link: &Link,
        net: Ipv4Net,
        gateway: Option<Ipv4Addr>,
    ) -> Result<(), KernelError> {
        let has = self.addresses(link).await?;
        if !has.contains(&net) {
            let add = self
                .handle
                .address()
                .add(link.index, IpAddr::V4(net.address), net.prefix);
            add.replace()
                .execute()
                .await
                .map_err(|e| KernelError::Request("add the address", e))?;
        }
        for other in has.into_iter().filter(|other| *other != net) {
            self.remove_address(link, other).await?;
        }
        let stale = self.default_routes(link.index).await?;
        for via in stale.into_iter().filter(|via| Some(*via) != gateway) {
            self.remove_default(link.index, via).await?;
        }
        let Some(gateway) = gateway else {
            return Ok(());
        };
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .gateway(gateway)
            .output_interface(link.index)
            .build();
        let set = self.handle.route().add(route).replace().execute().await;
        set.map_err(|e| KernelError::Request("set the default route", e))
    }

    /// Takes an address and its default route away; what is not there is fine.
    pub(super) async fn remove(
        &self,
        name: &str,
        net: Ipv4Net,
        gateway: Option<Ipv4Addr>,
    ) -> Result<(), KernelError> {
        let links = self.links().await?;
        let Some(link) = links.iter().find(|link| link.name == name) else {
            return Ok(());
        };
        if let Some(gateway) = gateway {
            self.remove_default(link.index, gateway).await?;
        }
        self.remove_address(link, net).await
    }

    async fn remove_address(&self, link: &Link, net: Ipv4Net) -> Result<(), KernelError> {
        let message = rtnetlink::AddressMessageBuilder::<Ipv4Addr>::new()
            .index(link.index)
            .address(net.address, net.prefix)
            .build();
        match self.handle.address().del(message).execute().await {
            Err(error) if !is_absent(&error) => {
                Err(KernelError::Request("remove an address", error))
            }
            _ => Ok(()),
        }
    }

    /// The gateways of the default routes over a link.
    async fn default_routes(&self, index: u32) -> Result<Vec<Ipv4Addr>, KernelError> {
        let filter = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let messages: Vec<_> = self
            .handle
            .route()
            .get(filter)
            .execute()
            .try_collect()
            .await
            .map_err(|e| KernelError::Request("list the routes", e))?;
        let gateways = messages.into_iter().filter_map(|route| {
            let over = route.attributes.contains(&RouteAttribute::Oif(index));
            if !over || route.header.destination_prefix_length != 0 {
                return None;
            }
            route
                .attributes
                .into_iter()
                .find_map(|attribute| match attribute {
                    RouteAttribute::Gateway(RouteAddress::Inet(via)) => Some(via),
                    _ => None,
                })
        });
        Ok(gateways.collect())
    }

    async fn remove_default(&self, index: u32, gateway: Ipv4Addr) -> Result<(), KernelError> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .gateway(gateway)
            .output_interface(index)
            .build();
        match self.handle.route().del(route).execute().await {
            Err(error) if !is_absent(&error) => {
                Err(KernelError::Request("remove a default route", error))
            }
            _ => Ok(()),
        }
    }
}

/// ENODEV, EADDRNOTAVAIL, ESRCH: it is not there.
fn is_absent(error: &rtnetlink::Error) -> bool {
    match error {
        rtnetlink::Error::NetlinkError(message) => {
            [-libc::ENODEV, -libc::EADDRNOTAVAIL, -libc::ESRCH].contains(&message.raw_code())
        }
        _ => false,
    }
}

fn link(message: LinkMessage) -> Option<Link> {
    let up = message.header.flags.contains(LinkFlags::Up);
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: Vec::new(),
        is_up: up,
        has_carrier: false,
        controller: None,
        is_physical: false,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(mac) => link.mac = mac,
            LinkAttribute::Carrier(carrier) => link.has_carrier = up && carrier == 1,
            LinkAttribute::Controller(index) => link.controller = Some(index),
            _ => {}
        }
    }
    link.is_physical = Path::new("/sys/class/net")
        .join(&link.name)
        .join("device")
        .exists();
    (!link.name.is_empty()).then_some(link)
}
