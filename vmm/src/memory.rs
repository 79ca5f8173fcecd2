//! Guest memory: RAM in a memfd, mapped here and given to KVM as memory slots.
#![allow(unsafe_code)] // UNSAFETY: handing a mapping to KVM (`KVM_SET_USER_MEMORY_REGION`) cannot be checked by the compiler.

use std::fs::File;
use std::io;
use std::sync::Arc;

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use rustix::fs::{MemfdFlags, SealFlags};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use crate::machine::RamRange;

/// The guest's RAM as this process sees it. Shared as `Arc<GuestMemory>`.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;

/// Why there is no guest memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The memfd could not be made.
    #[error("could not create {mib} MiB of guest memory")]
    Create {
        /// Asked for.
        mib: u64,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The memfd could not be mapped.
    #[error("could not map guest memory")]
    Map(#[source] vm_memory::mmap::MmapRegionError),
    /// The ranges are not a memory.
    #[error("the guest memory ranges overlap or overflow")]
    Ranges,
    /// KVM did not take a range.
    #[error("KVM refused the guest memory at {address:#x}")]
    Register {
        /// Its guest physical address.
        address: u64,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Creates RAM for `ranges` in one sealed memfd and maps it. No page is touched yet.
pub fn create(ranges: &[RamRange]) -> Result<GuestMemory, MemoryError> {
    let total: u64 = ranges.iter().map(|range| range.size).sum();
    let failed = |errno: rustix::io::Errno| MemoryError::Create {
        mib: total >> 20,
        source: errno.into(),
    };
    let fd = rustix::fs::memfd_create("guest-ram", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .map_err(failed)?;
    rustix::fs::ftruncate(&fd, total).map_err(failed)?;
    // Nobody who is ever handed this memfd can shrink it below our mapping, which would be a SIGBUS here.
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
        .map_err(failed)?;
    let file = Arc::new(File::from(fd));

    let mut regions = Vec::with_capacity(ranges.len());
    let mut offset = 0;
    for range in ranges {
        let size = usize::try_from(range.size).map_err(|_| MemoryError::Ranges)?;
        let mapping = MmapRegionBuilder::new(size)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .with_file_offset(FileOffset::from_arc(Arc::clone(&file), offset))
            .build()
            .map_err(MemoryError::Map)?;
        regions.push(
            GuestRegionMmap::new(mapping, GuestAddress(range.start)).ok_or(MemoryError::Ranges)?,
        );
        offset += range.size;
    }
    GuestMemory::from_regions(regions).map_err(|_| MemoryError::Ranges)
}

/// Gives `memory` to the virtual machine, one slot per range.
///
/// The caller keeps `memory` alive for as long as a vCPU of `vm` may run.
pub fn register(vm: &VmFd, memory: &GuestMemory) -> Result<(), MemoryError> {
    for (slot, region) in (0u32..).zip(memory.iter()) {
        let address = region.start_addr().0;
        let slot = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: address,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the range is a live mapping of exactly this size, ranges do not overlap (vm-memory refuses that), and
        // the machine drops its vCPUs before its memory.
        unsafe { vm.set_user_memory_region(slot) }.map_err(|errno| MemoryError::Register {
            address,
            source: errno.into(),
        })?;
    }
    Ok(())
}

/// The slots of [`register`] come first.
const SLOT_CODE: u32 = 8;
/// The variables', which come and go.
const SLOT_VARIABLES: u32 = 9;

/// Which flash chip a slot is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chip {
    /// The firmware's code.
    Code,
    /// Its variables.
    Variables,
}

/// Memory the guest can read and execute; its writes exit.
pub struct ReadOnlySlot {
    vm: Arc<VmFd>,
    memory: Arc<GuestMemory>,
    slot: u32,
}

impl ReadOnlySlot {
    /// Gives `memory`, which is one range, to the virtual machine.
    pub fn new(vm: Arc<VmFd>, memory: Arc<GuestMemory>, chip: Chip) -> Result<Self, MemoryError> {
        let slot = match chip {
            Chip::Code => SLOT_CODE,
            Chip::Variables => SLOT_VARIABLES,
        };
        let address = memory.iter().next().map_or(0, |range| range.start_addr().0);
        let made = Self { vm, memory, slot };
        made.open(true)
            .map_err(|source| MemoryError::Register { address, source })?;
        Ok(made)
    }

    /// Takes it from the guest, whose reads exit then, or gives it back.
    pub fn open(&self, open: bool) -> io::Result<()> {
        let Some(region) = self.memory.iter().next() else {
            return Ok(());
        };
        let slot = kvm_userspace_memory_region {
            slot: self.slot,
            flags: KVM_MEM_READONLY,
            guest_phys_addr: region.start_addr().0,
            memory_size: if open { region.len() } else { 0 },
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the range is a live mapping of exactly this size which `self` keeps, no other slot has this number, and
        // the machine drops its vCPUs before its buses, which hold this.
        unsafe { self.vm.set_user_memory_region(slot) }.map_err(Into::into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn memory_is_zero_shared_across_ranges_and_bounded() {
        let ranges = [
            RamRange {
                start: 0,
                size: 1 << 20,
            },
            RamRange {
                start: 4 << 30,
                size: 1 << 20,
            },
        ];
        let memory = create(&ranges).unwrap();
        assert_eq!(memory.read_obj::<u64>(GuestAddress(4 << 30)).unwrap(), 0);
        memory.write_obj(7u32, GuestAddress((4 << 30) + 8)).unwrap();
        assert_eq!(
            memory.read_obj::<u32>(GuestAddress((4 << 30) + 8)).unwrap(),
            7
        );
        assert!(memory.write_obj(7u32, GuestAddress(1 << 20)).is_err());
        assert!(
            create(&[
                RamRange {
                    start: 0,
                    size: 1 << 20
                },
                RamRange {
                    start: 4096,
                    size: 1 << 20
                }
            ])
            .is_err()
        );
    }
}
