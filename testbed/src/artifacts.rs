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
            None => unpacked_modules(&cache())
                .context("the kernel's modules are not in the cache: `make uki` fetches them")?,
        };
        Ok(Self { kernel, modules })
    }
}

/// The newest `lib/modules/<release>` with a `modules.dep` in the unpacked packages, at most five folders deep.
fn unpacked_modules(top: &Path) -> Option<PathBuf> {
    fn search(folder: &Path, depth: u32, found: &mut Vec<PathBuf>) {
        let Ok(entries) = folder.read_dir() else {
            return;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if path.join("modules.dep").is_file() && path.join("kernel").is_dir() {
                    found.push(path);
                } else if depth > 0 {
                    search(&path, depth - 1, found);
                }
            }
        }
    }
    let mut found = Vec::new();
    search(top, 6, &mut found);
    found.sort();
    found.pop()
}
