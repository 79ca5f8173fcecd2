//! The shape of an installed disk, and reading partition tables.
//!
//! ```text
//! 0        GPT; at 512 KiB the installer's mark while it works
//! 1 MiB    p1 ESP    768 MiB  FAT32   loader, slots
//! 769 MiB  p2 STATE    1 GiB  ext4    host.toml, keys, Raft
//! 1793 MiB p3 DATA     rest   ext4    volumes, images
//! ```
//! The disk's GUID is the install's id. Partitions are found by type GUID on the disk that holds the ESP we came
//! from, never by label or device name.

use std::fmt;
use std::io::{self, Read, Seek, SeekFrom, Write};

use gpt::GptConfig;
use gpt::disk::LogicalBlockSize;
use uuid::{Uuid, uuid};

use super::read_at::ReadAt;

/// EFI system partition (UEFI 2.10 §5.3.3).
pub const TYPE_ESP: Uuid = uuid!("C12A7328-F81F-11D2-BA4B-00A0C93EC93B");
/// Our state partition ("lqxstate").
pub const TYPE_STATE: Uuid = uuid!("6c717873-7461-7465-8000-000000000001");
/// Our data partition ("lqxdata").
pub const TYPE_DATA: Uuid = uuid!("6c717864-6174-6100-8000-000000000001");

/// One MiB.
pub const MIB: u64 = 1 << 20;
/// Where the first partition begins, and what every partition is aligned to.
pub const ALIGNMENT: u64 = MIB;
/// Length of the ESP: two slots and one being written.
pub const ESP_LEN: u64 = 768 * MIB;
/// Length of the state partition.
pub const STATE_LEN: u64 = 1024 * MIB;
/// Smallest disk the installer takes.
pub const DISK_LEN_MIN: u64 = 4096 * MIB;
/// Where the installer's mark lies: between the table and the first partition, where nothing else is.
pub const MARK_OFFSET: u64 = 512 << 10;
/// How the mark begins; the disk's GUID follows as text.
pub const MARK: &[u8; 16] = b"LQX INSTALLING 1";

/// A partition, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its number, from 1.
    pub number: u32,
    /// Its type.
    pub kind: Uuid,
    /// Its own GUID.
    pub id: Uuid,
    /// Where it begins.
    pub start: u64,
    /// Its length.
    pub len: u64,
    /// Its name, for people.
    pub name: String,
}

/// A GUID partition table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// The disk's GUID.
    pub disk: Uuid,
    /// Bytes per logical sector.
    pub sector: u64,
    /// In use, by number.
    pub partitions: Vec<Partition>,
}

impl Table {
    /// Reads the table with this sector size; `None` when there is no valid one.
    pub fn read(disk: &dyn ReadAt, sector: u64) -> Option<Self> {
        let config = GptConfig::new().logical_block_size(block_size(sector)?);
        let found = config.open_from_device(ReadOnly { disk, at: 0 }).ok()?;
        let mut partitions = Vec::new();
        for (number, entry) in found.partitions() {
            if !entry.is_used() {
                continue;
            }
            let sectors = entry.sectors_len().ok()?;
            partitions.push(Partition {
                number: *number,
                kind: entry.part_type_guid.guid,
                id: entry.part_guid,
                start: entry.first_lba.checked_mul(sector)?,
                len: sectors.checked_mul(sector)?,
                name: entry.name.clone(),
            });
        }
        Some(Self {
            disk: *found.guid(),
            sector,
            partitions,
        })
    }

    /// The only partition of a type; `None` when there is none or more than one.
    pub fn only(&self, kind: Uuid) -> Option<&Partition> {
        let mut of_kind = self.partitions.iter().filter(|p| p.kind == kind);
        let first = of_kind.next()?;
        of_kind.next().is_none().then_some(first)
    }

    /// It has the three partitions of an install.
    pub fn is_install(&self) -> bool {
        [TYPE_ESP, TYPE_STATE, TYPE_DATA]
            .iter()
            .all(|kind| self.only(*kind).is_some())
    }

    /// The installer's mark for this very table is on the disk: an install began and did not get to its end.
    pub fn is_marked(&self, disk: &dyn ReadAt) -> bool {
        disk.read_vec(MARK_OFFSET, 512)
            .is_ok_and(|sector| sector == mark(self.disk))
    }
}

/// The sector that marks a disk as being installed.
pub fn mark(disk: Uuid) -> Vec<u8> {
    let mut sector = vec![0; 512];
    sector[..16].copy_from_slice(MARK);
    sector[16..52].copy_from_slice(disk.to_string().as_bytes());
    sector
}

/// What the GPT library can do with this sector size.
pub fn block_size(sector: u64) -> Option<LogicalBlockSize> {
    match sector {
        512 => Some(LogicalBlockSize::Lb512),
        4096 => Some(LogicalBlockSize::Lb4096),
        _ => None,
    }
}

/// The GPT library wants to be able to write; this cannot.
struct ReadOnly<'a> {
    disk: &'a dyn ReadAt,
    at: u64,
}

impl fmt::Debug for ReadOnly<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "disk of {} bytes", self.disk.len())
    }
}

impl Read for ReadOnly<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.disk.len().saturating_sub(self.at);
        let take = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        self.disk.read_at(self.at, &mut buf[..take])?;
        self.at += take as u64;
        Ok(take)
    }
}

impl Write for ReadOnly<'_> {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for ReadOnly<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let to = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.disk.len().checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = to.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
