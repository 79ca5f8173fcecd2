//! openraft's own suite for log and state machine.

use openraft::testing::{StoreBuilder, Suite};
use tempfile::TempDir;

use crate::cluster::log::Log;
use crate::cluster::machine::Machine;
use crate::cluster::snapshots::Snapshots;
use crate::cluster::types::{StorageError, TypeConfig};

struct OnDisk;

impl StoreBuilder<TypeConfig, Log, Machine, TempDir> for OnDisk {
    async fn build(&self) -> Result<(TempDir, Log, Machine), StorageError> {
        let dir = TempDir::new().unwrap();
        let log = Log::open(dir.path()).unwrap();
        let machine = Machine::open(Snapshots::open(dir.path()).unwrap()).unwrap();
        Ok((dir, log, machine))
    }
}

#[test]
fn the_store_passes_openrafts_own_suite() {
    Suite::test_all(OnDisk).unwrap();
}
