//! What an install will be, decided before anything is written: pure.

use std::io::{self, Cursor, Read, Seek, SeekFrom, Write};

use gpt::GptConfig;
use gpt::mbr::ProtectiveMBR;
use gpt::partition_types::{OperatingSystem, Type};
use uuid::Uuid;

use crate::config::HostConfig;
use crate::host::partitions::{
    ALIGNMENT, ESP_LEN, MIB, Partition, STATE_LEN, TYPE_DATA, TYPE_ESP, TYPE_STATE, Table,
    block_size,
};

/// Tries the boot loader gives a new slot before it leaves it.
const TRIES: u32 = 3;

/// An install, decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The partition table to write.
    pub table: Table,
    /// Length of the disk in bytes.
    pub disk_len: u64,
    /// What the state partition will hold.
    pub config: HostConfig,
    /// The UKI's path on the ESP.
    pub slot: String,
}

/// There is no plan for this disk.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Too small.
    #[error("a disk of {0} bytes is too small")]
    TooSmall(u64),
    /// The sector size is neither 512 nor 4096.
    #[error("sectors of {0} bytes")]
    Sector(u64),
}

impl Plan {
    /// Lays out a disk. Ids are minted by the caller: the table's GUID is `config.install`.
    pub fn new(
        disk_len: u64,
        sector: u64,
        config: HostConfig,
        version: &str,
        partition_ids: [Uuid; 3],
    ) -> Result<Self, PlanError> {
        block_size(sector).ok_or(PlanError::Sector(sector))?;
        // The last MiB holds the second table.
        let end = (disk_len - disk_len % ALIGNMENT).saturating_sub(ALIGNMENT);
        let state = ALIGNMENT + ESP_LEN;
        let data = state + STATE_LEN;
        if end < data + ALIGNMENT {
            return Err(PlanError::TooSmall(disk_len));
        }
        let shape = [
            (TYPE_ESP, ALIGNMENT, ESP_LEN, "lqx-esp"),
            (TYPE_STATE, state, STATE_LEN, "lqx-state"),
            (TYPE_DATA, data, end - data, "lqx-data"),
        ];
        let partitions = shape.iter().zip(partition_ids).zip(1..);
        let partitions = partitions.map(|(((kind, start, len, name), id), number)| Partition {
            number,
            kind: *kind,
            id,
            start: *start,
            len: *len,
            name: (*name).to_owned(),
        });
        Ok(Self {
            table: Table {
                disk: config.install,
                sector,
                partitions: partitions.collect(),
            },
            disk_len,
            config,
            slot: format!("EFI/Linux/limiquantix_{version}+{TRIES}.efi"),
        })
    }

    /// A partition of the plan.
    pub fn partition(&self, kind: Uuid) -> Option<&Partition> {
        self.table.only(kind)
    }
}

/// A partition table as bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The first MiB of the disk.
    pub head: Vec<u8>,
    /// The last MiB.
    pub tail: Vec<u8>,
}

/// Renders a table. The library writes to memory; what is written to the disk, and in which order, is not its
/// business.
pub fn render(table: &Table, disk_len: u64) -> io::Result<Rendered> {
    let size = block_size(table.sector).ok_or(io::ErrorKind::InvalidInput)?;
    let mut edges = Edges {
        len: disk_len,
        at: 0,
        head: vec![0; MIB as usize],
        tail: vec![0; MIB as usize],
    };
    let sectors = disk_len / table.sector - 1;
    let sectors = u32::try_from(sectors).unwrap_or(u32::MAX);
    let mbr = ProtectiveMBR::with_lb_size(sectors).to_bytes();
    edges.head[..mbr.len()].copy_from_slice(&mbr);
    let config = GptConfig::new().writable(true).logical_block_size(size);
    let mut disk = config
        .create_from_device(edges, Some(table.disk))
        .map_err(io::Error::other)?;
    let partitions = table.partitions.iter().map(|p| {
        let entry = gpt::partition::Partition {
            part_type_guid: Type {
                guid: p.kind,
                os: OperatingSystem::None,
            },
            part_guid: p.id,
            first_lba: p.start / table.sector,
            last_lba: (p.start + p.len) / table.sector - 1,
            flags: 0,
            name: p.name.clone(),
        };
        (p.number, entry)
    });
    disk.update_partitions(partitions.collect())
        .map_err(io::Error::other)?;
    let edges = disk.write().map_err(io::Error::other)?;
    Ok(Rendered {
        head: edges.head,
        tail: edges.tail,
    })
}

/// A disk of which only the first and the last MiB exist.
#[derive(Debug)]
struct Edges {
    len: u64,
    at: u64,
    head: Vec<u8>,
    tail: Vec<u8>,
}

impl Edges {
    fn part(&mut self) -> io::Result<Cursor<&mut Vec<u8>>> {
        let tail = self.len - MIB;
        let (part, at) = match self.at {
            at if at < MIB => (&mut self.head, at),
            at if at >= tail => (&mut self.tail, at - tail),
            _ => return Err(io::Error::other("outside of the table's places")),
        };
        let mut cursor = Cursor::new(part);
        cursor.set_position(at);
        Ok(cursor)
    }
}

impl Read for Edges {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let got = self.part()?.read(buf)?;
        self.at += got as u64;
        Ok(got)
    }
}

impl Write for Edges {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut part = self.part()?;
        let room = usize::try_from(MIB - part.position()).unwrap_or(0);
        let put = part.write(&bytes[..bytes.len().min(room)])?;
        self.at += put as u64;
        Ok(put)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Edges {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let to = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.len.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = to.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
