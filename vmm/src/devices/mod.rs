//! Devices: the few of the platform, and virtio.
//!
//! The platform's are what a kernel without drivers needs to live and die: a serial port, a clock, a power switch.

pub mod debug_port;
pub mod flash;
pub mod fw_cfg;
pub mod i8042;
pub mod power;
pub mod rtc;
pub mod serial;

pub mod virtio;
