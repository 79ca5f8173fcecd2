//! A QEMU of our own making, in whose emulated AMD-V guests with UEFI firmware run through.
//!
//! What a virtual processor is asked to do (`interrupt_request`) may change only under QEMU's big lock. Its emulation of
//! AMD-V forgets that in two places (in 7.2, 10.0 and 11.1 alike). Where a guest writes CR8, which OVMF's interrupt
//! handlers do and Linux does not, an assertion notices and ends QEMU. Where a guest is entered that waits for a virtual
//! interrupt nothing does, and a real interrupt that comes at the same moment can be lost. So Debian's source package is
//! built with the lock taken there, and nothing else changed, on request: [`build`] takes some ten minutes of a processor.
//! The result is kept in the cache, and [`mended`] finds it there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use image::base::mirror::Mirrors;
use image::digest;
use image::tool::{run, tool};
use sha2::{Digest, Sha256};

use crate::artifacts::cache;

/// Where the source package is on a mirror. `https://snapshot.debian.org/archive/debian/<day>` has it for ever.
const POOL: &str = "pool/main/q/qemu";
/// The archives of the source package, first the original, then Debian's changes, with their SHA-256.
const ARCHIVES: [(&str, &str); 2] = [
    (
        "qemu_7.2+dfsg.orig.tar.xz",
        "91aca71520040edc40b8d437aa3004dae614f58e286cf653ee8996c07af2962f",
    ),
    (
        "qemu_7.2+dfsg-7+deb12u18.debian.tar.xz",
        "28a1c86310ee53b6bf1854cffe6f6be6ed29a08db7d05759f8ac57b8d6a6cb2f",
    ),
];
/// Where the lock has to be taken: in this file from before this line to before that one.
const PLACES: [(&str, &str, &str); 2] = [
    (
        "target/i386/tcg/sysemu/misc_helper.c",
        "if (ctl_has_irq(env)) {\n",
        "break;\n",
    ),
    (
        "target/i386/tcg/sysemu/svm_helper.c",
        "cs->interrupt_request |= CPU_INTERRUPT_VIRQ;\n",
        "}\n",
    ),
];
/// What is needed of it: the emulation, the devices of the testbed, and Debian's firmware files.
const CONFIGURE: &[&str] = &[
    "--target-list=x86_64-softmmu",
    "--without-default-features",
    "--enable-tcg",
    "--enable-slirp",
    "--enable-fdt=system",
    "--enable-virtfs",
    "--enable-attr",
    "--enable-cap-ng",
    "--enable-tpm",
    "--disable-tools",
    "--disable-docs",
    "--disable-install-blobs",
    "--disable-guest-agent",
    "--meson=/usr/bin/meson",
    "--firmwarepath=/usr/share/qemu:/usr/share/seabios:/usr/lib/ipxe/qemu",
];
const PROGRAM: &str = "qemu-system-x86_64";
const APT_HELPER: &str = "/usr/lib/apt/apt-helper";

/// Why guests with UEFI firmware cannot run where the host is emulated by a QEMU that is not mended.
pub const NOT_MENDED: &str =
    "the emulating QEMU aborts in UEFI guests; `make qemu` builds one that does not";

/// The QEMU to run: the mended one where there is one, else the system's.
pub fn program() -> PathBuf {
    mended().unwrap_or_else(|| PROGRAM.into())
}

/// The mended QEMU, if it has been built on this machine.
pub fn mended() -> Option<PathBuf> {
    let program = folder().join(PROGRAM);
    program.is_file().then_some(program)
}

/// Changes with everything the result depends on.
fn folder() -> PathBuf {
    let mut hash = Sha256::new();
    for text in ARCHIVES.iter().map(|(_, digest)| digest).chain(CONFIGURE) {
        hash.update(text.as_bytes());
        hash.update([0]);
    }
    hash.update(format!("{PLACES:?}{INCLUDE}{LOCK}{UNLOCK}"));
    let digest = hash.finalize();
    let key: String = digest[..8].iter().map(|b| format!("{b:02x}")).collect();
    cache().join("qemu").join(key)
}

/// Builds it unless it is there.
pub fn build() -> Result<PathBuf> {
    let folder = folder();
    if let Some(there) = mended() {
        return Ok(there);
    }
    fs::create_dir_all(&folder)?;
    let work = tempfile::Builder::new()
        .prefix("build-")
        .tempdir_in(&folder)?;
    let source = work.path().join("source");
    let output = work.path().join("output");
    unpack(work.path(), &source)?;
    for (file, begin, end) in PLACES {
        let path = source.join(file);
        let text = fs::read_to_string(&path).with_context(|| format!("reading {file}"))?;
        let mended = mend(&text, begin, end).with_context(|| format!("mending {file}"))?;
        fs::write(&path, mended)?;
    }

    println!("building QEMU from Debian's source package with one mend; this takes minutes");
    fs::create_dir(&output)?;
    run(tool("../source/configure")
        .args(CONFIGURE)
        .arg("--with-pkgversion=mended for UEFI guests in AMD-V")
        .current_dir(&output))?;
    // Its progress is worth seeing.
    let status = Command::new("ninja")
        .arg(PROGRAM)
        .current_dir(&output)
        .status()
        .context("starting `ninja`; `make qemu` installs it")?;
    if !status.success() {
        bail!("building QEMU: {status}");
    }
    let built = output.join(PROGRAM);
    run(tool("strip").arg(&built))?;
    let program = folder.join(PROGRAM);
    fs::rename(&built, &program)
        .with_context(|| format!("putting {} in place", program.display()))?;
    Ok(program)
}

/// Fetches the archives, unpacks them, and applies Debian's changes.
fn unpack(work: &Path, source: &Path) -> Result<()> {
    let mirror = Mirrors::of_this_host().debian;
    fs::create_dir(source)?;
    let mut files = Vec::new();
    for (name, sha256) in ARCHIVES {
        let address = format!("{mirror}/{POOL}/{}", name.replace('+', "%2b"));
        let file = work.join(name);
        println!("fetching {name}");
        run(tool(APT_HELPER)
            .args(["-o", "APT::Sandbox::User=root", "download-file", &address])
            .arg(&file)
            .arg(format!("SHA256:{sha256}")))
        .with_context(|| {
            format!("fetching {address}; if it has left the mirror, LQX_DEBIAN_MIRROR names one that has it")
        })?;
        if digest::of_file(&file)? != sha256 {
            bail!("{address} is not what is pinned");
        }
        files.push(file);
    }
    let untar = |file: &Path, strip: bool| {
        let strip = strip.then_some("--strip-components=1");
        run(tool("tar")
            .arg("-xf")
            .arg(file)
            .args(strip)
            .current_dir(source))
    };
    untar(&files[0], true)?;
    untar(&files[1], false)?;
    let patches = source.join("debian/patches");
    let series = fs::read_to_string(patches.join("series"))?;
    for name in series.lines().filter(|line| !line.starts_with('#')) {
        let name = name.trim();
        if !name.is_empty() {
            run(tool("patch")
                .args(["--quiet", "-p1", "-i"])
                .arg(patches.join(name))
                .current_dir(source))?;
        }
    }
    Ok(())
}

const INCLUDE: &str = "#include \"qemu/main-loop.h\"\n";
const LOCK: &str = "qemu_mutex_lock_iothread();\n";
const UNLOCK: &str = "qemu_mutex_unlock_iothread();\n";
/// The first of each file's includes.
const FIRST_INCLUDE: &str = "#include \"qemu/osdep.h\"\n";

/// Takes the lock before the only `begin` and lets go of it before the next `end`.
fn mend(text: &str, begin: &str, end: &str) -> Result<String> {
    let (head, rest) = text
        .split_once(FIRST_INCLUDE)
        .context("it does not begin as expected")?;
    let (before, after) = rest.split_once(begin).context("the place is not there")?;
    if after.contains(begin) {
        bail!("there is more than one such place");
    }
    let (within, after) = after.split_once(end).context("the place does not end")?;
    Ok([
        head,
        FIRST_INCLUDE,
        INCLUDE,
        before,
        LOCK,
        begin,
        within,
        UNLOCK,
        end,
        after,
    ]
    .concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_is_taken_around_the_interrupt_and_nothing_else_changes() {
        let text = "\
#include \"qemu/osdep.h\"
void helper_write_crN(int reg)
    case 8:
        if (ctl_has_irq(env)) {
            raise();
        } else {
            clear();
        }
        break;
    }
    other();
    break;
";
        let expected = text
            .replace("osdep.h\"\n", "osdep.h\"\n#include \"qemu/main-loop.h\"\n")
            .replace("if (ctl", "qemu_mutex_lock_iothread();\nif (ctl")
            .replacen("break;", "qemu_mutex_unlock_iothread();\nbreak;", 1);
        let (_, begin, end) = PLACES[0];
        assert_eq!(mend(text, begin, end).unwrap(), expected);
        assert!(mend("#include \"qemu/osdep.h\"\n", begin, end).is_err());
        assert!(mend(&format!("{text}{text}"), begin, end).is_err());
    }
}
