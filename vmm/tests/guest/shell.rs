//! A Linux whose first program is a shell on COM1, and what it answers.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::initramfs::archive;
use super::{Guest, file, kernels_with_modules};
use vmm::control::ExitReason;

const INIT: &str = "#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
export PATH=/bin
for module in $(cat /modules/order); do insmod /modules/$module; done
stty -echo
export PS1= PS2=
echo shell-is-$((40 + 2))
exec sh
";

/// An initial RAM disk with these drivers, loaded in this order, and a shell; or the reason to skip on standard error.
pub fn modules(names: &[&str]) -> Option<File> {
    let (_, folder) = kernels_with_modules().into_iter().next()?;
    let busybox = std::env::var("LQX_TEST_BUSYBOX").unwrap_or("/usr/bin/busybox".into());
    let Ok(busybox) = fs::read(&busybox) else {
        eprintln!("SKIP: no static busybox at {busybox}");
        return None;
    };
    let mut order = String::new();
    let mut found = Vec::new();
    for name in names {
        // What is not there is built into the kernel; if it is not, the test's first command says so.
        if let Some(path) = find(Path::new(&folder), &format!("{name}.ko")) {
            order += &format!("{name}.ko\n");
            found.push((format!("modules/{name}.ko"), fs::read(path).unwrap()));
        }
    }
    let mut files: Vec<(&str, u32, &[u8])> = vec![
        ("bin", 0o040_755, &[]),
        ("bin/busybox", 0o100_755, &busybox),
        ("modules", 0o040_755, &[]),
        ("modules/order", 0o100_644, order.as_bytes()),
        ("init", 0o100_755, INIT.as_bytes()),
        ("dev", 0o040_755, &[]),
    ];
    files.extend(
        found
            .iter()
            .map(|(name, content)| (name.as_str(), 0o100_644, &content[..])),
    );
    Some(file(&archive(&files)))
}

fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(folder).ok()?.flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => folders.push(entry.path()),
            Ok(_) if entry.file_name() == name => return Some(entry.path()),
            _ => {}
        }
    }
    folders.iter().find_map(|folder| find(folder, name))
}

/// A guest that waits for commands.
pub struct Shell {
    /// The machine.
    pub guest: Guest,
    count: u32,
}

impl Shell {
    /// Waits for the shell.
    pub fn of(mut guest: Guest) -> Self {
        guest.wait_output("shell-is-42");
        Self { guest, count: 0 }
    }

    /// Runs a command line and gives its output, without the last line's end.
    pub fn run(&mut self, command: &str) -> String {
        self.count += 1;
        let (begin, end) = (format!("<<<{}", self.count), format!(">>>{}", self.count));
        // The markers are taken apart, so that only their output looks like them.
        self.guest.type_in(&format!(
            "echo '<<''<{count}'; {command}\necho '>>''>{count}'\n",
            count = self.count
        ));
        let output = self.guest.wait_output(&end).replace('\r', "");
        let from = output.rfind(&begin).unwrap() + begin.len();
        let to = output.rfind(&end).unwrap();
        output[from..to].trim().to_owned()
    }

    /// Switches the machine off and says how it ended.
    pub fn power_off(mut self) -> ExitReason {
        self.guest.type_in("poweroff -f\n");
        self.guest.wait_end().0
    }
}
