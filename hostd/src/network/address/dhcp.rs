//! A DHCPv4 client (RFC 2131): asking for a lease and renewing it.
//!
//! A UDP socket that is tied to the interface is enough: limited broadcasts go out without an address, and the
//! broadcast flag makes servers answer the same way (§4.1).

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use dhcproto::v4::{DhcpOption, Message, MessageType, OptionCode};
use dhcproto::{Decodable as _, Decoder, Encodable as _};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use super::Ipv4Net;

/// Waits for each attempt in turn; the RFC's 4, 8, 16 s are for networks with thousands of hosts that start at once.
const ATTEMPTS: [Duration; 5] = [
    Duration::from_millis(1000),
    Duration::from_millis(2000),
    Duration::from_millis(3000),
    Duration::from_millis(4000),
    Duration::from_millis(5000),
];
/// Lease time when a server gives none; shortest one that is taken seriously.
const LEASE_DEFAULT: Duration = Duration::from_secs(3600);
const LEASE_MIN: Duration = Duration::from_secs(2);
/// A lease for ever is looked at once in a while all the same.
const LEASE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// Between two attempts to renew.
const RENEW_AGAIN: Duration = Duration::from_secs(30);

/// No lease.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    /// Nobody answers.
    #[error("no DHCP server answers")]
    Silence,
    /// The server says no.
    #[error("the DHCP server refused")]
    Refused,
    /// The socket.
    #[error("could not {0}")]
    Socket(&'static str, #[source] std::io::Error),
    /// Our own message could not be encoded.
    #[error("could not encode a message")]
    Encode(#[from] dhcproto::error::EncodeError),
}

/// An address for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) net: Ipv4Net,
    pub(super) gateway: Option<Ipv4Addr>,
    pub(super) dns: Vec<Ipv4Addr>,
    pub(super) server: Ipv4Addr,
    since: Instant,
    ask_at: Instant,
    rebind_at: Instant,
    pub(super) expires: Instant,
}

impl Lease {
    /// When to ask the server again.
    pub(super) fn next_ask(&self) -> Instant {
        self.ask_at.min(self.expires)
    }

    /// How long it was given for.
    pub(super) fn seconds(&self) -> u64 {
        (self.expires - self.since).as_secs()
    }

    /// The server did not answer: half of what is left, but not too often (§4.4.5).
    pub(super) fn put_off(&mut self) {
        let now = Instant::now();
        let until = match now < self.rebind_at {
            true => self.rebind_at,
            false => self.expires,
        };
        let half = (until - now) / 2;
        let least = RENEW_AGAIN.min((self.expires - self.since) / 10);
        self.ask_at = now + half.max(least);
    }

    /// At the next look.
    pub(super) fn ask_now(&mut self) {
        self.ask_at = Instant::now();
    }
}

/// DISCOVER, OFFER, REQUEST, ACK. `before` is asked for if the server can give it.
pub(super) async fn ask(
    interface: &str,
    mac: &[u8],
    hostname: Option<&str>,
    before: Option<Ipv4Addr>,
) -> Result<Lease, AskError> {
    let exchange = Exchange::open(interface, mac, hostname).await?;
    for wait in ATTEMPTS {
        let until = Instant::now() + wait;
        let mut discover = exchange.message(MessageType::Discover);
        if let Some(address) = before {
            let options = discover.opts_mut();
            options.insert(DhcpOption::RequestedIpAddress(address));
        }
        exchange.send(&discover, Ipv4Addr::BROADCAST).await?;
        let Some(offer) = exchange.receive(until, &[MessageType::Offer]).await? else {
            continue;
        };
        let Some(server) = server_of(&offer) else {
            continue;
        };
        let mut request = exchange.message(MessageType::Request);
        let options = request.opts_mut();
        options.insert(DhcpOption::RequestedIpAddress(offer.yiaddr()));
        options.insert(DhcpOption::ServerIdentifier(server));
        let asked = Instant::now();
        exchange.send(&request, Ipv4Addr::BROADCAST).await?;
        let answers = [MessageType::Ack, MessageType::Nak];
        let until = until.max(asked + ATTEMPTS[0]);
        match exchange.receive(until, &answers).await? {
            Some(ack) if ack.opts().msg_type() == Some(MessageType::Ack) => {
                if let Some(lease) = lease_of(&ack, asked) {
                    return Ok(lease);
                }
            }
            Some(_) => return Err(AskError::Refused),
            None => {}
        }
    }
    Err(AskError::Silence)
}

/// REQUEST, ACK: to the server until T2, then to everyone.
pub(super) async fn renew(
    interface: &str,
    mac: &[u8],
    hostname: Option<&str>,
    lease: &Lease,
) -> Result<Lease, AskError> {
    let exchange = Exchange::open(interface, mac, hostname).await?;
    let asked = Instant::now();
    let to = match asked < lease.rebind_at {
        true => lease.server,
        false => Ipv4Addr::BROADCAST,
    };
    let mut request = exchange.message(MessageType::Request);
    request.set_ciaddr(lease.net.address);
    exchange.send(&request, to).await?;
    let answers = [MessageType::Ack, MessageType::Nak];
    match exchange.receive(asked + ATTEMPTS[1], &answers).await? {
        Some(ack) if ack.opts().msg_type() == Some(MessageType::Ack) => {
            lease_of(&ack, asked).ok_or(AskError::Silence)
        }
        Some(_) => Err(AskError::Refused),
        None => Err(AskError::Silence),
    }
}

/// One conversation.
struct Exchange {
    socket: UdpSocket,
    xid: u32,
    mac: Vec<u8>,
    hostname: Option<String>,
    begun: Instant,
}

impl Exchange {
    async fn open(interface: &str, mac: &[u8], hostname: Option<&str>) -> Result<Self, AskError> {
        let failed = |what| move |source| AskError::Socket(what, source);
        let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, dhcproto::v4::CLIENT_PORT);
        let socket = UdpSocket::bind(any).await.map_err(failed("bind port 68"))?;
        socket
            .bind_device(Some(interface.as_bytes()))
            .map_err(failed("bind to the interface"))?;
        socket
            .set_broadcast(true)
            .map_err(failed("allow broadcasts"))?;
        // Random enough: it only tells our answers from others'.
        let (xid, ..) = uuid::Uuid::new_v4().as_fields();
        Ok(Self {
            socket,
            xid,
            mac: mac.to_vec(),
            hostname: hostname.map(str::to_owned),
            begun: Instant::now(),
        })
    }

    fn message(&self, kind: MessageType) -> Message {
        let mut message = Message::default();
        let secs = u16::try_from(self.begun.elapsed().as_secs()).unwrap_or(u16::MAX);
        message
            .set_xid(self.xid)
            .set_secs(secs)
            .set_chaddr(&self.mac)
            .set_flags(dhcproto::v4::Flags::default().set_broadcast());
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(kind));
        // Type 1 is Ethernet (RFC 2132 §9.14).
        let mut id = vec![1];
        id.extend(&self.mac);
        options.insert(DhcpOption::ClientIdentifier(id));
        options.insert(DhcpOption::MaxMessageSize(1472));
        options.insert(DhcpOption::ParameterRequestList(vec![
            OptionCode::SubnetMask,
            OptionCode::Router,
            OptionCode::DomainNameServer,
            OptionCode::AddressLeaseTime,
            OptionCode::Renewal,
            OptionCode::Rebinding,
        ]));
        if let Some(hostname) = &self.hostname {
            options.insert(DhcpOption::Hostname(hostname.clone()));
        }
        message
    }

    async fn send(&self, message: &Message, to: Ipv4Addr) -> Result<(), AskError> {
        let bytes = message.to_vec()?;
        let to = SocketAddrV4::new(to, dhcproto::v4::SERVER_PORT);
        let sent = self.socket.send_to(&bytes, SocketAddr::V4(to)).await;
        sent.map(drop).map_err(|e| AskError::Socket("send", e))
    }

    /// The next answer to us of one of these kinds; others, and what is no DHCP, are passed over.
    async fn receive(
        &self,
        until: Instant,
        kinds: &[MessageType],
    ) -> Result<Option<Message>, AskError> {
        let mut bytes = [0u8; 1500];
        loop {
            let got = match timeout_at(until, self.socket.recv_from(&mut bytes)).await {
                Err(_) => return Ok(None),
                Ok(got) => got.map_err(|e| AskError::Socket("receive", e))?,
            };
            let Ok(message) = Message::decode(&mut Decoder::new(&bytes[..got.0])) else {
                continue;
            };
            let ours = message.opcode() == dhcproto::v4::Opcode::BootReply
                && message.xid() == self.xid
                && message.chaddr() == self.mac;
            if ours
                && message
                    .opts()
                    .msg_type()
                    .is_some_and(|kind| kinds.contains(&kind))
            {
                return Ok(Some(message));
            }
        }
    }
}

fn server_of(message: &Message) -> Option<Ipv4Addr> {
    match message.opts().get(OptionCode::ServerIdentifier) {
        Some(DhcpOption::ServerIdentifier(server)) => Some(*server),
        _ => None,
    }
}

/// What an ACK gives; `None` when that is no usable address.
fn lease_of(ack: &Message, asked: Instant) -> Option<Lease> {
    let options = ack.opts();
    let seconds = |code| match options.get(code) {
        Some(
            DhcpOption::AddressLeaseTime(s) | DhcpOption::Renewal(s) | DhcpOption::Rebinding(s),
        ) => Some(Duration::from_secs(u64::from(*s))),
        _ => None,
    };
    let prefix = match options.get(OptionCode::SubnetMask) {
        Some(DhcpOption::SubnetMask(mask)) => {
            let bits = u32::from(*mask);
            // A mask is ones, then zeros.
            (bits.leading_ones() == bits.count_ones()).then(|| bits.count_ones())?
        }
        _ => 24,
    };
    let net = Ipv4Net::parse(&format!("{}/{prefix}", ack.yiaddr()))?;
    let gateway = match options.get(OptionCode::Router) {
        Some(DhcpOption::Router(routers)) => routers
            .iter()
            .copied()
            .find(|r| net.contains(*r) && *r != net.address),
        _ => None,
    };
    let dns = match options.get(OptionCode::DomainNameServer) {
        Some(DhcpOption::DomainNameServer(servers)) => servers.clone(),
        _ => Vec::new(),
    };
    let length = seconds(OptionCode::AddressLeaseTime).unwrap_or(LEASE_DEFAULT);
    let length = length.clamp(LEASE_MIN, LEASE_MAX);
    let in_order = |t: &Duration| !t.is_zero() && *t < length;
    let t2 = seconds(OptionCode::Rebinding)
        .filter(in_order)
        .unwrap_or(length * 7 / 8);
    let t1 = seconds(OptionCode::Renewal).filter(|t| in_order(t) && *t < t2);
    let t1 = t1.unwrap_or((length / 2).min(t2));
    Some(Lease {
        net,
        gateway,
        dns,
        server: server_of(ack)?,
        since: asked,
        ask_at: asked + t1,
        rebind_at: asked + t2,
        expires: asked + length,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack(options: Vec<DhcpOption>) -> Message {
        let mut message = Message::default();
        message.set_yiaddr(Ipv4Addr::new(192, 0, 2, 7));
        message
            .opts_mut()
            .insert(DhcpOption::ServerIdentifier(Ipv4Addr::new(192, 0, 2, 1)));
        for option in options {
            message.opts_mut().insert(option);
        }
        message
    }

    #[test]
    fn times_come_in_order_whatever_the_server_says() {
        let now = Instant::now();
        for (lease, t1, t2) in [
            (100, None, None),
            (100, Some(200), Some(300)),
            (100, Some(90), Some(50)),
            (0, None, None),
            (u32::MAX, None, None),
        ] {
            let mut options = vec![DhcpOption::AddressLeaseTime(lease)];
            options.extend(t1.map(DhcpOption::Renewal));
            options.extend(t2.map(DhcpOption::Rebinding));
            let lease = lease_of(&ack(options), now).unwrap();
            assert!(
                now < lease.ask_at
                    && lease.ask_at <= lease.rebind_at
                    && lease.rebind_at < lease.expires,
                "{lease:?}"
            );
        }
    }

    #[test]
    fn nonsense_is_no_lease() {
        let now = Instant::now();
        let mut message = ack(vec![]);
        message.set_yiaddr(Ipv4Addr::UNSPECIFIED);
        assert_eq!(lease_of(&message, now), None);
        let mask = DhcpOption::SubnetMask(Ipv4Addr::new(255, 0, 255, 0));
        assert_eq!(lease_of(&ack(vec![mask]), now), None);
        let router = DhcpOption::Router(vec![Ipv4Addr::new(198, 51, 100, 1)]);
        assert_eq!(lease_of(&ack(vec![router]), now).unwrap().gateway, None);
    }

    proptest::proptest! {
        #[test]
        fn no_datagram_makes_us_panic(bytes: Vec<u8>) {
            if let Ok(message) = Message::decode(&mut Decoder::new(&bytes)) {
                let _ = lease_of(&message, Instant::now());
            }
        }
    }
}
