//! What a UKI says about itself: the os-release in its `.osrel` section (UAPI.5, "Unified Kernel Image").

use crate::host::os_release_field;
use crate::host::read_at::ReadAt;

/// Sections a PE file may have here; ours has eight or so.
const SECTIONS_MAX: usize = 64;
/// Longest os-release read.
const OSREL_LEN_MAX: usize = 64 << 10;

/// A UKI of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uki {
    /// Its version.
    pub version: String,
}

impl Uki {
    /// Looks at a PE file; `None` when it is not a UKI of limiquantix.
    pub fn of(file: &dyn ReadAt) -> Option<Self> {
        let dos = file.read_vec(0, 64).ok()?;
        if dos[..2] != *b"MZ" {
            return None;
        }
        let pe = u64::from(le32(&dos, 60)?);
        let header = file.read_vec(pe, 24).ok()?;
        if header[..4] != *b"PE\0\0" {
            return None;
        }
        let count = usize::from(u16::from_le_bytes([header[6], header[7]]));
        let optional = u64::from(u16::from_le_bytes([header[20], header[21]]));
        let count = count.min(SECTIONS_MAX);
        let table = file.read_vec(pe + 24 + optional, count * 40).ok()?;
        let section = |name: &[u8]| {
            table
                .chunks_exact(40)
                .find(|raw| raw[..8].split(|b| *b == 0).next() == Some(name))
        };
        section(b".linux")?;
        let osrel = section(b".osrel")?;
        // VirtualSize is the true length; the raw one is padded (PE format §3).
        let len = le32(osrel, 8)?.min(le32(osrel, 16)?);
        let len = usize::try_from(len).ok()?.min(OSREL_LEN_MAX);
        let text = file.read_vec(u64::from(le32(osrel, 20)?), len).ok()?;
        let text = String::from_utf8_lossy(&text);
        let text = text.trim_end_matches('\0');
        if os_release_field(text, "ID").as_deref() != Some("limiquantix") {
            return None;
        }
        let version = os_release_field(text, "IMAGE_VERSION")
            .or_else(|| os_release_field(text, "VERSION_ID"))?;
        // It becomes part of a file name.
        let plain = version
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'~'));
        (plain && version.len() <= 64).then_some(Self { version })
    }
}

fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    let raw: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(u32::from_le_bytes(raw))
}

/// A smallest PE file that passes as our UKI, with this much of kernel: for tests.
#[cfg(test)]
pub(crate) fn fake(version: &str, kernel_len: usize) -> Vec<u8> {
    let osrel = format!("ID=limiquantix\nVERSION_ID=\"{version}\"\n");
    let mut file = vec![0u8; 1024];
    file[..2].copy_from_slice(b"MZ");
    file[60..64].copy_from_slice(&64u32.to_le_bytes());
    file[64..68].copy_from_slice(b"PE\0\0");
    file[70..72].copy_from_slice(&2u16.to_le_bytes());
    let mut put = |at: usize, name: &[u8], len: usize, offset: usize| {
        file[at..at + name.len()].copy_from_slice(name);
        for (place, value) in [(8, len), (16, len), (20, offset)] {
            let value = u32::try_from(value).unwrap().to_le_bytes();
            file[at + place..at + place + 4].copy_from_slice(&value);
        }
    };
    put(88, b".osrel", osrel.len(), 512);
    put(128, b".linux", kernel_len, 1024);
    file[512..512 + osrel.len()].copy_from_slice(osrel.as_bytes());
    file.extend((0..kernel_len).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8));
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_uki_passes_and_tells_its_version() {
        let uki = fake("0.1.0", 100);
        assert_eq!(Uki::of(&uki).unwrap().version, "0.1.0");
        assert_eq!(
            Uki::of(&uki[..700].to_vec()).map(|u| u.version).as_deref(),
            Some("0.1.0")
        );
        assert_eq!(Uki::of(&uki[..500].to_vec()), None);
        assert_eq!(Uki::of(&fake("../x", 100)), None);
        assert_eq!(Uki::of(&b"MZ".to_vec()), None);
        assert_eq!(Uki::of(&vec![0; 4096]), None);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(mut bytes: Vec<u8>, at in 0usize..200, value: u8) {
            let mut file = fake("1", 10);
            file[at] = value;
            let _ = Uki::of(&file);
            bytes.splice(0..0, *b"MZ");
            let _ = Uki::of(&bytes);
        }
    }
}
