//! virtio devices and their PCI transport (virtio 1.3; split rings only).
//!
//! Read [`device`] first: what a device is, and its life. [`rng`] is the smallest one. The transport is in
//! [`transport`] with the registers of [`common_config`]; what all devices need to walk a queue that a guest has
//! written, however hostile, is in [`chain`]; their threads are [`worker`]'s.

pub mod device;

pub mod rng;

pub mod block;
pub mod net;

pub mod chain;
pub mod fault;
pub mod wait;
pub mod worker;

pub mod common_config;
pub mod transport;

#[cfg(test)]
pub(crate) mod harness;

pub use device::VirtioDevice;
pub use transport::{BAR_SIZE, VirtioPci};
