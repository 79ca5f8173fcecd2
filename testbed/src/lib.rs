//! Whole appliances in QEMU: started, driven through their API and their serial line, broken on purpose.
//!
//! Read `machine` (one QEMU), then `lab` (an appliance that is installed and enrolled), then any file in `tests/`.
//! What a machine lacks is found in `needs` and leads to a printed skip, never to a silent pass.
//!
//! This crate knows nothing of the inside of `hostd`: like every other client it uses the API, the serial line and the
//! power switch. Where a test has to hurt a process inside an appliance, it adds its own helper (`agent`) to the
//! initramfs of *that boot*; the product has no such door.

pub mod artifacts;
pub mod initramfs;
pub mod modules;
pub mod needs;

pub mod accel;
pub mod process;
pub mod qemu;
pub mod qmp;

pub mod media;
pub mod serial;
pub mod web;

pub mod agent;
pub mod machine;
pub mod runner;

pub mod console;
pub mod expect;
pub mod guest;
pub mod lab;
pub mod tls;

pub mod bench;
pub mod demonstration;
pub mod suite;
