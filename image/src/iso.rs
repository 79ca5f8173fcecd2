//! The installer medium: UEFI boots it from a CD, and, written to a stick byte for byte, from there.
//!
//! One copy of the UKI: in `efi.img`, which is a file of the ISO 9660 tree, the El Torito boot image and a GPT partition at once. The installer finds
//! its own UKI by opening that file, on a CD and on a stick alike.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::digest::{Inputs, Stamp};
use crate::fat::Fat;
use crate::paths::Paths;
use crate::tool::{run, tool};

/// `iso/layout.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Layout {
    volume: String,
    efi_image: String,
    efi_label: String,
    uki: String,
    files: Vec<String>,
}

const MIB: u64 = 1 << 20;
/// Tables and folders of the file system around the UKI, and what FAT32 is in the least.
const EFI_SLACK: u64 = 8 * MIB;
const EFI_LEAST: u64 = 34 * MIB;
/// As long as everything is the same, so are serial numbers.
const EFI_ID: u32 = 0x1c71_0c01;

/// Makes `dist/limiquantix.iso` around the UKI.
pub fn build(paths: &Paths, uki: &Path) -> Result<PathBuf> {
    let out = paths.dist.join("limiquantix.iso");
    let folder = paths.repo.join("iso");
    let text = fs::read_to_string(folder.join("layout.toml")).context("reading iso/layout.toml")?;
    let layout: Layout = toml::from_str(&text).context("in iso/layout.toml")?;
    let mut inputs = Inputs::default().file("uki", uki)?.value("layout", &text);
    for file in &layout.files {
        inputs = inputs.file(file, &folder.join(file))?;
    }
    let stamp = Stamp::new(&paths.dist, "iso", inputs.finish());
    if stamp.is_fresh(&[&out]) {
        println!("iso: up to date");
        return Ok(out);
    }

    let work = tempfile::Builder::new()
        .prefix(".iso-")
        .tempdir_in(&paths.dist)?;
    let tree = work.path().join("tree");
    fs::create_dir(&tree)?;
    let image = tree.join(&layout.efi_image);
    let size = (fs::metadata(uki)?.len() + EFI_SLACK)
        .max(EFI_LEAST)
        .next_multiple_of(MIB);
    File::create(&image)?.set_len(size)?;
    let fat = Fat {
        image: &image,
        offset: 0,
        size,
        label: &layout.efi_label,
        id: EFI_ID,
    };
    fat.format()?;
    fat.folders(&["EFI", "EFI/BOOT"])?;
    fat.copy(uki, &layout.uki)?;
    for file in &layout.files {
        fs::copy(folder.join(file), tree.join(file))
            .with_context(|| format!("copying iso/{file}"))?;
    }
    // xorriso takes all times and ids from SOURCE_DATE_EPOCH, except the files' own.
    let epoch = std::time::UNIX_EPOCH + std::time::Duration::from_secs(crate::tool::EPOCH);
    for entry in fs::read_dir(&tree)? {
        File::options()
            .write(true)
            .open(entry?.path())?
            .set_modified(epoch)?;
    }
    File::open(&tree)?.set_modified(epoch)?;
    let made = work.path().join("iso");
    run(tool("xorriso")
        .args([
            "-as",
            "mkisofs",
            "-quiet",
            "-r",
            "-V",
            &layout.volume,
            "-partition_offset",
            "16",
            "-e",
            &layout.efi_image,
            "-no-emul-boot",
            "-efi-boot-part",
            "--efi-boot-image",
            "-o",
        ])
        .arg(&made)
        .arg(&tree))?;
    fs::rename(&made, &out).with_context(|| format!("putting {} in place", out.display()))?;
    stamp.write()?;
    println!(
        "iso: {} ({:.1} MB)",
        out.display(),
        fs::metadata(&out)?.len() as f64 / 1e6
    );
    Ok(out)
}
