//! Networks and what NICs are attached to.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::condition::Condition;
use crate::ids::NetworkId;
use crate::names::Name;
use crate::units::Millis;

/// What a network is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum NetworkKind {
    /// A bridge on a physical NIC: guests are on the host's own segment. The host's address moves to the bridge.
    Uplink {
        /// The NIC's kernel name, for instance `eth0`.
        uplink: String,
    },
    /// A bridge of its own; the host is its gateway at the subnet's first address.
    Isolated {
        /// IPv4, for instance `10.77.0.0/24`; /16 to /29.
        subnet: String,
        /// The host hands out addresses.
        #[serde(default = "yes")]
        dhcp: bool,
    },
}

fn yes() -> bool {
    true
}

/// `POST /networks`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkCreate {
    /// Unique among networks.
    pub name: Name,
    /// What it is made of.
    pub kind: NetworkKind,
}

/// Where a network is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NetworkPhase {
    /// Being made.
    Creating,
    /// Up.
    Ready,
    /// Could not be made; `condition` says why.
    Failed,
    /// Being removed.
    Deleting,
}

/// A network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Network {
    /// Its id.
    pub id: NetworkId,
    /// Its name.
    pub name: Name,
    /// What it is made of.
    pub kind: NetworkKind,
    /// Its phase.
    pub phase: NetworkPhase,
    /// NICs attached.
    pub nics: u32,
    /// Why it is not well.
    pub condition: Option<Condition>,
    /// When it was created.
    pub created_at: Millis,
    /// The revision of its last change.
    pub revision: u64,
}
