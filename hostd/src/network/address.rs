//! The management address: by DHCP or fixed, on a NIC or on the bridge that the NIC is a port of.
//!
//! ```text
//! Searching ── a NIC with a link ──► Asking ── lease ──► Up ── T1, T2 ──► renewed
//!     ▲  ▲                              │                │
//!     │  └──── nobody answers: next NIC ┘                ├── link lost: keep, ask again when it is back
//!     └─────────────── settings changed, expired ────────┘
//! ```
//! One task owns the address and is the only one that changes it. It looks at the links once a second: a cable that
//! is pulled, a NIC that became the port of a bridge. What it reached can be watched.
//!
//! A NIC that is a bridge's port cannot have the address itself; the address then goes to the bridge, lease and all.

mod dhcp;
mod kernel;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::error::{ApiError, ErrorCode};
use api::system::{AddressMode, NetworkSettings};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use self::dhcp::{AskError, Lease};
use self::kernel::{Kernel, KernelError, Link};

/// Between two looks at the links.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long [`Management::move_to`] waits for the address to be there.
const MOVE_WAIT: Duration = Duration::from_secs(20);

/// What the management address is just now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ManagementState {
    /// How far it got.
    pub phase: Phase,
    /// The NIC that was chosen.
    pub nic: Option<String>,
    /// Where the address is: the NIC, or the bridge it is a port of.
    pub interface: Option<String>,
    /// The address.
    pub address: Option<Ipv4Net>,
    /// Default gateway.
    pub gateway: Option<Ipv4Addr>,
    /// Name servers.
    pub dns: Vec<Ipv4Addr>,
}

impl ManagementState {
    /// Where the API answers.
    pub fn url(&self) -> Option<String> {
        self.address.map(|net| format!("https://{}", net.address))
    }
}

/// How far the management address got.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Phase {
    /// There is no NIC, or none with a link.
    #[default]
    Searching,
    /// A DHCP server is asked.
    Asking,
    /// It is there.
    Up,
    /// It is not, for this reason; it is tried again.
    Failed(String),
}

/// An IPv4 address and the length of its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv4Net {
    /// The address.
    pub address: Ipv4Addr,
    /// Bits of the network's part, 1 to 32.
    pub prefix: u8,
}

impl Ipv4Net {
    /// `192.0.2.7/24`.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let address: Ipv4Addr = address.parse().ok()?;
        let prefix: u8 = prefix.parse().ok()?;
        let usable = !address.is_unspecified()
            && !address.is_multicast()
            && !address.is_broadcast()
            && !address.is_loopback();
        (usable && (1..=32).contains(&prefix)).then_some(Self { address, prefix })
    }

    /// The other address is in the same network.
    pub fn contains(self, other: Ipv4Addr) -> bool {
        let mask = u32::MAX << (32 - u32::from(self.prefix.clamp(1, 32)));
        u32::from(self.address) & mask == u32::from(other) & mask
    }
}

impl std::fmt::Display for Ipv4Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// What an interface is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Address {
    net: Ipv4Net,
    gateway: Option<Ipv4Addr>,
    dns: Vec<Ipv4Addr>,
}

/// Settings that make sense, or why they do not.
pub fn validate(settings: &NetworkSettings) -> Result<(), ApiError> {
    let invalid = |message: String, hint: &str| ApiError::new(ErrorCode::Invalid, message, hint);
    if let Some(nic) = &settings.nic {
        // IFNAMSIZ is 16 with its NUL; the kernel refuses '/', ':' and white space.
        let plain = |c: char| c.is_ascii_graphic() && c != '/' && c != ':';
        if nic.is_empty() || nic.len() > 15 || !nic.chars().all(plain) {
            return Err(invalid(
                format!("`{nic}` is no NIC's name"),
                "`GET /hosts` lists the NICs",
            ));
        }
    }
    for server in &settings.dns {
        if server.parse::<Ipv4Addr>().is_err() {
            let hint = "give IPv4 addresses of name servers";
            return Err(invalid(format!("`{server}` is not an IPv4 address"), hint));
        }
    }
    fixed(settings).map(drop)
}

/// The fixed address of these settings; `None` when they say DHCP.
fn fixed(settings: &NetworkSettings) -> Result<Option<Address>, ApiError> {
    let invalid = |message: String, hint: &str| ApiError::new(ErrorCode::Invalid, message, hint);
    let AddressMode::Static { address, gateway } = &settings.address else {
        return Ok(None);
    };
    let net = Ipv4Net::parse(address).ok_or_else(|| {
        invalid(
            format!("`{address}` is not an IPv4 address with prefix length"),
            "for instance `192.0.2.7/24`",
        )
    })?;
    let gateway = match gateway {
        None => None,
        Some(text) => {
            let parsed: Option<Ipv4Addr> = text.parse().ok();
            let usable = parsed.filter(|g| net.contains(*g) && *g != net.address);
            Some(usable.ok_or_else(|| {
                invalid(
                    format!("the gateway `{text}` is not another address in the network of {net}"),
                    "a gateway is reached directly",
                )
            })?)
        }
    };
    let dns = settings.dns.iter().filter_map(|text| text.parse().ok());
    Ok(Some(Address {
        net,
        gateway,
        dns: dns.collect(),
    }))
}

/// The handle on the task. Clones share it; it ends when the last is gone or [`Management::shutdown`] is called.
#[derive(Debug, Clone)]
pub struct Management {
    wanted: watch::Sender<Wanted>,
    state: watch::Receiver<ManagementState>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Wanted {
    settings: NetworkSettings,
    /// What is told to the DHCP server, so that people find the host in its list.
    hostname: Option<String>,
    /// Another value each time: the same settings again still mean "now".
    poke: u64,
}

/// The address could not be moved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the management address did not come up on {interface} within {} s: {state:?}", MOVE_WAIT.as_secs())]
pub struct MoveError {
    interface: String,
    state: Box<ManagementState>,
}

impl Management {
    /// Starts to bring the address up. Needs a tokio runtime and CAP_NET_ADMIN. `resolv_conf` gets the name servers;
    /// on the appliance that is `/run/resolv.conf`.
    pub fn start(
        settings: NetworkSettings,
        hostname: Option<String>,
        resolv_conf: PathBuf,
    ) -> Result<(Self, JoinHandle<()>), KernelError> {
        let kernel = Kernel::open()?;
        let wanted = watch::Sender::new(Wanted {
            settings,
            hostname,
            poke: 0,
        });
        let (report, state) = watch::channel(ManagementState::default());
        let task = Task {
            kernel,
            report,
            resolv_conf,
            applied: None,
            lease: None,
            skip: 0,
        };
        let running = tokio::spawn(task.run(wanted.subscribe()));
        Ok((Self { wanted, state }, running))
    }

    /// What is wanted.
    pub fn settings(&self) -> NetworkSettings {
        self.wanted.borrow().settings.clone()
    }

    /// What was reached, as it changes.
    pub fn watch(&self) -> watch::Receiver<ManagementState> {
        self.state.clone()
    }

    /// What was reached.
    pub fn state(&self) -> ManagementState {
        self.state.borrow().clone()
    }

    /// Other settings from now on. They are applied in the background.
    pub fn set(&self, settings: NetworkSettings) -> Result<(), ApiError> {
        validate(&settings)?;
        self.wanted.send_modify(|wanted| {
            wanted.settings = settings;
            wanted.poke += 1;
        });
        Ok(())
    }

    /// The NIC is now a port of this bridge (or no longer, and this is the NIC): takes the address there, and
    /// returns when it is. An interface that has nothing to do with our NIC, or no address yet: nothing to wait for.
    pub async fn move_to(&self, interface: &str) -> Result<(), MoveError> {
        let now = self.state();
        let concerned = now
            .nic
            .as_deref()
            .is_some_and(|nic| carrier_of(nic) == interface);
        self.wanted.send_modify(|wanted| wanted.poke += 1);
        if now.address.is_none() || !concerned {
            return Ok(());
        }
        let mut state = self.state.clone();
        let there = state.wait_for(|state| {
            state.phase == Phase::Up && state.interface.as_deref() == Some(interface)
        });
        match timeout(MOVE_WAIT, there).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(MoveError {
                interface: interface.to_owned(),
                state: Box::new(self.state()),
            }),
        }
    }
}

/// Where the addresses of a NIC belong: on the bridge it is a port of, else on itself.
fn carrier_of(nic: &str) -> String {
    let link = std::fs::read_link(Path::new("/sys/class/net").join(nic).join("master"));
    let bridge = link
        .ok()
        .and_then(|path| Some(path.file_name()?.to_str()?.to_owned()));
    bridge.unwrap_or_else(|| nic.to_owned())
}

struct Task {
    kernel: Kernel,
    report: watch::Sender<ManagementState>,
    resolv_conf: PathBuf,
    /// What we put where.
    applied: Option<(String, Address)>,
    /// With the MAC address it was leased to.
    lease: Option<(Vec<u8>, Lease)>,
    /// How many NICs to pass over: raised when nobody answers on one.
    skip: usize,
}

/// Why [`Task::serve`] starts over.
enum Again {
    /// At once: links changed.
    Now,
    /// After a pause.
    Later(String),
}

impl Task {
    async fn run(mut self, mut wanted: watch::Receiver<Wanted>) {
        loop {
            let now = wanted.borrow_and_update().clone();
            tokio::select! {
                changed = wanted.changed() => match changed {
                    // The address stays: guests and clients may use it, and the next daemon finds it.
                    Err(_) => return,
                    Ok(()) => {
                        if wanted.borrow().settings != now.settings {
                            self.lease = None;
                            self.skip = 0;
                        }
                    }
                },
                () = self.keep_serving(&now) => {}
            }
        }
    }

    /// Never returns; dropped when something else is wanted.
    async fn keep_serving(&mut self, wanted: &Wanted) {
        loop {
            match self.serve(wanted).await {
                Ok(Again::Now) => {}
                Ok(Again::Later(why)) => self.failed(why).await,
                Err(error) => self.failed(crate::report::chain(&error)).await,
            }
        }
    }

    async fn failed(&mut self, why: String) {
        tracing::warn!(cause = why, "no management address; trying again");
        self.report
            .send_modify(|state| state.phase = Phase::Failed(why));
        sleep(LOOK_EVERY).await;
    }

    async fn serve(&mut self, wanted: &Wanted) -> Result<Again, KernelError> {
        let (nic, on) = self.choose(wanted).await?;
        // An address of ours elsewhere goes first: the same one on two interfaces answers on neither well.
        if let Some((old, address)) = self.applied.take_if(|(old, _)| *old != on.name) {
            self.kernel
                .remove(&old, address.net, address.gateway)
                .await?;
        }
        self.report.send_modify(|state| {
            state.nic = Some(nic.name.clone());
            // Up only where the address is.
            if state.interface.as_deref() != Some(&on.name) {
                state.interface = Some(on.name.clone());
                state.phase = Phase::Asking;
            }
        });
        match fixed(&wanted.settings) {
            Err(error) => Ok(Again::Later(error.message)),
            Ok(Some(address)) => {
                self.lease = None;
                self.apply(&on, address).await?;
                self.hold(wanted, &nic, &on, None).await
            }
            Ok(None) => self.lease_and_hold(wanted, &nic, &on).await,
        }
    }

    /// The NIC, and the interface that is to have the address. Waits for a link.
    async fn choose(&mut self, wanted: &Wanted) -> Result<(Link, Link), KernelError> {
        let mut told = false;
        loop {
            let links = self.kernel.links().await?;
            let nics: Vec<&Link> = links
                .iter()
                .filter(|link| match &wanted.settings.nic {
                    Some(name) => link.name == *name,
                    None => link.is_physical,
                })
                .collect();
            for nic in &nics {
                if !nic.is_up {
                    self.kernel.set_up(nic).await?;
                }
            }
            let with_link: Vec<&&Link> = nics.iter().filter(|nic| nic.has_carrier).collect();
            if !with_link.is_empty() {
                let nic = (*with_link[self.skip % with_link.len()]).clone();
                let on = interface_of(&nic, &links).clone();
                if !on.is_up {
                    self.kernel.set_up(&on).await?;
                }
                return Ok((nic, on));
            }
            if !told {
                told = true;
                tracing::warn!(
                    nic = wanted.settings.nic,
                    nics = nics.len(),
                    "no NIC with a link"
                );
                self.report
                    .send_modify(|state| state.phase = Phase::Searching);
            }
            sleep(LOOK_EVERY / 4).await;
        }
    }

    async fn lease_and_hold(
        &mut self,
        wanted: &Wanted,
        nic: &Link,
        on: &Link,
    ) -> Result<Again, KernelError> {
        let kept = self
            .lease
            .take_if(|(mac, lease)| *mac == on.mac && lease.expires > Instant::now());
        let lease = match kept {
            Some((_, lease)) => lease,
            None => {
                self.report.send_modify(|state| state.phase = Phase::Asking);
                let before = self.kernel.addresses(on).await?;
                let before = before.first().map(|net| net.address);
                match dhcp::ask(&on.name, &on.mac, wanted.hostname.as_deref(), before).await {
                    Ok(lease) => lease,
                    Err(AskError::Silence) => {
                        self.skip += 1;
                        return Ok(Again::Later(format!(
                            "no DHCP server answers on {}",
                            on.name
                        )));
                    }
                    Err(error) => return Ok(Again::Later(crate::report::chain(&error))),
                }
            }
        };
        tracing::info!(interface = on.name, address = %lease.net, server = %lease.server, seconds = lease.seconds(), "leased");
        let mut dns = lease.dns.clone();
        let own: Vec<Ipv4Addr> = wanted
            .settings
            .dns
            .iter()
            .filter_map(|d| d.parse().ok())
            .collect();
        if !own.is_empty() {
            dns = own;
        }
        let address = Address {
            net: lease.net,
            gateway: lease.gateway,
            dns,
        };
        self.apply(on, address).await?;
        self.lease = Some((on.mac.clone(), lease.clone()));
        self.hold(wanted, nic, on, Some(lease)).await
    }

    async fn apply(&mut self, on: &Link, address: Address) -> Result<(), KernelError> {
        self.applied = Some((on.name.clone(), address.clone()));
        self.kernel.apply(on, address.net, address.gateway).await?;
        if let Err(error) = write_resolv_conf(&self.resolv_conf, &address.dns) {
            tracing::warn!(%error, file = %self.resolv_conf.display(), "could not write the name servers");
        }
        let changed = self.report.send_if_modified(|state| {
            let new = ManagementState {
                phase: Phase::Up,
                address: Some(address.net),
                gateway: address.gateway,
                dns: address.dns,
                ..state.clone()
            };
            let changed = *state != new;
            *state = new;
            changed
        });
        if changed {
            tracing::info!(interface = on.name, address = %address.net, "the management address is up");
        }
        Ok(())
    }

    /// Keeps the address: renews in time, and starts over when links change.
    async fn hold(
        &mut self,
        wanted: &Wanted,
        nic: &Link,
        on: &Link,
        lease: Option<Lease>,
    ) -> Result<Again, KernelError> {
        let mut lease = lease;
        let mut had_link = true;
        let mut look = Instant::now() + LOOK_EVERY;
        loop {
            let renew = lease.as_ref().map_or(look, Lease::next_ask);
            sleep_until(look.min(renew)).await;
            if let Some(held) = &lease {
                let now = Instant::now();
                if now >= held.expires {
                    self.lease = None;
                    self.kernel.remove(&on.name, held.net, held.gateway).await?;
                    self.applied = None;
                    self.report.send_modify(|state| {
                        state.address = None;
                        state.gateway = None;
                    });
                    return Ok(Again::Later(format!("the lease of {} ran out", held.net)));
                }
                if now >= held.next_ask() {
                    match dhcp::renew(&on.name, &on.mac, wanted.hostname.as_deref(), held).await {
                        Ok(new) if new.net == held.net && new.gateway == held.gateway => {
                            tracing::debug!(address = %new.net, seconds = new.seconds(), "lease renewed");
                            self.lease = Some((on.mac.clone(), new.clone()));
                            lease = Some(new);
                        }
                        // Another address, or refused: from the beginning, as RFC 2131 §4.4.5 says.
                        Ok(_) | Err(AskError::Refused) => {
                            self.lease = None;
                            return Ok(Again::Now);
                        }
                        Err(error) => {
                            tracing::warn!(%error, "the lease was not renewed; trying again");
                            if let Some(held) = &mut lease {
                                held.put_off();
                            }
                        }
                    }
                }
            }
            if Instant::now() < look {
                continue;
            }
            look = Instant::now() + LOOK_EVERY;
            let links = self.kernel.links().await?;
            let Some(same) = links
                .iter()
                .find(|link| link.name == nic.name && link.index == nic.index)
            else {
                self.lease = None;
                return Ok(Again::Now);
            };
            let interface = interface_of(same, &links);
            if interface.index != on.index || !interface.is_up {
                return Ok(Again::Now);
            }
            if same.has_carrier && !had_link && lease.is_some() {
                // Perhaps another network: what we have is asked for again, and kept when nobody answers.
                if let Some(held) = &mut lease {
                    held.ask_now();
                }
            }
            if same.has_carrier != had_link {
                had_link = same.has_carrier;
                tracing::warn!(nic = nic.name, link = had_link, "link changed");
            }
        }
    }
}

/// The bridge that the NIC is a port of, else the NIC: an address on a port is deaf.
fn interface_of<'a>(nic: &'a Link, links: &'a [Link]) -> &'a Link {
    let bridge = nic.controller;
    let bridge = bridge.and_then(|index| links.iter().find(|link| link.index == index));
    bridge.unwrap_or(nic)
}

fn write_resolv_conf(path: &Path, servers: &[Ipv4Addr]) -> std::io::Result<()> {
    let text: String = servers
        .iter()
        .map(|s| format!("nameserver {s}\n"))
        .collect();
    if std::fs::read_to_string(path).is_ok_and(|now| now == text) {
        return Ok(());
    }
    crate::config::write_durably(path, text.as_bytes())
}

#[cfg(test)]
mod tests;
