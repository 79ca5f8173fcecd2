//! Inside a guest: PID 1 of the machine that runs test programs, or a helper beside the product's own PID 1.
//!
//! Which of the two is said on the kernel command line (`lqx.agent=runner`), because one static binary is both. Without that
//! word it is the smallest guest there is: up, and off again.

pub mod client;
pub mod entropy;
pub mod helper;
pub mod runner;

use std::fs::{self, File, OpenOptions};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::mount::{MountFlags, mount};

/// Where our modules are in the archive, in loading order: `000-virtio.ko` ….
pub const MODULES: &str = "/lab/modules";

/// `MODULE_INIT_COMPRESSED_FILE` of linux/module.h: the kernel unpacks the module itself.
const COMPRESSED: i32 = 4;

/// The program: `lab-agent`.
pub fn main() -> Result<()> {
    if std::env::args().nth(1).as_deref() == Some("helper") {
        return helper::serve();
    }
    // Not at /proc: beside the product, that place is its own to mount.
    mount_at("proc", "/lab/proc", "proc", "")?;
    let arguments = fs::read_to_string("/lab/proc/cmdline").context("reading the command line")?;
    match arguments
        .split_whitespace()
        .find_map(|word| word.strip_prefix("lqx.agent="))
    {
        Some("runner") => runner::serve(),
        Some("helper") => helper::become_init(),
        Some(other) => bail!("lqx.agent={other} is no mode of this program"),
        None => switch_off(),
    }
}

/// What [`switch_off`] prints.
pub const UP_MARKER: &str = "LQX-TEST-INITRD-UP";

/// As the smallest guest there is: says that user space was reached, and switches the machine off.
fn switch_off() -> Result<()> {
    println!("{UP_MARKER}");
    rustix::system::reboot(rustix::system::RebootCommand::PowerOff).context("switching off")
}

/// Makes the folder and mounts there.
pub(crate) fn mount_at(source: &str, target: &str, kind: &str, data: &str) -> Result<()> {
    fs::create_dir_all(target).with_context(|| format!("creating {target}"))?;
    let data = std::ffi::CString::new(data)?;
    mount(source, target, kind, MountFlags::empty(), data.as_c_str())
        .with_context(|| format!("mounting {kind} on {target}"))
}

/// Loads every module of [`MODULES`] in order. One that does not load (another CPU's KVM) is none of our business: what needed it will say so.
pub(crate) fn load_modules() -> Result<()> {
    let mut files: Vec<_> = fs::read_dir(MODULES)
        .context("listing modules")?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    files.sort();
    for path in files {
        let file = File::open(&path)?;
        let plain = path.extension().is_some_and(|extension| extension == "ko");
        let flags = if plain { 0 } else { COMPRESSED };
        if let Err(error) = rustix::system::finit_module(&file, c"", flags) {
            eprintln!("lab-agent: {}: {error}", path.display());
        }
    }
    Ok(())
}

/// Opens virtio-serial port `number`, waiting for the kernel to find it. `dev` is where devtmpfs is. Before the port's number
/// a name has that of its controller among the virtio devices, which depends on what else is plugged in; we plug in one controller.
pub(crate) fn port(dev: &str, number: u32) -> Result<File> {
    let suffix = format!("p{number}");
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let found = fs::read_dir(dev)
            .with_context(|| format!("listing {dev}"))?
            .flatten()
            .find(|entry| {
                let name = entry.file_name();
                let name = name.to_string_lossy();
                name.starts_with("vport") && name.ends_with(&suffix)
            });
        if let Some(entry) = found {
            let device = entry.path();
            return OpenOptions::new()
                .read(true)
                .write(true)
                .open(&device)
                .with_context(|| format!("opening {}", device.display()));
        }
        if Instant::now() > until {
            bail!("port {number} did not appear");
        }
        thread::sleep(Duration::from_millis(20));
    }
}
