//! The kernel's routing socket, and nothing but it.
//!
//! It belongs to the network namespace of the thread that opens it.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use futures_util::TryStreamExt;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec};
use tokio::sync::Mutex;

/// A network link of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What it is for, in our own words, if it is ours.
    pub alias: Option<String>,
    /// It is a bridge.
    pub bridge: bool,
    /// The index of the bridge it is a port of.
    pub controller: Option<u32>,
    /// Its hardware address.
    pub mac: Vec<u8>,
    /// It is administratively up.
    pub up: bool,
}

/// What the kernel refused.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The socket.
    #[error("could not open the routing socket")]
    Open(#[from] std::io::Error),
    /// A request.
    #[error("could not {step} `{link}`: {reason}")]
    Request {
        /// What was tried.
        step: &'static str,
        /// With which link.
        link: String,
        /// What the kernel said.
        reason: String,
    },
}

/// The socket. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Netlink {
    handle: Handle,
    /// A socket can answer one dump at a time; the kernel refuses a second one with EBUSY.
    dumping: Arc<Mutex<()>>,
}

fn refused(step: &'static str, link: &str) -> impl FnOnce(rtnetlink::Error) -> NetlinkError {
    move |error| {
        let reason = match &error {
            // The crate's own text is a dump of the message.
            rtnetlink::Error::NetlinkError(message) => message.to_io().to_string(),
            other => other.to_string(),
        };
        NetlinkError::Request {
            step,
            link: link.to_owned(),
            reason,
        }
    }
}

impl Netlink {
    /// Opens the socket in this thread's network namespace. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn open() -> Result<Self, NetlinkError> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        // Ends by itself when the last handle is dropped.
        tokio::spawn(connection);
        Ok(Self {
            handle,
            dumping: Arc::default(),
        })
    }

    /// All links.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        let _alone = self.dumping.lock().await;
        let messages = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect::<Vec<_>>()
            .await;
        Ok(messages
            .map_err(refused("list", "all links"))?
            .into_iter()
            .map(link)
            .collect())
    }

    /// The link of this name.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn link(&self, name: &str) -> Result<Option<Link>, NetlinkError> {
        Ok(self
            .links()
            .await?
            .into_iter()
            .find(|link| link.name == name))
    }

    /// Makes a bridge. With a hardware address it keeps that one, else the kernel chooses.
    ///
    /// # Errors
    /// There is something of that name, or what else the kernel said.
    pub async fn bridge_create(&self, name: &str, mac: Option<&[u8]>) -> Result<(), NetlinkError> {
        let mut bridge = LinkBridge::new(name);
        if let Some(mac) = mac {
            bridge = bridge.address(mac.to_vec());
        }
        self.handle
            .link()
            .add(bridge.build())
            .execute()
            .await
            .map_err(refused("create the bridge", name))
    }

    /// Names what a link is for.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn set_alias(&self, link: &Link, alias: &str) -> Result<(), NetlinkError> {
        self.set(link, "name", |message| message.alias(alias)).await
    }

    /// Makes a link a port of a bridge, or of none.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn set_controller(
        &self,
        link: &Link,
        bridge: Option<&Link>,
    ) -> Result<(), NetlinkError> {
        match bridge {
            Some(bridge) => {
                self.set(link, "enslave", |message| message.controller(bridge.index))
                    .await
            }
            None => {
                self.set(link, "release", |message| message.nocontroller())
                    .await
            }
        }
    }

    /// Sets the largest frame payload.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn set_mtu(&self, link: &Link, mtu: u32) -> Result<(), NetlinkError> {
        self.set(link, "set the MTU of", |message| message.mtu(mtu))
            .await
    }

    /// Brings a link up.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn set_up(&self, link: &Link) -> Result<(), NetlinkError> {
        self.set(link, "bring up", LinkMessageBuilder::up).await
    }

    async fn set(
        &self,
        link: &Link,
        step: &'static str,
        change: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
    ) -> Result<(), NetlinkError> {
        let message = change(LinkUnspec::new_with_index(link.index)).build();
        self.handle
            .link()
            .set(message)
            .execute()
            .await
            .map_err(refused(step, &link.name))
    }

    /// Removes a link.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn delete(&self, link: &Link) -> Result<(), NetlinkError> {
        self.handle
            .link()
            .del(link.index)
            .execute()
            .await
            .map_err(refused("delete", &link.name))
    }

    /// The IPv4 addresses of a link, with their prefix lengths.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn addresses(&self, link: &Link) -> Result<Vec<(Ipv4Addr, u8)>, NetlinkError> {
        let _alone = self.dumping.lock().await;
        let request = self
            .handle
            .address()
            .get()
            .set_link_index_filter(link.index);
        let messages = request.execute().try_collect::<Vec<_>>().await;
        let messages = messages.map_err(refused("list the addresses of", &link.name))?;
        let v4 = messages.iter().flat_map(|message| {
            let prefix = message.header.prefix_len;
            message
                .attributes
                .iter()
                .filter_map(move |attribute| match attribute {
                    AddressAttribute::Address(IpAddr::V4(address)) => Some((*address, prefix)),
                    _ => None,
                })
        });
        Ok(v4.collect())
    }

    /// Gives a link an IPv4 address.
    ///
    /// # Errors
    /// It has it, or what else the kernel said.
    pub async fn address_add(
        &self,
        link: &Link,
        address: Ipv4Addr,
        prefix: u8,
    ) -> Result<(), NetlinkError> {
        let request = self
            .handle
            .address()
            .add(link.index, IpAddr::V4(address), prefix);
        request
            .execute()
            .await
            .map_err(refused("give an address to", &link.name))
    }
}

fn link(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        alias: None,
        bridge: false,
        controller: None,
        mac: Vec::new(),
        up: message.header.flags.contains(LinkFlags::Up),
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::Controller(index) => link.controller = Some(index),
            LinkAttribute::Address(mac) => link.mac = mac,
            LinkAttribute::LinkInfo(infos) => {
                link.bridge = infos
                    .iter()
                    .any(|info| matches!(info, LinkInfo::Kind(InfoKind::Bridge)));
            }
            _ => {}
        }
    }
    link
}
