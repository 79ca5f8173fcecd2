//! ACPI tables from the machine plan (ACPI 6.5).
//!
//! ```text
//! RSDP ─ XSDT ─┬─ FADT ─┬─ DSDT  \_S5, PCI0 with its windows, COM1, RTC, what the board reserves
//!              ├─ MADT  └─ FACS
//!              └─ MCFG
//! ```
//! Interrupts of PCI functions are MSI only, so there is no `_PRT`. The power button is the fixed-feature one.
//!
//! For a direct boot [`write`] puts them into guest memory. Firmware places them itself and patches what depends on the
//! place, so [`Tables`] remembers where that is.

use std::ops::Range;

use acpi_tables::aml::{self, AddressSpace, AddressSpaceCacheable};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace as GasSpace, GAS};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, facs::FACS, mcfg::MCFG, rsdp::Rsdp, xsdt::XSDT};
use vm_memory::{Bytes, GuestAddress};

use super::layout;
use crate::devices::power::SLEEP_TYPE_OFF;
use crate::machine::MachinePlan;
use crate::memory::GuestMemory;

const OEM: [u8; 6] = *b"LQX   ";
const TABLE: [u8; 8] = *b"Q35LQX1 ";
const REVISION: u32 = 1;

/// IA-PC boot architecture: legacy devices (COM1, RTC) yes, 8042 no, VGA no, ASPM control no (ACPI 6.5 §5.2.9.3).
const BOOT_ARCHITECTURE: u16 = 1 | 1 << 2 | 1 << 4;

/// The tables do not fit.
#[derive(Debug, thiserror::Error)]
#[error("the ACPI tables do not fit into their area of guest memory")]
pub struct AcpiError;

/// Each table begins at a multiple of this, which is what the FACS needs.
pub const ALIGN: u64 = 64;
/// In the FADT: X_FIRMWARE_CTRL and X_DSDT (ACPI 6.5 table 5.9).
const FADT_POINTERS: [usize; 2] = [132, 140];
/// In the XSDT: its entries.
const XSDT_ENTRIES: usize = 36;
/// In the RSDP: XsdtAddress.
pub const RSDP_POINTER: usize = 24;

/// Where configuration space can be.
const DECODED: Range<u64> =
    layout::FIRMWARE_ECAM_MIN..layout::FIRMWARE_MMIO32_END - layout::FIRMWARE_ECAM_SIZE;

/// Where in the guest's address space PCI is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PciPlaces {
    /// Configuration space of bus 0.
    pub ecam: u64,
    /// The 32-bit memory window.
    pub window: u64,
    /// Bytes of the window.
    pub window_size: u64,
    /// The 64-bit memory window.
    pub window64: u64,
    /// Bytes of that.
    pub window64_size: u64,
}

impl PciPlaces {
    /// Where the direct boot has it.
    pub fn direct(plan: &MachinePlan) -> Self {
        Self {
            ecam: layout::ECAM,
            window: layout::MMIO32,
            window_size: layout::MMIO32_SIZE,
            window64: plan.mmio64,
            window64_size: layout::MMIO64_SIZE,
        }
    }

    /// Where firmware has it that has put the configuration space at `ecam`, and the BARs above RAM into `bars`: the
    /// 32-bit window is the larger of the spaces below and above the one, the 64-bit window contains the others.
    pub fn around(plan: &MachinePlan, ecam: u64, bars: Option<Range<u64>>) -> Self {
        // The guest may put it anywhere; this much of it is promised to work.
        let ecam = if DECODED.contains(&ecam) {
            ecam
        } else {
            layout::ECAM
        };
        let above = ecam + layout::FIRMWARE_ECAM_SIZE;
        let (window, end) = if ecam >= layout::ECAM {
            (layout::MMIO32, ecam)
        } else {
            (above, layout::FIRMWARE_MMIO32_END)
        };
        let bars = bars.unwrap_or(plan.mmio64..plan.mmio64);
        let window64 = bars.start - bars.start % layout::MMIO64_ALIGN;
        let end64 = bars.end.next_multiple_of(layout::MMIO64_ALIGN);
        Self {
            ecam,
            window,
            window_size: end.saturating_sub(window),
            window64,
            window64_size: layout::MMIO64_SIZE.max(end64 - window64),
        }
    }
}

/// All tables but the root pointer, for one place in memory.
#[derive(Debug, Clone, Default)]
pub struct Tables {
    base: u64,
    /// Their bytes, from that place on.
    pub bytes: Vec<u8>,
    /// Offset and length of each one that has a checksum (ACPI 6.5 §5.2.6: at offset 9).
    pub summed: Vec<(usize, usize)>,
    /// Offsets of the eight-byte pointers to others of them.
    pub pointers: Vec<usize>,
    /// The root pointer.
    pub rsdp: Vec<u8>,
}

impl Tables {
    /// The tables of `plan`, to be at `base`.
    pub fn new(plan: &MachinePlan, places: PciPlaces, base: u64) -> Self {
        let mut tables = Self {
            base,
            ..Self::default()
        };
        let dsdt = tables.add(dsdt(places).as_slice());
        let facs = tables.put(&bytes(&FACS::new()));
        let fadt = tables.add(&bytes(&fadt(dsdt, facs)));
        tables.point(fadt, &FADT_POINTERS);
        let madt = tables.add(madt(plan.config.vcpus).as_slice());
        let mut mcfg = MCFG::new(OEM, TABLE, REVISION);
        mcfg.add_ecam(places.ecam, 0, 0, layout::LAST_BUS);
        let mcfg = tables.add(&bytes(&mcfg));
        let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
        for table in [fadt, madt, mcfg] {
            xsdt.add_entry(table);
        }
        let xsdt = tables.add(&bytes(&xsdt));
        tables.point(xsdt, &[0, 8, 16].map(|at| XSDT_ENTRIES + at));
        tables.rsdp = bytes(&Rsdp::new(OEM, xsdt));
        tables
    }

    fn add(&mut self, table: &[u8]) -> u64 {
        let address = self.put(table);
        self.summed
            .push(((address - self.base) as usize, table.len()));
        address
    }

    fn put(&mut self, table: &[u8]) -> u64 {
        let at = self.bytes.len().next_multiple_of(ALIGN as usize);
        self.bytes.resize(at, 0);
        self.bytes.extend_from_slice(table);
        self.base + at as u64
    }

    fn point(&mut self, table: u64, fields: &[usize]) {
        let at = (table - self.base) as usize;
        self.pointers.extend(fields.iter().map(|field| at + field));
    }
}

/// Writes all tables and returns the address of the root pointer.
pub fn write(memory: &GuestMemory, plan: &MachinePlan) -> Result<u64, AcpiError> {
    let base = layout::ACPI + ALIGN;
    let tables = Tables::new(plan, PciPlaces::direct(plan), base);
    if base + tables.bytes.len() as u64 > layout::ACPI_END {
        return Err(AcpiError);
    }
    for (bytes, address) in [(&tables.rsdp, layout::ACPI), (&tables.bytes, base)] {
        memory
            .write_slice(bytes, GuestAddress(address))
            .map_err(|_| AcpiError)?;
    }
    Ok(layout::ACPI)
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn fadt(dsdt: u64, facs: u64) -> acpi_tables::fadt::FADT {
    let io = |offset: u16, bits: u8, access| {
        GAS::new(
            GasSpace::SystemIo,
            bits,
            0,
            access,
            u64::from(layout::PM_PORT + offset),
        )
    };
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(dsdt)
        .firmware_ctrl_64(facs)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // There is no sleep button; the power button is the fixed one, which its flag would deny.
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::TmrValExt);
    fadt.sci_int = (layout::SCI_GSI as u16).into();
    fadt.pm1a_evt_blk = u32::from(layout::PM_PORT).into();
    fadt.pm1a_cnt_blk = u32::from(layout::PM_PORT + 4).into();
    fadt.pm_tmr_blk = u32::from(layout::PM_PORT + 8).into();
    (fadt.pm1_evt_len, fadt.pm1_cnt_len, fadt.pm_tmr_len) = (4, 2, 4);
    fadt.x_pm1a_evt_blk = io(0, 32, AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = io(4, 16, AccessSize::WordAccess);
    fadt.x_pm_tmr_blk = io(8, 32, AccessSize::DwordAccess);
    fadt.reset_reg = GAS::new(
        GasSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        u64::from(layout::RESET_PORT),
    );
    fadt.reset_value = layout::RESET_VALUE;
    fadt.iapc_boot_arch = BOOT_ARCHITECTURE.into();
    // C2 and C3 do not exist: latencies above 100 and 1000 microseconds say so.
    fadt.p_lvl2_lat = 0xfff.into();
    fadt.p_lvl3_lat = 0xfff.into();
    // Where the century is in the CMOS clock.
    fadt.century = crate::devices::rtc::CENTURY;
    fadt.finalize()
}

/// The interrupt controllers (ACPI 6.5 §5.2.12). ISA interrupts are identity mapped, but the SCI is level triggered.
fn madt(vcpus: u8) -> Sdt {
    let mut madt = Sdt::new(*b"APIC", 44, 5, OEM, TABLE, REVISION);
    madt.write_u32(36, layout::LAPIC);
    // PCAT_COMPAT: there are two 8259s as well.
    madt.write_u32(40, 1);
    for id in 0..vcpus {
        let enabled = 1u32.to_le_bytes();
        madt.append_slice(&[&[0, 8, id, id][..], &enabled].concat());
    }
    madt.append_slice(
        &[
            &[1, 12, 0, 0][..],
            &layout::IOAPIC.to_le_bytes(),
            &0u32.to_le_bytes(),
        ]
        .concat(),
    );
    let active_high_level = 0b1101u16.to_le_bytes();
    let sci = layout::SCI_GSI.to_le_bytes();
    madt.append_slice(&[&[2, 10, 0, sci[0]][..], &sci, &active_high_level].concat());
    // NMI on LINT1 of every processor.
    madt.append_slice(&[4, 6, 0xff, 0, 0, 1]);
    madt
}

fn dsdt(places: PciPlaces) -> Sdt {
    let mut aml = Vec::new();
    let off = SLEEP_TYPE_OFF;
    aml::Name::new(
        "_S5_".into(),
        &aml::Package::new(vec![&off, &off, &0u8, &0u8]),
    )
    .to_aml_bytes(&mut aml);

    let bus = AddressSpace::<u16>::new_bus_number(0, u16::from(layout::LAST_BUS));
    let config_ports = aml::IO::new(layout::PCI_CONFIG_PORT, layout::PCI_CONFIG_PORT, 1, 8);
    let mmio32 = AddressSpace::<u32>::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        places.window as u32,
        (places.window + places.window_size - 1) as u32,
        None,
    );
    let mmio64 = AddressSpace::<u64>::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        places.window64,
        places.window64 + places.window64_size - 1,
        None,
    );
    aml::Device::new(
        "_SB_.PCI0".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0A08")),
            &aml::Name::new("_CID".into(), &aml::EISAName::new("PNP0A03")),
            &aml::Name::new("_UID".into(), &0u8),
            &aml::Name::new("_SEG".into(), &0u8),
            &aml::Name::new("_BBN".into(), &0u8),
            // Memory accesses are coherent.
            &aml::Name::new("_CCA".into(), &1u8),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![&bus, &config_ports, &mmio32, &mmio64]),
            ),
        ],
    )
    .to_aml_bytes(&mut aml);

    // Linux trusts the MCFG only where the board reserves the area too.
    let ecam = aml::Memory32Fixed::new(true, places.ecam as u32, layout::ECAM_SIZE as u32);
    let pm = aml::IO::new(layout::PM_PORT, layout::PM_PORT, 1, layout::PM_PORTS as u8);
    device(&mut aml, "_SB_.MBRD", "PNP0C02", &[&ecam, &pm]);
    let ports = aml::IO::new(layout::COM1_PORT, layout::COM1_PORT, 1, 8);
    let interrupt = aml::Interrupt::new(true, true, false, false, layout::COM1_GSI);
    device(&mut aml, "_SB_.COM1", "PNP0501", &[&ports, &interrupt]);
    let ports = aml::IO::new(0x70, 0x70, 1, 2);
    device(&mut aml, "_SB_.RTC0", "PNP0B00", &[&ports]);

    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM, TABLE, REVISION);
    dsdt.append_slice(&aml);
    dsdt
}

fn device(aml: &mut Vec<u8>, path: &str, id: &str, resources: &[&dyn Aml]) {
    aml::Device::new(
        path.into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new(id)),
            &aml::Name::new("_UID".into(), &1u8),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(resources.to_vec()),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Boot, VmmConfig};
    use crate::machine::RamRange;

    fn plan(vcpus: u8) -> MachinePlan {
        MachinePlan::new(VmmConfig {
            name: "t".into(),
            memory_mib: 64,
            vcpus,
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

    #[test]
    fn every_table_is_reachable_named_and_sums_to_zero() {
        for vcpus in [1, crate::config::VCPUS_MAX] {
            let memory = crate::memory::create(&[RamRange {
                start: 0,
                size: 1 << 20,
            }])
            .unwrap();
            let root = write(&memory, &plan(vcpus)).unwrap();
            let read = |at: u64, len: usize| {
                let mut bytes = vec![0u8; len];
                memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
                bytes
            };
            let table = |at: u64| {
                let len = u32::from_le_bytes(read(at + 4, 4).try_into().unwrap());
                let bytes = read(at, len as usize);
                assert_eq!(
                    bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)),
                    0,
                    "{:?}",
                    &bytes[..4]
                );
                bytes
            };
            let rsdp = read(root, 36);
            assert_eq!(&rsdp[..8], b"RSD PTR ");
            assert_eq!(rsdp.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)), 0);
            let xsdt = table(u64::from_le_bytes(rsdp[24..32].try_into().unwrap()));
            let mut names = vec![];
            for pointer in xsdt[36..].chunks(8) {
                let found = table(u64::from_le_bytes(pointer.try_into().unwrap()));
                names.push(String::from_utf8(found[..4].to_vec()).unwrap());
                if &found[..4] == b"FACP" {
                    let dsdt = table(u64::from_le_bytes(found[140..148].try_into().unwrap()));
                    assert_eq!(&dsdt[..4], b"DSDT");
                }
                if &found[..4] == b"APIC" {
                    assert_eq!(found.len(), 44 + 8 * usize::from(vcpus) + 12 + 10 + 6);
                }
            }
            assert_eq!(names, ["FACP", "APIC", "MCFG"]);
        }
    }

    #[test]
    fn every_pointer_leads_to_a_table_wherever_they_are() {
        let plan = plan(2);
        let places = PciPlaces::direct(&plan);
        let here = Tables::new(&plan, places, 0);
        let there = Tables::new(&plan, places, 0x1_0000);
        assert_eq!(here.pointers, there.pointers);
        let mut named = vec![];
        for at in &here.pointers {
            let field = |tables: &Tables| {
                u64::from_le_bytes(tables.bytes[*at..*at + 8].try_into().unwrap())
            };
            let target = field(&here) as usize;
            assert_eq!(field(&there), 0x1_0000 + target as u64);
            named.push(here.bytes[target..target + 4].to_vec());
        }
        let expected = [b"FACS", b"DSDT", b"FACP", b"APIC", b"MCFG"];
        assert_eq!(named, expected.map(|name| name.to_vec()));
        for (at, len) in &here.summed {
            let sum = here.bytes[*at..at + len].iter();
            assert_eq!(sum.fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        }
    }

    #[test]
    fn the_windows_are_beside_the_configuration_space_and_around_the_bars() {
        let plan = plan(1);
        let old = PciPlaces::around(&plan, 0xb000_0000, Some(56 << 30..(56 << 30) + 4096));
        assert_eq!((old.window, old.window_size), (0xc000_0000, 0x3c00_0000));
        assert_eq!((old.window64, old.window64_size), (56 << 30, 16 << 30));
        let wide = PciPlaces::around(&plan, 0xb000_0000, Some((57 << 30) - 1..(80 << 30) + 1));
        assert_eq!((wide.window64, wide.window64_size), (56 << 30, 25 << 30));
        for ecam in [layout::ECAM, 0, 0xf_f000_0000] {
            let new = PciPlaces::around(&plan, ecam, None);
            assert_eq!(new, PciPlaces::direct(&plan));
        }
    }
}
