//! A boot processor's registers at its first instruction, and the tables in memory they point to.
//!
//! Two ways in, both without a BIOS: the 64-bit entry of the Linux boot protocol (long mode, paging on, identity mapped;
//! `Documentation/arch/x86/boot.rst`, "64-bit boot protocol") and PVH (32-bit protected mode, paging off;
//! `xen/include/public/arch-x86/hvm/start_info.h`).

use std::io;

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use super::layout;
use crate::memory::GuestMemory;

/// How the first vCPU enters the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Linux's 64-bit entry; `boot_params` is at [`layout::ZERO_PAGE`].
    Linux64 {
        /// First instruction.
        address: u64,
    },
    /// PVH; `hvm_start_info` is at [`layout::PVH_INFO`].
    Pvh {
        /// First instruction.
        address: u64,
    },
}

/// Why a vCPU could not be brought to its entry.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// Tables for the entry do not fit into guest memory.
    #[error("guest memory is too small for the tables of the first vCPU")]
    Tables(#[from] vm_memory::GuestMemoryError),
    /// KVM refused the registers.
    #[error("KVM refused the registers of the first vCPU")]
    Registers(#[source] io::Error),
}

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const RFLAGS_RESERVED: u64 = 1 << 1;

const PRESENT_WRITABLE: u64 = 0b11;
const LARGE_PAGE: u64 = 1 << 7;

/// Selectors as the Linux boot protocol names them: `__BOOT_CS` and `__BOOT_DS`.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const TASK: u16 = 0x20;

/// Writes the tables of `entry` and sets the registers of the first vCPU.
pub fn enter(vcpu: &VcpuFd, memory: &GuestMemory, entry: Entry) -> Result<(), EntryError> {
    let sregs = vcpu
        .get_sregs()
        .map_err(|errno| EntryError::Registers(errno.into()))?;
    let (regs, sregs) = match entry {
        Entry::Linux64 { address } => {
            write_page_tables(memory)?;
            let regs = kvm_regs {
                rip: address,
                rsi: layout::ZERO_PAGE,
                rsp: layout::BOOT_STACK,
                rbp: layout::BOOT_STACK,
                rflags: RFLAGS_RESERVED,
                ..Default::default()
            };
            let mut sregs = protected(memory, sregs, true)?;
            sregs.cr3 = layout::PAGE_TABLES;
            sregs.cr4 |= CR4_PAE;
            sregs.cr0 |= CR0_PG;
            sregs.efer |= EFER_LME | EFER_LMA;
            (regs, sregs)
        }
        Entry::Pvh { address } => {
            let regs = kvm_regs {
                rip: address,
                rbx: layout::PVH_INFO,
                rflags: RFLAGS_RESERVED,
                ..Default::default()
            };
            (regs, protected(memory, sregs, false)?)
        }
    };
    vcpu.set_sregs(&sregs)
        .map_err(|errno| EntryError::Registers(errno.into()))?;
    vcpu.set_regs(&regs)
        .map_err(|errno| EntryError::Registers(errno.into()))
}

/// Flat protected mode; `long` makes the code segment a 64-bit one.
fn protected(
    memory: &GuestMemory,
    mut sregs: kvm_sregs,
    long: bool,
) -> Result<kvm_sregs, EntryError> {
    let flat = kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        present: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    let code = kvm_segment {
        selector: CODE,
        type_: 0xb,
        l: u8::from(long),
        db: u8::from(!long),
        ..flat
    };
    let data = kvm_segment {
        selector: DATA,
        type_: 0x3,
        db: 1,
        ..flat
    };
    let task = kvm_segment {
        selector: TASK,
        limit: 0x67,
        type_: 0xb,
        present: 1,
        ..Default::default()
    };
    let gdt = [
        0,
        0,
        descriptor(&code),
        descriptor(&data),
        descriptor(&task),
    ];
    for (slot, entry) in (0u64..).zip(gdt) {
        memory.write_obj(entry, GuestAddress(layout::GDT + 8 * slot))?;
    }
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = (8 * gdt.len() - 1) as u16;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cs = code;
    sregs.ds = data;
    sregs.es = data;
    sregs.fs = data;
    sregs.gs = data;
    sregs.ss = data;
    sregs.tr = task;
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr4 = 0;
    sregs.efer = 0;
    Ok(sregs)
}

/// The eight-byte form of a segment (Intel SDM 3A §3.4.5).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 {
        segment.limit >> 12
    } else {
        segment.limit
    });
    let access = u64::from(segment.type_)
        | u64::from(segment.s) << 4
        | u64::from(segment.dpl) << 5
        | u64::from(segment.present) << 7;
    let flags = u64::from(segment.avl)
        | u64::from(segment.l) << 1
        | u64::from(segment.db) << 2
        | u64::from(segment.g) << 3;
    (limit & 0xffff)
        | (segment.base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | flags << 52
        | (segment.base >> 24 & 0xff) << 56
}

/// Identity mapping of the first 4 GiB with 2 MiB pages.
fn write_page_tables(memory: &GuestMemory) -> Result<(), EntryError> {
    let pml4 = layout::PAGE_TABLES;
    let pdpt = pml4 + 4096;
    memory.write_obj(pdpt | PRESENT_WRITABLE, GuestAddress(pml4))?;
    for gib in 0..4 {
        let directory = pdpt + 4096 * (1 + gib);
        memory.write_obj(directory | PRESENT_WRITABLE, GuestAddress(pdpt + 8 * gib))?;
        let entries: Vec<u8> = (0..512u64)
            .flat_map(|page| {
                ((gib << 30 | page << 21) | PRESENT_WRITABLE | LARGE_PAGE).to_le_bytes()
            })
            .collect();
        memory.write_slice(&entries, GuestAddress(directory))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_have_the_well_known_values() {
        let flat = kvm_segment {
            limit: 0xffff_ffff,
            present: 1,
            s: 1,
            g: 1,
            ..Default::default()
        };
        assert_eq!(
            descriptor(&kvm_segment {
                type_: 0xb,
                l: 1,
                ..flat
            }),
            0x00af_9b00_0000_ffff
        );
        assert_eq!(
            descriptor(&kvm_segment {
                type_: 0xb,
                db: 1,
                ..flat
            }),
            0x00cf_9b00_0000_ffff
        );
        assert_eq!(
            descriptor(&kvm_segment {
                type_: 0x3,
                db: 1,
                ..flat
            }),
            0x00cf_9300_0000_ffff
        );
    }
}
