//! Each virtio device, driven by Linux's own drivers from inside a guest.
//!
//! Needs `/dev/kvm`, and by environment (without it the tests skip and say so):
//! - `LQX_TEST_KERNEL`: paths of x86-64 Linux kernels, separated by colons; the first one is used
//! - `LQX_TEST_MODULES`: folders with those kernels' modules, such as `/lib/modules/6.1.0-56-amd64`, in the same order
//! - `LQX_TEST_BUSYBOX`: a static busybox (`/usr/bin/busybox` if not given)
//!
//! The network tests also make a network namespace and a tap, which takes root.
#![allow(clippy::unwrap_used, clippy::panic)]

mod guest;

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::IntoRawFd;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Instant;

use guest::loop_device::loop_device;
use guest::shell::{Shell, modules};
use guest::tap::tap;
use guest::{Guest, Spec, kernels, kvm};
use vmm::config::{DiskConfig, DiskFormat, NicConfig, RateLimits};
use vmm::control::{Answer, ExitReason, Operation};

const SECTOR: u64 = 512;
const MIB: u64 = 1 << 20;

/// Drivers, each behind those it needs.
const DRIVERS: [&str; 9] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "failover",
    "net_failover",
    "virtio_net",
];
const RNG_DRIVER: &str = "virtio-rng";

/// A Linux with drivers and a shell, or the reason to skip on standard error.
fn linux(change: impl FnOnce(&mut Spec)) -> Option<Shell> {
    let kvm = kvm()?;
    let kernel = kernels().into_iter().next()?;
    let drivers: Vec<&str> = DRIVERS.into_iter().chain([RNG_DRIVER]).collect();
    let mut spec = Spec::linux(&kernel, modules(&drivers)?);
    spec.cmdline += " quiet";
    change(&mut spec);
    Some(Shell::of(Guest::start(kvm, spec)))
}

fn volume(size: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(size).unwrap();
    file
}

fn disk(id: &str, file: &File, read_only: bool, serial: &str) -> DiskConfig {
    DiskConfig {
        id: id.into(),
        fd: file.try_clone().unwrap().into_raw_fd(),
        format: DiskFormat::Raw,
        backing: vec![],
        read_only,
        serial: serial.into(),
        limits: RateLimits::default(),
    }
}

#[test]
fn linux_reads_writes_flushes_and_discards_its_disk() {
    let (data, fixed) = (volume(64 * MIB), volume(MIB + 512));
    data.write_all_at(b"written by the host\n", 8 * SECTOR)
        .unwrap();
    let Some(mut shell) = linux(|spec| {
        spec.disks = vec![
            disk("data", &data, false, "data-0001"),
            disk("fixed", &fixed, true, ""),
        ];
    }) else {
        return;
    };
    assert_eq!(shell.run("cat /sys/block/vda/serial"), "data-0001");
    assert_eq!(
        shell.run("cat /sys/block/vda/size /sys/block/vdb/size"),
        "131072\n2049"
    );
    assert_eq!(shell.run("cat /sys/block/vda/ro /sys/block/vdb/ro"), "0\n1");
    assert_eq!(
        shell.run("cat /sys/block/vda/queue/write_cache"),
        "write back"
    );
    let read = shell.run("dd if=/dev/vda bs=512 skip=8 count=1 2>/dev/null | head -n 1");
    assert_eq!(read, "written by the host");

    // Small and durable: flushed, so the host has it, whatever happens to the guest.
    shell.run(
        "echo 'written by the guest' | dd of=/dev/vda bs=512 seek=16 conv=sync,fsync 2>/dev/null",
    );
    let mut written = [0; 21];
    data.read_exact_at(&mut written, 16 * SECTOR).unwrap();
    assert_eq!(&written, b"written by the guest\n");
    assert!(shell.guest.metric("disk.data.flushes_total") > 0);

    // Large, with many requests in flight, and read back from the disk rather than from the guest's memory.
    shell.run("dd if=/dev/urandom of=/tmp/random bs=64k count=256 2>/dev/null");
    shell.run("dd if=/tmp/random of=/dev/vda bs=64k seek=16 conv=fsync 2>/dev/null");
    shell.run("echo 3 > /proc/sys/vm/drop_caches");
    let sums = shell
        .run("md5sum < /tmp/random; dd if=/dev/vda bs=64k skip=16 count=256 2>/dev/null | md5sum");
    let (left, right) = sums.split_once('\n').unwrap();
    assert_eq!(left, right);
    assert!(shell.guest.metric("disk.data.read_bytes_total") >= 16 * MIB);

    // Discarded space reads as zeroes and is given back to the host.
    shell.run("blkdiscard -o 1048576 -l 16777216 /dev/vda && echo 3 > /proc/sys/vm/drop_caches");
    let zeroes =
        shell.run("dd if=/dev/vda bs=64k skip=16 count=256 2>/dev/null | tr -d '\\0' | wc -c");
    assert_eq!(zeroes, "0");
    assert!(shell.guest.metric("disk.data.discards_total") > 0);

    // Not the read-only one, by whatever way.
    let refused = shell.run("echo x > /dev/vdb || echo refused");
    assert!(refused.ends_with("refused"), "{refused}");

    for name in ["data", "fixed"] {
        for counter in [
            "guest_errors_total",
            "host_errors_total",
            "refused_activations_total",
        ] {
            assert_eq!(
                shell.guest.metric(&format!("disk.{name}.{counter}")),
                0,
                "{name} {counter}"
            );
        }
    }
    // Doorbells do not leave the kernel.
    assert_eq!(shell.guest.metric("disk.data.slow_doorbells_total"), 0);
    assert_eq!(shell.power_off(), ExitReason::GuestPowerOff);
}

/// The most that may have passed since `start`: as if the bucket was full then, and the last request `largest`.
fn allowed(limits: &RateLimits, largest: u64, start: Instant) -> u64 {
    let rate = limits.bytes_per_second.unwrap() as f64;
    let saved = limits.bytes_burst.unwrap().max(largest);
    saved + (start.elapsed().as_secs_f64() * rate).ceil() as u64
}

#[test]
fn a_guest_gets_no_more_of_its_disk_than_the_limit_and_all_of_its_data() {
    let (slow, free) = (volume(16 * MIB), volume(16 * MIB));
    let limits = RateLimits {
        bytes_per_second: Some(MIB),
        bytes_burst: Some(MIB / 4),
        operations_per_second: Some(2000),
        ..RateLimits::default()
    };
    let Some(mut shell) = linux(|spec| {
        spec.disks = vec![
            disk("slow", &slow, false, ""),
            disk("free", &free, false, ""),
        ];
        spec.disks[0].limits = limits;
    }) else {
        return;
    };
    shell.run("dd if=/dev/urandom of=/tmp/random bs=64k count=24 2>/dev/null");
    // What Linux makes of what it writes is one large request, and of what it reads many small ones.
    let write = "dd if=/tmp/random of=/dev/vda bs=64k conv=fsync 2>/dev/null";
    let read = "echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/vda of=/tmp/back bs=64k count=24 2>/dev/null";
    for (what, command, largest) in [("write", write, 5 * MIB / 4), ("read", read, MIB / 4)] {
        let counter = format!("disk.slow.{what}_bytes_total");
        let before = shell.guest.metric(&counter);
        let start = Instant::now();
        shell.run(command);
        let moved = shell.guest.metric(&counter) - before;
        let allowed = allowed(&limits, largest, start);
        assert!(moved >= 3 * MIB / 2, "{what}: {moved}");
        assert!(moved <= allowed, "{what}: {moved} of {allowed}");
    }
    let sums = shell.run("md5sum < /tmp/random; md5sum < /tmp/back");
    let (left, right) = sums.split_once('\n').unwrap();
    assert_eq!(left, right);
    assert!(shell.guest.metric("disk.slow.throttled_total") > 0);
    shell.run("dd if=/tmp/random of=/dev/vdb bs=64k conv=fsync 2>/dev/null");
    assert_eq!(shell.guest.metric("disk.free.throttled_total"), 0);
    assert_eq!(shell.guest.metric("disk.slow.guest_errors_total"), 0);
    // It ends while requests wait.
    shell
        .run("echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/vda of=/dev/null bs=64k 2>/dev/null &");
    assert_eq!(shell.power_off(), ExitReason::GuestPowerOff);
}

#[test]
fn a_disk_of_large_blocks_is_one_to_the_guest() {
    let file = volume(32 * MIB);
    let Some(device) = loop_device(&file, 4096) else {
        return;
    };
    let Some(mut shell) = linux(|spec| spec.disks = vec![disk("large", &device, false, "")]) else {
        return;
    };
    assert_eq!(
        shell.run("cd /sys/block/vda; cat size queue/logical_block_size queue/physical_block_size queue/minimum_io_size queue/discard_granularity"),
        "65536\n4096\n4096\n4096\n4096"
    );
    shell.run(
        "echo 'in the second block' | dd of=/dev/vda bs=4096 seek=1 conv=sync,fsync 2>/dev/null",
    );
    assert_eq!(
        shell.run("echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/vda bs=4096 skip=1 count=1 2>/dev/null | head -n 1"),
        "in the second block"
    );
    let mut written = [0; 20];
    device.read_exact_at(&mut written, 4096).unwrap();
    assert_eq!(&written, b"in the second block\n");
    shell.run("blkdiscard -o 4096 -l 8192 /dev/vda");
    device.read_exact_at(&mut written, 4096).unwrap();
    assert_eq!(written, [0; 20]);
    for counter in ["refused_requests_total", "host_errors_total"] {
        assert_eq!(
            shell.guest.metric(&format!("disk.large.{counter}")),
            0,
            "{counter}"
        );
    }
    assert_eq!(shell.power_off(), ExitReason::GuestPowerOff);
}

#[test]
fn a_disk_grows_under_its_guest() {
    let file = volume(8 * MIB);
    let Some(mut shell) = linux(|spec| spec.disks = vec![disk("data", &file, false, "")]) else {
        return;
    };
    let grow = |disk, bytes| Operation::ResizeDisk { disk, bytes };
    assert!(shell.guest.ask(grow(0, 16 * MIB)).is_err(), "too short yet");
    assert!(shell.guest.ask(grow(1, 16 * MIB)).is_err(), "no such disk");
    file.set_len(16 * MIB).unwrap();
    assert_eq!(shell.guest.ask(grow(0, 16 * MIB)).unwrap(), Answer::Done);
    // The driver hears of it by an interrupt, and takes it up in a while.
    let size = "for i in $(seq 100); do [ $(cat /sys/block/vda/size) = 32768 ] && break; sleep 0.1; done; cat /sys/block/vda/size";
    assert_eq!(shell.run(size), "32768");
    shell.run("echo beyond | dd of=/dev/vda bs=512 seek=32767 conv=sync,fsync 2>/dev/null");
    let mut written = [0; 7];
    file.read_exact_at(&mut written, 16 * MIB - SECTOR).unwrap();
    assert_eq!(&written, b"beyond\n");
    assert!(shell.guest.ask(grow(0, 8 * MIB)).is_err(), "it only grows");
    assert_eq!(shell.guest.metric("disk.data.guest_errors_total"), 0);
    assert_eq!(shell.power_off(), ExitReason::GuestPowerOff);
}

#[test]
fn a_driver_can_let_go_of_a_disk_and_take_it_again() {
    let data = volume(MIB);
    let Some(mut shell) = linux(|spec| spec.disks = vec![disk("data", &data, false, "again")])
    else {
        return;
    };
    for round in 1..=3 {
        shell.run("echo virtio0 > /sys/bus/virtio/drivers/virtio_blk/unbind; [ -e /dev/vda ] && echo 'still there'");
        shell.run("echo virtio0 > /sys/bus/virtio/drivers/virtio_blk/bind");
        assert_eq!(
            shell.run("cat /sys/block/vda/serial"),
            "again",
            "round {round}"
        );
        shell.run(&format!(
            "echo round {round} | dd of=/dev/vda bs=512 conv=sync,fsync 2>/dev/null"
        ));
    }
    assert!(shell.guest.metric("disk.data.resets_total") >= 3);
    assert_eq!(shell.power_off(), ExitReason::GuestPowerOff);
    let mut text = [0; 8];
    data.read_exact_at(&mut text, 0).unwrap();
    assert_eq!(&text, b"round 3\n");
}

#[test]
fn linux_takes_entropy_from_its_device() {
    let Some(mut shell) = linux(|spec| spec.rng = true) else {
        return;
    };
    assert_eq!(
        shell.run("cat /sys/class/misc/hw_random/rng_current"),
        "virtio_rng.0"
    );
    assert_eq!(
        shell.run("dd if=/dev/hwrng bs=512 count=16 iflag=fullblock 2>/dev/null | wc -c"),
        "8192"
    );
    assert!(shell.guest.metric("rng.entropy_bytes_total") >= 8192);
    assert_eq!(shell.guest.metric("rng.guest_errors_total"), 0);
    assert_eq!(shell.power_off(), ExitReason::GuestPowerOff);
}

#[test]
fn linux_talks_to_its_network_in_both_directions() {
    // The host's side is a namespace of this thread's own, with the tap in it.
    let Some(tap) = tap("lqx0", [10, 66, 0, 1]) else {
        return;
    };
    let mac = [0x02, 0x6c, 0x71, 0x78, 0x00, 0x01];
    let Some(mut shell) = linux(|spec| {
        spec.nics = vec![NicConfig {
            id: "lan".into(),
            tap_fds: vec![tap.into_raw_fd()],
            mac,
            mtu: 1500,
            receive_limits: RateLimits::default(),
            transmit_limits: RateLimits::default(),
        }];
    }) else {
        return;
    };
    assert_eq!(
        shell.run("cat /sys/class/net/eth0/address"),
        "02:6c:71:78:00:01"
    );
    assert_eq!(shell.run("cat /sys/class/net/eth0/mtu"), "1500");
    shell.run("ip addr add 10.66.0.2/24 dev eth0; ip link set eth0 up");
    assert_eq!(shell.run("cat /sys/class/net/eth0/carrier"), "1");
    let ping = shell.run("ping -c 3 -W 20 10.66.0.1");
    assert!(ping.contains(" 0% packet loss"), "{ping}");
    let long = shell.run("ping -c 2 -W 20 -s 1400 10.66.0.1");
    assert!(long.contains(" 0% packet loss"), "{long}");

    // From the guest: long segments, whose checksums and segmentation are left to the host. `nc` alone would send what it
    // reads in kilobytes; `cat` hands the whole file to the socket.
    const AMOUNT: usize = 2 << 20;
    let listener = TcpListener::bind("10.66.0.1:7000").unwrap();
    let before = shell.guest.metric("nic.lan.sent_frames_total");
    let sink = thread::spawn(move || {
        let mut received = Vec::new();
        listener
            .accept()
            .unwrap()
            .0
            .read_to_end(&mut received)
            .unwrap();
        received
    });
    shell.run(&format!("yes 0123456789abcde | head -c {AMOUNT} > /lines"));
    shell.run("nc 10.66.0.1 7000 -e cat /lines");
    let received = sink.join().unwrap();
    assert_eq!(received.len(), AMOUNT);
    assert!(received.chunks(16).all(|line| line == b"0123456789abcde\n"));

    // On average longer than the MTU.
    let frames = shell.guest.metric("nic.lan.sent_frames_total") - before;
    assert!(frames < AMOUNT as u64 / 1500, "{frames} frames sent");

    // To the guest: long segments into mergeable buffers.
    let listener = TcpListener::bind("10.66.0.1:7001").unwrap();
    let before = shell.guest.metric("nic.lan.received_frames_total");
    let source = thread::spawn(move || {
        let lines = b"fedcba987654321\n".repeat(AMOUNT / 16);
        listener.accept().unwrap().0.write_all(&lines).unwrap();
    });
    let sums = shell.run(&format!(
        "nc 10.66.0.1 7001 < /dev/null | md5sum; yes fedcba987654321 | head -c {AMOUNT} | md5sum"
    ));
    source.join().unwrap();
    let (left, right) = sums.split_once('\n').unwrap();
    assert_eq!(left, right);

    let frames = shell.guest.metric("nic.lan.received_frames_total") - before;
    assert!(frames < AMOUNT as u64 / 1500, "{frames} frames received");

    // A driver that comes back finds the network as it was.
    shell.run("echo virtio0 > /sys/bus/virtio/drivers/virtio_net/unbind");
    shell.run("echo virtio0 > /sys/bus/virtio/drivers/virtio_net/bind");
    shell.run("ip addr add 10.66.0.2/24 dev eth0; ip link set eth0 up");
    let ping = shell.run("ping -c 2 -W 20 10.66.0.1");
    assert!(ping.contains(" 0% packet loss"), "{ping}");

    for counter in [
        "guest_errors_total",
        "refused_requests_total",
        "slow_doorbells_total",
    ] {
        assert_eq!(
            shell.guest.metric(&format!("nic.lan.{counter}")),
            0,
            "{counter}"
        );
    }
    assert_eq!(shell.power_off(), ExitReason::GuestPowerOff);
}

#[test]
fn a_guest_sends_and_receives_no_more_than_the_limits() {
    let Some(tap) = tap("lqx0", [10, 66, 0, 1]) else {
        return;
    };
    const AMOUNT: usize = 512 << 10;
    let limits = RateLimits {
        bytes_per_second: Some(MIB / 4),
        bytes_burst: Some(MIB / 16),
        ..RateLimits::default()
    };
    let Some(mut shell) = linux(|spec| {
        spec.nics = vec![NicConfig {
            id: "lan".into(),
            tap_fds: vec![tap.into_raw_fd()],
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            receive_limits: limits,
            transmit_limits: limits,
        }];
    }) else {
        return;
    };
    let check = |shell: &mut Shell, direction, start| {
        let counter = format!("nic.lan.{direction}_bytes_total");
        let moved = shell.guest.metric(&counter);
        // And what was there before: the kernel's greetings.
        let allowed = allowed(&limits, 1 << 16, start) + (1 << 16);
        assert!(moved >= AMOUNT as u64, "{direction}: {moved}");
        assert!(moved <= allowed, "{direction}: {moved} of {allowed}");
    };
    shell.run("ip addr add 10.66.0.2/24 dev eth0; ip link set eth0 up");
    let listener = TcpListener::bind("10.66.0.1:7000").unwrap();
    let sink = thread::spawn(move || {
        let mut received = Vec::new();
        let (mut from, _) = listener.accept().unwrap();
        from.read_to_end(&mut received).unwrap();
        received
    });
    shell.run(&format!("yes 0123456789abcde | head -c {AMOUNT} > /lines"));
    let start = Instant::now();
    shell.run("nc 10.66.0.1 7000 -e cat /lines");
    let received = sink.join().unwrap();
    check(&mut shell, "sent", start);
    assert_eq!(received.len(), AMOUNT);
    assert!(received.chunks(16).all(|line| line == b"0123456789abcde\n"));

    let listener = TcpListener::bind("10.66.0.1:7001").unwrap();
    let start = Instant::now();
    let source = thread::spawn(move || {
        let lines = b"0123456789abcde\n".repeat(AMOUNT / 16);
        listener.accept().unwrap().0.write_all(&lines).unwrap();
    });
    let sums = shell.run("nc 10.66.0.1 7001 < /dev/null | md5sum; md5sum < /lines");
    check(&mut shell, "received", start);
    source.join().unwrap();
    let (left, right) = sums.split_once('\n').unwrap();
    assert_eq!(left, right);

    for direction in ["send", "receive"] {
        let throttled = shell
            .guest
            .metric(&format!("nic.lan.{direction}_throttled_total"));
        assert!(throttled > 0, "{direction}");
    }
    assert_eq!(shell.guest.metric("nic.lan.guest_errors_total"), 0);
    assert_eq!(shell.power_off(), ExitReason::GuestPowerOff);
}
