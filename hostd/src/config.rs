//! What this host was told when it was installed, and what was changed since: `/state/host.toml`.
//!
//! It is written by the installer and by `PUT /system/network`; nothing else configures the daemon.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use api::ids::HostId;
use api::names::Name;
use api::system::NetworkSettings;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The file's name on the state partition.
pub const FILE: &str = "host.toml";

/// `host.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostConfig {
    /// The install this belongs to: the disk's GUID.
    pub install: Uuid,
    /// This host, for ever.
    pub host: HostId,
    /// Its name.
    pub name: Name,
    /// Its addresses.
    #[serde(default)]
    pub network: NetworkSettings,
}

/// The configuration could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Could not be read.
    #[error("could not read {0}")]
    Read(PathBuf, #[source] std::io::Error),
    /// Is not what it should be.
    #[error("{0} is damaged")]
    Parse(PathBuf, #[source] Box<toml::de::Error>),
    /// Could not be rendered.
    #[error("could not render the configuration")]
    Render(#[from] toml::ser::Error),
    /// Could not be written.
    #[error("could not write {0}")]
    Write(PathBuf, #[source] std::io::Error),
}

impl HostConfig {
    /// Reads it from a folder, usually `/state`.
    pub fn read(folder: &Path) -> Result<Self, ConfigError> {
        let path = folder.join(FILE);
        let text = std::fs::read_to_string(&path)
            .map_err(|source| ConfigError::Read(path.clone(), source))?;
        toml::from_str(&text).map_err(|source| ConfigError::Parse(path, Box::new(source)))
    }

    /// As text.
    pub fn render(&self) -> Result<String, ConfigError> {
        Ok(toml::to_string(self)?)
    }

    /// Writes it: after this returned, a power cut leaves the new one; before, the old one or the new one.
    pub fn write(&self, folder: &Path) -> Result<(), ConfigError> {
        let path = folder.join(FILE);
        write_durably(&path, self.render()?.as_bytes())
            .map_err(|source| ConfigError::Write(path, source))
    }
}

/// Temporary file, fsync, rename, fsync of the folder.
pub fn write_durably(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = folder.join(name);
    let mut file = std::fs::File::create(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    std::fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> HostConfig {
        HostConfig {
            install: Uuid::from_u128(1),
            host: HostId(Uuid::from_u128(2)),
            name: "lqx-1".parse().unwrap(),
            network: NetworkSettings {
                nic: Some("enp1s0".into()),
                address: api::system::AddressMode::Static {
                    address: "192.0.2.7/24".into(),
                    gateway: Some("192.0.2.1".into()),
                },
                dns: vec!["192.0.2.53".into()],
            },
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        for config in [
            example(),
            HostConfig {
                network: NetworkSettings::default(),
                ..example()
            },
        ] {
            config.write(folder.path()).unwrap();
            assert_eq!(HostConfig::read(folder.path()).unwrap(), config);
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_file_is_an_error_with_its_path_never_a_default() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), "install = 7\n").unwrap();
        let error = HostConfig::read(folder.path()).unwrap_err();
        assert!(
            error.to_string().contains("host.toml is damaged"),
            "{error}"
        );
    }
}
