//! `image base-update`: looks up the current versions of what `debian.toml` names and writes `debian.lock`.
//!
//! With a *private* apt: its own sources, lists and state below the cache. The host's apt is neither read for suites nor changed, so this
//! works on a Debian of another release; only its keyring, mirror and proxy settings are used.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::lock::{Archive, Lock, Package, Role};
use super::mirror::Mirrors;
use crate::paths::Paths;
use crate::tool::{run, tool};

/// Debian's archive keys, as releases before and after 13 name the file.
const KEYRINGS: [&str; 2] = [
    "/usr/share/keyrings/debian-archive-keyring.gpg",
    "/usr/share/keyrings/debian-archive-keyring.pgp",
];

/// `debian.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    suite: String,
    kernel: String,
    guest_kernel: String,
    host: Vec<String>,
    guest: Vec<String>,
}

/// Which archives versions may come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sources {
    /// The suite itself: point releases, which stay on the mirrors.
    PointReleases,
    /// The suite with its security and updates archives: newer, and gone sooner.
    WithSecurity,
}

/// Rewrites the lock; returns it for the caller to tell about.
pub fn update(paths: &Paths, sources: Sources) -> Result<Lock> {
    let file = paths.base().join("debian.toml");
    let wanted: Wanted = toml::from_str(&fs::read_to_string(&file)?)
        .with_context(|| format!("in {}", file.display()))?;
    let mirrors = Mirrors::of_this_host();
    let apt = PrivateApt::new(&paths.cache.join("apt"), &wanted.suite, &mirrors, sources)?;
    apt.run("apt-get", &["update", "-q"])?;

    let kernel = apt.kernel_of(&wanted.kernel)?;
    let guest_kernel = apt.kernel_of(&wanted.guest_kernel)?;
    let mut asked = vec![(Role::Kernel, kernel), (Role::GuestKernel, guest_kernel)];
    asked.extend(wanted.host.into_iter().map(|name| (Role::Host, name)));
    asked.extend(wanted.guest.into_iter().map(|name| (Role::Guest, name)));
    let packages = asked
        .into_iter()
        .map(|(role, name)| apt.look_up(&mirrors, role, &name))
        .collect::<Result<_>>()?;
    let lock = Lock {
        suite: wanted.suite,
        packages,
    };
    lock.write(paths)?;
    Ok(lock)
}

struct PrivateApt {
    config: PathBuf,
}

impl PrivateApt {
    fn new(dir: &Path, suite: &str, mirrors: &Mirrors, sources: Sources) -> Result<Self> {
        let Some(keyring) = KEYRINGS.iter().find(|file| Path::new(file).exists()) else {
            bail!(
                "{} is not there (package debian-archive-keyring): Debian's signatures cannot be checked without it",
                KEYRINGS[0]
            );
        };
        for sub in [
            "etc/apt.conf.d",
            "etc/preferences.d",
            "etc/sources.list.d",
            "lists/partial",
            "cache/archives/partial",
            "log",
        ] {
            fs::create_dir_all(dir.join(sub))?;
        }
        let mut list = format!(
            "deb [signed-by={keyring}] {} {suite} main\n",
            mirrors.debian
        );
        if sources == Sources::WithSecurity {
            list += &format!(
                "deb [signed-by={keyring}] {} {suite}-updates main\n",
                mirrors.debian
            );
            list += &format!(
                "deb [signed-by={keyring}] {} {suite}-security main\n",
                mirrors.security
            );
        }
        fs::write(dir.join("etc/sources.list"), list)?;
        fs::write(dir.join("status"), "")?;
        let at = dir.display();
        let mut config = format!(
            "Dir::Etc \"{at}/etc\";\nDir::Etc::main \"/dev/null\";\nDir::Etc::parts \"{at}/etc/apt.conf.d\";\nDir::Etc::sourcelist \"{at}/etc/sources.list\";\n\
             Dir::Etc::sourceparts \"{at}/etc/sources.list.d\";\nDir::State \"{at}\";\nDir::State::status \"{at}/status\";\nDir::State::lists \"{at}/lists\";\n\
             Dir::Cache \"{at}/cache\";\nDir::Log \"{at}/log\";\nAPT::Architecture \"amd64\";\nAPT::Architectures \"amd64\";\nAPT::Sandbox::User \"root\";\nAcquire::Languages \"none\";\n"
        );
        // Of the host's settings only how to reach a mirror: proxies, retries, certificates.
        let host = String::from_utf8_lossy(&run(tool("apt-config").arg("dump"))?).into_owned();
        config.extend(
            host.lines()
                .filter(|line| {
                    [
                        "Acquire::http",
                        "Acquire::https",
                        "Acquire::Retries",
                        "Acquire::Check-",
                    ]
                    .iter()
                    .any(|p| line.starts_with(p))
                })
                .map(|line| format!("{line}\n")),
        );
        let file = dir.join("apt.conf");
        fs::write(&file, config)?;
        Ok(Self { config: file })
    }

    fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let output = run(tool(program).env("APT_CONFIG", &self.config).args(args))?;
        Ok(String::from_utf8_lossy(&output).into_owned())
    }

    /// The kernel package a meta package depends on.
    fn kernel_of(&self, meta: &str) -> Result<String> {
        let shown = self.run("apt-cache", &["show", "--no-all-versions", meta])?;
        let depends = shown
            .lines()
            .find_map(|line| line.strip_prefix("Depends: "))
            .with_context(|| format!("`{meta}` depends on nothing"))?;
        let name = depends
            .split([',', '|'])
            .map(|part| part.split_whitespace().next().unwrap_or(""))
            .find(|name| name.starts_with("linux-image-"));
        Ok(name
            .with_context(|| format!("`{meta}` does not depend on a kernel: {depends}"))?
            .to_owned())
    }

    fn look_up(&self, mirrors: &Mirrors, role: Role, name: &str) -> Result<Package> {
        let shown = self.run("apt-cache", &["show", "--no-all-versions", name])?;
        let field = |key: &str| {
            shown
                .lines()
                .find_map(|line| line.strip_prefix(key))
                .map(|v| v.trim().to_owned())
                .with_context(|| {
                    format!("package `{name}` has no field `{key}` in the archive's list")
                })
        };
        let version = field("Version:")?;
        let path = field("Filename:")?;
        // Which archive it comes from: apt says the address it would fetch.
        let uris = self.run(
            "apt-get",
            &["download", "--print-uris", &format!("{name}={version}")],
        )?;
        let archive = if uris.contains(&format!("'{}/pool/updates/", mirrors.security)) {
            Archive::DebianSecurity
        } else {
            Archive::Debian
        };
        Ok(Package {
            name: name.to_owned(),
            version,
            role,
            archive,
            path,
            size: field("Size:")?.parse()?,
            sha256: field("SHA256:")?,
        })
    }
}
