//! The seam between the product and what lies under it: a *base* is a kernel, a root tree, an os-release and boot pieces.
//!
//! Two producers: pinned Debian packages ([`debian`]) for development and CI, and a folder somebody else prepared ([`directory`]), which
//! is how Buildroot's output comes in. Above this module nothing knows which it was. Both are checked against `image/base/needs.toml`
//! ([`needs`]).

pub mod debian;
pub mod directory;
pub mod lock;
pub mod mirror;
pub mod needs;
pub mod update;

use std::path::PathBuf;

use anyhow::Result;
use serde::Serialize;

use crate::modules::Modules;
use crate::paths::Paths;
use crate::tree::Tree;
use needs::Needs;

/// Which producer of bases to use.
#[derive(Clone, Debug)]
pub enum Base {
    /// The packages of `image/base/debian.lock`.
    Debian,
    /// A folder with `vmlinuz`, `root/`, `os-release`, `linuxx64.efi.stub` and `systemd-bootx64.efi`.
    Directory(PathBuf),
}

/// What a base hands over.
#[derive(Debug)]
pub struct BaseSystem {
    /// `debian` or `directory`.
    pub kind: &'static str,
    /// The bzImage.
    pub vmlinuz: PathBuf,
    /// The version as `uname -r` will say it.
    pub kernel_version: String,
    /// systemd's EFI stub, the first part of the UKI.
    pub stub: PathBuf,
    /// The boot loader for the installed disk.
    pub boot_loader: PathBuf,
    /// Programs, libraries and modules, without anything of ours.
    pub tree: Tree,
    /// What the base says it is (its own os-release), for the record.
    pub os_release: String,
    /// What went in.
    pub packages: Vec<PackageRecord>,
    /// Changes when anything above does.
    pub digest: String,
}

/// A package as recorded in the manifest.
#[derive(Clone, Debug, Serialize)]
pub struct PackageRecord {
    /// The package's name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The SHA-256 of its archive.
    pub sha256: String,
}

impl Base {
    /// Gets the base ready and checks it against what the product needs.
    pub fn prepare(&self, paths: &Paths) -> Result<BaseSystem> {
        let needs = Needs::read(paths)?;
        match self {
            Base::Debian => debian::prepare(paths, &needs),
            Base::Directory(dir) => directory::prepare(dir, &needs),
        }
    }
}

/// Adds to `tree` the modules the product needs, with those they depend on.
fn add_modules(tree: &mut Tree, modules: &Modules, names: &[String]) -> Result<()> {
    modules.select(names)?.put_into(tree)
}
