//! What the management address promises, against a real DHCP server where the machine lets us.

use super::*;
use crate::network::HostAddress;

#[test]
fn settings_are_refused_with_a_reason() {
    let fixed = |address: &str, gateway: Option<&str>| NetworkSettings {
        address: AddressMode::Static {
            address: address.to_owned(),
            gateway: gateway.map(str::to_owned),
        },
        ..NetworkSettings::default()
    };
    assert!(validate(&NetworkSettings::default()).is_ok());
    assert!(validate(&fixed("192.0.2.7/24", Some("192.0.2.1"))).is_ok());
    for bad in [
        fixed("192.0.2.7", None),
        fixed("192.0.2.7/0", None),
        fixed("192.0.2.7/33", None),
        fixed("224.0.0.1/4", None),
        fixed("192.0.2.7/24", Some("198.51.100.1")),
        fixed("192.0.2.7/24", Some("192.0.2.7")),
        NetworkSettings {
            nic: Some("a/b".into()),
            ..NetworkSettings::default()
        },
        NetworkSettings {
            nic: Some("".into()),
            ..NetworkSettings::default()
        },
        NetworkSettings {
            dns: vec!["example.org".into()],
            ..NetworkSettings::default()
        },
    ] {
        assert_eq!(
            validate(&bad).unwrap_err().code,
            ErrorCode::Invalid,
            "{bad:?}"
        );
    }
}

const INSIDE: &str = "LQX_TEST_NAMESPACE";
const SERVE: &str = "LQX_TEST_SERVE";

/// Runs the rest of a test in a network namespace of its own: as the same program, once more. A second one is there
/// for the server: with both ends in one, the kernel takes the other end's packets for forged. `false` in the outer
/// one, whose work is then done.
fn in_a_namespace(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    // The tests of one process run side by side.
    let name = format!("lqx-test-{}-{test}", std::process::id());
    let server = format!("{name}-server");
    let quiet = |words: &[&str]| {
        let ended = std::process::Command::new("ip").args(words).output();
        ended.is_ok_and(|ended| ended.status.success())
    };
    if !quiet(&["netns", "add", &name]) || !quiet(&["netns", "add", &server]) {
        eprintln!("skipped: no network namespace can be made here (that needs root and iproute2)");
        return false;
    }
    let ended = ourselves(&name, test).env(INSIDE, &server).status();
    quiet(&["netns", "del", &name]);
    quiet(&["netns", "del", &server]);
    assert!(ended.unwrap().success(), "failed inside the namespace");
    false
}

/// This program, running one test in a namespace.
fn ourselves(namespace: &str, test: &str) -> std::process::Command {
    let mut command = std::process::Command::new("ip");
    command
        .args(["netns", "exec", namespace])
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            &format!("network::address::tests::{test}"),
            "--nocapture",
        ]);
    command
}

/// The other namespace.
fn server_namespace() -> String {
    std::env::var(INSIDE).unwrap()
}

fn ip(words: &str) {
    let ended = std::process::Command::new("ip")
        .args(words.split(' '))
        .output()
        .unwrap();
    assert!(
        ended.status.success(),
        "ip {words}: {}",
        String::from_utf8_lossy(&ended.stderr)
    );
}

fn ip_shows(words: &str) -> String {
    let ended = std::process::Command::new("ip")
        .args(words.split(' '))
        .output()
        .unwrap();
    String::from_utf8_lossy(&ended.stdout).into_owned()
}

/// dnsmasq on `srv0`, the other end of `nic0`.
struct Server(std::process::Child);

impl Server {
    fn start(folder: &Path, lease: &str) -> Self {
        let child = std::process::Command::new("ip")
            .args(["netns", "exec", &server_namespace(), "dnsmasq"])
            .args([
                "--no-daemon",
                "--conf-file=/dev/null",
                "--port=0",
                "--interface=srv0",
            ])
            .args([
                "--bind-interfaces",
                "--dhcp-authoritative",
                "--leasefile-ro",
            ])
            .arg(format!(
                "--dhcp-range=192.0.2.10,192.0.2.20,255.255.255.0,{lease}"
            ))
            .args(["--dhcp-option=option:dns-server,192.0.2.53"])
            .arg(format!("--pid-file={}", folder.join("pid").display()))
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn have_dnsmasq() -> bool {
    let there = std::process::Command::new("dnsmasq")
        .arg("--version")
        .output()
        .is_ok();
    if !there {
        eprintln!("skipped: `dnsmasq` is not installed");
    }
    there
}

fn links() {
    let server = server_namespace();
    ip(&format!(
        "link add nic0 type veth peer name srv0 netns {server}"
    ));
    ip(&format!("-n {server} addr add 192.0.2.1/24 dev srv0"));
    ip(&format!("-n {server} link set srv0 up"));
}

fn start(settings: NetworkSettings, folder: &Path) -> Management {
    let resolv = folder.join("resolv.conf");
    Management::start(settings, Some("lqx-1".into()), resolv)
        .unwrap()
        .0
}

fn on_nic0(address: AddressMode) -> NetworkSettings {
    NetworkSettings {
        nic: Some("nic0".into()),
        address,
        dns: vec![],
    }
}

async fn until(
    management: &Management,
    what: impl FnMut(&ManagementState) -> bool,
) -> ManagementState {
    let mut state = management.watch();
    let reached = timeout(Duration::from_secs(40), state.wait_for(what)).await;
    match reached {
        Ok(state) => state.unwrap().clone(),
        Err(_) => panic!("still {:?}", management.state()),
    }
}

fn is_up(state: &ManagementState) -> bool {
    state.phase == Phase::Up
}

#[tokio::test]
async fn a_lease_brings_address_route_and_name_servers_and_moves_to_the_bridge() {
    if !in_a_namespace("a_lease_brings_address_route_and_name_servers_and_moves_to_the_bridge")
        || !have_dnsmasq()
    {
        return;
    }
    links();
    let folder = tempfile::tempdir().unwrap();
    let _server = Server::start(folder.path(), "1h");
    let management = start(on_nic0(AddressMode::Dhcp), folder.path());
    let state = until(&management, is_up).await;
    let address = state.address.unwrap();
    assert!(
        address.to_string().starts_with("192.0.2.1") && address.prefix == 24,
        "{address}"
    );
    assert_eq!(state.gateway, Some(Ipv4Addr::new(192, 0, 2, 1)));
    assert_eq!(state.url().unwrap(), format!("https://{}", address.address));
    assert!(ip_shows("route show default").contains("via 192.0.2.1 dev nic0"));
    let resolv = std::fs::read_to_string(folder.path().join("resolv.conf")).unwrap();
    assert_eq!(resolv, "nameserver 192.0.2.53\n");

    // What the vms part does for a network on an uplink.
    ip("link add br0 type bridge");
    ip("link set br0 up");
    ip("link set nic0 master br0");
    HostAddress::move_to(&management, "nic0", "br0")
        .await
        .unwrap();
    assert_eq!(management.state().address, Some(address));
    assert!(ip_shows("addr show dev br0").contains(&address.to_string()));
    assert!(!ip_shows("addr show dev nic0").contains("inet "));
    assert!(ip_shows("route show default").contains("via 192.0.2.1 dev br0"));
    // Twice is once, and a link that is not ours has nothing to move.
    HostAddress::move_to(&management, "nic0", "br0")
        .await
        .unwrap();
    HostAddress::move_to(&management, "nic1", "br0")
        .await
        .unwrap();

    // A new daemon finds the bridge by itself.
    drop(management);
    let management = start(on_nic0(AddressMode::Dhcp), folder.path());
    let state = until(&management, is_up).await;
    assert_eq!(state.interface.as_deref(), Some("br0"));
    assert_eq!(state.address, Some(address));

    // And back, when the bridge goes.
    ip("link set nic0 nomaster");
    HostAddress::move_to(&management, "br0", "nic0")
        .await
        .unwrap();
    ip("link del br0");
    assert!(ip_shows("addr show dev nic0").contains(&address.to_string()));
    assert!(ip_shows("route show default").contains("via 192.0.2.1 dev nic0"));
}

/// Not a test: a server with leases of seconds, which dnsmasq does not give. Says on its output what it granted.
#[tokio::test]
async fn short_leases() {
    use std::io::Write as _;

    use dhcproto::v4::{DhcpOption, Message, MessageType, Opcode, OptionCode};
    use dhcproto::{Decodable as _, Decoder, Encodable as _};
    if std::env::var_os(SERVE).is_none() {
        return;
    }
    let socket = tokio::net::UdpSocket::bind(("0.0.0.0", 67)).await.unwrap();
    socket.bind_device(Some(b"srv0")).unwrap();
    socket.set_broadcast(true).unwrap();
    let server = Ipv4Addr::new(192, 0, 2, 1);
    let mut bytes = [0; 1500];
    loop {
        let len = socket.recv_from(&mut bytes).await.unwrap().0;
        let asked = Message::decode(&mut Decoder::new(&bytes[..len])).unwrap();
        let kind = match asked.opts().msg_type() {
            Some(MessageType::Discover) => MessageType::Offer,
            Some(MessageType::Request) => MessageType::Ack,
            other => panic!("{other:?}"),
        };
        assert!(asked.opts().get(OptionCode::ClientIdentifier).is_some());
        let mut reply = Message::default();
        reply
            .set_opcode(Opcode::BootReply)
            .set_xid(asked.xid())
            .set_chaddr(asked.chaddr())
            .set_yiaddr(Ipv4Addr::new(192, 0, 2, 30));
        for option in [
            DhcpOption::MessageType(kind),
            DhcpOption::ServerIdentifier(server),
            DhcpOption::AddressLeaseTime(4),
            DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)),
        ] {
            reply.opts_mut().insert(option);
        }
        let reply = reply.to_vec().unwrap();
        socket
            .send_to(&reply, ("255.255.255.255", 68))
            .await
            .unwrap();
        if kind == MessageType::Ack {
            println!("granted");
            std::io::stdout().flush().unwrap();
        }
    }
}

#[tokio::test]
async fn a_lease_is_renewed_in_time_and_given_up_when_it_runs_out() {
    if !in_a_namespace("a_lease_is_renewed_in_time_and_given_up_when_it_runs_out") {
        return;
    }
    links();
    let folder = tempfile::tempdir().unwrap();
    let mut server = ourselves(&server_namespace(), "short_leases");
    let server = server.env(SERVE, "1").stdout(std::process::Stdio::piped());
    let mut server = Server(server.spawn().unwrap());
    let output = std::io::BufReader::new(server.0.stdout.take().unwrap());
    let grants = watch::Sender::new(0);
    let granted = grants.clone();
    std::thread::spawn(move || {
        use std::io::BufRead as _;
        for _ in output
            .lines()
            .map_while(Result::ok)
            .filter(|line| line.contains("granted"))
        {
            granted.send_modify(|count| *count += 1);
        }
    });
    let management = start(on_nic0(AddressMode::Dhcp), folder.path());
    until(&management, is_up).await;
    // Three leases' lengths go by, and it was never gone.
    let mut changes = management.watch();
    changes.mark_unchanged();
    let mut grants = grants.subscribe();
    let renewed = grants.wait_for(|count| *count >= 5);
    timeout(Duration::from_secs(30), renewed)
        .await
        .unwrap()
        .unwrap();
    assert!(!changes.has_changed().unwrap(), "{:?}", management.state());
    drop(server);
    until(&management, |state| state.address.is_none()).await;
    assert!(!ip_shows("addr show dev nic0").contains("inet "));
}

#[tokio::test]
async fn no_server_is_a_reason_and_a_fixed_address_helps() {
    if !in_a_namespace("no_server_is_a_reason_and_a_fixed_address_helps") {
        return;
    }
    links();
    let folder = tempfile::tempdir().unwrap();
    let management = start(on_nic0(AddressMode::Dhcp), folder.path());
    let failed = |state: &ManagementState| matches!(&state.phase, Phase::Failed(why) if why.contains("nic0"));
    until(&management, failed).await;
    let fixed = AddressMode::Static {
        address: "192.0.2.7/24".into(),
        gateway: Some("192.0.2.1".into()),
    };
    management.set(on_nic0(fixed)).unwrap();
    until(&management, is_up).await;
    assert!(ip_shows("addr show dev nic0").contains("192.0.2.7/24"));
    assert!(ip_shows("route show default").contains("via 192.0.2.1"));
    // Another one takes its place, it is not added.
    let other = AddressMode::Static {
        address: "198.51.100.7/24".into(),
        gateway: None,
    };
    management.set(on_nic0(other)).unwrap();
    until(&management, |s| {
        s.address
            .is_some_and(|a| a.to_string() == "198.51.100.7/24")
    })
    .await;
    assert!(!ip_shows("addr show dev nic0").contains("192.0.2.7"));
    assert_eq!(ip_shows("route show default"), "");
}

#[tokio::test]
async fn a_cable_plugged_in_late_is_noticed() {
    if !in_a_namespace("a_cable_plugged_in_late_is_noticed") || !have_dnsmasq() {
        return;
    }
    links();
    let server = server_namespace();
    ip(&format!("-n {server} link set srv0 down"));
    let folder = tempfile::tempdir().unwrap();
    let management = start(on_nic0(AddressMode::Dhcp), folder.path());
    until(&management, |state| state.phase == Phase::Searching).await;
    ip(&format!("-n {server} link set srv0 up"));
    let _server = Server::start(folder.path(), "1h");
    until(&management, is_up).await;
}
