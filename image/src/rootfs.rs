//! The host's root tree: the base plus our two programs and a handful of small files, as an initramfs; and the pieces for direct boots.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::archive::{self, Compression};
use crate::base::BaseSystem;
use crate::base::needs::Needs;
use crate::digest::{Inputs, Stamp};
use crate::kernel;
use crate::libraries;
use crate::paths::Paths;
use crate::tree::{Content, Tree};

/// What the image calls itself and how it is packed.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// `VERSION_ID`: what the boot loader orders slots by.
    pub version: String,
    /// How the initramfs is compressed.
    pub compression: Compression,
}

/// The pieces a direct boot needs, in `dist/`.
#[derive(Clone, Debug)]
pub struct Rootfs {
    /// The bzImage.
    pub vmlinuz: PathBuf,
    /// The ELF kernel inside it.
    pub vmlinux: PathBuf,
    /// The initramfs.
    pub initrd: PathBuf,
    /// Changes when the initramfs may change.
    pub digest: String,
}

/// The image's os-release, also the UKI's `.osrel`.
pub fn os_release(version: &str) -> String {
    format!(
        "NAME=limiquantix\nID=limiquantix\nIMAGE_ID=limiquantix\nVERSION_ID={version}\nIMAGE_VERSION={version}\nPRETTY_NAME=\"limiquantix {version}\"\nHOME_URL=\"https://github.com/limiquantix\"\n"
    )
}

/// Makes `dist/{vmlinuz,vmlinux,initrd.lz4}` (or `initrd.zst`).
pub fn build(paths: &Paths, base: &BaseSystem, recipe: &Recipe) -> Result<Rootfs> {
    fs::create_dir_all(&paths.dist)
        .with_context(|| format!("creating {}", paths.dist.display()))?;
    let suffix = match recipe.compression {
        Compression::Lz4 => "lz4",
        Compression::Zstd => "zst",
    };
    let (hostd, init) = (paths.binaries.join("hostd"), paths.binaries.join("init"));
    check_static(&hostd)?;
    check_static(&init)?;
    let digest = Inputs::default()
        .value("base", &base.digest)
        .value("version", &recipe.version)
        .value("compression", suffix)
        .file("needs", &paths.base().join("needs.toml"))?
        .file("hostd", &hostd)?
        .file("init", &init)?
        .value("layout", include_str!("rootfs.rs"))
        .finish();
    let rootfs = Rootfs {
        vmlinuz: paths.dist.join("vmlinuz"),
        vmlinux: paths.dist.join("vmlinux"),
        initrd: paths.dist.join(format!("initrd.{suffix}")),
        digest,
    };
    let stamp = Stamp::new(&paths.dist, "rootfs", rootfs.digest.clone());
    if stamp.is_fresh(&[&rootfs.vmlinuz, &rootfs.vmlinux, &rootfs.initrd]) {
        println!("rootfs: up to date");
        return Ok(rootfs);
    }
    let tree = tree(base, &Needs::read(paths)?, &recipe.version, &hostd, &init)?;
    archive::write(&tree, recipe.compression, &rootfs.initrd)?;
    fs::copy(&base.vmlinuz, &rootfs.vmlinuz)
        .with_context(|| format!("writing {}", rootfs.vmlinuz.display()))?;
    kernel::extract(&base.vmlinuz, &rootfs.vmlinux)?;
    stamp.write()?;
    println!(
        "rootfs: {} ({:.1} MB), kernel {}",
        rootfs.initrd.display(),
        fs::metadata(&rootfs.initrd)?.len() as f64 / 1e6,
        base.kernel_version
    );
    Ok(rootfs)
}

/// The whole root tree.
fn tree(
    base: &BaseSystem,
    needs: &Needs,
    version: &str,
    hostd: &Path,
    init: &Path,
) -> Result<Tree> {
    let mut tree = base.tree.clone();
    for (dir, mode) in [
        ("data", 0o755),
        ("dev", 0o755),
        ("mnt", 0o755),
        ("proc", 0o555),
        ("root", 0o700),
        ("run", 0o755),
        ("state", 0o700),
        ("sys", 0o555),
        ("tmp", 0o1777),
        ("usr/sbin", 0o755),
        ("etc", 0o755),
    ] {
        tree.dir(dir, mode)?;
    }
    tree.file("init", 0o755, init)?;
    tree.file("bin/hostd", 0o755, hostd)?;
    // The kernel asks for modules by running this; PID 1's program answers to the name.
    tree.link("sbin", "usr/sbin")?;
    tree.link("usr/sbin/modprobe", "/init")?;
    // The root is read-only: what is written at run time lives in /run.
    tree.link("var", "run")?;
    tree.link("etc/resolv.conf", "/run/resolv.conf")?;
    tree.link("etc/mtab", "/proc/self/mounts")?;
    tree.bytes("etc/os-release", 0o644, os_release(version))?;
    tree.bytes(
        "etc/nsswitch.conf",
        0o644,
        "hosts: files dns\npasswd: files\ngroup: files\n",
    )?;
    tree.bytes("etc/hosts", 0o644, "127.0.0.1 localhost\n::1 localhost\n")?;
    tree.bytes(
        "etc/passwd",
        0o644,
        "root:x:0:0:root:/root:/bin/hostd\nnobody:x:65534:65534:nobody:/:/bin/hostd\n",
    )?;
    tree.bytes("etc/group", 0o644, "root:x:0:\nnogroup:x:65534:\n")?;
    tree.bytes(
        "etc/modules",
        0o644,
        needs
            .start_modules()
            .iter()
            .map(|name| format!("{name}\n"))
            .collect::<String>(),
    )?;
    Ok(tree)
}

/// Our programs must run in roots without a shared library; a dynamically linked one would fail only at boot.
fn check_static(program: &Path) -> Result<()> {
    if !program.is_file() {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        bail!(
            "{} is not there; build it first: cargo build --release -p {name}",
            program.display()
        );
    }
    let linkage = libraries::linkage(&Content::Host(program.to_owned()).read()?)?;
    if linkage.interpreter.is_some() || !linkage.needed.is_empty() {
        bail!(
            "{} is not static (it needs {:?}); .cargo/config.toml asks for crt-static: is it overridden by RUSTFLAGS?",
            program.display(),
            linkage.needed
        );
    }
    Ok(())
}
