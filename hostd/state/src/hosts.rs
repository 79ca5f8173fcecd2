//! A host's record.

use api::hosts::Inventory;
use api::ids::HostId;
use api::names::Name;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::table::Record;

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
