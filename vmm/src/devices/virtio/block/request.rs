//! What a descriptor chain asks a disk to do (virtio 1.3 §5.2.6).
//!
//! ```text
//!   readable:  type, reserved, sector (16 bytes) │ data to write, or ranges to discard
//!   writable:  data that was read                │ status (the very last byte)
//! ```
//! Where one buffer ends and the next begins means nothing.

use vm_memory::GuestAddress;

use crate::devices::virtio::chain::{BrokenQueue, Buffers};
use crate::disk::{Access, DiskOp};
use crate::memory::GuestMemory;

/// What the guest counts in, whatever the volume's own block size.
pub const SECTOR: u64 = 512;
/// Length of what [`Action::Identify`] writes.
pub const SERIAL_LEN: usize = 20;

const HEADER_LEN: usize = 16;
/// One range of a discard or write-zeroes request; the configuration allows one per request.
const RANGE_LEN: usize = 16;
const RANGE_UNMAP: u32 = 1;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// The byte that says how it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// Not done.
    IoError = 1,
    /// Not known, or not possible with this volume.
    Unsupported = 2,
}

/// What has to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The backend's work. For a read the data goes to the writable, for a write it comes from the readable buffers.
    Disk(DiskOp),
    /// Write the serial number.
    Identify,
}

/// A request, checked against the disk.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// Where the status goes.
    pub status_at: GuestAddress,
    /// What to do, or how to refuse.
    pub action: Result<Action, Status>,
}

/// What a request is checked against.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The disk's size in bytes, a multiple of `block`.
    pub size: u64,
    /// What the guest may do.
    pub access: Access,
    /// Requests are for multiples of this many bytes; itself a multiple of [`SECTOR`].
    pub block: u64,
}

/// Understands a chain, and leaves only data in `buffers`. A chain without header or status cannot even be refused.
pub fn parse(
    buffers: &mut Buffers,
    mem: &GuestMemory,
    limits: &Limits,
) -> Result<Request, BrokenQueue> {
    let mut header = [0; HEADER_LEN];
    if !buffers.readable.read(mem, &mut header) || !buffers.readable.advance(HEADER_LEN as u64) {
        return Err(BrokenQueue::Short);
    }
    let status_at = buffers.writable.pop_last_byte().ok_or(BrokenQueue::Short)?;
    let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
    let kind = u32::from_le_bytes([t0, t1, t2, t3]);
    let sector = u64::from_le_bytes(sector);
    Ok(Request {
        status_at,
        action: action(kind, sector, buffers, mem, limits),
    })
}

fn action(
    kind: u32,
    sector: u64,
    buffers: &Buffers,
    mem: &GuestMemory,
    limits: &Limits,
) -> Result<Action, Status> {
    let op = match kind {
        IN => DiskOp::Read {
            offset: limits.range(sector, buffers.writable.len())?,
        },
        OUT => {
            limits.writable()?;
            DiskOp::Write {
                offset: limits.range(sector, buffers.readable.len())?,
            }
        }
        FLUSH => DiskOp::Flush,
        GET_ID => return Ok(Action::Identify),
        DISCARD | WRITE_ZEROES => {
            limits.writable()?;
            let mut range = [0; RANGE_LEN];
            if buffers.readable.len() != RANGE_LEN as u64 || !buffers.readable.read(mem, &mut range)
            {
                return Err(Status::IoError);
            }
            let [sector @ .., n0, n1, n2, n3, f0, f1, f2, f3] = range;
            let len = u64::from(u32::from_le_bytes([n0, n1, n2, n3])) * SECTOR;
            let offset = limits.range(u64::from_le_bytes(sector), len)?;
            match (kind, u32::from_le_bytes([f0, f1, f2, f3])) {
                (DISCARD, 0) => DiskOp::Discard { offset, len },
                (WRITE_ZEROES, flags @ (0 | RANGE_UNMAP)) => DiskOp::WriteZeroes {
                    offset,
                    len,
                    unmap: flags == RANGE_UNMAP,
                },
                // Flags we do not know (virtio 1.3 §5.2.6.2).
                _ => return Err(Status::Unsupported),
            }
        }
        _ => return Err(Status::Unsupported),
    };
    Ok(Action::Disk(op))
}

impl Limits {
    fn writable(&self) -> Result<(), Status> {
        match self.access {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => Err(Status::IoError),
        }
    }

    /// The byte offset of `sector`, if `len` bytes from there are whole blocks of the disk.
    fn range(&self, sector: u64, len: u64) -> Result<u64, Status> {
        let offset = sector.checked_mul(SECTOR).ok_or(Status::IoError)?;
        let end = offset.checked_add(len).ok_or(Status::IoError)?;
        let whole = offset.is_multiple_of(self.block) && len.is_multiple_of(self.block);
        if !whole || end > self.size {
            Err(Status::IoError)
        } else {
            Ok(offset)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::chain::pop;
    use crate::devices::virtio::harness::{DriverRing, NEXT, WRITE, memory};

    const DISK: Limits = Limits {
        size: 100 * SECTOR,
        access: Access::ReadWrite,
        block: SECTOR,
    };
    const READ_ONLY: Limits = Limits {
        size: 100 * SECTOR,
        access: Access::ReadOnly,
        block: SECTOR,
    };

    /// A request in three buffers: header, `out` bytes to read, `inward` bytes to write, the last one being the status.
    fn ask(
        kind: u32,
        sector: u64,
        out: &[u8],
        inward: u32,
        limits: &Limits,
    ) -> Result<Request, BrokenQueue> {
        let mut ring = DriverRing::new(memory(), 8);
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        ring.write(0x8000, &header);
        ring.write(0x10000, out);
        ring.descriptor(0, 0x8000, 16, NEXT, 1);
        ring.descriptor(1, 0x10000, out.len() as u32, NEXT, 2);
        ring.descriptor(2, 0x40000, inward, WRITE, 0);
        ring.offer(0);
        let mem = ring.mem.clone();
        let mut buffers = Buffers::default();
        buffers.gather(pop(&mut ring.queue(), &mem).unwrap().unwrap(), &mem, 8)?;
        parse(&mut buffers, &mem, limits)
    }

    fn action(
        kind: u32,
        sector: u64,
        out: &[u8],
        inward: u32,
        limits: &Limits,
    ) -> Result<Action, Status> {
        ask(kind, sector, out, inward, limits).unwrap().action
    }

    fn range(sector: u64, count: u32, flags: u32) -> Vec<u8> {
        [
            &sector.to_le_bytes()[..],
            &count.to_le_bytes(),
            &flags.to_le_bytes(),
        ]
        .concat()
    }

    #[test]
    fn each_type_becomes_its_operation() {
        assert_eq!(
            ask(IN, 2, &[], 513, &DISK).unwrap().status_at,
            GuestAddress(0x40000 + 512)
        );
        assert_eq!(
            action(IN, 2, &[], 513, &DISK),
            Ok(Action::Disk(DiskOp::Read { offset: 1024 }))
        );
        assert_eq!(
            action(OUT, 99, &[0; 512], 1, &DISK),
            Ok(Action::Disk(DiskOp::Write { offset: 99 * 512 }))
        );
        assert_eq!(
            action(FLUSH, 0, &[], 1, &READ_ONLY),
            Ok(Action::Disk(DiskOp::Flush))
        );
        assert_eq!(action(GET_ID, 0, &[], 21, &DISK), Ok(Action::Identify));
        assert_eq!(
            action(DISCARD, 0, &range(8, 16, 0), 1, &DISK),
            Ok(Action::Disk(DiskOp::Discard {
                offset: 4096,
                len: 8192
            }))
        );
        assert_eq!(
            action(WRITE_ZEROES, 0, &range(0, 1, RANGE_UNMAP), 1, &DISK),
            Ok(Action::Disk(DiskOp::WriteZeroes {
                offset: 0,
                len: 512,
                unmap: true
            }))
        );
    }

    #[test]
    fn what_is_not_on_the_disk_is_refused() {
        for (sector, len) in [
            (100, 513),
            (99, 1025),
            (u64::MAX, 513),
            (u64::MAX / 512, 513),
            (0, 101 * 512 + 1),
        ] {
            assert_eq!(
                action(IN, sector, &[], len, &DISK),
                Err(Status::IoError),
                "{len} bytes from sector {sector}"
            );
        }
        assert_eq!(
            action(IN, 0, &[], 512, &DISK),
            Err(Status::IoError),
            "511 bytes are not a sector"
        );
        assert_eq!(action(OUT, 0, &[0; 100], 1, &DISK), Err(Status::IoError));
        assert_eq!(
            action(DISCARD, 0, &range(99, 2, 0), 1, &DISK),
            Err(Status::IoError)
        );
        assert_eq!(
            action(DISCARD, 0, &range(u64::MAX, u32::MAX, 0), 1, &DISK),
            Err(Status::IoError)
        );
        assert_eq!(action(DISCARD, 0, &[0; 32], 1, &DISK), Err(Status::IoError));
        assert_eq!(action(DISCARD, 0, &[0; 15], 1, &DISK), Err(Status::IoError));
    }

    #[test]
    fn parts_of_blocks_are_refused() {
        let disk = Limits {
            size: 96 * SECTOR,
            block: 4096,
            ..DISK
        };
        let read = |sector, len: u32| action(IN, sector, &[], len + 1, &disk);
        assert_eq!(
            read(8, 8192),
            Ok(Action::Disk(DiskOp::Read { offset: 4096 }))
        );
        for (sector, len) in [(1, 4096), (8, 512), (8, 4096 + 512), (96, 4096)] {
            assert_eq!(read(sector, len), Err(Status::IoError), "{len} at {sector}");
        }
        let out = |kind, sector, data: &[u8]| action(kind, sector, data, 1, &disk);
        assert_eq!(out(OUT, 4, &[0; 4096]), Err(Status::IoError));
        for kind in [DISCARD, WRITE_ZEROES] {
            assert!(out(kind, 0, &range(8, 16, 0)).is_ok());
            assert_eq!(out(kind, 0, &range(8, 1, 0)), Err(Status::IoError));
            assert_eq!(out(kind, 0, &range(1, 8, 0)), Err(Status::IoError));
        }
    }

    #[test]
    fn what_is_not_known_is_unsupported() {
        assert_eq!(action(2, 0, &[], 1, &DISK), Err(Status::Unsupported));
        assert_eq!(action(u32::MAX, 0, &[], 1, &DISK), Err(Status::Unsupported));
        assert_eq!(
            action(DISCARD, 0, &range(0, 1, RANGE_UNMAP), 1, &DISK),
            Err(Status::Unsupported)
        );
        assert_eq!(
            action(WRITE_ZEROES, 0, &range(0, 1, 2), 1, &DISK),
            Err(Status::Unsupported)
        );
    }

    #[test]
    fn a_read_only_disk_is_not_changed() {
        assert_eq!(
            action(OUT, 0, &[0; 512], 1, &READ_ONLY),
            Err(Status::IoError)
        );
        assert_eq!(
            action(DISCARD, 0, &range(0, 1, 0), 1, &READ_ONLY),
            Err(Status::IoError)
        );
        assert_eq!(
            action(WRITE_ZEROES, 0, &range(0, 1, 0), 1, &READ_ONLY),
            Err(Status::IoError)
        );
        assert_eq!(
            action(IN, 0, &[], 513, &READ_ONLY),
            Ok(Action::Disk(DiskOp::Read { offset: 0 }))
        );
    }

    #[test]
    fn without_header_or_status_there_is_no_request() {
        assert_eq!(ask(IN, 0, &[], 0, &DISK), Err(BrokenQueue::Short));
        let mut ring = DriverRing::new(memory(), 8);
        ring.descriptor(0, 0x8000, 15, NEXT, 1);
        ring.descriptor(1, 0x9000, 1, WRITE, 0);
        ring.offer(0);
        let mem = ring.mem.clone();
        let mut buffers = Buffers::default();
        buffers
            .gather(pop(&mut ring.queue(), &mem).unwrap().unwrap(), &mem, 8)
            .unwrap();
        assert_eq!(parse(&mut buffers, &mem, &DISK), Err(BrokenQueue::Short));
    }
}
