//! Volumes and images that are entries in a table.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::sync::{Arc, Mutex};

use api::ids::{ImageId, VmId, VolumeId};
use api::units::Percent;
use hostd_state::Fault;

use super::{empty_file, lock};
use crate::storage::{FirmwareFiles, Images, Progress, Stored, VolumePlan, Volumes};
use crate::vms::fault;

/// Holds no bytes.
#[derive(Debug, Clone, Default)]
pub struct FakeVolumes {
    table: Arc<Mutex<Table<VolumeId>>>,
    variables: Arc<Mutex<BTreeSet<VmId>>>,
}

/// Holds no bytes.
#[derive(Debug, Clone, Default)]
pub struct FakeImages {
    table: Arc<Mutex<Table<ImageId>>>,
}

#[derive(Debug)]
struct Table<Id> {
    stored: BTreeMap<Id, u64>,
    failing: Option<Fault>,
    made: u64,
}

impl<Id> Default for Table<Id> {
    fn default() -> Self {
        Self {
            stored: BTreeMap::new(),
            failing: None,
            made: 0,
        }
    }
}

impl<Id: Copy> Table<Id> {
    fn list(&self) -> Vec<Stored<Id>> {
        self.stored
            .iter()
            .map(|(id, size_bytes)| Stored {
                id: *id,
                size_bytes: *size_bytes,
            })
            .collect()
    }
}

impl FakeVolumes {
    /// From now on creating fails so, or works again.
    pub fn fail(&self, fault: Option<Fault>) {
        lock(&self.table).failing = fault;
    }

    /// How many volumes were ever made.
    pub fn made(&self) -> u64 {
        lock(&self.table).made
    }

    /// Whether there are variables of the VM's firmware.
    pub fn has_variables(&self, vm: VmId) -> bool {
        lock(&self.variables).contains(&vm)
    }

    /// How long a volume is.
    pub fn size(&self, volume: VolumeId) -> Option<u64> {
        lock(&self.table).stored.get(&volume).copied()
    }

    /// The bytes of a volume are gone.
    pub fn lose(&self, volume: VolumeId) {
        lock(&self.table).stored.remove(&volume);
    }
}

impl Volumes for FakeVolumes {
    async fn list(&self) -> Result<Vec<Stored<VolumeId>>, Fault> {
        Ok(lock(&self.table).list())
    }

    async fn create(&self, plan: VolumePlan, progress: Progress) -> Result<(), Fault> {
        let mut table = lock(&self.table);
        if let Some(fault) = &table.failing {
            return Err(fault.clone());
        }
        if table.stored.insert(plan.volume, plan.size_bytes).is_none() {
            table.made += 1;
        }
        progress.send_replace(Percent(100));
        Ok(())
    }

    async fn grow(&self, volume: VolumeId, size_bytes: u64) -> Result<(), Fault> {
        let mut table = lock(&self.table);
        if let Some(fault) = &table.failing {
            return Err(fault.clone());
        }
        match table.stored.get_mut(&volume) {
            Some(size) => *size = size_bytes.max(*size),
            None => {
                return Err(fault(
                    "storage_error",
                    "there is no such volume",
                    "create it",
                ));
            }
        }
        Ok(())
    }

    async fn remove(&self, volume: VolumeId) -> Result<(), Fault> {
        lock(&self.table).stored.remove(&volume);
        Ok(())
    }

    async fn open(&self, volume: VolumeId, _read_only: bool) -> Result<File, Fault> {
        match lock(&self.table).stored.contains_key(&volume) {
            true => empty_file(),
            false => Err(fault(
                "storage_error",
                "there is no such volume",
                "create it",
            )),
        }
    }

    async fn firmware(&self, vm: VmId) -> Result<FirmwareFiles, Fault> {
        lock(&self.variables).insert(vm);
        Ok(FirmwareFiles {
            code: empty_file()?,
            variables: empty_file()?,
        })
    }

    async fn remove_firmware(&self, vm: VmId) -> Result<(), Fault> {
        lock(&self.variables).remove(&vm);
        Ok(())
    }
}

impl FakeImages {
    /// An upload ended well.
    pub fn store(&self, image: ImageId, size_bytes: u64) {
        lock(&self.table).stored.insert(image, size_bytes);
    }
}

impl Images for FakeImages {
    async fn list(&self) -> Result<Vec<Stored<ImageId>>, Fault> {
        Ok(lock(&self.table).list())
    }

    async fn remove(&self, image: ImageId) -> Result<(), Fault> {
        lock(&self.table).stored.remove(&image);
        Ok(())
    }

    async fn open(&self, image: ImageId) -> Result<File, Fault> {
        match lock(&self.table).stored.contains_key(&image) {
            true => empty_file(),
            false => Err(no_image()),
        }
    }

    async fn examine(&self, image: ImageId) -> Result<u64, Fault> {
        // As if nothing were packed.
        lock(&self.table)
            .stored
            .get(&image)
            .copied()
            .ok_or_else(no_image)
    }
}

fn no_image() -> Fault {
    fault("storage_error", "there is no such image", "upload it")
}
