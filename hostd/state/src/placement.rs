//! Whether a host can take a VM, and if not why.
//!
//! Memory is never promised twice: a guest's RAM may be touched to its last page at any time. vCPUs may be
//! overcommitted, the host's scheduler shares them.

use api::ids::HostId;
use api::units::Mib;

use crate::hosts::HostRecord;
use crate::refused::Refused;
use crate::state::State;

/// Kept for the host itself: image in RAM, daemon, kernel, page cache.
pub const HOST_RESERVE: Mib = Mib(512);
/// What a VM's process needs beside its guest's memory.
pub const VM_OVERHEAD: Mib = Mib(16);

/// The host has this much memory for another VM.
pub fn admit(state: &State, host: HostId, memory: Mib) -> Result<(), Refused> {
    let host = state
        .host(host)
        .ok_or_else(|| Refused::not_found("host", host))?;
    let wanted = memory.0.saturating_add(VM_OVERHEAD.0);
    let free = free(state, host);
    if wanted <= free.0 {
        return Ok(());
    }
    Err(Refused::exhausted(
        format!(
            "host `{}` has {free} left for guests, {} are needed ({memory} and {VM_OVERHEAD} for its process)",
            host.name,
            Mib(wanted)
        ),
        "stop another VM, or give this one less memory",
    ))
}

/// Memory of a host that is not promised yet.
pub fn free(state: &State, host: &HostRecord) -> Mib {
    let promised = state
        .usage
        .promised
        .get(&host.id)
        .copied()
        .unwrap_or_default();
    let overhead = VM_OVERHEAD.0.saturating_mul(promised.vms);
    let taken = HOST_RESERVE
        .0
        .saturating_add(promised.memory.0)
        .saturating_add(overhead);
    Mib(host.inventory.memory.0.saturating_sub(taken))
}
