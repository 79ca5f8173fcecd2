//! A block device over a file, with blocks of a chosen size.
#![allow(unsafe_code)] // UNSAFETY: a loop device is set up by ioctl.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `linux/loop.h`.
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
/// Taken apart when the last descriptor is closed.
const AUTOCLEAR: u64 = 4;

/// A loop device over `file`, or the reason to skip on standard error.
pub fn loop_device(file: &File, block: u32) -> Option<File> {
    match make(file, block) {
        Ok(device) => Some(device),
        Err(error) => {
            eprintln!("SKIP: no loop device: {error}");
            None
        }
    }
}

fn make(file: &File, block: u32) -> io::Result<File> {
    let open = |path: &str| File::options().read(true).write(true).open(path);
    let control = open("/dev/loop-control")?;
    // SAFETY: takes no addresses.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    let device = open(&format!("/dev/loop{number}"))?;
    // struct loop_config: the file, the block size, a struct loop_info64 with the flags, and a reserve.
    let mut config = [0_u64; 38];
    config[0] = u64::from(file.as_raw_fd() as u32) | u64::from(block) << 32;
    config[7] = AUTOCLEAR << 32;
    // SAFETY: reads 304 bytes, as many as `config` has.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, config.as_ptr()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(device)
}
