//! Initial RAM disks made on the spot: a newc archive with a first program of a few instructions, or with busybox, the
//! kernel's modules and a script.

use std::collections::BTreeMap;
use std::path::Path;

/// Files for the archive: name, mode, content.
pub fn archive(files: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut archive = Vec::new();
    let mut put = |inode: u32, name: &str, mode: u32, content: &[u8]| {
        let fields = [
            inode,
            mode,
            0,
            0,
            1,
            0,
            content.len() as u32,
            0,
            0,
            0,
            0,
            name.len() as u32 + 1,
            0,
        ]
        .map(|n| format!("{n:08x}"));
        archive.extend_from_slice(b"070701");
        archive.extend_from_slice(fields.concat().as_bytes());
        archive.extend_from_slice(name.as_bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend_from_slice(content);
        archive.resize(archive.len().next_multiple_of(4), 0);
    };
    for (inode, (name, mode, content)) in (1..).zip(files) {
        put(inode, name, *mode, content);
    }
    put(0, "TRAILER!!!", 0, &[]);
    archive
}

/// A static program that prints `text`, then reboots with `command` (see `reboot(2)`), then waits for ever.
pub fn print_and_reboot(text: &str, command: u32) -> Vec<u8> {
    const BASE: u32 = 0x40_0000;
    let mut code = Vec::new();
    let message_at = BASE + 0x78 + 64;
    // write(1, message, len)
    code.extend_from_slice(&[0xb8, 1, 0, 0, 0, 0xbf, 1, 0, 0, 0, 0xbe]);
    code.extend_from_slice(&message_at.to_le_bytes());
    code.push(0xba);
    code.extend_from_slice(&(text.len() as u32).to_le_bytes());
    code.extend_from_slice(&[0x0f, 0x05]);
    // reboot(magic, magic, command)
    code.extend_from_slice(&[0xb8, 169, 0, 0, 0, 0xbf]);
    code.extend_from_slice(&0xfee1_deadu32.to_le_bytes());
    code.push(0xbe);
    code.extend_from_slice(&672_274_793u32.to_le_bytes());
    code.push(0xba);
    code.extend_from_slice(&command.to_le_bytes());
    code.extend_from_slice(&[0x0f, 0x05]);
    // pause(), again and again
    code.extend_from_slice(&[0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7]);
    assert!(code.len() <= 64);
    code.resize(64, 0x90);
    code.extend_from_slice(text.as_bytes());

    let size = 0x78 + code.len() as u64;
    let mut elf = vec![
        0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 62, 0, 1, 0, 0, 0,
    ];
    for value in [u64::from(BASE) + 0x78, 64, 0] {
        elf.extend_from_slice(&value.to_le_bytes());
    }
    elf.extend_from_slice(&[0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    elf.extend_from_slice(&[1, 0, 0, 0, 5, 0, 0, 0]);
    for value in [0, u64::from(BASE), u64::from(BASE), size, size, 0x1000] {
        elf.extend_from_slice(&value.to_le_bytes());
    }
    assert_eq!(elf.len(), 0x78);
    elf.extend_from_slice(&code);
    elf
}

/// `LINUX_REBOOT_CMD_POWER_OFF`
pub const POWER_OFF: u32 = 0x4321_fedc;
/// `LINUX_REBOOT_CMD_RESTART`
pub const RESTART: u32 = 0x0123_4567;

/// An initial RAM disk whose first program prints `text` and reboots.
pub fn one_shot(text: &str, command: u32) -> Vec<u8> {
    archive(&[("init", 0o100_755, &print_and_reboot(text, command))])
}

/// An initial RAM disk that loads `modules` (and what they need) from `tree`, a `lib/modules/VERSION` folder, and then
/// runs `script` with busybox; afterwards it powers off. Says why on standard error if busybox is not there.
pub fn busybox(tree: &str, modules: &[&str], script: &str) -> Option<Vec<u8>> {
    let path = std::env::var("LQX_TEST_BUSYBOX").unwrap_or_else(|_| "/bin/busybox".into());
    let busybox = std::fs::read(&path)
        .map_err(|error| eprintln!("SKIP: {path}: {error}"))
        .ok()?;
    let needed = with_dependencies(tree, modules);
    let load: String = needed
        .iter()
        .map(|path| format!("insmod /{}\n", file_name(path)))
        .collect();
    let init = format!(
        "#!/bin/busybox sh\nPATH=/bin\n/bin/busybox mkdir /proc /sys /dev\n/bin/busybox --install -s /bin\n\
         mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev\n{load}{script}\npoweroff -f\n"
    );
    let contents: Vec<(String, Vec<u8>)> = needed
        .iter()
        .map(|path| {
            (
                file_name(path).to_owned(),
                std::fs::read(Path::new(tree).join(path)).unwrap(),
            )
        })
        .collect();
    let mut files: Vec<(&str, u32, &[u8])> = vec![
        ("bin", 0o40_755, &[]),
        ("bin/busybox", 0o100_755, &busybox),
        ("init", 0o100_755, init.as_bytes()),
    ];
    files.extend(
        contents
            .iter()
            .map(|(name, content)| (name.as_str(), 0o100_644, content.as_slice())),
    );
    Some(archive(&files))
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap()
}

/// Paths below `tree`, what is needed first.
fn with_dependencies(tree: &str, modules: &[&str]) -> Vec<String> {
    let table = std::fs::read_to_string(Path::new(tree).join("modules.dep")).unwrap();
    let by_name: BTreeMap<&str, (&str, Vec<&str>)> = table
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(path, needs)| {
            (
                file_name(path).split('.').next().unwrap(),
                (path, needs.split_whitespace().rev().collect()),
            )
        })
        .collect();
    let mut ordered: Vec<String> = vec![];
    for module in modules {
        // What is not a module is built in.
        let Some((path, needs)) = by_name.get(module) else {
            continue;
        };
        for path in needs.iter().chain([path]) {
            if !ordered.iter().any(|known| known == path) {
                ordered.push((*path).to_owned());
            }
        }
    }
    ordered
}
