//! Block devices, as sysfs shows them.

use std::path::PathBuf;

use super::{Roots, text};

/// A whole disk (or CD), or one of its partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Kernel name.
    pub name: String,
    /// Its node in `/dev`.
    pub path: PathBuf,
    /// Length in bytes.
    pub len: u64,
    /// Bytes per logical sector.
    pub sector: u64,
    /// Cannot be written.
    pub read_only: bool,
    /// Can be taken out.
    pub removable: bool,
    /// Model, in words.
    pub model: String,
    /// Serial number; empty when there is none.
    pub serial: String,
    /// Partition number, when it is one, and the disk's name.
    pub partition: Option<(u32, String)>,
    /// Why it is in use, in words; `None` when it is not: mounted, or held by LVM, RAID, swap.
    pub used_by: Option<String>,
}

impl Block {
    /// Could be installed to, as far as its kind goes: a whole disk, no CD, no RAM or loop device.
    pub fn is_disk(&self) -> bool {
        self.partition.is_none() && !self.is_cd() && !is_virtual(&self.name)
    }

    /// A CD drive.
    pub fn is_cd(&self) -> bool {
        self.name.starts_with("sr")
    }
}

/// Made by software, or a special area that is no disk to a person.
fn is_virtual(name: &str) -> bool {
    [
        "loop", "ram", "zram", "dm-", "md", "fd", "nbd", "rbd", "drbd",
    ]
    .iter()
    .any(|prefix| name.starts_with(prefix))
        || (name.starts_with("mmcblk") && (name.contains("boot") || name.contains("rpmb")))
}

/// Everything with a medium in it, by name.
pub fn all(roots: &Roots) -> Vec<Block> {
    let mounts = text(roots.proc.join("mounts"));
    let swaps = text(roots.proc.join("swaps"));
    let class = roots.sys.join("class/block");
    let mut found: Vec<Block> = std::fs::read_dir(&class)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter_map(|name| one(roots, &name, &mounts, &swaps))
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    // A disk is in use when a partition of it is.
    let used: Vec<(String, String)> = found
        .iter()
        .filter_map(|b| {
            let (_, disk) = b.partition.as_ref()?;
            Some((disk.clone(), format!("{}: {}", b.name, b.used_by.as_ref()?)))
        })
        .collect();
    for (disk, why) in used {
        for block in found.iter_mut().filter(|b| b.name == disk) {
            block.used_by.get_or_insert(why.clone());
        }
    }
    found
}

fn one(roots: &Roots, name: &str, mounts: &str, swaps: &str) -> Option<Block> {
    let class = roots.sys.join("class/block");
    let folder = class.join(name);
    // Always in units of 512 bytes, whatever the sector size (Documentation/ABI/stable/sysfs-block).
    let len = text(folder.join("size"))
        .parse::<u64>()
        .ok()?
        .checked_mul(512)?;
    if len == 0 {
        return None;
    }
    let partition = text(folder.join("partition"))
        .parse()
        .ok()
        .and_then(|number| {
            // /sys/class/block/vda1 is a link into the disk's own folder.
            let real = std::fs::canonicalize(&folder).ok()?;
            let disk = real.parent()?.file_name()?.to_str()?.to_owned();
            Some((number, disk))
        });
    let disk = match &partition {
        Some((_, disk)) => class.join(disk),
        None => folder.clone(),
    };
    let path = roots.dev.join(name);
    let used_by = used_by(roots, name, mounts, swaps);
    Some(Block {
        name: name.to_owned(),
        path,
        len,
        sector: text(disk.join("queue/logical_block_size"))
            .parse()
            .unwrap_or(512),
        read_only: text(folder.join("ro")) == "1",
        removable: text(disk.join("removable")) == "1",
        model: model(&disk, name),
        serial: serial(&disk),
        partition,
        used_by,
    })
}

fn model(disk: &std::path::Path, name: &str) -> String {
    let vendor = text(disk.join("device/vendor"));
    let model = text(disk.join("device/model"));
    match (vendor.as_str(), model.as_str()) {
        (_, "") if name.starts_with("vd") => "virtio disk".to_owned(),
        (_, "") => String::new(),
        // virtio and NVMe have a number here; libata says "ATA" for everyone.
        (vendor, model) if vendor.is_empty() || vendor.starts_with("0x") || vendor == "ATA" => {
            model.to_owned()
        }
        (vendor, model) => format!("{vendor} {model}"),
    }
}

fn serial(disk: &std::path::Path) -> String {
    for file in ["serial", "device/serial"] {
        let found = text(disk.join(file));
        if !found.is_empty() {
            return found;
        }
    }
    // SCSI and SATA: vital product data page 0x80; four bytes of header, then the number (SPC-4 §7.8.13).
    let page = std::fs::read(disk.join("device/vpd_pg80")).unwrap_or_default();
    let number = page.get(4..).unwrap_or_default();
    let number: String = String::from_utf8_lossy(number)
        .chars()
        .filter(|c| c.is_ascii_graphic() || *c == ' ')
        .collect();
    number.trim().to_owned()
}

fn used_by(roots: &Roots, name: &str, mounts: &str, swaps: &str) -> Option<String> {
    let node = format!("/dev/{name}");
    for line in mounts.lines() {
        let mut words = line.split(' ');
        if words.next() == Some(&node) {
            return Some(format!("mounted on {}", words.next().unwrap_or("?")));
        }
    }
    if swaps
        .lines()
        .any(|line| line.split_whitespace().next() == Some(&node))
    {
        return Some("swap".to_owned());
    }
    let holders = roots.sys.join("class/block").join(name).join("holders");
    let holder = std::fs::read_dir(holders).ok()?.flatten().next()?;
    Some(format!("held by {}", holder.file_name().to_string_lossy()))
}
