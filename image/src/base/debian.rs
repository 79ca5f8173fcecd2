//! The Debian base: the packages of `debian.lock`, fetched into the cache, unpacked, never installed.
//!
//! Each archive is fetched by apt's own helper (so proxies, authentication and local mirrors of this machine work) from the address this
//! machine's apt uses, and must have the digest the lock names. There is no other source: a pinned version that left the
//! mirror is an error that says what to do.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::lock::{Lock, Package, Role};
use super::mirror::Mirrors;
use super::needs::Needs;
use super::{BaseSystem, PackageRecord, add_modules};
use crate::digest::{self, Inputs};
use crate::kernel;
use crate::libraries;
use crate::modules::Modules;
use crate::paths::Paths;
use crate::tool::{run, tool};
use crate::tree::Tree;

const APT_HELPER: &str = "/usr/lib/apt/apt-helper";

/// The unpacked packages of one role set.
#[derive(Debug)]
pub struct Unpacked {
    /// The root of what was unpacked.
    pub root: PathBuf,
    /// The version of the one kernel in it.
    pub kernel_version: String,
    /// Its bzImage.
    pub vmlinuz: PathBuf,
    /// What was unpacked.
    pub packages: Vec<PackageRecord>,
    /// Changes with the packages.
    pub digest: String,
}

/// The host's base.
pub fn prepare(paths: &Paths, needs: &Needs) -> Result<BaseSystem> {
    let lock = Lock::read(paths)?;
    let unpacked = unpack(paths, &lock, "host", &[Role::Kernel, Role::Host])?;
    let root = &unpacked.root;
    let modules = Modules::read(root, &unpacked.kernel_version)?;

    let boot = root.join("usr/lib/systemd/boot/efi");
    let (stub, boot_loader) = (
        boot.join("linuxx64.efi.stub"),
        boot.join("systemd-bootx64.efi"),
    );
    let mut tree = Tree::default();
    tree.file(
        "usr/lib/limiquantix/systemd-bootx64.efi",
        0o644,
        &boot_loader,
    )?;
    for file in [
        "usr/share/OVMF/OVMF_CODE_4M.fd",
        "usr/share/OVMF/OVMF_VARS_4M.fd",
    ] {
        tree.file(file, 0o644, &fs::canonicalize(root.join(file))?)?;
    }
    for program in needs.programs.keys() {
        // Debian 12 still ships some of them in /sbin: the image has one place.
        let from = ["", "usr/"]
            .iter()
            .map(|prefix| root.join(prefix).join(program.trim_start_matches("usr/")))
            .find(|path| path.exists());
        let from = from.with_context(|| format!("no package of debian.lock has /{program}"))?;
        tree.file(program, 0o755, &fs::canonicalize(from)?)?;
    }
    libraries::add(&mut tree, root)?;
    add_modules(&mut tree, &modules, &needs.all_modules())?;
    let config = fs::read_to_string(root.join(format!("boot/config-{}", unpacked.kernel_version)))?;
    needs.check(&tree, &modules, Some(&config))?;

    Ok(BaseSystem {
        kind: "debian",
        vmlinuz: unpacked.vmlinuz,
        kernel_version: unpacked.kernel_version,
        stub,
        boot_loader,
        tree,
        os_release: format!("ID=debian\nVERSION_CODENAME={}\n", lock.suite),
        packages: unpacked.packages,
        digest: unpacked.digest,
    })
}

/// The demonstration guest's packages, unpacked.
pub fn prepare_guest(paths: &Paths) -> Result<Unpacked> {
    unpack(
        paths,
        &Lock::read(paths)?,
        "guest",
        &[Role::GuestKernel, Role::Guest],
    )
}

/// Fetches and unpacks the packages of `roles` into a folder of the cache named by their digests, once.
fn unpack(paths: &Paths, lock: &Lock, name: &str, roles: &[Role]) -> Result<Unpacked> {
    let packages: Vec<&Package> = roles.iter().flat_map(|role| lock.of(*role)).collect();
    let digest = packages
        .iter()
        .fold(Inputs::default(), |inputs, p| {
            inputs.value(&p.name, &p.sha256)
        })
        .finish();
    let root = paths
        .cache
        .join("base")
        .join(format!("{name}-{}", &digest[..16]));
    if !root.is_dir() {
        let archives = fetch(paths, &packages)?;
        let parent = paths.cache.join("base");
        fs::create_dir_all(&parent).with_context(|| format!("creating {}", parent.display()))?;
        let work = tempfile::Builder::new()
            .prefix(".unpack-")
            .tempdir_in(&parent)?;
        for archive in &archives {
            println!(
                "unpacking {}",
                archive.file_name().unwrap_or_default().to_string_lossy()
            );
            run(tool("dpkg-deb")
                .arg("--extract")
                .arg(archive)
                .arg(work.path()))?;
        }
        let version = one_kernel(work.path())?;
        run(tool("depmod").arg("-b").arg(work.path()).arg(&version))?;
        fs::set_permissions(
            work.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )?;
        // Another build may have put the same there meanwhile; then ours goes.
        if let Err(error) = fs::rename(work.path(), &root)
            && !root.is_dir()
        {
            return Err(error).with_context(|| format!("putting {} in place", root.display()));
        }
    }
    let kernel_version = one_kernel(&root)?;
    let vmlinuz = root.join(format!("boot/vmlinuz-{kernel_version}"));
    let told = kernel::version(&fs::read(&vmlinuz)?)?;
    if told != kernel_version {
        bail!("{} says it is {told}", vmlinuz.display());
    }
    let packages = packages
        .iter()
        .map(|p| PackageRecord {
            name: p.name.clone(),
            version: p.version.clone(),
            sha256: p.sha256.clone(),
        })
        .collect();
    Ok(Unpacked {
        root,
        kernel_version,
        vmlinuz,
        packages,
        digest,
    })
}

fn one_kernel(root: &Path) -> Result<String> {
    let dir = root.join("lib/modules");
    let mut found = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("listing {}", dir.display()))? {
        found.push(entry?.file_name().to_string_lossy().into_owned());
    }
    match found.as_slice() {
        [version] => Ok(version.clone()),
        _ => bail!(
            "{} should hold the modules of one kernel, and holds {found:?}",
            dir.display()
        ),
    }
}

/// The packages' archives in the cache, fetched where they are not there yet; each has the digest of the lock.
fn fetch(paths: &Paths, packages: &[&Package]) -> Result<Vec<PathBuf>> {
    let dir = paths.cache.join("debs");
    fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    let mirrors = Mirrors::of_this_host();
    let mut files = Vec::new();
    for package in packages {
        let file = dir.join(package.file_name());
        if !(file.is_file() && digest::of_file(&file)? == package.sha256) {
            let address = format!(
                "{}/{}",
                mirrors.address(package.archive),
                package.path.replace('+', "%2b")
            );
            fetch_one(package, &address, &dir, &file)?;
        }
        files.push(file);
    }
    Ok(files)
}

fn fetch_one(package: &Package, address: &str, dir: &Path, file: &Path) -> Result<()> {
    if !Path::new(APT_HELPER).exists() {
        bail!(
            "{APT_HELPER} is not there: the Debian base is fetched with apt, so the image is built on Debian or a system derived from it"
        );
    }
    println!(
        "fetching {} {} ({:.1} MB)",
        package.name,
        package.version,
        package.size as f64 / 1e6
    );
    let work = tempfile::Builder::new().prefix(".fetch-").tempdir_in(dir)?;
    let part = work.path().join("deb");
    let fetched = run(tool(APT_HELPER)
        .args([
            "-o",
            "Acquire::Retries=3",
            "-o",
            "APT::Sandbox::User=root",
            "download-file",
            address,
        ])
        .arg(&part)
        .arg(format!("SHA256:{}", package.sha256)));
    if let Err(why) = fetched {
        bail!(
            "the pinned package {} {} cannot be had from {address}.\n\
             If the version left the mirror, `make base-update` pins the current one (and rewrites image/base/debian.lock, which is then yours to review).\n\
             If the mirror cannot be reached, LQX_DEBIAN_MIRROR names another. apt said: {why}",
            package.name,
            package.version
        );
    }
    let digest = digest::of_file(&part)?;
    if digest != package.sha256 {
        bail!(
            "{address} has SHA-256 {digest}, but debian.lock pins {}",
            package.sha256
        );
    }
    fs::rename(&part, file).with_context(|| format!("putting {} in place", file.display()))
}
