//! Which appliances were signed in to: address, pinned certificate, token. One file, readable by its owner only.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use api::client::{Client, Fingerprint};
use api::users::Secret;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// The file.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// The one signed in to last.
    pub(crate) current: Option<String>,
    /// By the name given to it.
    #[serde(default)]
    pub(crate) appliances: BTreeMap<String, Appliance>,
}

/// One appliance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Appliance {
    /// Where it is.
    pub(crate) address: String,
    /// Its certificate's SHA-256.
    pub(crate) fingerprint: String,
    /// The session's token.
    pub(crate) token: Secret,
}

impl Config {
    /// `LQX_CONFIG`, else `limiquantix/config.toml` where configuration is kept.
    pub(crate) fn path() -> Result<PathBuf, Failure> {
        if let Some(path) = std::env::var_os("LQX_CONFIG") {
            return Ok(PathBuf::from(path));
        }
        let folder = std::env::var_os("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".config")));
        let folder = folder
            .ok_or_else(|| Failure::Usage("neither HOME nor LQX_CONFIG is set".to_owned()))?;
        Ok(folder.join("limiquantix/config.toml"))
    }

    /// Reads the file; none is an empty one.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        match fs::read_to_string(path) {
            Ok(text) => toml::from_str(&text)
                .map_err(|error| Failure::Usage(format!("{}: {error}", path.display()))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(Failure::here(format!("could not read {}", path.display()))(
                source,
            )),
        }
    }

    /// Writes the file whole or not at all, for its owner only.
    pub(crate) fn write(&self, path: &Path) -> Result<(), Failure> {
        let what = || format!("could not write {}", path.display());
        let text = toml::to_string(self).map_err(|error| Failure::Usage(error.to_string()))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(Failure::here(what()))?;
        let new = path.with_extension(format!("new-{}", std::process::id()));
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)
            .map_err(Failure::here(what()))?;
        let written = file
            .write_all(text.as_bytes())
            .and_then(|()| fs::rename(&new, path));
        written.map_err(|source| {
            let _ = fs::remove_file(&new);
            Failure::here(what())(source)
        })
    }

    /// The appliance of that name, else the current one.
    pub(crate) fn appliance(&self, name: Option<&str>) -> Result<(&str, &Appliance), Failure> {
        let name = name.or(self.current.as_deref());
        let name = name.ok_or_else(|| {
            Failure::Usage("not signed in anywhere: `lqx login ADDRESS`".to_owned())
        })?;
        let found = self.appliances.get_key_value(name);
        let found = found.ok_or_else(|| {
            let known: Vec<&str> = self.appliances.keys().map(String::as_str).collect();
            Failure::Usage(format!(
                "no appliance `{name}`; signed in to: {}",
                known.join(", ")
            ))
        });
        found.map(|(name, appliance)| (name.as_str(), appliance))
    }
}

impl Appliance {
    /// A client of it.
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        let pinned: Fingerprint = fingerprint(&self.fingerprint)?;
        Ok(Client::https(&self.address, pinned)?.with_token(self.token.clone()))
    }
}

/// Reads a fingerprint given by a person.
pub(crate) fn fingerprint(text: &str) -> Result<Fingerprint, Failure> {
    text.parse()
        .map_err(|error| Failure::Usage(format!("`{text}`: {error}")))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn what_was_written_is_read_and_nobody_else_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/config.toml");
        assert_eq!(Config::read(&path).unwrap(), Config::default());
        let mut config = Config::default();
        let appliance = Appliance {
            address: "192.0.2.7".to_owned(),
            fingerprint: "00".repeat(32),
            token: Secret("s3cret".to_owned()),
        };
        config
            .appliances
            .insert("lab".to_owned(), appliance.clone());
        assert!(
            config
                .appliance(None)
                .unwrap_err()
                .to_string()
                .contains("not signed in")
        );
        config.current = Some("lab".to_owned());
        config.write(&path).unwrap();
        config.write(&path).unwrap();
        let read = Config::read(&path).unwrap();
        assert_eq!(read.appliance(None).unwrap(), ("lab", &appliance));
        assert!(read.appliance(Some("other")).is_err());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        assert!(!format!("{read:?}").contains("s3cret"));
    }

    #[test]
    fn a_file_with_unknown_words_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        fs::write(&path, "curent = \"x\"\n").unwrap();
        assert_eq!(Config::read(&path).unwrap_err().status(), 2);
    }
}
