//! Where things are: the repository, the cache of downloads, the output folder, our own binaries.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The places every step reads from and writes to.
#[derive(Clone, Debug)]
pub struct Paths {
    /// The top of the source tree.
    pub repo: PathBuf,
    /// Downloads and unpacked packages; may be deleted at any time. `LQX_CACHE`, else `.cache/` in the repository.
    pub cache: PathBuf,
    /// What is built: `dist/`.
    pub dist: PathBuf,
    /// The folder holding `hostd` and `init` as cargo left them.
    pub binaries: PathBuf,
}

impl Paths {
    /// The usual places below `repo`, with `LQX_CACHE` heeded.
    pub fn new(repo: &Path) -> Self {
        let cache = env::var_os("LQX_CACHE").map_or_else(|| repo.join(".cache"), PathBuf::from);
        Self {
            repo: repo.to_owned(),
            cache,
            dist: repo.join("dist"),
            binaries: repo.join("target/x86_64-unknown-linux-gnu/release"),
        }
    }

    /// The repository this program was started in: the nearest parent holding `image/base`.
    pub fn find() -> Result<Self> {
        let here = env::current_dir().context("asking for the current directory")?;
        let repo = here
            .ancestors()
            .find(|dir| dir.join("image/base/needs.toml").is_file())
            .with_context(|| {
                format!(
                    "{} is not inside the limiquantix repository",
                    here.display()
                )
            })?;
        Ok(Self::new(repo))
    }

    /// The folder of committed descriptions of the base system.
    pub fn base(&self) -> PathBuf {
        self.repo.join("image/base")
    }
}
