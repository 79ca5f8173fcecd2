//! Network device (virtio 1.3 §5.1).
//!
//! Each queue pair has a thread of its own ([`worker`]) and a queue of the tap: frames for the guest go through
//! [`receive`], frames from it through [`transmit`]. [`control`] is the one queue that is not for frames. [`device`] is
//! what the transport sees, [`metrics`] what is counted.

pub mod device;

mod control;
mod receive;
mod transmit;
mod worker;

pub mod metrics;

#[cfg(test)]
pub(crate) mod stepping;

#[cfg(test)]
mod tests;

pub use device::{Net, NetConfig};
