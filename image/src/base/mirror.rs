//! Where packages are fetched from: the mirror this machine's apt already uses, so that a company's or a CI's mirror is heeded.
//!
//! Only the address is taken, never the suite: the lock pins bookworm's packages, and the host may be of another release.

use std::fs;
use std::path::Path;

use super::lock::Archive;

/// The addresses of Debian's archives as seen from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirrors {
    /// The main archive, without a trailing slash.
    pub debian: String,
    /// The security archive.
    pub security: String,
}

impl Default for Mirrors {
    fn default() -> Self {
        Self {
            debian: "http://deb.debian.org/debian".into(),
            security: "http://deb.debian.org/debian-security".into(),
        }
    }
}

impl Mirrors {
    /// From `LQX_DEBIAN_MIRROR`, else from the host's apt sources, else Debian's own.
    pub fn of_this_host() -> Self {
        let mut mirrors = Self::from_sources(&apt_sources(Path::new("/etc/apt")));
        if let Ok(address) = std::env::var("LQX_DEBIAN_MIRROR") {
            mirrors.debian = address.trim_end_matches('/').to_owned();
        }
        mirrors
    }

    /// The address for one archive.
    pub fn address(&self, archive: Archive) -> &str {
        match archive {
            Archive::Debian => &self.debian,
            Archive::DebianSecurity => &self.security,
        }
    }

    /// From the texts of apt's source files, one-line and deb822 form.
    pub fn from_sources(texts: &[String]) -> Self {
        let mut mirrors = Self::default();
        let (mut debian_seen, mut security_seen) = (false, false);
        for uri in texts.iter().flat_map(|text| uris(text)) {
            let uri = resolve_mirror_list(&uri);
            let uri = uri.trim_end_matches('/');
            if !["http://", "https://", "file:"]
                .iter()
                .any(|scheme| uri.starts_with(scheme))
            {
                continue;
            }
            if uri.ends_with("/debian-security") && !security_seen {
                mirrors.security = uri.to_owned();
                security_seen = true;
            } else if uri.ends_with("/debian") && !debian_seen {
                mirrors.debian = uri.to_owned();
                debian_seen = true;
            }
        }
        mirrors
    }
}

/// `mirror+file:/etc/apt/mirrors/debian.list`, as cloud images have it, names a file of addresses: the first is used.
fn resolve_mirror_list(uri: &str) -> String {
    uri.strip_prefix("mirror+file:")
        .and_then(|file| fs::read_to_string(file).ok())
        .and_then(|list| list.split_whitespace().next().map(str::to_owned))
        .unwrap_or_else(|| uri.to_owned())
}

fn uris(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("URIs:") {
            found.extend(rest.split_whitespace().map(str::to_owned));
        } else if let Some(rest) = line.strip_prefix("deb ") {
            // `deb [options] uri suite components`
            let rest = rest.trim_start();
            let rest = if rest.starts_with('[') {
                rest.split_once(']').map_or("", |(_, rest)| rest)
            } else {
                rest
            };
            found.extend(rest.split_whitespace().next().map(str::to_owned));
        }
    }
    found
}

fn apt_sources(dir: &Path) -> Vec<String> {
    let mut files = vec![dir.join("sources.list")];
    if let Ok(entries) = fs::read_dir(dir.join("sources.list.d")) {
        files.extend(entries.flatten().map(|entry| entry.path()).filter(|path| {
            path.extension()
                .is_some_and(|e| e == "list" || e == "sources")
        }));
    }
    files.sort();
    files
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_apt_sources_are_understood() {
        let one_line = "# deb http://old/debian x main\ndeb [arch=amd64 signed-by=/k] https://mirror.example/debian/ trixie main\ndeb https://other.example/thing stable main\n";
        let deb822 =
            "Types: deb\nURIs: https://mirror.example/debian-security\nSuites: trixie-security\n";
        let mirrors = Mirrors::from_sources(&[one_line.into(), deb822.into()]);
        assert_eq!(
            mirrors,
            Mirrors {
                debian: "https://mirror.example/debian".into(),
                security: "https://mirror.example/debian-security".into()
            }
        );
    }

    #[test]
    fn a_host_without_debian_sources_uses_debians_own() {
        assert_eq!(
            Mirrors::from_sources(&["deb http://archive.ubuntu.com/ubuntu noble main".into()]),
            Mirrors::default()
        );
    }
}
