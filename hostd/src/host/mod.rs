//! This machine: which install it booted from, what it has, its log, its power switch.
//!
//! Nothing here knows the cluster or HTTP. Everything is read through [`Roots`], so that tests hand in a folder that
//! looks like `/sys` and `/dev`. Start reading at [`discover`], which answers "install or run?".

pub mod blocks;
pub mod cmdline;
pub mod content;
pub mod discover;
pub mod efivars;
pub mod filesystems;
pub mod inventory;
pub mod logs;
pub mod partitions;
pub mod power;
pub mod read_at;
pub mod system;
pub mod time;
pub mod trust;
pub mod update;

use std::path::{Path, PathBuf};

/// Where the kernel shows itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roots {
    /// sysfs.
    pub sys: PathBuf,
    /// devtmpfs.
    pub dev: PathBuf,
    /// procfs.
    pub proc: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self {
            sys: PathBuf::from("/sys"),
            dev: PathBuf::from("/dev"),
            proc: PathBuf::from("/proc"),
        }
    }
}

impl Roots {
    /// `sys`, `dev` and `proc` below a folder: for tests.
    pub fn below(folder: &Path) -> Self {
        Self {
            sys: folder.join("sys"),
            dev: folder.join("dev"),
            proc: folder.join("proc"),
        }
    }
}

/// Our version: `IMAGE_VERSION` or `VERSION_ID` of `/etc/os-release` on the appliance, else the crate's.
pub fn version() -> String {
    let ours = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    match os_release_field(&ours, "ID").as_deref() {
        Some("limiquantix") => os_release_field(&ours, "IMAGE_VERSION")
            .or_else(|| os_release_field(&ours, "VERSION_ID"))
            .unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned()),
        _ => env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// We run on the appliance's own root, not on somebody's workstation.
pub fn is_appliance() -> bool {
    let ours = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    os_release_field(&ours, "ID").as_deref() == Some("limiquantix")
}

/// A field of an os-release text, unquoted.
pub fn os_release_field(text: &str, key: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let value = line.trim().strip_prefix(key)?.strip_prefix('=')?;
        let value = value.trim_matches(|c| c == '"' || c == '\'');
        (!value.is_empty()).then(|| value.to_owned())
    })
}

/// The text of a small file, trimmed; empty when it cannot be read.
pub(crate) fn text(path: impl AsRef<Path>) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes)
        .trim_matches(|c: char| c.is_whitespace() || c == '\0')
        .to_owned()
}
