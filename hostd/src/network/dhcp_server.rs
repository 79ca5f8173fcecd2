//! A small DHCP server for one isolated network (RFC 2131): it listens on that bridge only, knows the NICs of our VMs and
//! answers nobody else. Deciding is pure ([`Scope::answer`]); the socket is below.
//!
//! An address is a function of the NICs known, so nothing has to be stored: each NIC, the longest known first, gets the
//! address its MAC hashes to, or the next free one. A NIC keeps its address as long as no longer-known one that it had
//! to give way to goes away.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use dhcproto::v4::{DhcpOption, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable};
use hostd_state::networks::Subnet;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tracing::{info, warn};

use super::{Guest, Leases, Mac};
use crate::report::chain;

/// How long a guest may keep an address without asking again, seconds.
const LEASE_S: u32 = 3600;
/// The ports of RFC 2131 §4.1.
const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
/// The largest request that is read: an Ethernet frame's payload.
const REQUEST_MAX_BYTES: usize = 1500;

/// A network's addresses and who has which.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    subnet: Subnet,
    hosts: BTreeMap<Mac, (Ipv4Addr, String)>,
}

impl Scope {
    /// Gives each guest its address. Those that do not fit into the subnet get none.
    pub fn new(subnet: Subnet, guests: &[Guest]) -> Self {
        let first = u32::from(subnet.gateway()) + 1;
        let count = u32::from(subnet.broadcast()) - first;
        let mut hosts = BTreeMap::new();
        let mut taken = std::collections::BTreeSet::new();
        for guest in guests {
            let start = hash(guest.mac) % count;
            let free = (0..count)
                .map(|step| first + (start + step) % count)
                .find(|address| taken.insert(*address));
            if let Some(address) = free {
                hosts.insert(guest.mac, (Ipv4Addr::from(address), guest.name.clone()));
            }
        }
        Self { subnet, hosts }
    }

    /// The address of a NIC.
    pub fn address(&self, mac: Mac) -> Option<Ipv4Addr> {
        self.hosts.get(&mac).map(|(address, _)| *address)
    }

    /// The reply to a request, if it deserves one, and whether it is a promise.
    pub fn answer(&self, request: &Message) -> Option<Message> {
        let direct = request.opcode() == Opcode::BootRequest && request.giaddr().is_unspecified();
        let mac = Mac::try_from(request.chaddr()).ok().filter(|_| direct)?;
        let (address, name) = self.hosts.get(&mac)?;
        let server = self.subnet.gateway();
        match request.opts().msg_type()? {
            MessageType::Discover => {
                Some(self.reply(request, MessageType::Offer, Some((*address, name))))
            }
            MessageType::Request => {
                let chosen = match request.opts().get(OptionCode::ServerIdentifier) {
                    Some(DhcpOption::ServerIdentifier(chosen)) => *chosen,
                    _ => server,
                };
                if chosen != server {
                    return None;
                }
                let wanted = match request.opts().get(OptionCode::RequestedIpAddress) {
                    Some(DhcpOption::RequestedIpAddress(wanted)) => *wanted,
                    _ => request.ciaddr(),
                };
                Some(match wanted == *address {
                    true => self.reply(request, MessageType::Ack, Some((*address, name))),
                    false => self.reply(request, MessageType::Nak, None),
                })
            }
            MessageType::Inform => Some(self.reply(request, MessageType::Ack, None)),
            // Its address is its own; there is nothing to give back.
            MessageType::Decline | MessageType::Release => None,
            // Not for a server, or not for this one.
            _ => None,
        }
    }

    fn reply(
        &self,
        request: &Message,
        kind: MessageType,
        lease: Option<(Ipv4Addr, &String)>,
    ) -> Message {
        let nothing = Ipv4Addr::UNSPECIFIED;
        let yours = lease.map_or(nothing, |(address, _)| address);
        let mut reply = Message::new_with_id(
            request.xid(),
            nothing,
            yours,
            nothing,
            nothing,
            request.chaddr(),
        );
        reply
            .set_opcode(Opcode::BootReply)
            .set_flags(request.flags());
        let options = reply.opts_mut();
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::ServerIdentifier(self.subnet.gateway()));
        if kind == MessageType::Nak {
            return reply;
        }
        reply.set_ciaddr(request.ciaddr());
        let options = reply.opts_mut();
        let mask = u32::MAX << (32 - u32::from(self.subnet.prefix));
        options.insert(DhcpOption::SubnetMask(Ipv4Addr::from(mask)));
        options.insert(DhcpOption::BroadcastAddr(self.subnet.broadcast()));
        options.insert(DhcpOption::Router(vec![self.subnet.gateway()]));
        if let Some((_, name)) = lease {
            options.insert(DhcpOption::Hostname(name.clone()));
            options.insert(DhcpOption::AddressLeaseTime(LEASE_S));
            options.insert(DhcpOption::Renewal(LEASE_S / 2));
            options.insert(DhcpOption::Rebinding(LEASE_S / 8 * 7));
        }
        reply
    }
}

/// FNV-1a: spread evenly, the same for ever.
fn hash(mac: Mac) -> u32 {
    mac.iter().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    })
}

/// Opens the server's socket on one link, in this thread's network namespace. Must be called in a tokio runtime.
///
/// # Errors
/// What the kernel said.
pub fn bind(link: &str) -> io::Result<UdpSocket> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with, sockopt};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        flags,
        Some(ipproto::UDP),
    )?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_broadcast(&socket, true)?;
    let socket = UdpSocket::from_std(std::net::UdpSocket::from(socket))?;
    // First to the link, then to the port: other servers, on other links, have the same port.
    socket.bind_device(Some(link.as_bytes()))?;
    rustix::net::bind(
        &socket,
        &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, SERVER_PORT),
    )?;
    Ok(socket)
}

/// Serves a network until its task is ended. Takes a new scope as soon as there is one.
pub async fn serve(socket: UdpSocket, scope: watch::Receiver<Arc<Scope>>, leases: Leases) {
    let mut buffer = [0; REQUEST_MAX_BYTES];
    loop {
        let length = match socket.recv_from(&mut buffer).await {
            Ok((length, _)) => length,
            Err(error) => {
                // The bridge went away, or is down for a moment; who made it makes it again, and this server with it.
                warn!(error = %chain(&error), "the DHCP server can not receive");
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                continue;
            }
        };
        let Ok(request) = Message::decode(&mut Decoder::new(&buffer[..length])) else {
            continue;
        };
        let scope = Arc::clone(&scope.borrow());
        let Some(reply) = scope.answer(&request) else {
            continue;
        };
        let kind = reply.opts().msg_type();
        // Who has an address already can be reached there; all others listen to everything (RFC 2131 §4.1).
        let to = match (kind, request.ciaddr().is_unspecified()) {
            (Some(MessageType::Nak), _) | (_, true) => Ipv4Addr::BROADCAST,
            (_, false) => request.ciaddr(),
        };
        let sent = match reply.to_vec() {
            Ok(bytes) => socket.send_to(&bytes, (to, CLIENT_PORT)).await.map(drop),
            Err(error) => Err(io::Error::other(error)),
        };
        match (sent, Mac::try_from(request.chaddr())) {
            (Ok(()), Ok(mac))
                if kind == Some(MessageType::Ack) && !reply.yiaddr().is_unspecified() =>
            {
                info!(address = %reply.yiaddr(), "DHCP lease");
                leases.record(mac, reply.yiaddr());
            }
            (Ok(()), _) => {}
            (Err(error), _) => warn!(error = %chain(&error), %to, "a DHCP reply could not be sent"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        Subnet::parse(text).unwrap()
    }

    fn guests(count: u8) -> Vec<Guest> {
        (0..count)
            .map(|n| Guest {
                mac: [2, 0, 0, 0, 0, n],
                name: format!("vm{n}"),
            })
            .collect()
    }

    fn request(mac: Mac, kind: MessageType) -> Message {
        let mut message = Message::default();
        message
            .set_chaddr(&mac)
            .opts_mut()
            .insert(DhcpOption::MessageType(kind));
        message
    }

    #[test]
    fn each_nic_has_its_own_address_and_keeps_it_when_others_come() {
        let few = Scope::new(subnet("10.77.0.0/24"), &guests(20));
        let many = Scope::new(subnet("10.77.0.0/24"), &guests(200));
        let mut seen = std::collections::BTreeSet::new();
        for guest in guests(200) {
            let address = many.address(guest.mac).unwrap();
            assert!(seen.insert(address));
            assert!(
                address > Ipv4Addr::new(10, 77, 0, 1) && address < Ipv4Addr::new(10, 77, 0, 255)
            );
        }
        for guest in guests(20) {
            assert_eq!(few.address(guest.mac), many.address(guest.mac));
        }
    }

    #[test]
    fn a_full_subnet_has_an_address_for_as_many_as_fit() {
        // Eight addresses: the net's, the host's, the broadcast's, and five for guests.
        let scope = Scope::new(subnet("10.77.0.0/29"), &guests(9));
        assert_eq!(scope.hosts.len(), 5);
    }

    #[test]
    fn strangers_and_relays_get_no_answer() {
        let scope = Scope::new(subnet("10.77.0.0/24"), &guests(1));
        let stranger = request([2, 9, 9, 9, 9, 9], MessageType::Discover);
        assert!(scope.answer(&stranger).is_none());
        let mut relayed = request([2, 0, 0, 0, 0, 0], MessageType::Discover);
        relayed.set_giaddr([10, 0, 0, 1]);
        assert!(scope.answer(&relayed).is_none());
        let mut reply = request([2, 0, 0, 0, 0, 0], MessageType::Discover);
        reply.set_opcode(Opcode::BootReply);
        assert!(scope.answer(&reply).is_none());
    }

    #[test]
    fn an_offer_is_confirmed_another_address_is_denied_another_server_is_left_alone() {
        let scope = Scope::new(subnet("10.77.0.0/24"), &guests(1));
        let mac = [2, 0, 0, 0, 0, 0];
        let offer = scope.answer(&request(mac, MessageType::Discover)).unwrap();
        assert_eq!(offer.opts().msg_type(), Some(MessageType::Offer));
        assert_eq!(Some(offer.yiaddr()), scope.address(mac));

        let mut good = request(mac, MessageType::Request);
        good.opts_mut()
            .insert(DhcpOption::RequestedIpAddress(offer.yiaddr()));
        let ack = scope.answer(&good).unwrap();
        assert_eq!(ack.opts().msg_type(), Some(MessageType::Ack));
        assert_eq!(ack.yiaddr(), offer.yiaddr());
        assert_eq!(
            ack.opts().get(OptionCode::Router),
            Some(&DhcpOption::Router(vec![Ipv4Addr::new(10, 77, 0, 1)]))
        );

        let mut bad = request(mac, MessageType::Request);
        bad.opts_mut()
            .insert(DhcpOption::RequestedIpAddress([10, 77, 0, 250].into()));
        let nak = scope.answer(&bad).unwrap();
        assert_eq!(nak.opts().msg_type(), Some(MessageType::Nak));
        assert!(nak.yiaddr().is_unspecified());

        good.opts_mut()
            .insert(DhcpOption::ServerIdentifier([10, 77, 0, 9].into()));
        assert!(scope.answer(&good).is_none());
    }
}
