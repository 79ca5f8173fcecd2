//! Linux's bzImage, as far as an image builder must read it: its version, and the ELF kernel inside.
//!
//! Layout: Linux `Documentation/x86/boot.rst`. The ELF kernel starts by its PVH note without unpacking itself first, which under emulation
//! saves three quarters of the boot; so direct boots in the testbed use it.

use std::fs;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::tool::{run, tool};

fn bytes_at(image: &[u8], range: Range<usize>) -> Result<&[u8]> {
    image.get(range).context("the kernel image ends too early")
}

fn u32_at(image: &[u8], at: usize) -> Result<usize> {
    let bytes: [u8; 4] = bytes_at(image, at..at + 4)?.try_into()?;
    Ok(u32::from_le_bytes(bytes) as usize)
}

fn check(image: &[u8]) -> Result<()> {
    if bytes_at(image, 0x202..0x206)? != b"HdrS" {
        bail!("this is not a bzImage: there is no `HdrS` at 0x202");
    }
    Ok(())
}

/// The version string (`uname -r`) inside a bzImage.
pub fn version(image: &[u8]) -> Result<String> {
    check(image)?;
    let at = u16::from_le_bytes(bytes_at(image, 0x20e..0x210)?.try_into()?) as usize + 0x200;
    let text = bytes_at(image, at..at + 256)?;
    let end = text
        .iter()
        .position(|b| *b == 0 || *b == b' ')
        .context("the kernel's version has no end")?;
    Ok(String::from_utf8(text[..end].to_vec())?)
}

/// The compressed ELF kernel inside a bzImage.
fn payload(image: &[u8]) -> Result<&[u8]> {
    check(image)?;
    let sectors = match bytes_at(image, 0x1f1..0x1f2)?[0] {
        0 => 4,
        n => usize::from(n),
    };
    let start = (sectors + 1) * 512 + u32_at(image, 0x248)?;
    bytes_at(image, start..start + u32_at(image, 0x24c)?)
}

/// Writes the ELF kernel inside the bzImage `from` to `to`.
pub fn extract(from: &Path, to: &Path) -> Result<()> {
    let image = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
    let payload = payload(&image).with_context(|| format!("in {}", from.display()))?;
    let work = tempfile::tempdir()?;
    let packed = work.path().join("payload");
    // All but xz and gzip are followed by the unpacked size, which is not part of their stream.
    let (program, args, packed_bytes): (_, &[&str], _) = match payload {
        [0xfd, b'7', b'z', b'X', b'Z', ..] => ("xz", &["-dc", "--single-stream"], payload),
        [0x02, 0x21, 0x4c, 0x18, ..] => ("lz4", &["-dc"], &payload[..payload.len() - 4]),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => ("zstd", &["-dcq"], &payload[..payload.len() - 4]),
        _ => bail!(
            "{}: the kernel is packed in a way not known here",
            from.display()
        ),
    };
    fs::write(&packed, packed_bytes)?;
    let elf = run(tool(program).args(args).arg(&packed))?;
    if !elf.starts_with(b"\x7fELF") {
        bail!("{}: what was unpacked is not an ELF kernel", from.display());
    }
    fs::write(to, elf).with_context(|| format!("writing {}", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bzimage() -> Vec<u8> {
        let mut image = vec![0; 0x2000];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x300u16.to_le_bytes());
        image[0x500..0x511].copy_from_slice(b"6.1.0-50-amd64 (x");
        image
    }

    #[test]
    fn the_version_is_read() {
        assert_eq!(version(&bzimage()).unwrap(), "6.1.0-50-amd64");
    }

    #[test]
    fn damaged_images_are_refused_and_never_panic() {
        assert!(version(b"MZ").is_err());
        let mut image = bzimage();
        image[0x248..0x24c].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(
            payload(&image).unwrap_err().to_string(),
            "the kernel image ends too early"
        );
        image[0x20e..0x210].copy_from_slice(&0xffffu16.to_le_bytes());
        assert!(version(&image).is_err());
    }
}
