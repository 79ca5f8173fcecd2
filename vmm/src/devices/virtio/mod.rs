//! virtio devices and their PCI transport (virtio 1.3; split rings only).
//!
//! Read [`device`] first: what a device is, and its life. [`rng`] is the smallest one. The transport is in
//! [`transport`] with the registers of [`common_config`]; what all devices need to walk a queue that a guest has
//! written, however hostile, is in [`chain`]; their threads are [`worker`]'s.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

pub mod device;

pub mod rng;

pub mod block;
pub mod net;

pub mod chain;
pub mod fault;
pub mod throttle;
pub mod wait;
pub mod worker;

pub mod common_config;
pub mod transport;

#[cfg(test)]
pub(crate) mod harness;

pub use device::VirtioDevice;
pub use transport::{BAR_SIZE, VirtioPci};

use crate::config::{DiskConfig, DiskFormat, NicConfig};
use crate::disk::qcow2::Format;
use crate::disk::{self, Access, OpenDiskError};
use crate::net::NetBackend;
use crate::net::tap::{OpenTapError, Tap};

/// A device could not be made of its configuration and descriptors.
#[derive(Debug, thiserror::Error)]
pub enum CreateDeviceError {
    /// The volume cannot be a disk.
    #[error("could not open the volume of disk `{id}`")]
    Disk {
        /// Which disk.
        id: String,
        /// Why.
        source: OpenDiskError,
    },
    /// The descriptor cannot be a NIC's.
    #[error("could not use the tap device of NIC `{id}`")]
    Nic {
        /// Which NIC.
        id: String,
        /// Why.
        source: OpenTapError,
    },
    /// No thread or no eventfd for it.
    #[error("could not start the worker of device `{id}`")]
    Worker {
        /// Which device.
        id: String,
        /// Why.
        source: io::Error,
    },
}

/// An idle disk over `volume` and what lies `below` it, and the way to let it grow. Starts its worker thread.
pub fn block(
    config: &DiskConfig,
    volume: OwnedFd,
    below: Vec<OwnedFd>,
) -> Result<(Box<dyn VirtioDevice>, block::Resizer), CreateDeviceError> {
    let id = config.id.clone();
    let access = if config.read_only {
        Access::ReadOnly
    } else {
        Access::ReadWrite
    };
    let format = |format| match format {
        DiskFormat::Raw => Format::Raw,
        DiskFormat::Qcow2 => Format::Qcow2,
    };
    let formats = config.backing.iter().map(|below| format(below.format));
    let below = below.into_iter().zip(formats).collect();
    let backend =
        disk::open_as(volume, access, format(config.format), below).map_err(|source| {
            CreateDeviceError::Disk {
                id: id.clone(),
                source,
            }
        })?;
    let wanted = block::BlockConfig {
        id: id.clone(),
        serial: config.serial.clone(),
        access,
        queues: 1,
        limits: config.limits,
    };
    let device = block::Block::new(&wanted, backend)
        .map_err(|source| CreateDeviceError::Worker { id, source })?;
    let resizer = device.resizer();
    Ok((Box::new(device), resizer))
}

/// An idle NIC with a queue pair for each of the `taps`, which are queues of one tap device. Starts a worker thread each.
pub fn net(
    config: &NicConfig,
    taps: Vec<OwnedFd>,
) -> Result<Box<dyn VirtioDevice>, CreateDeviceError> {
    let id = config.id.clone();
    let backends = taps
        .into_iter()
        .map(|fd| Tap::new(fd).map(|tap| -> Arc<dyn NetBackend> { Arc::new(tap) }))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| CreateDeviceError::Nic {
            id: id.clone(),
            source,
        })?;
    let wanted = net::NetConfig {
        id: id.clone(),
        mac: config.mac,
        mtu: config.mtu,
        receive_limits: config.receive_limits,
        transmit_limits: config.transmit_limits,
    };
    let device = net::Net::new(&wanted, backends)
        .map_err(|source| CreateDeviceError::Worker { id, source })?;
    Ok(Box::new(device))
}

/// An idle entropy source. Starts its worker thread.
pub fn rng() -> Result<Box<dyn VirtioDevice>, CreateDeviceError> {
    let device = rng::Rng::new().map_err(|source| CreateDeviceError::Worker {
        id: "rng".into(),
        source,
    })?;
    Ok(Box::new(device))
}
