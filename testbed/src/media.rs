//! Disks and media of test machines: copies, blanks, seeds.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use rustix::fs::SeekFrom as Holes;

use crate::needs;

/// A blank disk of `bytes`, taking no space until written.
pub fn blank(path: &Path, bytes: u64) -> Result<()> {
    let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    file.set_len(bytes)?;
    Ok(())
}

/// Copies a disk; holes stay holes.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut source = File::open(from).with_context(|| format!("opening {}", from.display()))?;
    let mut target = File::create(to).with_context(|| format!("creating {}", to.display()))?;
    let length = source.metadata()?.len();
    target.set_len(length)?;
    let mut at = 0;
    while at < length {
        let Ok(data) = rustix::fs::seek(&source, Holes::Data(at)) else {
            break;
        };
        let hole = rustix::fs::seek(&source, Holes::Hole(data))?;
        source.seek(SeekFrom::Start(data))?;
        target.seek(SeekFrom::Start(data))?;
        std::io::copy(
            &mut Read::by_ref(&mut source).take(hole - data),
            &mut target,
        )
        .with_context(|| format!("copying to {}", to.display()))?;
        at = hole;
    }
    Ok(())
}

/// A disk as an operating system's installer leaves it: GPT, an EFI system partition, this loader where firmware looks by itself.
pub fn bootable(path: &Path, loader: &Path) -> Result<()> {
    const SECTOR: u64 = 512;
    const START: u64 = 2048;
    let format =
        needs::program("mkfs.vfat").context("mkfs.vfat is not installed (package dosfstools)")?;
    let (folder, copy) = (
        needs::program("mmd").context("mmd is not installed (package mtools)")?,
        needs::program("mcopy").context("mcopy is not installed (package mtools)")?,
    );
    let sectors = fs::metadata(loader)?.len().div_ceil(1 << 20) * 2048 + 4096;
    blank(path, (START + sectors + 2048) * SECTOR)?;
    // Firmware takes no notice of a table without it.
    let last = fs::metadata(path)?.len() / SECTOR - 1;
    gpt::mbr::ProtectiveMBR::with_lb_size(u32::try_from(last)?)
        .overwrite_lba0(&mut File::options().write(true).open(path)?)?;
    let config = gpt::GptConfig::new().writable(true);
    let mut table = config.create(path).context("making a partition table")?;
    let kind = gpt::partition_types::EFI;
    table.add_partition("esp", sectors * SECTOR, kind, 0, Some(START))?;
    table.write()?;
    run(Command::new(format)
        .args(["--offset", &START.to_string()])
        .arg(path)
        .arg((sectors / 2).to_string()))?;
    let at = format!("{}@@{}", path.display(), START * SECTOR);
    run(Command::new(folder).args(["-i", &at, "::EFI", "::EFI/BOOT"]))?;
    run(Command::new(copy)
        .args(["-i", &at])
        .arg(loader)
        .arg("::EFI/BOOT/BOOTX64.EFI"))
}

/// A volume labelled `LQX_SEED` with `seed.toml` on it.
pub fn seed(path: &Path, seed: &str) -> Result<()> {
    let format =
        needs::program("mkfs.vfat").context("mkfs.vfat is not installed (package dosfstools)")?;
    let copy = needs::program("mcopy").context("mcopy is not installed (package mtools)")?;
    blank(path, 4 << 20)?;
    run(Command::new(format).args(["-n", "LQX_SEED"]).arg(path))?;
    let file = path.with_extension("seed.toml");
    File::create(&file)?.write_all(seed.as_bytes())?;
    run(Command::new(copy)
        .arg("-i")
        .arg(path)
        .arg(&file)
        .arg("::seed.toml"))?;
    fs::remove_file(&file)?;
    Ok(())
}

/// A compressed qcow2 image of a disk of `mib` MiB, and what is on it: noise, holes and repetition.
pub fn packed(path: &Path, mib: usize) -> Result<Vec<u8>> {
    let tool =
        needs::program("qemu-img").context("qemu-img is not installed (package qemu-utils)")?;
    let mut content = vec![0; mib << 20];
    let mut noise = 1_u32;
    for (number, piece) in content.chunks_mut(64 << 10).enumerate() {
        match number % 4 {
            0 => piece.fill_with(|| {
                noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (noise >> 24) as u8
            }),
            1 => piece.fill((number % 251) as u8),
            _ => {}
        }
    }
    let raw = path.with_extension("raw");
    fs::write(&raw, &content)?;
    run(Command::new(tool)
        .args(["convert", "-c", "-f", "raw", "-O", "qcow2"])
        .arg(&raw)
        .arg(path))?;
    fs::remove_file(&raw)?;
    Ok(content)
}

/// The GUID of a partitioned disk: for an installed one that is the install's own identity.
pub fn disk_guid(path: &Path) -> Result<uuid::Uuid> {
    let table = gpt::GptConfig::new()
        .open(path)
        .with_context(|| format!("reading the partition table of {}", path.display()))?;
    Ok(*table.guid())
}

fn run(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("starting {:?}", command.get_program()))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_copied_disk_has_the_same_bytes_and_the_same_holes() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        blank(&one, 64 << 20).unwrap();
        let mut file = File::options().write(true).open(&one).unwrap();
        file.seek(SeekFrom::Start(32 << 20)).unwrap();
        file.write_all(b"data").unwrap();
        drop(file);
        copy(&one, &two).unwrap();
        assert!(fs::read(&one).unwrap() == fs::read(&two).unwrap());
        assert!(fs::metadata(&two).unwrap().blocks() * 512 < 1 << 20);
    }
}
