//! A guest's end of a network: a tap that lives exactly as long as somebody holds its descriptor.
// UNSAFETY: attaching a tap is an ioctl with an `ifreq`, for which there is no safe wrapper.
#![allow(unsafe_code)]

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

/// The longest name of a link, terminator included (IFNAMSIZ).
const NAME_SIZE: usize = libc::IFNAMSIZ;
/// The header before each frame: `virtio_net_hdr_v1`, the only one a modern device has (virtio 1.3 §5.1.6).
const VNET_HEADER_BYTES: libc::c_int = 12;

/// Makes a tap of this name with one queue and virtio headers. It is down and a port of nothing.
///
/// # Errors
/// [`io::ErrorKind::ResourceBusy`] when somebody holds a tap of that name, or what else the kernel said.
pub fn create(name: &str) -> io::Result<OwnedFd> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open("/dev/net/tun")?;

    // SAFETY: an ifreq is plain data; all zeroes is an empty name and no flags.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.is_empty() || name.len() >= NAME_SIZE {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not the name of a link",
        ));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let kind = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = kind as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives through the call.
    check(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    let header = VNET_HEADER_BYTES;
    // SAFETY: TUNSETVNETHDRSZ reads one int, which lives through the call.
    check(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header) })?;
    Ok(OwnedFd::from(device))
}

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
