//! Bridges, taps and DHCP on a real kernel, each test in a network namespace of its own. Needs root.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use api::ids::NetworkId;
use common::in_namespace;
use dhcproto::v4::{DhcpOption, Message, MessageType, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable};
use futures_util::future::BoxFuture;
use hostd::fake::NoHostAddress;
use hostd::network::bridge::BridgeLinks;
use hostd::network::netlink::Netlink;
use hostd::network::{Guest, HostAddress, Links, NetworkPlan, PlanKind};
use hostd_state::networks::Subnet;

fn isolated(network: NetworkId, guests: Vec<Guest>) -> NetworkPlan {
    let subnet = Subnet::parse("10.77.0.0/24").unwrap();
    NetworkPlan {
        network,
        kind: PlanKind::Isolated { subnet, dhcp: true },
        guests,
    }
}

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const STRANGER: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// What a guest with this hardware address would send, behind a virtio header of no offloads.
fn frame(mac: [u8; 6], payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend([0xff; 6]);
    frame.extend(mac);
    frame.extend([8, 0]);
    let length = u16::try_from(20 + 8 + payload.len()).unwrap();
    let mut ip = vec![0x45, 0];
    ip.extend(length.to_be_bytes());
    ip.extend([0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255]);
    let sum: u32 = ip
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend(ip);
    frame.extend(68_u16.to_be_bytes());
    frame.extend(67_u16.to_be_bytes());
    frame.extend(u16::try_from(8 + payload.len()).unwrap().to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(payload);
    frame
}

fn request(mac: [u8; 6], kind: MessageType, wanted: Option<Ipv4Addr>) -> Vec<u8> {
    let mut message = Message::default();
    message
        .set_chaddr(&mac)
        .opts_mut()
        .insert(DhcpOption::MessageType(kind));
    if let Some(wanted) = wanted {
        message
            .opts_mut()
            .insert(DhcpOption::RequestedIpAddress(wanted));
    }
    frame(mac, &message.to_vec().unwrap())
}

/// The next DHCP message a guest on this tap receives.
async fn receive(tap: &mut File) -> Message {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut buffer = [0; 2048];
    while Instant::now() < deadline {
        match tap.read(&mut buffer) {
            // Header, Ethernet, IPv4 without options, UDP to port 68.
            Ok(length) if length > 54 && buffer[24..26] == [8, 0] && buffer[48..50] == [0, 68] => {
                return Message::decode(&mut Decoder::new(&buffer[54..length])).unwrap();
            }
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
    panic!("no reply");
}

#[test]
fn a_guest_on_an_isolated_network_gets_its_address_and_a_stranger_none() {
    in_namespace(async || {
        let links = BridgeLinks::open(Arc::new(NoHostAddress)).unwrap();
        let network = NetworkId::mint();
        let plan = isolated(
            network,
            vec![Guest {
                mac: MAC,
                name: "web".into(),
            }],
        );
        links.ensure(plan.clone()).await.unwrap();
        let tap: OwnedFd = match links.tap(network, "t0").await {
            Ok(tap) => tap,
            Err(fault) if fault.cause.contains("No such file or directory") => {
                return println!("skipped: no /dev/net/tun");
            }
            Err(fault) => panic!("{fault:?}"),
        };
        let mut tap = File::from(tap);
        tap.write_all(&request(STRANGER, MessageType::Discover, None))
            .unwrap();
        tap.write_all(&request(MAC, MessageType::Discover, None))
            .unwrap();
        let offer = receive(&mut tap).await;
        assert_eq!(offer.chaddr(), MAC, "the stranger was answered");
        assert_eq!(offer.opts().msg_type(), Some(MessageType::Offer));
        assert_eq!(links.leases().address(MAC), None);

        tap.write_all(&request(MAC, MessageType::Request, Some(offer.yiaddr())))
            .unwrap();
        let ack = receive(&mut tap).await;
        assert_eq!(ack.opts().msg_type(), Some(MessageType::Ack));
        assert_eq!(ack.yiaddr(), offer.yiaddr());
        assert_eq!(
            ack.opts().get(OptionCode::Hostname),
            Some(&DhcpOption::Hostname("web".into()))
        );
        assert_eq!(links.leases().address(MAC), Some(offer.yiaddr()));

        // A NIC that came later is known without a restart.
        let late = Guest {
            mac: STRANGER,
            name: "late".into(),
        };
        let plan = isolated(
            network,
            vec![
                Guest {
                    mac: MAC,
                    name: "web".into(),
                },
                late,
            ],
        );
        links.ensure(plan).await.unwrap();
        tap.write_all(&request(STRANGER, MessageType::Discover, None))
            .unwrap();
        assert_eq!(receive(&mut tap).await.chaddr(), STRANGER);
    });
}

#[test]
fn twice_is_once_and_nothing_is_left_of_what_is_removed() {
    in_namespace(async || {
        let links = BridgeLinks::open(Arc::new(NoHostAddress)).unwrap();
        let kernel = Netlink::open().unwrap();
        let before = kernel.links().await.unwrap();
        let network = NetworkId::mint();
        links.ensure(isolated(network, Vec::new())).await.unwrap();
        let made = kernel.links().await.unwrap();
        assert_eq!(made.len(), before.len() + 1);
        links.ensure(isolated(network, Vec::new())).await.unwrap();
        assert_eq!(kernel.links().await.unwrap().len(), made.len());
        let bridge = made.iter().find(|link| link.bridge).unwrap();
        assert_eq!(
            kernel.addresses(bridge).await.unwrap(),
            [(Ipv4Addr::new(10, 77, 0, 1), 24)]
        );
        assert_eq!(links.list().await.unwrap(), [network]);

        // Another daemon finds it by its alias, and repairs what is missing.
        let heir = BridgeLinks::open(Arc::new(NoHostAddress)).unwrap();
        assert_eq!(heir.list().await.unwrap(), [network]);
        drop(links);
        heir.ensure(isolated(network, Vec::new())).await.unwrap();
        heir.remove(network).await.unwrap();
        heir.remove(network).await.unwrap();
        assert_eq!(kernel.links().await.unwrap().len(), before.len());
    });
}

/// Writes down what it is asked for.
#[derive(Default)]
struct Moves(Mutex<Vec<(String, String)>>);

impl HostAddress for Moves {
    fn move_to<'a>(&'a self, from: &'a str, to: &'a str) -> BoxFuture<'a, Result<(), String>> {
        self.0
            .lock()
            .unwrap()
            .push((from.to_owned(), to.to_owned()));
        Box::pin(async { Ok(()) })
    }
}

#[test]
fn an_uplink_joins_the_bridge_with_its_hardware_address_and_the_hosts_own_address() {
    in_namespace(async || {
        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
        tokio::spawn(connection);
        let veth = rtnetlink::LinkVeth::new("eth9", "far").build();
        handle.link().add(veth).execute().await.unwrap();

        let moves = Arc::new(Moves::default());
        let links = BridgeLinks::open(Arc::<Moves>::clone(&moves)).unwrap();
        let kernel = Netlink::open().unwrap();
        let network = NetworkId::mint();
        let on = |nic: &str| NetworkPlan {
            network,
            kind: PlanKind::Uplink {
                nic: nic.to_owned(),
            },
            guests: Vec::new(),
        };
        assert_eq!(
            links.ensure(on("eth8")).await.unwrap_err().code,
            "no_such_nic"
        );
        let nic = kernel.link("eth9").await.unwrap().unwrap();
        links.ensure(on("eth9")).await.unwrap();
        let port = kernel.link("eth9").await.unwrap().unwrap();
        let bridge = kernel
            .links()
            .await
            .unwrap()
            .into_iter()
            .find(|link| link.bridge)
            .unwrap();
        assert_eq!(port.controller, Some(bridge.index));
        assert_eq!(bridge.mac, nic.mac);
        assert!(port.up && bridge.up);
        assert_eq!(
            moves.0.lock().unwrap().as_slice(),
            [("eth9".to_owned(), bridge.name.clone())]
        );

        let other = NetworkPlan {
            network: NetworkId::mint(),
            ..on("eth9")
        };
        assert_eq!(
            links.ensure(other.clone()).await.unwrap_err().code,
            "nic_in_use"
        );
        links.remove(other.network).await.unwrap();

        links.remove(network).await.unwrap();
        assert_eq!(kernel.link("eth9").await.unwrap().unwrap().controller, None);
        let back = (bridge.name.clone(), "eth9".to_owned());
        assert_eq!(moves.0.lock().unwrap().last(), Some(&back));
    });
}

#[test]
fn many_may_ask_the_kernel_at_once() {
    in_namespace(async || {
        let kernel = Netlink::open().unwrap();
        let before = kernel.links().await.unwrap().len();
        let links = BridgeLinks::open(Arc::new(NoHostAddress)).unwrap();
        let networks: Vec<NetworkId> = (0..40).map(|_| NetworkId::mint()).collect();
        for network in &networks {
            kernel
                .bridge_create(&format!("b{}", &network.0.simple().to_string()[20..]), None)
                .await
                .unwrap();
        }
        let asked = (0..200).map(|n| {
            let (kernel, links) = (kernel.clone(), links.clone());
            async move {
                match n % 2 {
                    0 => kernel
                        .links()
                        .await
                        .map(|links| links.len())
                        .map_err(|e| e.to_string()),
                    _ => links
                        .list()
                        .await
                        .map(|_| before + 40)
                        .map_err(|fault| fault.cause),
                }
            }
        });
        for answer in futures_util::future::join_all(asked).await {
            assert_eq!(answer, Ok(before + 40));
        }
    });
}
