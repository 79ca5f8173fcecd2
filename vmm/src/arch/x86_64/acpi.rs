//! ACPI tables from the machine plan (ACPI 6.5).
//!
//! ```text
//! RSDP ─ XSDT ─┬─ FADT ─┬─ DSDT  \_S5, PCI0 with its windows, COM1, RTC, what the board reserves
//!              ├─ MADT  └─ FACS
//!              └─ MCFG
//! ```
//! Interrupts of PCI functions are MSI only, so there is no `_PRT`. The power button is the fixed-feature one.

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

/// Writes all tables and returns the address of the root pointer.
pub fn write(memory: &GuestMemory, plan: &MachinePlan) -> Result<u64, AcpiError> {
    let mut next = layout::ACPI + 64;
    let mut put = |bytes: &[u8]| {
        let address = next;
        next = (address + bytes.len() as u64).next_multiple_of(64);
        if next > layout::ACPI_END {
            return Err(AcpiError);
        }
        memory
            .write_slice(bytes, GuestAddress(address))
            .map_err(|_| AcpiError)?;
        Ok(address)
    };
    let dsdt = put(dsdt(plan).as_slice())?;
    let facs = put(&bytes(&FACS::new()))?;
    let fadt = put(&bytes(&fadt(dsdt, facs)))?;
    let madt = put(madt(plan.config.vcpus).as_slice())?;
    let mut mcfg = MCFG::new(OEM, TABLE, REVISION);
    mcfg.add_ecam(layout::ECAM, 0, 0, layout::LAST_BUS);
    let mcfg = put(&bytes(&mcfg))?;
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    for table in [fadt, madt, mcfg] {
        xsdt.add_entry(table);
    }
    let xsdt = put(&bytes(&xsdt))?;
    let rsdp = bytes(&Rsdp::new(OEM, xsdt));
    memory
        .write_slice(&rsdp, GuestAddress(layout::ACPI))
        .map_err(|_| AcpiError)?;
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

fn dsdt(plan: &MachinePlan) -> Sdt {
    let mut aml = Vec::new();
    let off = SLEEP_TYPE_OFF;
    aml::Name::new(
        "_S5_".into(),
        &aml::Package::new(vec![&off, &off, &0u8, &0u8]),
    )
    .to_aml_bytes(&mut aml);

    let mmio64_end = plan.address_end() - 1;
    let bus = AddressSpace::<u16>::new_bus_number(0, u16::from(layout::LAST_BUS));
    let config_ports = aml::IO::new(layout::PCI_CONFIG_PORT, layout::PCI_CONFIG_PORT, 1, 8);
    let mmio32 = AddressSpace::<u32>::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        layout::MMIO32 as u32,
        (layout::MMIO32 + layout::MMIO32_SIZE - 1) as u32,
        None,
    );
    let mmio64 = AddressSpace::<u64>::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        plan.mmio64,
        mmio64_end,
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
    let ecam = aml::Memory32Fixed::new(true, layout::ECAM as u32, layout::ECAM_SIZE as u32);
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
}
