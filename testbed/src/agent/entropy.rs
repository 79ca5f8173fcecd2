//! Random numbers in a guest that was resumed rather than booted.
//!
//! A small emulated machine gathers next to nothing by itself: it was saved before its kernel trusted its pool, and a static
//! program that waits for that by polling `/dev/random` waits for ever. Bytes written to the device are mixed in without being
//! counted, so they do not end the wait; only this ioctl counts them.
#![allow(unsafe_code)] // UNSAFETY: there is no safe wrapper for the ioctls of `/dev/random`.

use std::ffi::c_int;
use std::fs::File;

use anyhow::{Context, Result};
use rustix::ioctl::{NoArg, Opcode, Setter, ioctl, opcode};

/// How much is given at once.
pub const BYTES: usize = 64;

/// `RNDADDENTROPY` and `RNDRESEEDCRNG` of linux/random.h.
const ADD: Opcode = opcode::write::<[c_int; 2]>(b'R', 3);
const RESEED: Opcode = opcode::none(b'R', 7);

/// `rand_pool_info`
#[repr(C)]
struct Pool {
    bits: c_int,
    bytes: c_int,
    content: [u8; BYTES],
}

/// Gives the kernel these bytes as wholly unknown to anybody, and makes it use them at once.
pub fn credit(content: [u8; BYTES]) -> Result<()> {
    let device = File::options()
        .write(true)
        .open("/dev/urandom")
        .context("opening /dev/urandom")?;
    let pool = Pool {
        bits: BYTES as c_int * 8,
        bytes: BYTES as c_int,
        content,
    };
    // SAFETY: the kernel reads a `rand_pool_info`, whose length is in it.
    unsafe { ioctl(&device, Setter::<ADD, Pool>::new(pool)) }
        .context("stirring the random numbers")?;
    // SAFETY: takes nothing.
    unsafe { ioctl(&device, NoArg::<RESEED>::new()) }.context("using the stirred random numbers")
}
