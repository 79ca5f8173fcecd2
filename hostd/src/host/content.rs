//! What is on a disk, without mounting it: is it blank, whose is it, in words a person decides by.
//!
//! Blank means: the first and the last MiB hold only zeros. Every partition table, file system, LVM and RAID
//! signature we know of lies there, and so do most we do not know of.

use uuid::Uuid;

use super::partitions::{MARK_OFFSET, MIB, TYPE_ESP, Table, mark};
use super::read_at::{ReadAt, Window};
use crate::install::fat::Fat;

/// Where a loader must lie so that firmware starts a disk by itself (UEFI 2.10 §3.5.1.1).
pub const BOOT_FILE: &str = "EFI/BOOT/BOOTX64.EFI";

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Nothing.
    Blank,
    /// An install of ours that was cut off before it could ever start: nothing of a user's can be on it.
    Interrupted(Uuid),
    /// An install of ours.
    Install(Uuid),
    /// A partition table.
    Table {
        /// `GPT` or `MBR`.
        kind: &'static str,
        /// How many partitions.
        partitions: usize,
    },
    /// A file system or the like on the whole disk.
    Signature(&'static str),
    /// Something else that is not zero.
    Unknown,
    /// It could not be read.
    Unreadable(String),
}

impl Content {
    /// May be overwritten without consent.
    pub fn is_blank(&self) -> bool {
        matches!(self, Self::Blank | Self::Interrupted(_))
    }

    /// Looks at a disk.
    pub fn of(disk: &dyn ReadAt, sector: u64) -> Self {
        Self::look(disk, sector).unwrap_or_else(|error| Self::Unreadable(error.to_string()))
    }

    fn look(disk: &dyn ReadAt, sector: u64) -> std::io::Result<Self> {
        let edge = MIB.min(disk.len());
        let len = usize::try_from(edge).unwrap_or(0);
        let head = disk.read_vec(0, len)?;
        let tail = disk.read_vec(disk.len() - edge, len)?;
        if head.iter().chain(&tail).all(|byte| *byte == 0) {
            return Ok(Self::Blank);
        }
        if let Some(id) = only_marked(&head) {
            return Ok(Self::Interrupted(id));
        }
        if let Some(table) = Table::read(disk, sector) {
            if !table.is_install() {
                return Ok(Self::Table {
                    kind: "GPT",
                    partitions: table.partitions.len(),
                });
            }
            // Both must say so: the mark goes only after the boot file is there, and a used install has one.
            let interrupted = table.is_marked(disk) && !starts(disk, &table);
            return Ok(match interrupted {
                true => Self::Interrupted(table.disk),
                false => Self::Install(table.disk),
            });
        }
        Ok(signature(&head, &tail, sector))
    }
}

/// The first MiB has nothing but the installer's mark: it was cut off before the table was there.
fn only_marked(head: &[u8]) -> Option<Uuid> {
    let at = usize::try_from(MARK_OFFSET).ok()?;
    let sector = head.get(at..at + 512)?;
    let id = std::str::from_utf8(sector.get(16..52)?).ok()?;
    let id = Uuid::parse_str(id).ok()?;
    let zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    (sector == mark(id) && zero(&head[..at]) && zero(&head[at + 512..])).then_some(id)
}

/// Firmware would find a loader on this disk's ESP.
pub fn starts(disk: &dyn ReadAt, table: &Table) -> bool {
    let Some(esp) = table.only(TYPE_ESP) else {
        return false;
    };
    let window = Window::new(disk, esp.start, esp.len);
    match Fat::open(&window) {
        Ok(fat) => !matches!(fat.find(BOOT_FILE), Ok(None)),
        // A boot sector that is all zeros is no file system; anything else that we cannot read might start.
        Err(_) => window
            .read_vec(0, 512)
            .is_ok_and(|sector| sector.iter().any(|byte| *byte != 0)),
    }
}

fn signature(head: &[u8], tail: &[u8], sector: u64) -> Content {
    let has = |at: usize, magic: &[u8]| head.get(at..at + magic.len()) == Some(magic);
    let known: [(&'static str, bool); 13] = [
        ("ext2/3/4 file system", has(1080, &[0x53, 0xef])),
        ("XFS file system", has(0, b"XFSB")),
        ("btrfs file system", has(0x10040, b"_BHRfS_M")),
        ("ISO 9660 medium", has(32769, b"CD001")),
        ("LUKS encrypted volume", has(0, b"LUKS\xba\xbe")),
        (
            "LVM physical volume",
            (0..4).any(|lba| has(lba * 512, b"LABELONE")),
        ),
        ("swap space", has(4086, b"SWAPSPACE2")),
        ("NTFS file system", has(3, b"NTFS    ")),
        ("exFAT file system", has(3, b"EXFAT   ")),
        ("FAT file system", has(82, b"FAT32   ") || has(54, b"FAT1")),
        ("squashfs", has(0, b"hsqs")),
        (
            "Linux RAID member",
            has(4096, &[0xfc, 0x4e, 0x2b, 0xa9]) || has(0, &[0xfc, 0x4e, 0x2b, 0xa9]),
        ),
        ("Linux RAID member", tail_has_raid(tail)),
    ];
    if let Some((words, _)) = known.iter().find(|(_, there)| *there) {
        return Content::Signature(words);
    }
    let sector = usize::try_from(sector).unwrap_or(512);
    if has(sector, b"EFI PART") {
        return Content::Signature("damaged GPT partition table");
    }
    if has(510, &[0x55, 0xaa]) {
        let partitions = (0..4).filter(|n| head[446 + 16 * n + 4] != 0).count();
        return Content::Table {
            kind: "MBR",
            partitions,
        };
    }
    if tail.windows(8).any(|bytes| bytes == b"EFI PART") {
        return Content::Signature("damaged GPT partition table");
    }
    Content::Unknown
}

/// md metadata 0.90 and 1.0 lie 64 KiB-aligned or 8 KiB before the end.
fn tail_has_raid(tail: &[u8]) -> bool {
    tail.chunks_exact(4096)
        .any(|chunk| chunk[..4] == [0xfc, 0x4e, 0x2b, 0xa9])
}

impl std::fmt::Display for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Blank => f.write_str("blank"),
            Self::Interrupted(id) => write!(f, "interrupted limiquantix install {id}"),
            Self::Install(id) => write!(f, "limiquantix install {id}"),
            Self::Table { kind, partitions } => {
                let s = if *partitions == 1 { "" } else { "s" };
                write!(f, "{kind} partition table ({partitions} partition{s})")
            }
            Self::Signature(words) => f.write_str(words),
            Self::Unknown => f.write_str("unknown data"),
            Self::Unreadable(why) => write!(f, "unreadable: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk_with(at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut disk = vec![0; 4 << 20];
        disk[at..at + bytes.len()].copy_from_slice(bytes);
        disk
    }

    #[test]
    fn zeros_are_blank_and_anything_at_the_edges_is_not() {
        let blank: Vec<u8> = vec![0; 4 << 20];
        assert_eq!(Content::of(&blank, 512), Content::Blank);
        for (at, bytes, words) in [
            (1080, &[0x53, 0xef][..], "ext2/3/4 file system"),
            (32769, b"CD001", "ISO 9660 medium"),
            (512, b"LABELONE", "LVM physical volume"),
            (510, &[0x55, 0xaa], "MBR partition table (0 partitions)"),
            (0x10040, b"_BHRfS_M", "btrfs file system"),
            (777, b"x", "unknown data"),
            ((4 << 20) - 1, b"x", "unknown data"),
            ((4 << 20) - 512, b"EFI PART", "damaged GPT partition table"),
            (
                (4 << 20) - 8192,
                &[0xfc, 0x4e, 0x2b, 0xa9],
                "Linux RAID member",
            ),
        ] {
            let content = Content::of(&disk_with(at, bytes), 512);
            assert_eq!(content.to_string(), words);
            assert!(!content.is_blank(), "{words}");
        }
    }
}
