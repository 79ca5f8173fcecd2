//! The installed disk's layout: a contract with the installer inside `hostd`, which makes the same.
//!
//! ```text
//! │ 1 MiB │ ESP 768 MiB FAT32 │ state 1 GiB ext4 │ data, the rest, ext4 │ 1 MiB │      GPT; the disk's GUID is the install's UUID
//! ```

use uuid::{Uuid, uuid};

/// One mebibyte; everything begins on one.
pub const MIB: u64 = 1 << 20;
/// EFI system partition: the boot loader and the slots.
pub const TYPE_ESP: Uuid = uuid!("c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
/// Our state partition ("lqxstate").
pub const TYPE_STATE: Uuid = uuid!("6c717873-7461-7465-8000-000000000001");
/// Our data partition ("lqxdata").
pub const TYPE_DATA: Uuid = uuid!("6c717864-6174-6100-8000-000000000001");
/// Two slots of 100 MB, one being written, and room to grow.
pub const ESP_LEN: u64 = 768 * MIB;
/// Configuration, keys, Raft.
pub const STATE_LEN: u64 = 1024 * MIB;
/// The boot loader, where firmware looks without being told.
pub const BOOT_FILE: &str = "EFI/BOOT/BOOTX64.EFI";
/// The boot loader, where its own tools look.
pub const LOADER_FILE: &str = "EFI/systemd/systemd-bootx64.efi";
/// Its settings.
pub const LOADER_CONF: &str = "loader/loader.conf";

/// The file of a slot that has not proven itself: three tries, counted by the loader in its name.
pub fn slot(version: &str) -> String {
    format!("EFI/Linux/limiquantix_{version}+3.efi")
}

/// A partition: where it is on the disk, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its type.
    pub kind: Uuid,
    /// Its name in the table.
    pub name: &'static str,
    /// The first byte.
    pub start: u64,
    /// How many bytes.
    pub len: u64,
}

/// The three partitions of a disk of this size; `None` if they do not fit.
pub fn places(disk_len: u64) -> Option<[Place; 3]> {
    // The last MiB holds the second table.
    let end = (disk_len / MIB * MIB).checked_sub(MIB)?;
    let state = MIB + ESP_LEN;
    let data = state + STATE_LEN;
    let data_len = end.checked_sub(data).filter(|len| *len >= 64 * MIB)?;
    Some([
        Place {
            kind: TYPE_ESP,
            name: "lqx-esp",
            start: MIB,
            len: ESP_LEN,
        },
        Place {
            kind: TYPE_STATE,
            name: "lqx-state",
            start: state,
            len: STATE_LEN,
        },
        Place {
            kind: TYPE_DATA,
            name: "lqx-data",
            start: data,
            len: data_len,
        },
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_follow_each_other_and_leave_room_for_both_tables() {
        let disk = 8 << 30;
        let places = places(disk).unwrap();
        assert_eq!(places[0].start, MIB);
        assert_eq!(places[1].start, places[0].start + places[0].len);
        assert_eq!(places[2].start, places[1].start + places[1].len);
        assert_eq!(places[2].start + places[2].len, disk - MIB);
        assert!(
            places
                .iter()
                .all(|place| place.start % MIB == 0 && place.len % MIB == 0)
        );
    }

    #[test]
    fn a_disk_that_is_too_small_has_no_layout() {
        assert_eq!(places(1 << 30), None);
        assert_eq!(places(0), None);
    }
}
