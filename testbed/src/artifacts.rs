//! What is tested: the files `image` made, and the kernel that test guests run.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The top of the source tree.
pub fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// Where things that may be deleted at any time are kept: `LQX_CACHE`, else `.cache/` in the repository.
pub fn cache() -> PathBuf {
    env::var_os("LQX_CACHE").map_or_else(|| repository().join(".cache"), PathBuf::from)
}

/// A file of `dist/`, or which command makes it.
pub fn dist(name: &str) -> Result<PathBuf> {
    let folder = env::var_os("LQX_DIST").map_or_else(|| repository().join("dist"), PathBuf::from);
    let file = folder.join(name);
    if file.is_file() {
        return Ok(file);
    }
    let verb = match name {
        "limiquantix.iso" => "iso",
        "limiquantix.raw" => "disk",
        _ => "uki",
    };
    bail!("{} is not there: `make {verb}` builds it", file.display())
}

/// The kernel that test guests boot, and its modules.
#[derive(Debug, Clone)]
pub struct GuestKernel {
    /// An ELF image (PVH entry: no decompressor, which is what makes it fast under emulation) or a bzImage.
    pub kernel: PathBuf,
    /// Its `lib/modules/<release>`.
    pub modules: PathBuf,
}

impl GuestKernel {
    /// `LQX_RUNNER_KERNEL` and `LQX_RUNNER_MODULES`, else the kernel of the image: `dist/vmlinux` and the package's modules
    /// where `image` unpacked them in the cache.
    pub fn find() -> Result<Self> {
        let kernel = match env::var_os("LQX_RUNNER_KERNEL") {
            Some(path) => PathBuf::from(path),
            None => dist("vmlinux")?,
        };
        let modules = match env::var_os("LQX_RUNNER_MODULES") {
            Some(path) => PathBuf::from(path),
            None => modules_of(&kernel)?,
        };
        Ok(Self { kernel, modules })
    }
}

/// The `lib/modules/<release>` of an ELF kernel that `image` made, where `image` unpacked its package.
pub fn modules_of(kernel: &Path) -> Result<PathBuf> {
    unpacked_modules(&cache(), &release(kernel)?)
}

/// The release an ELF kernel says it is, for instance `6.1.0-50-amd64`.
fn release(kernel: &Path) -> Result<String> {
    let bytes = std::fs::read(kernel).with_context(|| format!("reading {}", kernel.display()))?;
    let said = regex::bytes::Regex::new(r"Linux version ([0-9][^ ]+) ")?;
    let found = said.captures(&bytes).with_context(|| {
        format!(
            "{} does not say its release: not an ELF kernel?",
            kernel.display()
        )
    })?;
    Ok(String::from_utf8_lossy(&found[1]).into_owned())
}

/// A file of the packages that `image` unpacked in the cache.
pub fn unpacked(path: &str) -> Option<PathBuf> {
    let entries = cache().join("base").read_dir().ok()?;
    let mut files = entries.flatten().map(|entry| entry.path().join(path));
    files.find(|file| file.is_file())
}

/// The stub that UKIs begin with.
pub fn uki_stub() -> Result<PathBuf> {
    unpacked("usr/lib/systemd/boot/efi/linuxx64.efi.stub")
        .context("the UKI stub is not in the cache: `make uki` fetches it")
}

/// `lib/modules/<release>` in the unpacked packages of the cache.
fn unpacked_modules(cache: &Path, release: &str) -> Result<PathBuf> {
    let packages = cache.join("base");
    let entries = packages.read_dir().with_context(|| {
        format!(
            "{}: `make rootfs` unpacks the kernel there",
            packages.display()
        )
    })?;
    entries
        .flatten()
        .map(|entry| entry.path().join("lib/modules").join(release))
        .find(|modules| modules.join("modules.dep").is_file())
        .with_context(|| {
            format!(
                "no modules of kernel {release} below {}: `make rootfs` fetches them",
                packages.display()
            )
        })
}
