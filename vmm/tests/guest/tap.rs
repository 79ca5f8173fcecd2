//! A tap device in a network namespace that only the calling thread and those it starts are in.
#![allow(unsafe_code)] // UNSAFETY: a tap is made, and an interface set up, by ioctl.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

fn check(what: &str, result: libc::c_int) -> Result<libc::c_int, String> {
    if result < 0 {
        return Err(format!("{what}: {}", io::Error::last_os_error()));
    }
    Ok(result)
}

/// A tap called `name`, up, with this address and a 24-bit network; or the reason to skip on standard error.
pub fn tap(name: &str, address: [u8; 4]) -> Option<OwnedFd> {
    match make(name, address) {
        Ok(tap) => Some(tap),
        Err(reason) => {
            eprintln!("SKIP: no tap device: {reason}");
            None
        }
    }
}

fn make(name: &str, address: [u8; 4]) -> Result<OwnedFd, String> {
    // SAFETY: takes no addresses; only this thread and those it starts later change their namespace.
    check("network namespace", unsafe {
        libc::unshare(libc::CLONE_NEWNET)
    })?;
    let tap = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .map_err(|error| format!("/dev/net/tun: {error}"))?;
    // SAFETY: an ifreq is plain data, for which zeroes are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags =
        (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: reads and writes an ifreq, which outlives the call.
    check("TUNSETIFF", unsafe {
        libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request)
    })?;

    // SAFETY: takes no addresses.
    let socket = check("socket", unsafe {
        libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0)
    })?;
    // SAFETY: fresh, and owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    for (what, call, value) in [
        ("address", libc::SIOCSIFADDR, address),
        ("netmask", libc::SIOCSIFNETMASK, [255, 255, 255, 0]),
    ] {
        // SAFETY: a sockaddr_in is plain data, for which zeroes are a value.
        let mut wanted: libc::sockaddr_in = unsafe { std::mem::zeroed() };
        wanted.sin_family = libc::AF_INET as libc::sa_family_t;
        wanted.sin_addr.s_addr = u32::from_ne_bytes(value);
        // SAFETY: both are plain data of the same size.
        request.ifr_ifru.ifru_addr =
            unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(wanted) };
        // SAFETY: reads an ifreq, which outlives the call.
        check(what, unsafe {
            libc::ioctl(socket.as_raw_fd(), call as _, &raw const request)
        })?;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: reads an ifreq, which outlives the call.
    check("up", unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSIFFLAGS as _,
            &raw const request,
        )
    })?;
    Ok(tap.into())
}
