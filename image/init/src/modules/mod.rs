//! Drivers by need, without udev: devices say what they are (`modalias`), depmod's lists say which module serves that.

mod glob;
mod index;

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::{self, File};
use std::path::Path;
use std::process::ExitCode;

use rustix::io::Errno;
use rustix::system::{finit_module, uname};

use crate::console::{Log, log};
use crate::mount;
use crate::uevent::Uevent;
use index::Index;

/// Loads modules, each once.
pub(crate) struct Loader {
    index: Index,
    command_line: String,
    /// Modules that are loaded or were refused; not tried again.
    done: BTreeSet<String>,
    /// What devices said; each is looked up once.
    seen: BTreeSet<String>,
    refused: Vec<String>,
    loaded: usize,
}

impl Loader {
    /// Reads the running kernel's lists.
    pub(crate) fn open() -> Self {
        let dir = format!("/lib/modules/{}", uname().release().to_string_lossy());
        let index = Index::read(Path::new(&dir)).unwrap_or_else(|error| {
            // A kernel with everything built in has no lists.
            log(
                Log::Info,
                &format!("there are no modules in {dir}: {error}"),
            );
            Index::default()
        });
        let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
        Self {
            index,
            command_line,
            done: BTreeSet::new(),
            seen: BTreeSet::new(),
            refused: Vec::new(),
            loaded: 0,
        }
    }

    /// What is needed in any case, then drivers for every device there is.
    pub(crate) fn start(&mut self) {
        for name in fs::read_to_string("/etc/modules")
            .unwrap_or_default()
            .lines()
        {
            self.load_for(name);
        }
        if let Some(name) = kvm_module(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()) {
            self.load_for(name);
        }
        if Path::new("/sys/firmware/efi").exists() {
            self.load_for("efivarfs");
            if let Err(error) = mount::efi_variables() {
                log(
                    Log::Error,
                    &format!("the firmware's variables could not be mounted: {error}"),
                );
            }
        }
        // A driver brings devices of its own (a disk on a controller): again until nothing is new.
        while self.coldplug() {}
    }

    /// Loads for devices that were announced; true if there may be a new input device.
    pub(crate) fn heed(&mut self, events: Vec<Uevent>) -> bool {
        let mut input = false;
        for event in events.into_iter().filter(|event| event.added) {
            input |= event.subsystem.as_deref() == Some("input");
            if let Some(alias) = event.modalias {
                self.device(&alias);
            }
        }
        input
    }

    /// Tells how it went.
    pub(crate) fn report(&self) {
        log(
            Log::Info,
            &format!(
                "{} modules loaded for {} kinds of devices",
                self.loaded,
                self.seen.len()
            ),
        );
        if !self.refused.is_empty() {
            log(
                Log::Info,
                &format!("modules that were refused: {}", self.refused.join(", ")),
            );
        }
    }

    fn coldplug(&mut self) -> bool {
        let mut found = BTreeSet::new();
        aliases_below(Path::new("/sys/devices"), &mut found);
        let mut news = false;
        for alias in found {
            news |= self.device(&alias);
        }
        news
    }

    fn device(&mut self, alias: &str) -> bool {
        let news = self.seen.insert(alias.to_owned());
        if news {
            self.load_for(alias);
        }
        news
    }

    /// Loads the modules serving a name or alias; false if there is none, or one was refused.
    fn load_for(&mut self, alias: &str) -> bool {
        let names = self.index.resolve(alias);
        let mut fine = !names.is_empty() || self.index.is_built_in(alias);
        for name in names {
            for (step, path) in self.index.load_order(&name) {
                if !self.done.insert(step.clone()) || is_blacklisted(&self.command_line, &step) {
                    continue;
                }
                match insert(&path, &parameters(&self.command_line, &step)) {
                    Ok(()) => self.loaded += 1,
                    // Some drivers find out by themselves that they are not needed.
                    Err(error) => {
                        self.refused.push(format!("{step} ({error})"));
                        fine &= step != name;
                    }
                }
            }
        }
        fine
    }
}

/// The life of this program under the name `modprobe`: the kernel runs `/sbin/modprobe -q -- ALIAS`.
pub(crate) fn modprobe(args: impl Iterator<Item = String>) -> ExitCode {
    let mut loader = Loader::open();
    let mut fine = true;
    for name in args.filter(|arg| !arg.starts_with('-')) {
        fine &= loader.load_for(&name);
    }
    if fine {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn insert(path: &Path, parameters: &str) -> Result<(), Errno> {
    let file =
        File::open(path).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    let parameters = CString::new(parameters).unwrap_or_default();
    match finit_module(&file, &parameters, 0) {
        Err(Errno::EXIST) => Ok(()),
        other => other,
    }
}

fn aliases_below(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        if kind.is_dir() {
            aliases_below(&entry.path(), found);
        } else if kind.is_file()
            && entry.file_name() == "modalias"
            && let Ok(alias) = fs::read_to_string(entry.path())
            && !alias.trim().is_empty()
        {
            found.insert(alias.trim().to_owned());
        }
    }
}

/// The KVM module of this processor, which its own alias does not always bring.
fn kvm_module(cpuinfo: &str) -> Option<&'static str> {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"))?;
    let has = |flag: &str| flags.split_whitespace().any(|word| word == flag);
    if has("svm") {
        Some("kvm_amd")
    } else if has("vmx") {
        Some("kvm_intel")
    } else {
        None
    }
}

/// `kvm_amd.nested=0` on the kernel's command line is a parameter of that module.
fn parameters(command_line: &str, module: &str) -> String {
    let own = |word: &str| {
        word.split_once('.')
            .filter(|(name, _)| index::canonical(name) == module)
            .map(|(_, parameter)| parameter.to_owned())
    };
    command_line
        .split_whitespace()
        .filter_map(own)
        .collect::<Vec<_>>()
        .join(" ")
}

/// `modprobe.blacklist=a,b`: a way around a driver that hangs the machine.
fn is_blacklisted(command_line: &str, module: &str) -> bool {
    command_line
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("modprobe.blacklist="))
        .flat_map(|list| list.split(','))
        .any(|name| index::canonical(name) == module)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_comes_by_the_processors_flags() {
        assert_eq!(
            kvm_module("vendor_id : AuthenticAMD\nflags\t\t: fpu svm npt\n"),
            Some("kvm_amd")
        );
        assert_eq!(kvm_module("flags : fpu vmx\n"), Some("kvm_intel"));
        assert_eq!(kvm_module("flags : fpu\n"), None);
    }

    #[test]
    fn parameters_come_from_the_command_line() {
        let line = "quiet kvm-amd.nested=0 kvm_amd.npt=1 kvm.x=2 modprobe.blacklist=bad-one,other";
        assert_eq!(parameters(line, "kvm_amd"), "nested=0 npt=1");
        assert_eq!(parameters(line, "ext4"), "");
        assert!(is_blacklisted(line, "bad_one"));
        assert!(!is_blacklisted(line, "kvm"));
    }
}
