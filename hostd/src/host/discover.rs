//! Install or run? Which disk is ours?
//!
//! ```text
//! lqx.install=UUID on the command line ── disk with that GUID ── ours: Run, else Rescue
//! EFI LoaderDevicePartUUID ── disk with that partition ─┬─ has our STATE ── ours: Run
//!                                                       └─ has not (a stick) ── Install
//! neither (CD, PXE) ── Install
//! ```
//! Other disks with installs of ours on them are never looked at: an install is only ours when we came from it.

use std::path::PathBuf;

use uuid::Uuid;

use super::blocks::{self, Block};
use super::cmdline::Cmdline;
use super::partitions::{TYPE_DATA, TYPE_ESP, TYPE_STATE, Table};
use super::read_at::Device;
use super::{Roots, efivars};

/// What this machine is, as far as its disks tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Discovered {
    /// Booted from a medium or the net: install.
    Install {
        /// Why, in words.
        why: String,
    },
    /// Booted from its own disk: serve.
    Run(Install),
    /// It was told which install is its own and that one is not there or not whole. Nothing is to be written;
    /// show this.
    Rescue {
        /// What is wrong, in words.
        cause: String,
        /// What a person can do.
        hint: String,
    },
}

/// Our own disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Install {
    /// The disk's GUID.
    pub id: Uuid,
    /// The disk.
    pub disk: String,
    /// The partition we came from.
    pub esp: PathBuf,
    /// Configuration, keys, Raft.
    pub state: PathBuf,
    /// Volumes and images.
    pub data: PathBuf,
}

/// Looks once. Disks may still be appearing: the caller repeats for some seconds while the answer is not
/// [`Discovered::Run`] and [`came_from_disk`] says that one is to come.
pub fn discover(roots: &Roots, cmdline: &Cmdline) -> Discovered {
    let tables = tables(roots);
    if let Some(id) = cmdline.install {
        return match tables.iter().find(|(_, table)| table.disk == id) {
            Some((block, table)) => own(roots, block, table),
            None => Discovered::Rescue {
                cause: format!("no disk has the install {id} that `lqx.install=` names"),
                hint: "check cables and the boot entry, or boot the installer".to_owned(),
            },
        };
    }
    let Some(from) = booted_from(roots) else {
        let why = "not booted from a disk with a partition table".to_owned();
        return Discovered::Install { why };
    };
    let ours = tables
        .iter()
        .find(|(_, table)| table.partitions.iter().any(|p| p.id == from));
    match ours {
        Some((block, table)) if table.only(TYPE_STATE).is_some() => own(roots, block, table),
        Some((block, _)) => Discovered::Install {
            why: format!("booted from {}, which is a medium", block.name),
        },
        None => Discovered::Install {
            why: format!("booted from the partition {from}, which no disk here shows"),
        },
    }
}

/// Firmware or command line say that we came from a disk, so it is worth waiting for one.
pub fn came_from_disk(roots: &Roots, cmdline: &Cmdline) -> bool {
    cmdline.install.is_some() || booted_from(roots).is_some()
}

fn booted_from(roots: &Roots) -> Option<Uuid> {
    let text = efivars::read_text(roots, "LoaderDevicePartUUID", efivars::LOADER)?;
    Uuid::parse_str(&text).ok()
}

/// The disk that has the partition we came from, when firmware told.
pub fn booted_disk(roots: &Roots) -> Option<String> {
    let from = booted_from(roots)?;
    let found = tables(roots)
        .into_iter()
        .find(|(_, table)| table.partitions.iter().any(|p| p.id == from));
    found.map(|(block, _)| block.name)
}

fn tables(roots: &Roots) -> Vec<(Block, Table)> {
    let disks = blocks::all(roots).into_iter().filter(Block::is_disk);
    disks
        .filter_map(|block| {
            let device = Device::open(&block.path).ok()?;
            let table = Table::read(&device, block.sector)?;
            Some((block, table))
        })
        .collect()
}

fn own(roots: &Roots, block: &Block, table: &Table) -> Discovered {
    let node = |kind| {
        let number = table.only(kind)?.number;
        Some(roots.dev.join(partition_name(&block.name, number)))
    };
    match (node(TYPE_ESP), node(TYPE_STATE), node(TYPE_DATA)) {
        (Some(esp), Some(state), Some(data)) => Discovered::Run(Install {
            id: table.disk,
            disk: block.name.clone(),
            esp,
            state,
            data,
        }),
        _ => Discovered::Rescue {
            cause: format!(
                "the install {} on {} does not have exactly one ESP, state and data partition",
                table.disk, block.name
            ),
            hint: "restore the partition table, or boot the installer to install anew".to_owned(),
        },
    }
}

/// `vda` 2 → `vda2`, `nvme0n1` 2 → `nvme0n1p2`: a `p` goes between two digits.
pub fn partition_name(disk: &str, number: u32) -> String {
    match disk.ends_with(|c: char| c.is_ascii_digit()) {
        true => format!("{disk}p{number}"),
        false => format!("{disk}{number}"),
    }
}
