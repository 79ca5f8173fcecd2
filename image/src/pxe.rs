//! What is published for network boot: the UKI for firmware that loads one file, kernel and initramfs for iPXE, and a script for that.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::digest;
use crate::paths::Paths;
use crate::rootfs::{Recipe, Rootfs};
use crate::uki::COMMAND_LINE;

/// `pxe/netboot.toml`: what is published under which name.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Netboot {
    uki: String,
    kernel: String,
    initramfs: String,
    script: String,
    manifest: String,
}

/// Makes `dist/pxe/`.
pub fn build(paths: &Paths, rootfs: &Rootfs, uki: &Path, recipe: &Recipe) -> Result<PathBuf> {
    let folder = paths.repo.join("pxe");
    let text =
        fs::read_to_string(folder.join("netboot.toml")).context("reading pxe/netboot.toml")?;
    let names: Netboot = toml::from_str(&text).context("in pxe/netboot.toml")?;
    let template =
        fs::read_to_string(folder.join("boot.ipxe.in")).context("reading pxe/boot.ipxe.in")?;
    let out = paths.dist.join("pxe");
    fs::create_dir_all(&out).with_context(|| format!("creating {}", out.display()))?;
    let uki_sha256 = digest::of_file(uki)?;
    let script = fill(
        &template,
        &[
            ("VERSION", &recipe.version),
            ("CMDLINE", COMMAND_LINE),
            ("KERNEL", &names.kernel),
            ("INITRAMFS", &names.initramfs),
            ("UKI", &names.uki),
            ("UKI_SHA256", &uki_sha256),
        ],
    )?;
    fs::write(out.join(&names.script), script)?;
    let mut manifest = serde_json::Map::new();
    for (from, name) in [
        (uki, &names.uki),
        (&rootfs.vmlinuz, &names.kernel),
        (&rootfs.initrd, &names.initramfs),
    ] {
        fs::copy(from, out.join(name)).with_context(|| format!("publishing {name}"))?;
        manifest.insert(name.clone(), digest::of_file(from)?.into());
    }
    manifest.insert(
        names.script.clone(),
        digest::of_file(&out.join(&names.script))?.into(),
    );
    let manifest = serde_json::json!({ "version": recipe.version, "sha256": manifest });
    fs::write(
        out.join(&names.manifest),
        format!("{}\n", serde_json::to_string_pretty(&manifest)?),
    )?;
    println!("pxe: {}", out.display());
    Ok(out)
}

/// Replaces `@NAME@`; a name nobody knows is an error, not a script that fails on somebody's machine.
fn fill(template: &str, values: &[(&str, &str)]) -> Result<String> {
    let mut text = template.to_owned();
    for (name, value) in values {
        text = text.replace(&format!("@{name}@"), value);
    }
    match text.split('@').nth(1) {
        Some(unknown) if text.matches('@').count() >= 2 => {
            anyhow::bail!("pxe/boot.ipxe.in: nothing is known about `@{unknown}@`")
        }
        _ => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_filled_and_unknown_ones_refused() {
        assert_eq!(
            fill("kernel @K@ x", &[("K", "vmlinuz")]).unwrap(),
            "kernel vmlinuz x"
        );
        assert!(fill("kernel @Z@ x", &[("K", "vmlinuz")]).is_err());
    }
}
