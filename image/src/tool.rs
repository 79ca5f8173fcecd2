//! Running other people's programs: one place that names the missing package and shows what a failed program said.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// All time stamps inside artifacts: 2024-01-01, so that two builds of the same inputs are the same bytes.
pub const EPOCH: u64 = 1_704_067_200;

/// Debian's package for each program used here, for the error message.
const PACKAGES: &[(&str, &str)] = &[
    ("dpkg-deb", "dpkg"),
    ("depmod", "kmod"),
    ("lz4", "lz4"),
    ("zstd", "zstd"),
    ("xz", "xz-utils"),
    ("mkfs.vfat", "dosfstools"),
    ("mmd", "mtools"),
    ("mcopy", "mtools"),
    ("mke2fs", "e2fsprogs"),
    ("xorriso", "xorriso"),
];

/// A program by name, found in the administrator's folders too: Debian keeps `depmod` and `mke2fs` in `/usr/sbin`, which is not in a user's PATH.
pub fn tool(name: &str) -> Command {
    let mut command = Command::new(name);
    let path = std::env::var("PATH").unwrap_or_default();
    command
        .env(
            "PATH",
            format!("{path}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"),
        )
        .env("LC_ALL", "C")
        .env("TZ", "UTC")
        .env("SOURCE_DATE_EPOCH", EPOCH.to_string());
    command
}

/// Runs a program to its end and returns what it wrote to standard output; its errors become ours.
pub fn run(command: &mut Command) -> Result<Vec<u8>> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output();
    let output = match output {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let package = PACKAGES
                .iter()
                .find(|(tool, _)| *tool == name)
                .map_or(name.as_str(), |(_, package)| package);
            bail!(
                "`{name}` is not installed (Debian package `{package}`); `make deps` installs it"
            );
        }
        other => other.with_context(|| format!("starting `{name}`"))?,
    };
    if !output.status.success() {
        let args: Vec<_> = command.get_args().map(OsStr::to_string_lossy).collect();
        bail!(
            "`{name} {}` failed ({}):\n{}",
            args.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    Ok(output.stdout)
}
