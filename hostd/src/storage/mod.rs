//! Where volumes and images live: what the reconcilers, the launcher and the upload need of it.
//!
//! [`convert`] reads images of other formats than raw. [`file`] keeps both as files on the data partition, [`firmware`] the variables of VMs beside them; [`images`] receives uploads. The other implementation of the
//! traits is in `fake`. Nothing here knows who wants a volume or why.

use std::fs::File;
use std::future::Future;

use api::ids::{ImageId, VmId, VolumeId};
use api::images::ImageFormat;
use api::units::Percent;
use hostd_state::Fault;
use tokio::sync::watch;

pub mod convert;
pub mod convert_process;
pub mod file;
pub mod firmware;
pub mod images;
pub mod space;

/// A volume that shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumePlan {
    /// Which.
    pub volume: VolumeId,
    /// Its size.
    pub size_bytes: u64,
    /// The image it is filled from.
    pub from: Option<Source>,
}

/// An image that fills a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// Which.
    pub image: ImageId,
    /// How its bytes are understood.
    pub format: ImageFormat,
}

/// A volume or an image that is there, complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored<Id> {
    /// Which.
    pub id: Id,
    /// Its length.
    pub size_bytes: u64,
}

/// Tells how far something is; the newest value counts.
pub type Progress = watch::Sender<Percent>;

/// A pool of volumes.
pub trait Volumes: Send + Sync + 'static {
    /// All volumes that are there, complete.
    fn list(&self) -> impl Future<Output = Result<Vec<Stored<VolumeId>>, Fault>> + Send;

    /// Makes a volume, durably. One that is there already is fine.
    fn create(
        &self,
        plan: VolumePlan,
        progress: Progress,
    ) -> impl Future<Output = Result<(), Fault>> + Send;

    /// Makes a volume at least this long, durably; what is new reads as zeroes. VMs may have it open.
    fn grow(
        &self,
        volume: VolumeId,
        size_bytes: u64,
    ) -> impl Future<Output = Result<(), Fault>> + Send;

    /// Removes a volume, durably. Absent is fine.
    fn remove(&self, volume: VolumeId) -> impl Future<Output = Result<(), Fault>> + Send;

    /// Opens a volume for a VM. Locked for as long as the file, or any copy of the descriptor, is open anywhere: one
    /// writer or many readers.
    fn open(
        &self,
        volume: VolumeId,
        read_only: bool,
    ) -> impl Future<Output = Result<File, Fault>> + Send;

    /// Opens UEFI firmware for a VM, with its own variables, which are made as the firmware's maker has them when there
    /// are none. They are locked as a volume is.
    fn firmware(&self, vm: VmId) -> impl Future<Output = Result<FirmwareFiles, Fault>> + Send;

    /// Removes a VM's variables, durably. Absent is fine.
    fn remove_firmware(&self, vm: VmId) -> impl Future<Output = Result<(), Fault>> + Send;
}

/// UEFI firmware, opened for a VM.
#[derive(Debug)]
pub struct FirmwareFiles {
    /// The code, the same for all.
    pub code: File,
    /// The VM's variables.
    pub variables: File,
}

/// The images on this host, once they are verified.
pub trait Images: Send + Sync + 'static {
    /// All images that are there, complete.
    fn list(&self) -> impl Future<Output = Result<Vec<Stored<ImageId>>, Fault>> + Send;

    /// Removes an image, durably, its upload included. Absent is fine.
    fn remove(&self, image: ImageId) -> impl Future<Output = Result<(), Fault>> + Send;

    /// Opens an image for reading.
    fn open(&self, image: ImageId) -> impl Future<Output = Result<File, Fault>> + Send;

    /// The size of the disk inside a qcow2 image.
    fn examine(&self, image: ImageId) -> impl Future<Output = Result<u64, Fault>> + Send;
}
