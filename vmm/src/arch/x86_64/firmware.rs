//! What firmware made for QEMU is told by the firmware configuration device: memory, processors, ACPI, SMBIOS.
//!
//! The firmware places the ACPI tables itself, by a script (`docs/specs/` and `hw/acpi/bios-linker-loader.c` of QEMU
//! describe its commands): load a file, add the address of one file to a field in another, sum up a table. It reads them
//! after it has put PCI where it wants it, so they are made anew whenever it begins to.

use super::acpi::{self, PciPlaces, Tables};
use super::smbios;
use crate::devices::fw_cfg::{self, FwCfg, ItemError, Items};
use crate::machine::MachinePlan;
use crate::memory::GuestMemory;
use crate::metrics::Registry;
use std::sync::Arc;

const FILE_E820: &str = "etc/e820";
const FILE_TABLES: &str = "etc/acpi/tables";
const FILE_RSDP: &str = "etc/acpi/rsdp";
const FILE_SCRIPT: &str = "etc/table-loader";
const FILE_SMBIOS: &str = "etc/smbios/smbios-tables";
const FILE_SMBIOS_ANCHOR: &str = "etc/smbios/smbios-anchor";

const E820_RAM: u32 = 1;

/// In the RSDP: its checksums and what each sums up (ACPI 6.5 §5.2.5.3).
const RSDP_SUMS: [(u32, u32); 2] = [(8, 20), (32, 36)];
/// In any other table.
const TABLE_SUM: usize = 9;

/// One command of the script.
const COMMAND_BYTES: usize = 128;
const COMMAND_LOAD: u32 = 1;
const COMMAND_POINT: u32 = 2;
const COMMAND_SUM: u32 = 3;
const NAME_BYTES: usize = 56;
/// Anywhere below 4 GiB.
const ZONE_HIGH: u8 = 1;
/// Where an operating system without UEFI would search for it.
const ZONE_F_SEGMENT: u8 = 2;

/// The device for the machine of `plan`; `places` says where PCI is at the moment.
pub fn config_device(
    plan: &MachinePlan,
    places: impl Fn() -> PciPlaces + Send + 'static,
    memory: Arc<GuestMemory>,
    metrics: &Registry,
) -> Result<FwCfg, ItemError> {
    let mut items = Items::default();
    let cpus = u16::from(plan.config.vcpus).to_le_bytes();
    items.number(fw_cfg::CPUS, &cpus);
    items.number(fw_cfg::CPUS_MAX, &cpus);
    items.file(FILE_E820, e820(plan))?;
    let tables = tables(plan, places());
    let keys = vec![
        items.file(FILE_TABLES, tables.bytes.clone())?,
        items.file(FILE_RSDP, tables.rsdp.clone())?,
        items.file(FILE_SCRIPT, script(&tables))?,
    ];
    let smbios = smbios::tables();
    items.file(FILE_SMBIOS_ANCHOR, smbios::anchor(&smbios))?;
    items.file(FILE_SMBIOS, smbios)?;
    let mut device = FwCfg::new(items, memory, metrics);
    let (plan, files) = (plan.clone(), keys.clone());
    let refresh = move || {
        let tables = self::tables(&plan, places());
        let script = script(&tables);
        let contents = [tables.bytes, tables.rsdp, script];
        files.iter().copied().zip(contents).collect()
    };
    device.refresh_at(keys, Box::new(refresh));
    Ok(device)
}

/// The tables at offset 0 of their file, to be moved by the firmware, which also sums them up.
fn tables(plan: &MachinePlan, places: PciPlaces) -> Tables {
    let mut tables = Tables::new(plan, places, 0);
    for (at, _) in &tables.summed {
        if let Some(sum) = tables.bytes.get_mut(at + TABLE_SUM) {
            *sum = 0;
        }
    }
    for (at, _) in RSDP_SUMS {
        if let Some(sum) = tables.rsdp.get_mut(at as usize) {
            *sum = 0;
        }
    }
    tables
}

fn e820(plan: &MachinePlan) -> Vec<u8> {
    let entry = |range: &crate::machine::RamRange| {
        let mut entry = range.start.to_le_bytes().to_vec();
        entry.extend_from_slice(&range.size.to_le_bytes());
        entry.extend_from_slice(&E820_RAM.to_le_bytes());
        entry
    };
    plan.ram.iter().flat_map(entry).collect()
}

fn script(tables: &Tables) -> Vec<u8> {
    let mut script = load(FILE_RSDP, 16, ZONE_F_SEGMENT);
    script.extend(load(FILE_TABLES, acpi::ALIGN as u32, ZONE_HIGH));
    for at in &tables.pointers {
        script.extend(point(FILE_TABLES, *at as u32));
    }
    for (at, len) in &tables.summed {
        let at = *at as u32;
        script.extend(sum(FILE_TABLES, at + TABLE_SUM as u32, at, *len as u32));
    }
    script.extend(point(FILE_RSDP, acpi::RSDP_POINTER as u32));
    for (at, len) in RSDP_SUMS {
        script.extend(sum(FILE_RSDP, at, 0, len));
    }
    script
}

fn command(kind: u32, parts: &[&[u8]]) -> Vec<u8> {
    let mut command = kind.to_le_bytes().to_vec();
    command.extend(parts.concat());
    command.resize(COMMAND_BYTES, 0);
    command
}

fn name(name: &str) -> [u8; NAME_BYTES] {
    let mut padded = [0; NAME_BYTES];
    for (to, from) in padded.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    padded
}

fn load(file: &str, align: u32, zone: u8) -> Vec<u8> {
    command(COMMAND_LOAD, &[&name(file), &align.to_le_bytes(), &[zone]])
}

/// Adds the place of the tables to the eight bytes at `offset` of `file`.
fn point(file: &str, offset: u32) -> Vec<u8> {
    let parts = [
        &name(file)[..],
        &name(FILE_TABLES),
        &offset.to_le_bytes(),
        &[8],
    ];
    command(COMMAND_POINT, &parts)
}

fn sum(file: &str, at: u32, start: u32, len: u32) -> Vec<u8> {
    let numbers = [at, start, len].map(u32::to_le_bytes).concat();
    command(COMMAND_SUM, &[&name(file), &numbers])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Boot, VmmConfig};

    fn plan() -> MachinePlan {
        let boot = Boot::Firmware {
            code_fd: 10,
            vars_fd: 11,
        };
        MachinePlan::new(VmmConfig {
            name: "t".into(),
            memory_mib: 4096,
            vcpus: 2,
            boot,
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

    fn number(bytes: &[u8]) -> usize {
        bytes
            .iter()
            .rev()
            .fold(0, |number, byte| number << 8 | usize::from(*byte))
    }

    /// Does what the firmware does with the script; `files` are where it has loaded them.
    fn follow(script: &[u8], files: &mut [(&str, u64, Vec<u8>)]) {
        for command in script.chunks(COMMAND_BYTES) {
            let name = |at: usize| {
                let end = command[at..].iter().position(|byte| *byte == 0).unwrap();
                String::from_utf8(command[at..at + end].to_vec()).unwrap()
            };
            let index = |files: &[(&str, u64, Vec<u8>)], name: &str| {
                files.iter().position(|file| file.0 == name).unwrap()
            };
            let at = index(files, &name(4));
            match number(&command[..4]) {
                1 => assert_eq!(files[at].1 % number(&command[60..64]) as u64, 0),
                2 => {
                    let base = files[index(files, &name(60))].1;
                    let (offset, size) = (number(&command[116..120]), command[120].into());
                    let field = &mut files[at].2[offset..offset + size];
                    let value = number(field) as u64 + base;
                    field.copy_from_slice(&value.to_le_bytes()[..size]);
                }
                3 => {
                    let [result, start, len] = [60, 64, 68].map(|at| number(&command[at..at + 4]));
                    let bytes = &mut files[at].2;
                    assert_eq!(bytes[result], 0);
                    let sum = bytes[start..start + len].iter();
                    let sum = sum.fold(0u8, |sum, byte| sum.wrapping_add(*byte));
                    bytes[result] = sum.wrapping_neg();
                }
                other => panic!("command {other}"),
            }
        }
    }

    #[test]
    fn the_script_makes_of_the_files_what_a_direct_boot_gets() {
        let plan = plan();
        let (rsdp_at, tables_at) = (0xf_0000, 0x7ff0_0000);
        let made = tables(&plan, PciPlaces::direct(&plan));
        let mut files = [
            (FILE_RSDP, rsdp_at, made.rsdp.clone()),
            (FILE_TABLES, tables_at, made.bytes.clone()),
        ];
        follow(&script(&made), &mut files);
        let expected = Tables::new(&plan, PciPlaces::direct(&plan), tables_at);
        assert_eq!(files[0].2, expected.rsdp);
        assert_eq!(files[1].2, expected.bytes);
    }

    #[test]
    fn the_tables_have_the_same_length_wherever_pci_is() {
        let [old, new] = [0xb000_0000, 0xe000_0000]
            .map(|ecam| tables(&plan(), PciPlaces::around(&plan(), ecam, None)));
        assert_eq!(old.bytes.len(), new.bytes.len());
        assert_ne!(old.bytes, new.bytes);
    }

    #[test]
    fn memory_is_listed() {
        let map = e820(&plan());
        let ranges: Vec<_> = map
            .chunks(20)
            .map(|entry| {
                (
                    number(&entry[..8]),
                    number(&entry[8..16]),
                    number(&entry[16..]),
                )
            })
            .collect();
        assert_eq!(ranges, [(0, 2 << 30, 1), (4 << 30, 2 << 30, 1)]);
    }
}
