//! `dist/manifest.json`: what was built, of what, and how large it is. No date and no host name: the same inputs give the same manifest.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::base::{BaseSystem, PackageRecord};
use crate::digest;
use crate::paths::Paths;
use crate::rootfs::Recipe;
use crate::uki::COMMAND_LINE;

/// The whole file.
#[derive(Debug, Serialize)]
struct Manifest<'a> {
    version: &'a str,
    base: &'a str,
    kernel: &'a str,
    command_line: &'a str,
    artifacts: BTreeMap<String, Artifact>,
    packages: &'a [PackageRecord],
}

#[derive(Debug, Serialize)]
struct Artifact {
    bytes: u64,
    sha256: String,
}

/// The disk image is left out: each one made is an install of its own, and its bytes are said by what is in it.
const LEFT_OUT: [&str; 2] = ["manifest.json", "limiquantix.raw"];

/// Writes it about everything now in `dist/`.
pub fn write(paths: &Paths, base: &BaseSystem, recipe: &Recipe) -> Result<()> {
    let mut artifacts = BTreeMap::new();
    collect(&paths.dist, &paths.dist, &mut artifacts)?;
    let manifest = Manifest {
        version: &recipe.version,
        base: base.kind,
        kernel: &base.kernel_version,
        command_line: COMMAND_LINE,
        artifacts,
        packages: &base.packages,
    };
    let file = paths.dist.join("manifest.json");
    fs::write(
        &file,
        format!("{}\n", serde_json::to_string_pretty(&manifest)?),
    )
    .with_context(|| format!("writing {}", file.display()))
}

fn collect(top: &Path, dir: &Path, artifacts: &mut BTreeMap<String, Artifact>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))? {
        let path = entry?.path();
        let name = path.strip_prefix(top)?.to_string_lossy().into_owned();
        if name.starts_with('.') || LEFT_OUT.contains(&name.as_str()) {
            continue;
        }
        if path.is_dir() {
            collect(top, &path, artifacts)?;
        } else {
            artifacts.insert(
                name,
                Artifact {
                    bytes: fs::metadata(&path)?.len(),
                    sha256: digest::of_file(&path)?,
                },
            );
        }
    }
    Ok(())
}
