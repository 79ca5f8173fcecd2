//! An installed disk, as the installer would leave it: for machines that are imaged, and for tests that need not install first.
//!
//! Every disk made is an install of its own: its ids are drawn anew, so this one artifact is not reproducible by intent.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use gpt::GptConfig;
use gpt::disk::LogicalBlockSize;
use gpt::mbr::ProtectiveMBR;
use gpt::partition::Partition;
use gpt::partition_types::{OperatingSystem, Type};
use uuid::Uuid;

use crate::base::BaseSystem;
use crate::digest::{Inputs, Stamp};
use crate::fat::Fat;
use crate::layout::{self, Place};
use crate::paths::Paths;
use crate::tool::{run, tool};

/// How large the disk is; the file is sparse.
const SIZE: u64 = 8 << 30;
const SECTOR: u64 = 512;

/// Makes `dist/limiquantix.raw`.
pub fn build(paths: &Paths, base: &BaseSystem, uki: &Path, version: &str) -> Result<PathBuf> {
    let out = paths.dist.join("limiquantix.raw");
    let loader_conf = paths.repo.join("iso/loader.conf");
    let inputs = Inputs::default()
        .file("uki", uki)?
        .file("loader.conf", &loader_conf)?
        .file("boot loader", &base.boot_loader)?
        .value("layout", include_str!("layout.rs"));
    let stamp = Stamp::new(&paths.dist, "disk", inputs.finish());
    if stamp.is_fresh(&[&out]) {
        println!("disk: up to date");
        return Ok(out);
    }
    let work = tempfile::Builder::new()
        .prefix(".disk-")
        .tempdir_in(&paths.dist)?;
    let image = work.path().join("disk");
    let install = Uuid::new_v4();
    let [esp, state, data] = layout::places(SIZE).context("the disk is too small")?;
    partition(&image, install, [&esp, &state, &data])?;

    let fat = Fat {
        image: &image,
        offset: esp.start,
        size: esp.len,
        label: "LQX_ESP",
        id: Uuid::new_v4().as_fields().0,
    };
    fat.format()?;
    fat.folders(&["loader", "EFI", "EFI/BOOT", "EFI/systemd", "EFI/Linux"])?;
    fat.copy(&loader_conf, layout::LOADER_CONF)?;
    fat.copy(&base.boot_loader, layout::LOADER_FILE)?;
    fat.copy(uki, &layout::slot(version))?;
    fat.copy(&base.boot_loader, layout::BOOT_FILE)?;

    let content = work.path().join("state");
    fs::create_dir(&content)?;
    fs::set_permissions(
        &content,
        std::os::unix::fs::PermissionsExt::from_mode(0o700),
    )?;
    fs::write(content.join("host.toml"), host_toml(install))?;
    ext4(&image, &state, 16, Some(&content))?;
    ext4(&image, &data, 64, None)?;

    fs::rename(&image, &out).with_context(|| format!("putting {} in place", out.display()))?;
    stamp.write()?;
    println!("disk: {} (install {install})", out.display());
    Ok(out)
}

/// What the installer tells the host about itself: the install it belongs to, an identity, a name; addresses by DHCP.
fn host_toml(install: Uuid) -> String {
    let host = Uuid::new_v4();
    let name = format!("lqx-{}", &host.simple().to_string()[..6]);
    format!("install = \"{install}\"\nhost = \"{host}\"\nname = \"{name}\"\n")
}

fn partition(image: &Path, install: Uuid, places: [&Place; 3]) -> Result<()> {
    let mut file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(image)?;
    file.set_len(SIZE)?;
    let mbr = ProtectiveMBR::with_lb_size(u32::try_from(SIZE / SECTOR - 1).unwrap_or(u32::MAX));
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&mbr.to_bytes())?;
    let mut disk = GptConfig::new()
        .writable(true)
        .logical_block_size(LogicalBlockSize::Lb512)
        .create_from_device(file, Some(install))?;
    let entries = (1..).zip(places).map(|(number, place)| {
        let entry = Partition {
            part_type_guid: Type {
                guid: place.kind,
                os: OperatingSystem::None,
            },
            part_guid: Uuid::new_v4(),
            first_lba: place.start / SECTOR,
            last_lba: (place.start + place.len) / SECTOR - 1,
            flags: 0,
            name: place.name.to_owned(),
        };
        (number, entry)
    });
    disk.update_partitions(entries.collect())?;
    disk.write()?.sync_all()?;
    Ok(())
}

fn ext4(image: &Path, place: &Place, journal_mib: u64, content: Option<&Path>) -> Result<()> {
    let mut command = tool("mke2fs");
    // SOURCE_DATE_EPOCH must not reach file systems that will be mounted: they would be due for a check.
    command.env_remove("SOURCE_DATE_EPOCH");
    command
        .args([
            "-q",
            "-F",
            "-t",
            "ext4",
            "-b",
            "4096",
            "-m",
            "0",
            "-L",
            place.name,
            "-J",
            &format!("size={journal_mib}"),
        ])
        .args([
            "-E",
            &format!("offset={},lazy_itable_init=1,root_owner=0:0", place.start),
        ]);
    if let Some(folder) = content {
        command.arg("-d").arg(folder);
    }
    run(command.arg(image).arg(format!("{}k", place.len / 1024)))?;
    Ok(())
}
