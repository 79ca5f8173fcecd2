//! A host's record.

use api::hosts::Inventory;
use api::ids::HostId;
use api::names::Name;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::apply::{Outcome, Step};
use crate::refused::Refused;
use crate::table::Record;
use crate::vms;

/// A machine of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRecord {
    /// Its id.
    pub id: HostId,
    /// Its name.
    pub name: Name,
    /// The version it runs.
    pub version: String,
    /// What it has.
    pub inventory: Inventory,
    /// SHA-256 of its TLS certificate.
    pub fingerprint: String,
    /// The boot of its kernel it last told of.
    pub boot_id: Option<String>,
    /// The revision of its last change.
    pub revision: u64,
}

impl Record for HostRecord {
    fn id(&self) -> Uuid {
        self.id.0
    }
    fn name(&self) -> &Name {
        &self.name
    }
}

/// Who a host is and what it has, told at each start of its daemon. Telling the same again changes nothing.
pub(crate) fn register(
    step: &mut Step<'_>,
    id: HostId,
    name: &Name,
    version: &str,
    inventory: &Inventory,
    fingerprint: &str,
) -> Result<Outcome, Refused> {
    if let Some(other) = step.state.hosts.named(name)
        && other.id != id
    {
        return Err(Refused::exists("host", name));
    }
    let old = step.state.host(id);
    let new = HostRecord {
        id,
        name: name.clone(),
        version: version.to_owned(),
        inventory: inventory.clone(),
        fingerprint: fingerprint.to_owned(),
        boot_id: old.and_then(|old| old.boot_id.clone()),
        revision: old.map_or(0, |old| old.revision),
    };
    if old != Some(&new) {
        step.put_host(new);
    }
    Ok(Outcome::object(id.0))
}

/// Which boot of its kernel a host is on. On a new one nothing runs any more: VMs that were up are wanted up again or
/// stay down, as their users wanted; those with autostart come up.
pub(crate) fn booted(step: &mut Step<'_>, id: HostId, boot_id: &str) -> Result<Outcome, Refused> {
    let host = step.state.host(id);
    let host = host.ok_or_else(|| Refused::not_found("host", id))?;
    if host.boot_id.as_deref() == Some(boot_id) {
        return Ok(Outcome::object(id.0));
    }
    let host = HostRecord {
        boot_id: Some(boot_id.to_owned()),
        ..host.clone()
    };
    step.put_host(host);
    vms::observed::host_booted(step, id);
    Ok(Outcome::object(id.0))
}
