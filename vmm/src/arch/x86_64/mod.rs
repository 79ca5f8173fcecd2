//! x86-64: the address map, what a vCPU is at its first instruction, and the tables that describe the machine.

pub mod acpi;
pub mod boot;
pub mod cpuid;
pub mod firmware;
pub mod layout;
pub mod msrs;
pub mod smbios;
