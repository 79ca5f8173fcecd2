//! Devices: the few of the platform, and virtio.

pub mod virtio;
