//! The demonstration guest: a small real Linux that any VM of the testbed and of `make run` can boot.
//!
//! Debian's cloud kernel and busybox; what it does is `image/guest/init.sh`, written to be read.

use std::fs;

use anyhow::{Context, Result};

use crate::archive::{self, Compression};
use crate::base::debian;
use crate::digest::{Inputs, Stamp};
use crate::kernel;
use crate::modules::Modules;
use crate::paths::Paths;
use crate::tree::Tree;

const MODULES: [&str; 6] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio-rng",
    "evdev",
    "button",
];

/// The commands of busybox the guest has as commands of its own.
const COMMANDS: &str = "[ acpid awk base64 basename blockdev cat chmod clear cmp cp cut date dd df dirname dmesg du echo env expr false find free grep \
    gunzip gzip halt head hexdump hostname httpd id ifconfig init insmod ip kill ln ls lsmod mkdir mke2fs mknod mktemp modprobe more mount mv nc netstat \
    nproc nslookup od passwd pidof ping poweroff printf ps pwd readlink reboot rm rmdir route sed seq setsid sh sha256sum sleep sort stat stty sync \
    sysctl tail tar tee telnet test time timeout top touch tr true truncate tty udhcpc umount uname uptime vi wc wget which xargs yes";

/// Makes `dist/guest/{vmlinuz,vmlinux,initrd}`.
pub fn build(paths: &Paths) -> Result<()> {
    let base = debian::prepare_guest(paths)?;
    let scripts = paths.repo.join("image/guest");
    let out = paths.dist.join("guest");
    fs::create_dir_all(&out).with_context(|| format!("creating {}", out.display()))?;
    let (vmlinuz, vmlinux, initrd) = (out.join("vmlinuz"), out.join("vmlinux"), out.join("initrd"));

    let mut inputs = Inputs::default()
        .value("packages", &base.digest)
        .value("modules", MODULES.join(" "))
        .value("commands", COMMANDS);
    for script in ["init.sh", "udhcpc.sh", "inittab"] {
        inputs = inputs.file(script, &scripts.join(script))?;
    }
    let stamp = Stamp::new(&paths.dist, "guest", inputs.finish());
    if stamp.is_fresh(&[&vmlinuz, &vmlinux, &initrd]) {
        println!("guest: up to date");
        return Ok(());
    }

    let mut tree = Tree::default();
    for dir in [
        "data", "dev", "etc", "proc", "root", "run", "sys", "tmp", "www",
    ] {
        tree.dir(dir, 0o755)?;
    }
    tree.file("bin/busybox", 0o755, &base.root.join("bin/busybox"))?;
    for command in COMMANDS.split_whitespace() {
        tree.link(&format!("bin/{command}"), "busybox")?;
    }
    tree.link("sbin", "bin")?;
    tree.link("init", "bin/init")?;
    tree.file("etc/rc", 0o755, &scripts.join("init.sh"))?;
    tree.file("etc/udhcpc.sh", 0o755, &scripts.join("udhcpc.sh"))?;
    tree.file("etc/inittab", 0o644, &scripts.join("inittab"))?;
    // What acpid of busybox runs for the power button when no configuration says otherwise.
    tree.bytes(
        "etc/acpi/PWRF/00000080",
        0o755,
        "#!/bin/sh\necho 'guest: power button' >/dev/console\npoweroff\n",
    )?;
    tree.bytes("etc/passwd", 0o644, "root::0:0:root:/root:/bin/sh\n")?;
    tree.bytes("etc/group", 0o644, "root:x:0:\n")?;
    tree.bytes(
        "etc/profile",
        0o644,
        "export PATH=/bin HOME=/root PS1='guest# '\ncd /root\n",
    )?;
    Modules::read(&base.root, &base.kernel_version)?
        .select(&MODULES.map(String::from))?
        .put_into(&mut tree)?;

    archive::write(&tree, Compression::Lz4, &initrd)?;
    kernel::extract(&base.vmlinuz, &vmlinux)?;
    fs::copy(&base.vmlinuz, &vmlinuz).with_context(|| format!("writing {}", vmlinuz.display()))?;
    stamp.write()?;
    println!(
        "guest: {} ({:.1} MB) and {} ({:.1} MB)",
        vmlinuz.display(),
        size_mb(&vmlinuz)?,
        initrd.display(),
        size_mb(&initrd)?
    );
    Ok(())
}

fn size_mb(path: &std::path::Path) -> Result<f64> {
    Ok(fs::metadata(path)?.len() as f64 / 1e6)
}
