//! A network's life.
//!
//! ```text
//! create ─► Creating ──ready──► Ready ◄─┐
//!               │                 │  failed / ready again (a cable, a driver)
//!               └──failed──► Failed ◄───┘         any of them ──delete──► Deleting ──removed──► gone
//! ```

use std::net::Ipv4Addr;

use api::condition::Condition;
use api::events::{ChangeOp, Noun};
use api::ids::{NetworkId, TaskId};
use api::names::Name;
use api::networks::{NetworkCreate, NetworkKind, NetworkPhase};
use api::tasks::TaskKind;
use api::units::Millis;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::apply::{Outcome, Step};
use crate::command::Report;
use crate::images::{not_wanted_gone, superseded};
use crate::refused::Refused;
use crate::table::Record;

/// A network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRecord {
    /// Its id.
    pub id: NetworkId,
    /// Its name.
    pub name: Name,
    /// What it is made of.
    pub kind: NetworkKind,
    /// Its phase.
    pub phase: NetworkPhase,
    /// Why it is not well.
    pub condition: Option<Condition>,
    /// The task that waits for it.
    pub task: Option<TaskId>,
    /// When it was created.
    pub created_at: Millis,
    /// The revision of its last change.
    pub revision: u64,
}

impl Record for NetworkRecord {
    fn id(&self) -> Uuid {
        self.id.0
    }
    fn name(&self) -> &Name {
        &self.name
    }
}

/// An IPv4 subnet of an isolated network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    /// Its first address, not used by anybody.
    pub base: Ipv4Addr,
    /// Prefix length, 16 to 29.
    pub prefix: u8,
}

impl Subnet {
    /// Parses `10.77.0.0/24`.
    pub fn parse(text: &str) -> Result<Self, Refused> {
        let bad = |why: &str| {
            Refused::invalid(
                format!("`{text}` is not a subnet for guests: {why}"),
                "write for instance `10.77.0.0/24`",
            )
        };
        let (base, prefix) = text
            .split_once('/')
            .ok_or_else(|| bad("no prefix length"))?;
        let base: Ipv4Addr = base.parse().map_err(|_| bad("not an IPv4 address"))?;
        let prefix: u8 = prefix.parse().map_err(|_| bad("not a prefix length"))?;
        if !(16..=29).contains(&prefix) {
            return Err(bad("the prefix length is not within 16 to 29"));
        }
        let subnet = Self { base, prefix };
        if u32::from(base) & !subnet.mask() != 0 {
            return Err(bad("the address has bits beyond the prefix"));
        }
        let special = base.octets()[0] == 0
            || base.is_loopback()
            || base.is_link_local()
            || base.octets()[0] >= 224;
        if special {
            return Err(bad("these addresses have another meaning"));
        }
        Ok(subnet)
    }

    fn mask(self) -> u32 {
        u32::MAX << (32 - u32::from(self.prefix.clamp(1, 32)))
    }

    /// The host's address in it: the first usable one.
    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.base) + 1)
    }

    /// The broadcast address: the last one.
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.base) | !self.mask())
    }

    /// The address is one of it.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & self.mask() == u32::from(self.base)
    }

    /// Some address is in both.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.base) || other.contains(self.base)
    }
}

/// A network is wanted.
pub(crate) fn create(
    step: &mut Step<'_>,
    id: NetworkId,
    task: TaskId,
    spec: &NetworkCreate,
) -> Result<Outcome, Refused> {
    Step::fresh(&step.state.networks, "network", id.0, &spec.name)?;
    match &spec.kind {
        NetworkKind::Uplink { uplink } => uplink_free(step, uplink)?,
        NetworkKind::Isolated { subnet, .. } => subnet_free(step, subnet)?,
    }
    step.task_begin(task, TaskKind::NetworkCreate, id.0)?;
    step.put_network(NetworkRecord {
        id,
        name: spec.name.clone(),
        kind: spec.kind.clone(),
        phase: NetworkPhase::Creating,
        condition: None,
        task: Some(task),
        created_at: step.at,
        revision: 0,
    });
    Ok(Outcome::task(id.0, task))
}

/// A NIC carries at most one network.
fn uplink_free(step: &Step<'_>, uplink: &str) -> Result<(), Refused> {
    // IFNAMSIZ is 16 with the terminator; the kernel refuses `/`, `:` and white space.
    let fits = |b: u8| b.is_ascii_graphic() && b != b'/' && b != b':';
    let dots = uplink == "." || uplink == "..";
    if uplink.is_empty() || uplink.len() > 15 || dots || !uplink.bytes().all(fits) {
        return Err(Refused::invalid(
            format!("`{}` is not the name of a NIC", uplink.escape_debug()),
            "look at the host's inventory for its NICs",
        ));
    }
    let other = step
        .state
        .networks()
        .find(|n| matches!(&n.kind, NetworkKind::Uplink { uplink: taken } if taken == uplink));
    match other {
        None => Ok(()),
        Some(other) => Err(Refused::in_use(
            format!("NIC `{uplink}` carries network `{}` already", other.name),
            "use that network, or another NIC",
        )),
    }
}

/// Isolated networks do not overlap: the host is in all of them.
fn subnet_free(step: &Step<'_>, text: &str) -> Result<(), Refused> {
    let subnet = Subnet::parse(text)?;
    let taken = |n: &&NetworkRecord| n.subnet().is_some_and(|other| other.overlaps(subnet));
    match step.state.networks().find(taken) {
        None => Ok(()),
        Some(other) => Err(Refused::in_use(
            format!("`{text}` overlaps network `{}`", other.name),
            "choose another subnet",
        )),
    }
}

impl NetworkRecord {
    /// The subnet of an isolated network.
    pub fn subnet(&self) -> Option<Subnet> {
        match &self.kind {
            NetworkKind::Uplink { .. } => None,
            NetworkKind::Isolated { subnet, .. } => Subnet::parse(subnet).ok(),
        }
    }
}

/// What became of it. What cannot be true any more is void.
pub(crate) fn observed(
    step: &mut Step<'_>,
    id: NetworkId,
    report: &Report,
) -> Result<Outcome, Refused> {
    let mut network = get(step, id)?;
    match (network.phase, report) {
        (NetworkPhase::Creating, Report::Progress(progress)) => {
            if let Some(task) = network.task {
                step.task_progress(task, *progress);
            }
        }
        (NetworkPhase::Creating | NetworkPhase::Failed, Report::Ready) => {
            network.phase = NetworkPhase::Ready;
            network.condition = None;
            if let Some(task) = network.task.take() {
                step.task_succeeded(task);
            }
            step.put_network(network);
        }
        (NetworkPhase::Creating | NetworkPhase::Ready, Report::Failed(fault)) => {
            network.phase = NetworkPhase::Failed;
            network.condition = Some(fault.condition(step.at));
            if let Some(task) = network.task.take() {
                step.task_failed(task, fault.error());
            }
            step.put_network(network);
        }
        (NetworkPhase::Ready, Report::Progress(_) | Report::Ready)
        | (NetworkPhase::Failed, Report::Progress(_) | Report::Failed(_))
        | (NetworkPhase::Deleting, _) => {}
    }
    Ok(Outcome::object(id.0))
}

/// Wanted gone; not while NICs are on it.
pub(crate) fn delete(step: &mut Step<'_>, id: NetworkId, task: TaskId) -> Result<Outcome, Refused> {
    let mut network = get(step, id)?;
    let name = &network.name;
    if network.phase == NetworkPhase::Deleting {
        return Err(Refused::wrong_phase(
            format!("network `{name}` is being deleted"),
            "wait for its task",
        ));
    }
    let users = step.state.usage.networks.get(&id);
    let user = users.and_then(|vms| vms.keys().next());
    if let Some(vm) = user.and_then(|vm| step.state.vm(*vm)) {
        return Err(Refused::in_use(
            format!("network `{name}` is used by vm `{}`", vm.name),
            "delete the VM, or take the NIC from it, first",
        ));
    }
    step.task_begin(task, TaskKind::NetworkDelete, id.0)?;
    if let Some(creation) = network.task.replace(task) {
        step.task_failed(creation, superseded("network"));
    }
    network.phase = NetworkPhase::Deleting;
    step.put_network(network);
    Ok(Outcome::task(id.0, task))
}

/// Its links are gone.
pub(crate) fn removed(step: &mut Step<'_>, id: NetworkId) -> Result<Outcome, Refused> {
    let network = get(step, id)?;
    if network.phase != NetworkPhase::Deleting {
        return Err(not_wanted_gone("network", &network.name));
    }
    if let Some(task) = network.task {
        step.task_succeeded(task);
    }
    step.state.networks.remove(id.0);
    step.changed(Noun::Network, id.0, ChangeOp::Deleted);
    Ok(Outcome::object(id.0))
}

fn get(step: &Step<'_>, id: NetworkId) -> Result<NetworkRecord, Refused> {
    let network = step.state.network(id).cloned();
    network.ok_or_else(|| Refused::not_found("network", id))
}
