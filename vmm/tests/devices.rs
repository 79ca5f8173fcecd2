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

use guest::shell::{Shell, modules};
use guest::tap::tap;
use guest::{Guest, Spec, kernels, kvm};
use vmm::config::{DiskConfig, DiskFormat, NicConfig};
use vmm::control::ExitReason;

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
