//! What a NIC's frames travel over.
//!
//! [`NetBackend`] is one queue of it: whole frames in, whole frames out, each with the virtio header in front. [`tap`] is
//! the one that reaches a network. Queues, features and guests are the network device's.

#![allow(unsafe_code)] // UNSAFETY: frames are sent from guest memory by address.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use crate::disk::IoVec;

pub mod tap;

#[cfg(test)]
pub(crate) mod fake;

/// Length of the header in front of each frame, with `num_buffers` (virtio 1.3 §5.1.6).
pub const HEADER_LEN: usize = 12;
/// The longest frame with its header: what fits into an IP packet that was not segmented, an Ethernet header and a VLAN
/// tag.
pub const FRAME_MAX: usize = HEADER_LEN + 65_535 + 14 + 4;

/// What the receiver of frames can finish by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Frames may come without a checksum.
    pub checksum: bool,
    /// TCP over IPv4 may come in segments longer than the MTU.
    pub tcp4: bool,
    /// TCP over IPv6 may.
    pub tcp6: bool,
    /// These segments may carry congestion notifications.
    pub ecn: bool,
}

/// One queue of a network connection. All calls are system calls that never block.
pub trait NetBackend: Send + Sync {
    /// Takes the next frame, header first; `WouldBlock` if there is none.
    fn receive(&self, frame: &mut [u8]) -> io::Result<usize>;

    /// Sends one frame, header first.
    ///
    /// # Safety
    /// What the buffers point to is mapped and readable during the call.
    unsafe fn send(&self, frame: &[IoVec]) -> io::Result<usize>;

    /// Says what the guest can do with received frames.
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()>;

    /// Whether this queue takes part; meaningful for connections of several queues.
    fn set_attached(&self, attached: bool) -> io::Result<()>;

    /// Becomes readable when a frame arrives.
    fn descriptor(&self) -> RawFd;
}

/// A backend's descriptor, for a [`crate::devices::virtio::wait::Waiter`].
pub struct Arrivals<'a>(pub &'a dyn NetBackend);

impl AsRawFd for Arrivals<'_> {
    fn as_raw_fd(&self) -> RawFd {
        self.0.descriptor()
    }
}
