//! What a machine costs beside its guest's RAM, measured on a real Linux with a disk, a NIC and an entropy source in use.
//!
//! The machine runs in a process of its own, as it does on a host: this test starts itself once more for that. It prints
//! `overhead: …` with the proportional set size without guest RAM and the time from start to the first guest instruction.
//! Environment as in `boot.rs`.
#![allow(clippy::unwrap_used, clippy::panic)]
#![allow(unsafe_code)] // UNSAFETY: making a tap and a network namespace to put it into takes system calls.

mod guest;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, IntoRawFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};

use guest::initramfs;
use guest::{PATIENCE, file, kernels_with_modules, kvm};
use vmm::config::{Boot, DiskConfig, DiskFormat, NicConfig, RateLimits, VmmConfig};
use vmm::control::{ExitReason, Status};

const CHILD: &str = "LQX_OVERHEAD_CHILD";
/// Issue budget for a machine with one disk and one NIC.
const OVERHEAD_MAX_KIB: u64 = 8 << 10;

/// The process that is measured.
#[test]
fn machine() {
    let Ok(config) = std::env::var(CHILD) else {
        return;
    };
    let reason = vmm::run(VmmConfig::from_json(config.as_bytes()).unwrap());
    std::process::exit(i32::from(reason != ExitReason::GuestPowerOff));
}

/// A tap called `lqx0` with an address, in a network namespace of this thread's own.
fn tap() -> std::io::Result<File> {
    // SAFETY: only this thread is moved, and it makes no assumption about its network.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
        return Err(std::io::Error::last_os_error());
    }
    let tap = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(b"lqx0") {
        *slot = *byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags =
        (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes an ifreq, which outlives the call.
    if unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
        return Err(std::io::Error::last_os_error());
    }
    let up = Command::new("/bin/busybox")
        .args(["ifconfig", "lqx0", "192.0.2.1", "up"])
        .status()?;
    if up.success() {
        Ok(tap)
    } else {
        Err(std::io::Error::other("ifconfig failed"))
    }
}

fn listen(what: &str) -> (SocketAddr, UnixListener) {
    let address =
        SocketAddr::from_abstract_name(format!("lqx-overhead-{what}-{}", std::process::id()))
            .unwrap();
    (address.clone(), UnixListener::bind_addr(&address).unwrap())
}

/// Lets a descriptor survive `exec`.
fn inherited(fd: impl IntoRawFd) -> RawFd {
    let fd = fd.into_raw_fd();
    // SAFETY: fcntl on a descriptor we own.
    assert_eq!(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) }, 0);
    fd
}

fn wait_for(serial: &mut UnixStream, output: &mut String, text: &str) {
    let mut chunk = [0; 4096];
    while !output.contains(text) {
        match serial.read(&mut chunk) {
            Ok(count @ 1..) => *output += &String::from_utf8_lossy(&chunk[..count]),
            end => panic!("{end:?} before {text:?}:\n{output}"),
        }
    }
}

/// Resident memory by mapping, in KiB: (guest RAM, everything else, the largest of everything else). `measure` is `Pss:`,
/// where pages shared with other processes count in part, or `Rss:`, where they count in full.
fn resident(child: &Child, measure: &str) -> (u64, u64, Vec<(u64, String)>) {
    let smaps = std::fs::read_to_string(format!("/proc/{}/smaps", child.id())).unwrap();
    let (mut ram, mut name) = (0, String::new());
    let mut rest: Vec<(u64, String)> = vec![];
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some(word) if word == measure => {
                let kib: u64 = words.next().unwrap().parse().unwrap();
                if name.contains("guest-ram") {
                    ram += kib
                } else {
                    rest.push((kib, name.clone()))
                }
            }
            Some(word) if !word.ends_with(':') => {
                name = line
                    .split_whitespace()
                    .skip(1)
                    .collect::<Vec<_>>()
                    .join(" ")
            }
            _ => {}
        }
    }
    let total = rest.iter().map(|(kib, _)| kib).sum();
    rest.sort_unstable_by(|a, b| b.cmp(a));
    rest.truncate(8);
    (ram, total, rest)
}

/// No bound: it depends on the machine, and this prints for the one it runs on.
#[test]
fn the_time_to_the_first_instruction_is_told() {
    let code = guest::code::Code::new().print("running").echo().bzimage();
    let mut specs = vec![(
        "a program of a few bytes".to_owned(),
        guest::Spec::program(&code),
    )];
    for kernel in guest::kernels() {
        specs.push((
            kernel.clone(),
            guest::Spec::linux(&kernel, file(&[0; 1 << 20])),
        ));
    }
    for (what, spec) in specs {
        let Some(kvm) = kvm() else { return };
        let mut guest = guest::Guest::start(kvm, spec);
        let taken = guest.metric("start_to_first_instruction_us");
        println!("start: {taken} us to the first instruction of {what}");
        guest.ask(vmm::control::Operation::Stop).unwrap();
        guest.wait_end();
        assert!(taken > 0);
    }
}

#[test]
fn a_machine_with_a_disk_and_a_nic_costs_little() {
    let Some((kernel, modules)) = kernels_with_modules().into_iter().next() else {
        return;
    };
    let Some(kvm) = kvm() else { return };
    let tap = match tap() {
        Ok(tap) => tap,
        Err(error) => return eprintln!("SKIP: no tap: {error}"),
    };
    let script = "ifconfig eth0 192.0.2.2 up\n\
        ping -c 3 -W 20 192.0.2.1 | grep received\n\
        printf 'written by the guest' | dd of=/dev/vda bs=512 seek=3 conv=sync,fsync 2>/dev/null\n\
        dd if=/dev/vda of=/dev/null bs=1M count=8 iflag=direct 2>&1 | tail -1\n\
        dd if=/dev/hwrng bs=16 count=1 2>/dev/null | wc -c\n\
        echo guest-is-done; read line; echo good bye $line";
    let drivers = ["virtio_pci", "virtio_blk", "virtio_net", "virtio-rng"];
    let Some(initrd) = initramfs::busybox(&modules, &drivers, script) else {
        return;
    };
    let mut disk = file(&[]);
    disk.set_len(16 << 20).unwrap();
    let status = file(&[]);
    let (control_address, control) = listen("control");
    let (serial_address, serial) = listen("serial");
    let config = VmmConfig {
        name: "overhead".into(),
        memory_mib: 192,
        vcpus: 1,
        boot: Boot::Kernel {
            kernel_fd: inherited(File::open(&kernel).unwrap()),
            initrd_fd: Some(inherited(file(&initrd))),
            cmdline: "console=ttyS0 no_timer_check tsc=reliable panic=-1 quiet".into(),
        },
        disks: vec![DiskConfig {
            id: "root".into(),
            fd: inherited(disk.try_clone().unwrap()),
            format: DiskFormat::Raw,
            backing: vec![],
            read_only: false,
            serial: "one".into(),
            limits: RateLimits::default(),
        }],
        nics: vec![NicConfig {
            id: "lan".into(),
            tap_fds: vec![inherited(tap)],
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            receive_limits: RateLimits::default(),
            transmit_limits: RateLimits::default(),
        }],
        rng: true,
        kvm_fd: inherited(kvm),
        control_fd: inherited(control),
        serial_fd: inherited(serial),
        status_fd: inherited(status.try_clone().unwrap()),
    };
    let mut serial = UnixStream::connect_addr(&serial_address).unwrap();
    serial.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut control = UnixStream::connect_addr(&control_address).unwrap();
    control.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "machine", "--test-threads=1", "--nocapture"])
        .env(CHILD, serde_json::to_string(&config).unwrap())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();

    let mut output = String::new();
    wait_for(&mut serial, &mut output, "guest-is-done");
    assert!(output.contains("3 packets received"), "{output}");
    let (ram, overhead, largest) = resident(&child, "Pss:");
    // This process shares the program's pages with the measured one; nothing is shared in the second figure.
    let (_, alone, _) = resident(&child, "Rss:");
    control
        .write_all(b"{\"id\":1,\"op\":\"metrics\"}\n")
        .unwrap();
    let mut answer = String::new();
    let mut chunk = [0; 16 << 10];
    while !answer.contains("\"id\":1") || !answer.ends_with('\n') {
        let count = control.read(&mut chunk).unwrap();
        answer += std::str::from_utf8(&chunk[..count]).unwrap();
    }
    let reply: serde_json::Value = serde_json::from_str(answer.lines().last().unwrap()).unwrap();
    let counters = &reply["result"]["counters"];
    println!(
        "overhead: PSS {overhead} KiB, RSS {alone} KiB, beside {ram} KiB of guest RAM; start to first instruction {} us",
        counters["start_to_first_instruction_us"]
    );
    println!("overhead: largest mappings {largest:?}");
    println!("overhead: {counters}");
    assert!(
        counters["disk.root.flushes_total"].as_u64() >= Some(1),
        "{counters}"
    );
    serial.write_all(b"then\n").unwrap();
    wait_for(&mut serial, &mut output, "good bye then");
    let ended = child.wait().unwrap();
    assert!(ended.success(), "{ended}: {output}");
    let mut content = vec![];
    disk.seek(SeekFrom::Start(1536)).unwrap();
    Read::by_ref(&mut disk)
        .take(20)
        .read_to_end(&mut content)
        .unwrap();
    assert_eq!(content, b"written by the guest");
    let mut last = vec![];
    (&status).seek(SeekFrom::Start(0)).unwrap();
    (&status).read_to_end(&mut last).unwrap();
    assert_eq!(
        Status::from_file(&last).unwrap().exit,
        Some(ExitReason::GuestPowerOff)
    );
    assert!(alone <= OVERHEAD_MAX_KIB, "{alone} KiB");
}
