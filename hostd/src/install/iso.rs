//! Reading an ISO 9660 medium (ECMA-119) without mounting it: its label, and files in its root.
//!
//! Our installer medium is one on a CD and, byte for byte the same, on a stick.

use std::io;

use crate::host::read_at::{ReadAt, Window};

/// Logical sectors of the format, whatever the device's are.
const SECTOR: u64 = 2048;
/// Largest root directory read.
const ROOT_LEN_MAX: usize = 1 << 20;

/// A medium.
pub struct Iso<'a> {
    inner: &'a dyn ReadAt,
    /// Its volume identifier.
    pub label: String,
    root: Vec<u8>,
}

impl<'a> Iso<'a> {
    /// Reads volume descriptor and root directory; `None` when it is no ISO 9660 medium.
    pub fn open(inner: &'a dyn ReadAt) -> Option<Self> {
        let volume = inner.read_vec(16 * SECTOR, 2048).ok()?;
        // Primary volume descriptor (§8.4): type 1, "CD001".
        if volume[0] != 1 || volume[1..6] != *b"CD001" {
            return None;
        }
        let label = String::from_utf8_lossy(&volume[40..72])
            .trim_end()
            .to_owned();
        let record = &volume[156..190];
        let at = u64::from(le32(record, 2)?) * SECTOR;
        let len = usize::try_from(le32(record, 10)?).ok()?;
        if len > ROOT_LEN_MAX {
            return None;
        }
        Some(Self {
            inner,
            label,
            root: inner.read_vec(at, len).ok()?,
        })
    }

    /// A file in the root, by its name in letters of either case, with or without `;1`.
    pub fn file(&self, name: &str) -> Option<Window<'a>> {
        let mut at = 0;
        while let Some(len) = self.root.get(at).copied().map(usize::from) {
            if len == 0 {
                // A record does not cross a sector; the rest of this one is padding (§6.8.1.1).
                at = (at + 1).next_multiple_of(2048);
                continue;
            }
            let record = self.root.get(at..at + len)?;
            at += len;
            let name_len = usize::from(*record.get(32)?);
            let raw = String::from_utf8_lossy(record.get(33..33 + name_len)?).into_owned();
            let plain = raw
                .split(';')
                .next()
                .unwrap_or_default()
                .trim_end_matches('.');
            let is_dir = record.get(25)? & 2 != 0;
            if !is_dir && plain.eq_ignore_ascii_case(name) {
                let start = u64::from(le32(record, 2)?) * SECTOR;
                return Some(Window::new(self.inner, start, u64::from(le32(record, 10)?)));
            }
        }
        None
    }

    /// All bytes of a small file in the root.
    pub fn read(&self, name: &str, at_most: u64) -> Option<io::Result<Vec<u8>>> {
        let file = self.file(name)?;
        if file.len() > at_most {
            return Some(Err(io::Error::other("the file is too large")));
        }
        let len = usize::try_from(file.len()).ok()?;
        Some(file.read_vec(0, len))
    }
}

/// The little-endian half of a both-endian number.
fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    let raw: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(u32::from_le_bytes(raw))
}
