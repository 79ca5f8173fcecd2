//! Block device (virtio 1.3 §5.2).
//!
//! [`request`] says what a descriptor chain asks for; [`worker`] is the thread that carries it to a
//! [`crate::disk::DiskBackend`] and back; [`resize`] lets the disk grow; [`device`] is what the transport sees; [`metrics`] what is counted.

pub mod device;
pub mod request;
pub mod resize;
pub mod worker;

pub mod metrics;

#[cfg(test)]
pub(crate) mod stepping;

#[cfg(test)]
mod tests;

#[cfg(test)]
mod limit_tests;

#[cfg(test)]
mod resize_tests;

pub use device::{Block, BlockConfig};
pub use resize::Resizer;
