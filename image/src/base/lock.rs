//! `debian.lock`: exactly which packages a build consists of. Written by `image base-update`, committed, reviewed.

use std::fs;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::paths::Paths;

/// What a package is for; it decides where its content goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The host's kernel.
    Kernel,
    /// The demonstration guest's kernel.
    GuestKernel,
    /// Programs, libraries and boot pieces of the host.
    Host,
    /// Programs of the demonstration guest.
    Guest,
}

/// The archive a package lies in; each has its own mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Archive {
    /// Debian's main archive: what a point release published stays.
    Debian,
    /// The security archive: superseded versions vanish after a while.
    DebianSecurity,
}

/// One pinned package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// Debian's name for it.
    pub name: String,
    /// The version, epoch included.
    pub version: String,
    /// What it is for.
    pub role: Role,
    /// Where it lies.
    pub archive: Archive,
    /// The path below the archive's address.
    pub path: String,
    /// In bytes.
    pub size: u64,
    /// Of the `.deb`.
    pub sha256: String,
}

impl Package {
    /// The last component of the path, under which it is cached.
    pub fn file_name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }
}

/// The whole lock file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// Debian's suite the versions were looked up in.
    pub suite: String,
    /// All packages.
    #[serde(rename = "package")]
    pub packages: Vec<Package>,
}

const HEADER: &str = "# Written by `make base-update` from debian.toml; not edited by hand.\n\n";

impl Lock {
    /// Reads and checks `image/base/debian.lock`.
    pub fn read(paths: &Paths) -> Result<Self> {
        let file = paths.base().join("debian.lock");
        let text =
            fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        Self::parse(&text).with_context(|| format!("in {}", file.display()))
    }

    /// Parses the text of a lock file; a path that could leave the archive or a malformed digest is refused.
    pub fn parse(text: &str) -> Result<Self> {
        let lock: Self = toml::from_str(text)?;
        for package in &lock.packages {
            if !package.path.starts_with("pool/")
                || package
                    .path
                    .split('/')
                    .any(|part| part == ".." || part.is_empty())
            {
                bail!(
                    "package `{}`: `{}` is not a path in a Debian archive",
                    package.name,
                    package.path
                );
            }
            if package.sha256.len() != 64 || !package.sha256.bytes().all(|b| b.is_ascii_hexdigit())
            {
                bail!(
                    "package `{}`: `{}` is not a SHA-256",
                    package.name,
                    package.sha256
                );
            }
        }
        for role in [Role::Kernel, Role::GuestKernel] {
            if lock.packages.iter().filter(|p| p.role == role).count() != 1 {
                bail!("there must be exactly one package of role {role:?}");
            }
        }
        Ok(lock)
    }

    /// Writes the lock file.
    pub fn write(&self, paths: &Paths) -> Result<()> {
        let file = paths.base().join("debian.lock");
        let text = format!("{HEADER}{}", toml::to_string(self)?);
        fs::write(&file, text).with_context(|| format!("writing {}", file.display()))
    }

    /// The packages of one role.
    pub fn of(&self, role: Role) -> impl Iterator<Item = &Package> {
        self.packages
            .iter()
            .filter(move |package| package.role == role)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(role: &str, path: &str) -> String {
        format!(
            "[[package]]\nname='p'\nversion='1'\nrole='{role}'\narchive='debian'\npath='{path}'\nsize=1\nsha256='{}'\n",
            "a".repeat(64)
        )
    }

    #[test]
    fn a_path_that_leaves_the_archive_is_refused() {
        let text = format!(
            "suite='s'\n{}{}",
            package("kernel", "pool/main/k.deb"),
            package("guest_kernel", "pool/../../etc/passwd")
        );
        assert_eq!(
            Lock::parse(&text).unwrap_err().to_string(),
            "package `p`: `pool/../../etc/passwd` is not a path in a Debian archive"
        );
    }

    #[test]
    fn a_lock_without_a_kernel_is_refused() {
        let text = format!("suite='s'\n{}", package("guest_kernel", "pool/main/k.deb"));
        assert_eq!(
            Lock::parse(&text).unwrap_err().to_string(),
            "there must be exactly one package of role Kernel"
        );
    }

    #[test]
    fn it_survives_being_written_and_read() {
        let text = format!(
            "suite='s'\n{}{}",
            package("kernel", "pool/a.deb"),
            package("guest_kernel", "pool/b.deb")
        );
        let lock = Lock::parse(&text).unwrap();
        assert_eq!(Lock::parse(&toml::to_string(&lock).unwrap()).unwrap(), lock);
    }
}
