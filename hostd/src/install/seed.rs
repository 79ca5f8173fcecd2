//! The seed: answers for an unattended install.
//!
//! `seed.toml`, in the root of a volume labelled `LQX_SEED` (FAT or ISO 9660), or at the URL of `lqx.seed=` on the
//! kernel's command line. Unknown keys are refused: a misspelt `erase` must not pass silently.
//!
//! ```toml
//! [install]
//! disk = "nvme0n1"           # kernel name, /dev path or serial number; exactly one disk
//! erase = "nvme0n1"          # only needed when the disk is not blank; must name the same disk
//! hostname = "lqx-1"         # default: lqx- and the end of a MAC address
//!
//! [network]                  # default: DHCP on the first NIC with a link
//! nic = "enp1s0"
//! address = "dhcp"           # or: address = { static = { address = "192.0.2.7/24", gateway = "192.0.2.1" } }
//! dns = ["192.0.2.53"]
//! ```

use std::time::{Duration, Instant};

use api::install::InstallRequest;
use api::names::Name;
use api::system::NetworkSettings;
use serde::Deserialize;

use super::fat::Fat;
use super::fetch::{FetchError, fetch};
use super::iso::Iso;
use crate::host::Roots;
use crate::host::blocks;
use crate::host::cmdline::Cmdline;
use crate::host::read_at::{Device, ReadAt as _};

/// Label of a seed volume.
pub const LABEL: &str = "LQX_SEED";
/// The file on it.
pub const FILE: &str = "seed.toml";
/// Longest seed.
const LEN_MAX: u64 = 64 << 10;
/// How long a seed's server may be unreachable before we give up: switches take their time after link-up.
const FETCH_FOR: Duration = Duration::from_secs(120);

/// `seed.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seed {
    /// What to install where.
    pub install: SeedInstall,
    /// The installed host's addresses. While installing, the address comes by DHCP.
    #[serde(default)]
    pub network: Option<NetworkSettings>,
}

/// `[install]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeedInstall {
    /// The disk.
    pub disk: String,
    /// Consent to erase it.
    #[serde(default)]
    pub erase: Option<String>,
    /// The host's name.
    #[serde(default)]
    pub hostname: Option<Name>,
}

/// Where a seed is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SeedPlace {
    /// On the command line. Needs an address first.
    Url {
        /// Where.
        url: String,
        /// What it must hash to.
        sha256: Option<String>,
    },
    /// On a volume, read already.
    Volume {
        /// Which.
        device: String,
        /// Its text.
        text: String,
    },
}

/// The seed could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// Not TOML, or not this schema.
    #[error("{place}: the seed is not valid: {why}")]
    Parse {
        /// Where it is.
        place: String,
        /// Line and reason.
        why: String,
    },
    /// The server did not give it.
    #[error("could not fetch the seed {0}")]
    Fetch(String, #[source] FetchError),
    /// The volume has the label and no readable file.
    #[error("{0} is labelled {LABEL} but has no readable {FILE}")]
    NoFile(String),
}

impl Seed {
    /// Parses it.
    pub fn parse(text: &str, place: &str) -> Result<Self, SeedError> {
        toml::from_str(text).map_err(|error| SeedError::Parse {
            place: place.to_owned(),
            why: error.to_string().trim().replace('\n', " "),
        })
    }

    /// As a request to the installer.
    pub fn into_request(self) -> InstallRequest {
        InstallRequest {
            disk: self.install.disk,
            erase: self.install.erase,
            hostname: self.install.hostname,
            network: self.network,
            dry_run: false,
        }
    }
}

impl SeedPlace {
    /// Looks for a seed; the command line counts before a volume. Looks once: media may still be appearing.
    pub fn find(roots: &Roots, cmdline: &Cmdline) -> Result<Option<Self>, SeedError> {
        if let Some(url) = &cmdline.seed {
            return Ok(Some(Self::Url {
                url: url.clone(),
                sha256: cmdline.seed_sha256.clone(),
            }));
        }
        for block in blocks::all(roots) {
            let Ok(device) = Device::open(&block.path) else {
                continue;
            };
            match read_volume(&device) {
                None => {}
                Some(None) => return Err(SeedError::NoFile(block.name)),
                Some(Some(text)) => {
                    return Ok(Some(Self::Volume {
                        device: block.name,
                        text,
                    }));
                }
            }
        }
        Ok(None)
    }

    /// Gets and parses it.
    pub async fn load(&self) -> Result<Seed, SeedError> {
        match self {
            Self::Volume { device, text } => Seed::parse(text, &format!("/dev/{device}")),
            Self::Url { url, sha256 } => {
                let bytes = self.fetch(url, sha256.as_deref()).await?;
                Seed::parse(&String::from_utf8_lossy(&bytes), url)
            }
        }
    }

    async fn fetch(&self, url: &str, sha256: Option<&str>) -> Result<Vec<u8>, SeedError> {
        let until = Instant::now() + FETCH_FOR;
        let mut pause = Duration::from_millis(250);
        loop {
            let mut bytes = Vec::new();
            match fetch(url, sha256, LEN_MAX, &mut bytes).await {
                Ok(_) => return Ok(bytes),
                Err(error) if error.is_temporary() && Instant::now() + pause < until => {
                    tracing::warn!(url, %error, "the seed is not to be had yet; trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(5));
                }
                Err(error) => return Err(SeedError::Fetch(url.to_owned(), error)),
            }
        }
    }
}

/// `None`: not a seed volume. `Some(None)`: one without the file.
fn read_volume(device: &Device) -> Option<Option<String>> {
    if let Some(iso) = Iso::open(device) {
        if iso.label != LABEL {
            return None;
        }
        let bytes = iso.read(FILE, LEN_MAX).and_then(Result::ok);
        return Some(bytes.and_then(|bytes| String::from_utf8(bytes).ok()));
    }
    let fat = Fat::open(device).ok()?;
    if fat.label().ok()?.as_deref() != Some(LABEL) {
        return None;
    }
    let read = || {
        let entry = fat.find(FILE).ok()??;
        if entry.is_dir || entry.len > LEN_MAX {
            return None;
        }
        let file = fat.open_file(&entry).ok()?;
        let bytes = file.read_vec(0, usize::try_from(entry.len).ok()?).ok()?;
        String::from_utf8(bytes).ok()
    };
    Some(read())
}

#[cfg(test)]
mod tests {
    use api::system::AddressMode;

    use super::*;

    #[test]
    fn a_seed_is_a_request() {
        let seed = Seed::parse(
            r#"
            [install]
            disk = "nvme0n1"
            erase = "S123"
            hostname = "lqx-1"
            [network]
            nic = "enp1s0"
            address = { static = { address = "192.0.2.7/24", gateway = "192.0.2.1" } }
            dns = ["192.0.2.53"]
            "#,
            "test",
        )
        .unwrap();
        let request = seed.into_request();
        assert_eq!(request.disk, "nvme0n1");
        assert_eq!(request.erase.as_deref(), Some("S123"));
        assert!(matches!(
            request.network.unwrap().address,
            AddressMode::Static { .. }
        ));
        let least =
            Seed::parse("[install]\ndisk='vda'\n[network]\naddress='dhcp'\n", "test").unwrap();
        assert_eq!(least.network.unwrap().address, AddressMode::Dhcp);
    }

    #[test]
    fn a_misspelt_key_is_refused_with_its_name_and_place() {
        let error = Seed::parse("[install]\ndisk='vda'\nerese='vda'\n", "/dev/sr1").unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("/dev/sr1") && text.contains("erese"),
            "{text}"
        );
        assert!(Seed::parse("[install]\n", "t").is_err());
        assert!(Seed::parse("[install]\ndisk='vda'\nhostname='No Good'\n", "t").is_err());
    }
}
