//! Direct boot: a bzImage or an ELF kernel with a PVH note, its command line and its initial RAM disk.
//!
//! Files are read straight into guest memory; nothing of them stays in this process. A malformed kernel is an error.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use linux_loader::loader::{KernelLoader, bzimage::BzImage};
use vm_memory::{Bytes, GuestAddress};

use crate::arch::x86_64::boot::Entry;
use crate::arch::x86_64::layout;
use crate::machine::MachinePlan;
use crate::memory::GuestMemory;

/// `LOADED_HIGH`'s neighbour: the boot loader identifies itself as "undefined" (`boot.rst`, `type_of_loader`).
const LOADER_UNDEFINED: u8 = 0xff;
/// `xloadflags`: the kernel has a 64-bit entry.
const XLF_KERNEL_64: u16 = 1;
/// The 64-bit entry is this far into the protected-mode kernel.
const ENTRY_64: u64 = 0x200;
const PAGE: u64 = 4096;
const HVM_START_MAGIC: u32 = 0x336e_c578;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
const E820_ACPI: u32 = 3;

/// Why a kernel cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Neither a bzImage nor an ELF file, or a broken one.
    #[error("the kernel file is not a bootable kernel")]
    Format(#[from] linux_loader::loader::Error),
    /// It could not be read.
    #[error("could not read the {what}")]
    Read {
        /// Kernel or initial RAM disk.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A bzImage without 64-bit entry.
    #[error("the kernel has no 64-bit entry")]
    Not64Bit,
    /// An ELF kernel without PVH note.
    #[error("the ELF kernel has no PVH entry; build it with CONFIG_PVH or use its bzImage")]
    NoPvh,
    /// RAM is too small.
    #[error("kernel and initial RAM disk do not fit into {low_ram_mib} MiB of memory below 4 GiB")]
    TooLarge {
        /// What there is.
        low_ram_mib: u64,
    },
    /// A structure for the kernel does not fit.
    #[error("could not write the boot information into guest memory")]
    Write(#[from] vm_memory::GuestMemoryError),
}

/// What is booted.
pub struct Kernel<'a> {
    /// The kernel file.
    pub kernel: &'a mut File,
    /// The initial RAM disk.
    pub initrd: Option<&'a mut File>,
    /// The command line, without NUL, shorter than [`crate::config::CMDLINE_MAX`].
    pub cmdline: &'a str,
    /// Where the ACPI root pointer is.
    pub rsdp: u64,
}

#[derive(Clone, Copy)]
struct Initrd {
    address: u64,
    size: u64,
}

/// Loads everything and says where the first vCPU enters.
pub fn load(
    memory: &GuestMemory,
    plan: &MachinePlan,
    boot: Kernel<'_>,
) -> Result<Entry, KernelError> {
    let mut cmdline = boot.cmdline.as_bytes().to_vec();
    cmdline.push(0);
    memory.write_slice(&cmdline, GuestAddress(layout::CMDLINE))?;

    let mut magic = [0; 4];
    let unread = |source| KernelError::Read {
        what: "kernel",
        source,
    };
    boot.kernel.seek(SeekFrom::Start(0)).map_err(unread)?;
    boot.kernel.read_exact(&mut magic).map_err(unread)?;
    if magic == *b"\x7fELF" {
        let loaded = Elf::load(
            memory,
            None,
            boot.kernel,
            Some(GuestAddress(layout::HIGH_RAM)),
        )?;
        let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
            return Err(KernelError::NoPvh);
        };
        let initrd = load_initrd(
            memory,
            plan,
            boot.initrd,
            loaded.kernel_end,
            u64::from(u32::MAX),
        )?;
        write_pvh(memory, plan, initrd, boot.rsdp)?;
        return Ok(Entry::Pvh { address: entry.0 });
    }

    let loaded = BzImage::load(
        memory,
        None,
        boot.kernel,
        Some(GuestAddress(layout::HIGH_RAM)),
    )?;
    let Some(header) = loaded.setup_header else {
        return Err(KernelError::Not64Bit);
    };
    if header.version < 0x20c || header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(KernelError::Not64Bit);
    }
    // The kernel unpacks itself to its preferred address and needs `init_size` bytes there.
    let unpacked_end = header
        .pref_address
        .saturating_add(u64::from(header.init_size));
    let floor = loaded.kernel_end.max(unpacked_end);
    let initrd = load_initrd(
        memory,
        plan,
        boot.initrd,
        floor,
        u64::from(header.initrd_addr_max),
    )?;
    write_zero_page(memory, plan, header, initrd, boot.rsdp)?;
    Ok(Entry::Linux64 {
        address: loaded.kernel_load.0 + ENTRY_64,
    })
}

/// Puts the initial RAM disk as high as it may be, above `floor`.
fn load_initrd(
    memory: &GuestMemory,
    plan: &MachinePlan,
    initrd: Option<&mut File>,
    floor: u64,
    last: u64,
) -> Result<Option<Initrd>, KernelError> {
    let too_large = KernelError::TooLarge {
        low_ram_mib: plan.low_ram_end() >> 20,
    };
    if floor > plan.low_ram_end() {
        return Err(too_large);
    }
    let Some(file) = initrd else { return Ok(None) };
    let unread = |source| KernelError::Read {
        what: "initial RAM disk",
        source,
    };
    let size = file.seek(SeekFrom::End(0)).map_err(unread)?;
    file.seek(SeekFrom::Start(0)).map_err(unread)?;
    let top = plan.low_ram_end().min(last.saturating_add(1));
    let address = top
        .checked_sub(size)
        .map(|start| start & !(PAGE - 1))
        .filter(|start| *start >= floor);
    let (Some(address), Ok(bytes)) = (address, usize::try_from(size)) else {
        return Err(too_large);
    };
    memory.read_exact_volatile_from(GuestAddress(address), file, bytes)?;
    Ok(Some(Initrd { address, size }))
}

/// Memory as the guest is told: (start, size, type).
fn memory_map(plan: &MachinePlan) -> Vec<(u64, u64, u32)> {
    let mut map = vec![
        (0, layout::EBDA, E820_RAM),
        (layout::EBDA, layout::ACPI - layout::EBDA, E820_RESERVED),
        (layout::ACPI, layout::ACPI_END - layout::ACPI, E820_ACPI),
        (
            layout::HIGH_RAM,
            plan.low_ram_end() - layout::HIGH_RAM,
            E820_RAM,
        ),
        (layout::ECAM, layout::ECAM_SIZE, E820_RESERVED),
    ];
    map.extend(
        plan.ram
            .iter()
            .skip(1)
            .map(|range| (range.start, range.size, E820_RAM)),
    );
    map
}

fn write_zero_page(
    memory: &GuestMemory,
    plan: &MachinePlan,
    header: setup_header,
    initrd: Option<Initrd>,
    rsdp: u64,
) -> Result<(), KernelError> {
    let mut page = boot_params {
        hdr: header,
        acpi_rsdp_addr: rsdp,
        ..Default::default()
    };
    page.hdr.type_of_loader = LOADER_UNDEFINED;
    page.hdr.cmd_line_ptr = layout::CMDLINE as u32;
    page.hdr.cmdline_size = crate::config::CMDLINE_MAX as u32;
    if let Some(initrd) = initrd {
        page.hdr.ramdisk_image = initrd.address as u32;
        page.hdr.ramdisk_size = initrd.size as u32;
    }
    let map = memory_map(plan);
    for (entry, (addr, size, type_)) in page.e820_table.iter_mut().zip(&map) {
        *entry = boot_e820_entry {
            addr: *addr,
            size: *size,
            r#type: *type_,
        };
    }
    page.e820_entries = map.len() as u8;
    Ok(memory.write_obj(page, GuestAddress(layout::ZERO_PAGE))?)
}

fn write_pvh(
    memory: &GuestMemory,
    plan: &MachinePlan,
    initrd: Option<Initrd>,
    rsdp: u64,
) -> Result<(), KernelError> {
    let modules = layout::PVH_INFO + size_of::<hvm_start_info>() as u64;
    let map_at = modules + size_of::<hvm_modlist_entry>() as u64;
    let map = memory_map(plan);
    let info = hvm_start_info {
        magic: HVM_START_MAGIC,
        version: 1,
        nr_modules: u32::from(initrd.is_some()),
        modlist_paddr: modules,
        cmdline_paddr: layout::CMDLINE,
        rsdp_paddr: rsdp,
        memmap_paddr: map_at,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    memory.write_obj(info, GuestAddress(layout::PVH_INFO))?;
    if let Some(initrd) = initrd {
        let module = hvm_modlist_entry {
            paddr: initrd.address,
            size: initrd.size,
            ..Default::default()
        };
        memory.write_obj(module, GuestAddress(modules))?;
    }
    for (index, (addr, size, type_)) in (0u64..).zip(map) {
        let entry = hvm_memmap_table_entry {
            addr,
            size,
            type_,
            ..Default::default()
        };
        memory.write_obj(
            entry,
            GuestAddress(map_at + index * size_of::<hvm_memmap_table_entry>() as u64),
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Boot, VmmConfig};
    use proptest::prelude::*;
    use std::io::Write;

    fn plan(memory_mib: u64) -> MachinePlan {
        MachinePlan::new(VmmConfig {
            name: "t".into(),
            memory_mib,
            vcpus: 1,
            boot: Boot::Kernel {
                kernel_fd: 10,
                initrd_fd: None,
                cmdline: String::new(),
            },
            disks: vec![],
            nics: vec![],
            rng: false,
            kvm_fd: 3,
            control_fd: 4,
            serial_fd: 5,
            status_fd: 6,
        })
        .unwrap()
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn attempt(kernel: &[u8], initrd: Option<&[u8]>) -> Result<Entry, KernelError> {
        let plan = plan(16);
        let memory = crate::memory::create(&plan.ram).unwrap();
        let mut initrd = initrd.map(file);
        let boot = Kernel {
            kernel: &mut file(kernel),
            initrd: initrd.as_mut(),
            cmdline: "quiet",
            rsdp: layout::ACPI,
        };
        load(&memory, &plan, boot)
    }

    /// The smallest thing that passes for a bzImage: one setup sector, a header, a page of code.
    fn bzimage() -> Vec<u8> {
        let mut image = vec![0u8; 1024 + 4096];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
        image[0x211] = 1;
        image[0x214..0x218].copy_from_slice(&0x10_0000u32.to_le_bytes());
        image[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
        image[0x236..0x238].copy_from_slice(&1u16.to_le_bytes());
        image[0x258..0x260].copy_from_slice(&0x20_0000u64.to_le_bytes());
        image[0x260..0x264].copy_from_slice(&0x10_0000u32.to_le_bytes());
        image
    }

    #[test]
    fn a_bzimage_is_entered_at_its_64_bit_entry() {
        assert_eq!(
            attempt(&bzimage(), Some(&[1; 5000])).unwrap(),
            Entry::Linux64 { address: 0x10_0200 }
        );
    }

    #[test]
    fn an_initial_ram_disk_that_does_not_fit_is_refused() {
        let refused = attempt(&bzimage(), Some(&vec![1; 14 << 20])).unwrap_err();
        assert!(refused.to_string().contains("do not fit into 16 MiB"));
    }

    #[test]
    fn files_that_are_no_kernel_are_refused() {
        assert!(matches!(attempt(b"", None), Err(KernelError::Read { .. })));
        assert!(matches!(
            attempt(&[0; 4096], None),
            Err(KernelError::Format(_))
        ));
        assert!(matches!(
            attempt(b"\x7fELF", None),
            Err(KernelError::Format(_))
        ));
        let mut image = bzimage();
        image[0x236] = 0;
        assert!(matches!(attempt(&image, None), Err(KernelError::Not64Bit)));
    }

    proptest! {
        #[test]
        fn a_damaged_kernel_never_panics(at in 0usize..1200, byte: u8, elf: bool) {
            let mut image = bzimage();
            if elf {
                image[..4].copy_from_slice(b"\x7fELF");
                image[0x10] = 2;
            }
            image[at] = byte;
            let _ = attempt(&image, Some(&[0; 100]));
        }
    }
}
