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
            // The system use field begins at an even offset (§9.1.13).
            let long = rock_ridge_name(record.get((33 + name_len).next_multiple_of(2)..)?);
            let is_it = match &long {
                Some(long) => long.eq_ignore_ascii_case(name),
                None => {
                    plain.eq_ignore_ascii_case(name)
                        || plain.eq_ignore_ascii_case(&eight_three(name))
                }
            };
            if !is_dir && is_it {
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

/// The POSIX name of a record (Rock Ridge, RRIP 1.12 §4.1.4), when it has one.
fn rock_ridge_name(mut system_use: &[u8]) -> Option<String> {
    while let [kind0, kind1, len, _version, ..] = *system_use {
        let entry = system_use
            .get(..usize::from(len))
            .filter(|e| e.len() >= 4)?;
        if [kind0, kind1] == *b"NM" {
            let name = entry.get(5..)?;
            return Some(String::from_utf8_lossy(name).into_owned());
        }
        system_use = &system_use[usize::from(len)..];
    }
    None
}

/// `seed.toml` is `SEED.TOM` on a medium of interchange level 1 (§10.1).
fn eight_three(name: &str) -> String {
    let (base, extension) = name.split_once('.').unwrap_or((name, ""));
    let cut = |text: &str, most: usize| text.chars().take(most).collect::<String>();
    format!("{}.{}", cut(base, 8), cut(extension, 3))
}

/// The little-endian half of a both-endian number.
fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    let raw: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(u32::from_le_bytes(raw))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A medium with one file in its root.
    fn medium(name: &[u8], system_use: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0u8; 20 * 2048];
        let volume = 16 * 2048;
        bytes[volume] = 1;
        bytes[volume + 1..volume + 6].copy_from_slice(b"CD001");
        bytes[volume + 40..volume + 72].copy_from_slice(b"LQX_SEED                        ");
        bytes[volume + 158] = 18;
        bytes[volume + 156 + 10..volume + 156 + 12].copy_from_slice(&2048u16.to_le_bytes());
        let root = 18 * 2048;
        let padded = (33 + name.len()).next_multiple_of(2);
        let record = &mut bytes[root..];
        record[0] = u8::try_from(padded + system_use.len()).unwrap();
        record[2] = 19;
        record[10] = 5;
        record[32] = u8::try_from(name.len()).unwrap();
        record[33..33 + name.len()].copy_from_slice(name);
        record[padded..padded + system_use.len()].copy_from_slice(system_use);
        bytes[19 * 2048..19 * 2048 + 5].copy_from_slice(b"hello");
        bytes
    }

    #[test]
    fn a_file_is_found_by_its_long_or_its_short_name() {
        for (raw, system_use, there) in [
            (&b"SEED.TOM;1"[..], &b""[..], true),
            (b"SEED.TOML;1", b"", true),
            (b"SEED.TOM;1", b"PX\x04\x01NM\x0e\x01\x00seed.toml", true),
            (b"SEED.TOM;1", b"NM\x09\x01\x00four", false),
            (b"OTHER.TXT;1", b"", false),
        ] {
            let bytes = medium(raw, system_use);
            let iso = Iso::open(&bytes).unwrap();
            assert_eq!(iso.label, "LQX_SEED");
            let read = iso.read("seed.toml", 100).map(Result::unwrap);
            assert_eq!(read.as_deref(), there.then_some(&b"hello"[..]), "{raw:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_medium_makes_us_panic(at in 0usize..2048, value: u8, which in 0usize..2) {
            let mut bytes = medium(b"SEED.TOM;1", b"NM\x0e\x01\x00seed.toml");
            bytes[[16, 18][which] * 2048 + at] = value;
            if let Some(iso) = Iso::open(&bytes) {
                let _ = iso.read("seed.toml", 100);
            }
        }
    }
}
