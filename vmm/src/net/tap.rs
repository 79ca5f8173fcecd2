//! Frames through the host's kernel: one queue of a tap device.
//!
//! The descriptor comes opened and bound to its device (`TUNSETIFF` with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`, and
//! `IFF_MULTI_QUEUE` where there are several); what is set here does not need a privilege.

#![allow(unsafe_code)] // UNSAFETY: ioctls of the tun driver, and writev on addresses in guest memory.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use super::{HEADER_LEN, NetBackend, Offloads};
use crate::disk::IoVec;

/// A descriptor cannot be a NIC's.
#[derive(Debug, thiserror::Error)]
pub enum OpenTapError {
    /// `TUNGETIFF` failed: not a tun device, or not bound to one.
    #[error("the descriptor is not a tap device's")]
    NotATap(#[source] io::Error),
    /// Without these flags frames would be misread.
    #[error(
        "the tap device was not opened with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR (flags {flags:#x})"
    )]
    Flags {
        /// The flags it has.
        flags: i32,
    },
    /// The kernel refused a setting.
    #[error("could not set up the tap device")]
    SetUp(#[from] io::Error),
}

/// One queue of a tap device.
#[derive(Debug)]
pub struct Tap {
    file: File,
}

impl Tap {
    /// Examines and sets up an open tap queue.
    pub fn new(fd: OwnedFd) -> Result<Self, OpenTapError> {
        let tap = Self { file: fd.into() };
        let flags = tap.flags().map_err(OpenTapError::NotATap)?;
        let needed = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if flags & needed != needed {
            return Err(OpenTapError::Flags { flags });
        }
        rustix::io::ioctl_fionbio(&tap.file, true).map_err(io::Error::from)?;
        let header_len = HEADER_LEN as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads an int, which outlives the call.
        check(unsafe {
            libc::ioctl(
                tap.file.as_raw_fd(),
                libc::TUNSETVNETHDRSZ,
                &raw const header_len,
            )
        })?;
        Ok(tap)
    }

    fn flags(&self) -> io::Result<i32> {
        // SAFETY: an ifreq is plain data, for which zeroes are a value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // SAFETY: TUNGETIFF writes an ifreq, which outlives the call.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
        // SAFETY: the kernel has filled in the name and the flags, and every bit pattern is a flag word.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        Ok(i32::from(flags) & 0xffff)
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

impl NetBackend for Tap {
    fn receive(&self, frame: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(frame)
    }

    unsafe fn send(&self, frame: &[IoVec]) -> io::Result<usize> {
        // SAFETY: the caller says that the buffers are readable during the call.
        let sent = unsafe {
            libc::writev(
                self.file.as_raw_fd(),
                IoVec::as_raw(frame),
                frame.len() as i32,
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        let bit = |on: bool, flag: libc::c_uint| if on { flag } else { 0 };
        let mut flags = bit(offloads.checksum, libc::TUN_F_CSUM);
        // Segments can only be finished by who can finish a checksum.
        if offloads.checksum {
            flags |= bit(offloads.tcp4, libc::TUN_F_TSO4) | bit(offloads.tcp6, libc::TUN_F_TSO6);
            flags |= bit(
                offloads.ecn && (offloads.tcp4 || offloads.tcp6),
                libc::TUN_F_TSO_ECN,
            );
        }
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        check(unsafe {
            libc::ioctl(
                self.file.as_raw_fd(),
                libc::TUNSETOFFLOAD,
                libc::c_ulong::from(flags),
            )
        })
    }

    fn set_attached(&self, attached: bool) -> io::Result<()> {
        // SAFETY: an ifreq is plain data, for which zeroes are a value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        let flag = if attached {
            libc::IFF_ATTACH_QUEUE
        } else {
            libc::IFF_DETACH_QUEUE
        };
        request.ifr_ifru.ifru_flags = flag as libc::c_short;
        // SAFETY: TUNSETQUEUE reads an ifreq, which outlives the call.
        let done = check(unsafe {
            libc::ioctl(self.file.as_raw_fd(), libc::TUNSETQUEUE, &raw const request)
        });
        match done {
            // It is as it should be already.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            done => done,
        }
    }

    fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_tap_is_refused() {
        let file = tempfile::tempfile().unwrap();
        assert!(matches!(
            Tap::new(file.into()),
            Err(OpenTapError::NotATap(_))
        ));
    }

    /// A tap in a network namespace of this test's own thread, or the reason why there is none.
    fn tap(flags: i32) -> Result<OwnedFd, String> {
        let fail = |what: &str| format!("{what}: {}", io::Error::last_os_error());
        // SAFETY: takes no addresses; only this thread changes its namespace.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
            return Err(fail("no network namespace"));
        }
        let file = File::options()
            .read(true)
            .write(true)
            .open("/dev/net/tun")
            .map_err(|error| error.to_string())?;
        // SAFETY: an ifreq is plain data, for which zeroes are a value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes an ifreq, which outlives the call.
        if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
            return Err(fail("no tap"));
        }
        Ok(file.into())
    }

    #[test]
    fn a_tap_is_set_up_and_takes_the_guests_offloads() {
        let fd = match tap(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) {
            Ok(fd) => fd,
            Err(reason) => return println!("skipped: {reason}"),
        };
        let tap = Tap::new(fd).unwrap();
        tap.set_offloads(Offloads {
            checksum: true,
            tcp4: true,
            tcp6: true,
            ecn: true,
        })
        .unwrap();
        tap.set_offloads(Offloads {
            checksum: false,
            tcp4: true,
            ..Offloads::default()
        })
        .unwrap();
        let refused = tap.receive(&mut [0; 2048]).unwrap_err();
        // A tap that is down says so; one that is up has no frame.
        assert!(
            matches!(refused.raw_os_error(), Some(libc::EAGAIN | libc::EIO)),
            "{refused}"
        );
    }

    #[test]
    fn a_tap_without_headers_is_refused() {
        match tap(libc::IFF_TAP | libc::IFF_NO_PI) {
            Ok(fd) => assert!(matches!(Tap::new(fd), Err(OpenTapError::Flags { .. }))),
            Err(reason) => println!("skipped: {reason}"),
        }
    }
}
