//! Who uses what, kept beside the tables so that nobody has to search them. Derived: a snapshot does not hold it.

use std::collections::{BTreeMap, BTreeSet};

use api::ids::{HostId, ImageId, NetworkId, VmId, VolumeId};
use api::units::Mib;
use api::vms::Boot;

use crate::state::State;
use crate::vms::VmRecord;

/// The users of volumes, images, networks, MAC addresses and memory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Usage {
    pub(crate) volumes: BTreeMap<VolumeId, BTreeSet<VmId>>,
    pub(crate) images: BTreeMap<ImageId, BTreeSet<VmId>>,
    pub(crate) networks: BTreeMap<NetworkId, BTreeMap<VmId, u32>>,
    pub(crate) macs: BTreeMap<String, VmId>,
    pub(crate) promised: BTreeMap<HostId, Promised>,
}

/// What is promised to the VMs that are up on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Promised {
    pub(crate) memory: Mib,
    pub(crate) vms: u64,
}

impl Usage {
    /// All of it, from the tables.
    pub(crate) fn of(state: &State) -> Self {
        let mut usage = Self::default();
        for vm in state.vms.iter() {
            usage.add(vm);
        }
        usage
    }

    /// Counts a VM in.
    pub(crate) fn add(&mut self, vm: &VmRecord) {
        for disk in &vm.disks {
            self.volumes.entry(disk.volume).or_default().insert(vm.id);
        }
        for image in images(&vm.boot) {
            self.images.entry(image).or_default().insert(vm.id);
        }
        for nic in &vm.nics {
            let nics = self.networks.entry(nic.network).or_default();
            *nics.entry(vm.id).or_default() += 1;
            self.macs.insert(nic.mac.clone(), vm.id);
        }
        if vm.is_up() {
            let promised = self.promised.entry(vm.host).or_default();
            promised.memory.0 = promised.memory.0.saturating_add(vm.memory.0);
            promised.vms += 1;
        }
    }

    /// Counts a VM out.
    pub(crate) fn remove(&mut self, vm: &VmRecord) {
        for disk in &vm.disks {
            take(&mut self.volumes, disk.volume, vm.id);
        }
        for image in images(&vm.boot) {
            take(&mut self.images, image, vm.id);
        }
        for nic in &vm.nics {
            if let Some(nics) = self.networks.get_mut(&nic.network) {
                nics.remove(&vm.id);
                if nics.is_empty() {
                    self.networks.remove(&nic.network);
                }
            }
            self.macs.remove(&nic.mac);
        }
        if vm.is_up()
            && let Some(promised) = self.promised.get_mut(&vm.host)
        {
            promised.memory.0 = promised.memory.0.saturating_sub(vm.memory.0);
            promised.vms = promised.vms.saturating_sub(1);
            if promised.vms == 0 {
                self.promised.remove(&vm.host);
            }
        }
    }
}

/// The images a VM boots from.
pub(crate) fn images(boot: &Boot) -> impl Iterator<Item = ImageId> {
    let (kernel, initrd) = match boot {
        Boot::Kernel { kernel, initrd, .. } => (Some(*kernel), *initrd),
        Boot::Firmware {} => (None, None),
    };
    kernel.into_iter().chain(initrd)
}

fn take<K: Ord>(map: &mut BTreeMap<K, BTreeSet<VmId>>, key: K, vm: VmId) {
    if let Some(users) = map.get_mut(&key) {
        users.remove(&vm);
        if users.is_empty() {
            map.remove(&key);
        }
    }
}
