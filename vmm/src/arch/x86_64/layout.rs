//! The guest's physical address map.
//!
//! ```text
//! 0x0000_0000  RAM ─ 0x0500 GDT · 0x6000 PVH info · 0x7000 zero page · 0x9000 page tables · 0x2_0000 command line
//! 0x0009_fc00  reserved (BIOS data area and the legacy video hole) ─ 0xe_0000 ACPI tables
//! 0x0010_0000  RAM: kernel from here, initial RAM disk at the top
//! 0xc000_0000  PCI memory window, 512 MiB; one MiB per slot to begin with
//! 0xe000_0000  PCI configuration space (ECAM), one MiB for the one bus; up to 0xf000_0000 is kept free for more
//! 0xfec0_0000  IOAPIC      0xfee0_0000  local APICs      0xfeff_c000  KVM's own pages
//! 0x1_0000_0000  the rest of RAM
//!     …          64-bit PCI memory window, from the next GiB above RAM
//! ```
//! A machine with firmware is laid out as QEMU's Q35: configuration space and the 32-bit PCI window are where the
//! firmware puts them, between [`FIRMWARE_LOW_RAM`] and [`FIRMWARE_MMIO32_END`], and flash ends at 4 GiB.

/// The global descriptor table at entry.
pub const GDT: u64 = 0x500;
/// `hvm_start_info` of the PVH protocol, followed by its module list and memory map.
pub const PVH_INFO: u64 = 0x6000;
/// `boot_params` of the Linux boot protocol.
pub const ZERO_PAGE: u64 = 0x7000;
/// Top of the stack at entry; nothing uses it before the kernel has its own.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Six pages of identity mapping for the 64-bit entry: one PML4, one PDPT, four page directories.
pub const PAGE_TABLES: u64 = 0x9000;
/// The kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// The end of conventional memory (where a BIOS keeps its extended data area).
pub const EBDA: u64 = 0x9_fc00;
/// ACPI tables, the root pointer first: within the area that is searched for it.
pub const ACPI: u64 = 0xe_0000;
/// End of the ACPI area.
pub const ACPI_END: u64 = 0x10_0000;
/// Where memory above the first MiB, and kernels, begin.
pub const HIGH_RAM: u64 = 0x10_0000;

/// RAM below 4 GiB ends here at the latest; the 32-bit PCI window begins here.
pub const MMIO32: u64 = 0xc000_0000;
/// Size of the 32-bit PCI window.
pub const MMIO32_SIZE: u64 = ECAM - MMIO32;
/// Each slot's first BAR is placed at this distance from the last slot's.
pub const SLOT_WINDOW: u64 = 0x10_0000;
/// PCI Express enhanced configuration space.
pub const ECAM: u64 = 0xe000_0000;
/// The last bus. Linux looks at every slot of every bus the tables promise: each promised in vain costs 64 exits.
pub const LAST_BUS: u8 = 0;
/// One MiB for each bus.
pub const ECAM_SIZE: u64 = (LAST_BUS as u64 + 1) << 20;
/// The IOAPIC's registers.
pub const IOAPIC: u32 = 0xfec0_0000;
/// The local APICs' registers.
pub const LAPIC: u32 = 0xfee0_0000;
/// One page KVM wants for itself (`KVM_SET_IDENTITY_MAP_ADDR`).
pub const KVM_IDENTITY_MAP: u64 = 0xfeff_c000;
/// Three pages KVM wants for itself (`KVM_SET_TSS_ADDR`).
pub const KVM_TSS: usize = 0xfeff_d000;
/// Where RAM that does not fit below [`MMIO32`] continues.
pub const RAM_ABOVE_4G: u64 = 1 << 32;
/// Size of the 64-bit PCI window.
pub const MMIO64_SIZE: u64 = 16 << 30;
/// Alignment of the 64-bit PCI window.
pub const MMIO64_ALIGN: u64 = 1 << 30;

/// Where low RAM ends in a machine with firmware that has more than [`FIRMWARE_ECAM_MIN`]; the PCI window may begin here.
pub const FIRMWARE_LOW_RAM: u64 = 0x8000_0000;
/// The lowest place where firmware is known to put the configuration space (OVMF: here, newer ones at [`ECAM`]).
pub const FIRMWARE_ECAM_MIN: u64 = 0xb000_0000;
/// End of the 32-bit PCI window that firmware uses.
pub const FIRMWARE_MMIO32_END: u64 = 0xfc00_0000;
/// The firmware's configuration space: 256 buses.
pub const FIRMWARE_ECAM_SIZE: u64 = 256 << 20;
/// Flash ends here.
pub const FLASH_END: u64 = 1 << 32;
/// No processor has addresses beyond. Firmware may put BARs anywhere below that and above RAM.
pub const ADDRESS_END: u64 = 1 << 52;
/// The largest flash: above the local APICs and KVM's own pages.
pub const FLASH_MAX: u64 = 16 << 20;

/// COM1: first port and interrupt.
pub const COM1_PORT: u16 = 0x3f8;
/// COM1's interrupt.
pub const COM1_GSI: u32 = 4;
/// ACPI's interrupt, level triggered.
pub const SCI_GSI: u32 = 9;
/// PM1a event block (status, enable), then PM1a control at +4, the PM timer at +8.
pub const PM_PORT: u16 = 0x600;
/// Ports of the power management block.
pub const PM_PORTS: u16 = 16;
/// The reset register named in the FADT.
pub const RESET_PORT: u16 = 0xcf9;
/// The value that resets.
pub const RESET_VALUE: u8 = 0x06;
/// PCI configuration address register (dword) and data.
pub const PCI_CONFIG_PORT: u16 = 0xcf8;
/// The firmware configuration device: selector and data.
pub const FW_CFG_PORT: u16 = 0x510;
/// Its DMA address register, eight ports.
pub const FW_CFG_DMA_PORT: u16 = 0x514;
/// Where firmware writes its log.
pub const DEBUG_PORT: u16 = 0x402;

const _: () = {
    assert!(KVM_TSS as u64 + 3 * 4096 <= FLASH_END - FLASH_MAX);
    assert!(FIRMWARE_ECAM_MIN + FIRMWARE_ECAM_SIZE <= FIRMWARE_MMIO32_END);
    assert!(PAGE_TABLES + 6 * 4096 <= CMDLINE);
    assert!(CMDLINE + crate::config::CMDLINE_MAX as u64 <= EBDA);
    assert!(MMIO32 + 32 * SLOT_WINDOW <= ECAM);
    assert!(PVH_INFO + 4096 <= ZERO_PAGE && ZERO_PAGE + 4096 <= BOOT_STACK);
};
