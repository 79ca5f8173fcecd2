//! Machines on real KVM: small programs that poke the platform, and a real Linux.
//!
//! Needs `/dev/kvm`. The tests with a real kernel also need one, by environment; without it they skip and say so:
//! - `LQX_TEST_KERNEL`: paths of x86-64 Linux kernels, separated by colons; bzImage, or ELF with a PVH note
//! - `LQX_TEST_MODULES`: optional, the `lib/modules/VERSION` folders of those kernels, in the same order
//! - `LQX_TEST_BUSYBOX`: optional, a static busybox; `/bin/busybox` otherwise
//! - `LQX_TEST_INITRD`: optional, an initial RAM disk that ends by switching the machine off
//! - `LQX_TEST_MARKER`: optional, what that prints when it is up
#![allow(clippy::unwrap_used, clippy::panic)]

mod guest;

use std::fs::File;
use std::io::{BufRead, Read};
use std::os::fd::IntoRawFd;
use std::time::Duration;

use guest::code::Code;
use guest::initramfs::{self, POWER_OFF, RESTART, one_shot};
use guest::{Guest, Spec, file, kernels, kernels_with_modules, kvm};
use vmm::config::{DiskConfig, DiskFormat, RateLimits};
use vmm::control::{Answer, Event, ExitReason, Operation, RefusalCode, State};

const MARKER: &str = "lqx-guest-is-up\n";

fn run(code: Code) -> Option<(ExitReason, String)> {
    Some(Guest::start(kvm()?, Spec::program(&code.bzimage())).wait_end())
}

#[test]
fn a_program_prints_and_switches_off() {
    let Some((reason, output)) = run(Code::new().print("hello from long mode\n").power_off())
    else {
        return;
    };
    assert_eq!(
        (reason, output.as_str()),
        (ExitReason::GuestPowerOff, "hello from long mode\n")
    );
}

#[test]
fn a_pvh_kernel_is_entered_in_protected_mode() {
    let Some(kvm) = kvm() else { return };
    let image = Code::new().print("hello from pvh\n").power_off().pvh();
    let (reason, output) = Guest::start(kvm, Spec::program(&image)).wait_end();
    assert_eq!(
        (reason, output.as_str()),
        (ExitReason::GuestPowerOff, "hello from pvh\n")
    );
}

#[test]
fn string_instructions_print_too() {
    let Some((reason, output)) = run(Code::new()
        .print_string("all at once, and more than eight\n")
        .power_off())
    else {
        return;
    };
    assert_eq!(
        (reason, output.as_str()),
        (
            ExitReason::GuestPowerOff,
            "all at once, and more than eight\n"
        )
    );
}

#[test]
fn every_way_to_reset_ends_with_a_reset() {
    for (port, value) in [(0xcf9, 0x06), (0x64, 0xfe)] {
        let Some((reason, _)) = run(Code::new().out8(port, value).spin()) else {
            return;
        };
        assert_eq!(reason, ExitReason::GuestReset, "port {port:#x}");
    }
}

#[test]
fn a_triple_fault_is_told_apart() {
    let Some((reason, _)) = run(Code::new().crash()) else {
        return;
    };
    assert_eq!(reason, ExitReason::TripleFault);
}

#[test]
fn what_nobody_decodes_reads_as_all_ones_and_is_counted() {
    let Some(kvm) = kvm() else { return };
    let code = Code::new()
        .show_port(0x1234)
        .show_memory(0xc000_1000)
        .show_memory(0xd000_0000)
        .show_memory(0xe000_8000)
        .out8(0x1234, 1)
        .store(0xf100_0000, 1)
        .print("done")
        .echo();
    let mut guest = Guest::start(kvm, Spec::program(&code.bzimage()));
    guest.wait_output("\u{fffd}\u{fffd}\u{fffd}\u{fffd}done");
    assert_eq!(guest.metric("pio_unclaimed_reads_total"), 1);
    assert_eq!(guest.metric("pio_unclaimed_writes_total"), 1);
    assert_eq!(guest.metric("mmio_unclaimed_writes_total"), 1);
    assert_eq!(guest.metric("pci_unanswered_accesses_total"), 3);
    guest.ask(Operation::Stop).unwrap();
    assert_eq!(guest.wait_end().0, ExitReason::Stopped);
}

#[test]
fn the_host_bridge_answers_both_ways() {
    let code = Code::new()
        .out32(0xcf8, 0x8000_0000)
        .show_port(0xcfc)
        .show_memory(0xe000_0000)
        .power_off();
    let Some((_, output)) = run(code) else { return };
    assert_eq!(output, "66");
}

#[test]
fn a_paused_guest_stands_still_and_a_resumed_one_goes_on() {
    let Some(kvm) = kvm() else { return };
    let mut guest = Guest::start(kvm, Spec::program(&Code::new().print(">").echo().bzimage()));
    guest.wait_output(">");
    guest.type_in("one");
    guest.wait_output("one");

    assert_eq!(
        guest.ask(Operation::Resume).unwrap_err().code,
        RefusalCode::WrongState
    );
    guest.ask(Operation::Pause).unwrap();
    guest.wait_event(&Event::Paused);
    assert_eq!(guest.status().state, State::Paused);
    assert_eq!(
        guest.ask(Operation::Pause).unwrap_err().code,
        RefusalCode::WrongState
    );
    guest.type_in("two");
    guest.assert_silent(Duration::from_millis(300));

    guest.ask(Operation::Resume).unwrap();
    guest.wait_event(&Event::Resumed);
    guest.wait_output("two");
    assert_eq!(guest.status().state, State::Running);
    let Ok(Answer::Status(status)) = guest.ask(Operation::Status) else {
        panic!()
    };
    assert_eq!(
        (status.state, status.name.as_str(), status.exit),
        (State::Running, "test", None)
    );
    guest.ask(Operation::Stop).unwrap();
    guest.wait_event(&Event::Exiting {
        reason: ExitReason::Stopped,
    });
    assert_eq!(guest.wait_end().0, ExitReason::Stopped);
}

#[test]
fn a_paused_guest_can_be_stopped_and_reset() {
    for (op, reason) in [
        (Operation::Stop, ExitReason::Stopped),
        (Operation::Reset, ExitReason::GuestReset),
    ] {
        let Some(kvm) = kvm() else { return };
        let spec = Spec {
            vcpus: 2,
            ..Spec::program(&Code::new().print("up").spin().bzimage())
        };
        let mut guest = Guest::start(kvm, spec);
        guest.wait_output("up");
        guest.ask(Operation::Pause).unwrap();
        guest.ask(op).unwrap();
        assert_eq!(guest.wait_end().0, reason);
    }
}

#[test]
fn a_guest_that_never_exits_can_be_paused_reset_and_stopped_with_any_number_of_vcpus() {
    for (vcpus, op, reason) in [
        (1, Operation::Stop, ExitReason::Stopped),
        (4, Operation::Reset, ExitReason::GuestReset),
    ] {
        let Some(kvm) = kvm() else { return };
        let spec = Spec {
            vcpus,
            ..Spec::program(&Code::new().print("spinning").spin().bzimage())
        };
        let mut guest = Guest::start(kvm, spec);
        guest.wait_output("spinning");
        for _ in 0..20 {
            guest.ask(Operation::Pause).unwrap();
            guest.ask(Operation::Resume).unwrap();
        }
        assert!(guest.metric("vcpu0_kicks_total") > 0);
        guest.ask(op).unwrap();
        assert_eq!(guest.wait_end().0, reason);
    }
}

#[test]
fn the_power_button_is_seen_by_a_guest_that_looks() {
    let Some(kvm) = kvm() else { return };
    // Enable the button, wait for its status bit (bit 0 of the second byte), acknowledge, switch off.
    let code = Code::new()
        .out16(0x602, 0x100)
        .print("ready")
        .wait_bit(0x601, 1)
        .out16(0x600, 0x100)
        .print("!")
        .power_off();
    let mut guest = Guest::start(kvm, Spec::program(&code.bzimage()));
    guest.wait_output("ready");
    guest.ask(Operation::PowerButton).unwrap();
    let (reason, output) = guest.wait_end();
    assert_eq!(
        (reason, output.as_str()),
        (ExitReason::GuestPowerOff, "ready!")
    );
}

#[test]
fn several_watch_and_control_and_a_late_one_sees_it_all() {
    let Some(kvm) = kvm() else { return };
    let mut guest = Guest::start(
        kvm,
        Spec::program(&Code::new().print("from the start").echo().bzimage()),
    );
    guest.wait_output("from the start");
    let mut late = guest.another_serial();
    let mut seen = [0; 14];
    late.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"from the start");
    let mut greeting = String::new();
    let mut control = guest.another_control();
    control.read_line(&mut greeting).unwrap();
    assert_eq!(greeting, "{\"event\":\"running\"}\n");
    guest.ask(Operation::Stop).unwrap();
    let mut event = String::new();
    control.read_line(&mut event).unwrap();
    assert_eq!(
        event,
        "{\"event\":\"exiting\",\"reason\":{\"kind\":\"stopped\"}}\n"
    );
    guest.wait_end();
}

#[test]
fn what_is_no_kernel_is_an_error_with_a_reason() {
    let Some(kvm) = kvm() else { return };
    let (reason, _) = Guest::start(kvm, Spec::program(&[0; 8192])).wait_end();
    let ExitReason::Error { message } = reason else {
        panic!("{reason:?}")
    };
    assert!(message.contains("not a bootable kernel"), "{message}");
}

/// What a guest writes where it should not can end the guest, never the process: no panic, no forbidden system call (which
/// would kill this test), and the machine still answers afterwards or says why it has ended.
#[test]
fn a_guest_that_pokes_at_random_hurts_only_itself() {
    for seed in [1u64, 0x5eed_5eed_5eed, 0xdead_beef_0000] {
        let Some(kvm) = kvm() else { return };
        let disk = file(&[0; 1 << 20]);
        let disk = DiskConfig {
            id: "d".into(),
            fd: disk.into_raw_fd(),
            format: DiskFormat::Raw,
            backing: vec![],
            read_only: false,
            serial: "s".into(),
            limits: RateLimits::default(),
        };
        let (slot1, slot2) = (0xe000_8000, 0xe001_0000);
        // Memory decoding and bus mastering on; then capabilities, BARs, the devices' own registers, empty places.
        let mut code = Code::new().store(slot1 + 4, 6).store(slot2 + 4, 6);
        for (round, width) in (1u64..).zip([4, 1, 2, 4, 8]) {
            let seed = seed * round;
            code = code
                .poke(0xc010_0000, 0x3f, width, 2000, seed)
                .poke(0xc010_0000, 0x7fff, width, 2000, seed)
                .poke(0xc020_0000, 0x7fff, width, 2000, seed)
                .poke(0xe000_8010, 0xff, width, 500, seed)
                .poke(0xe000_0000, 0x1_ffff, width, 500, seed)
                .poke(0xc000_0000, 0x1fff_ffff, width, 500, seed)
                .poke(0xe000_0000, 0x0fff_ffff, width, 500, seed);
        }
        let code = code.print("survived").echo();
        let spec = Spec {
            disks: vec![disk],
            rng: true,
            ..Spec::program(&code.bzimage())
        };
        let mut guest = Guest::start(kvm, spec);
        while guest.is_alive() && !guest.output_now().contains("survived") {}
        if guest.is_alive() {
            assert!(guest.metric("pci_unanswered_accesses_total") > 0);
            guest.ask(Operation::Stop).unwrap();
        }
        let (reason, _) = guest.wait_end();
        println!("seed {seed:#x}: {reason:?}");
        // A device that was told to write over the guest's program may have crashed it.
        let expected = matches!(reason, ExitReason::Stopped | ExitReason::TripleFault);
        assert!(
            expected || format!("{reason:?}").contains("KVM internal error"),
            "{reason:?}"
        );
    }
}

#[test]
fn linux_boots_to_userspace_and_switches_off() {
    for kernel in kernels() {
        let Some(kvm) = kvm() else { return };
        let mut guest = Guest::start(
            kvm,
            Spec::linux(&kernel, file(&one_shot(MARKER, POWER_OFF))),
        );
        let output = guest.wait_output(MARKER.trim()).to_owned();
        for line in [
            "ACPI: Interpreter enabled",
            "PCI: Using configuration type 1",
            "Kernel command line: console=ttyS0",
        ] {
            assert!(output.contains(line), "no {line:?} in\n{output}");
        }
        assert!(
            !output.contains("ACPI BIOS Error") && !output.contains("ACPI Error"),
            "{output}"
        );
        let (reason, output) = guest.wait_end();
        assert_eq!(reason, ExitReason::GuestPowerOff, "{kernel}:\n{output}");
    }
}

#[test]
fn linux_brings_up_all_its_vcpus_and_restarts() {
    // One kernel will do: how it was loaded makes no difference to its further CPUs.
    let Some(kernel) = kernels().into_iter().next() else {
        return;
    };
    let Some(kvm) = kvm() else { return };
    let spec = Spec {
        vcpus: 2,
        ..Spec::linux(&kernel, file(&one_shot(MARKER, RESTART)))
    };
    let mut guest = Guest::start(kvm, spec);
    let output = guest.wait_output(MARKER.trim()).to_owned();
    assert!(output.contains("Brought up 1 node, 2 CPUs"), "{output}");
    let (reason, output) = guest.wait_end();
    assert_eq!(reason, ExitReason::GuestReset, "{kernel}:\n{output}");
}

#[test]
fn linux_shuts_down_when_the_power_button_is_pressed() {
    for (kernel, modules) in kernels_with_modules() {
        let Some(kvm) = kvm() else { return };
        let script =
            "echo waiting; dd if=/dev/input/event0 of=/dev/null bs=24 count=1; echo pressed";
        let Some(initrd) = initramfs::busybox(&modules, &["button", "evdev"], script) else {
            return;
        };
        let mut guest = Guest::start(kvm, Spec::linux(&kernel, file(&initrd)));
        guest.wait_output("waiting");
        // Until dd has opened the device there is nobody to hear it.
        let mut presses = 0;
        while guest.is_alive() && presses < 100 {
            let _ = guest.try_ask(Operation::PowerButton);
            std::thread::sleep(Duration::from_millis(200));
            presses += 1;
        }
        let (reason, output) = guest.wait_end();
        assert!(output.contains("pressed"), "{output}");
        assert_eq!(reason, ExitReason::GuestPowerOff, "{kernel}:\n{output}");
    }
}

#[test]
fn the_given_initial_ram_disk_runs_to_its_end() {
    let Ok(initrd) = std::env::var("LQX_TEST_INITRD") else {
        eprintln!("SKIP: LQX_TEST_INITRD names no initial RAM disk");
        return;
    };
    let Some(kernel) = kernels().into_iter().next() else {
        return;
    };
    let Some(kvm) = kvm() else { return };
    let mut guest = Guest::start(kvm, Spec::linux(&kernel, File::open(&initrd).unwrap()));
    if let Ok(marker) = std::env::var("LQX_TEST_MARKER") {
        guest.wait_output(&marker);
    }
    let (reason, output) = guest.wait_end();
    assert_eq!(reason, ExitReason::GuestPowerOff, "{kernel}:\n{output}");
}
