//! The life of a VM, its tasks and what else hangs on it, told as stories.

mod common;

use api::ErrorCode;
use api::ids::*;
use api::images::{ImageFormat, ImageKind, ImagePhase};
use api::tasks::TaskPhase;
use api::units::{Mib, Millis};
use api::users::{AuditRecord, Role, Secret, TokenKind};
use api::vms::*;
use api::volumes::VolumeUpdate;
use common::*;
use expect_test::{Expect, expect};
use hostd_state::{Command, Idempotency, Meta, Report, StopMode, VmReport, Want, can};
use uuid::Uuid;

fn check(refused: String, expected: Expect) {
    expected.assert_eq(&refused);
}

fn phase_of(world: &World, task: TaskId) -> TaskPhase {
    world
        .state
        .task(task)
        .expect("the task is kept")
        .phase
        .clone()
}

#[test]
fn a_vm_is_started_runs_and_is_stopped() {
    let mut world = World::with_web();
    assert_eq!(world.vm(WEB).want(), Want::Nothing);
    let start = world.start(WEB);
    let outcome = world.ok(start).outcome;
    assert_eq!(outcome.object, Some(WEB.0));
    let task = outcome.task.unwrap();
    assert_eq!(phase_of(&world, task), TaskPhase::Running);
    assert_eq!(world.vm(WEB).want(), Want::Up { generation: 1 });

    world.ok(observed(WEB, 1, VmReport::Running));
    assert_eq!(world.vm(WEB).phase, VmPhase::Running);
    assert_eq!(phase_of(&world, task), TaskPhase::Succeeded);

    let stop = world.stop(WEB);
    let task = world.ok(stop).outcome.task.unwrap();
    assert!(matches!(
        world.vm(WEB).want(),
        Want::Down {
            generation: 1,
            mode: StopMode::Graceful { .. }
        }
    ));
    // What it says while it goes down does not bring it back.
    world.ok(observed(WEB, 1, VmReport::Running));
    assert_eq!(world.vm(WEB).phase, VmPhase::Stopping);
    world.ok(observed(WEB, 1, VmReport::Ended(VmExit::GuestPowerOff)));
    assert_eq!(world.vm(WEB).phase, VmPhase::Stopped);
    assert_eq!(phase_of(&world, task), TaskPhase::Succeeded);
}

#[test]
fn a_kill_overtakes_a_stop_and_both_tasks_end() {
    let mut world = World::with_web_running();
    let stop = world.stop(WEB);
    let stop = world.ok(stop).outcome.task.unwrap();
    let kill = world.kill(WEB);
    let kill = world.ok(kill).outcome.task.unwrap();
    assert_eq!(world.vm(WEB).stop, Some(StopMode::Kill));
    world.ok(observed(WEB, 1, VmReport::Ended(VmExit::Stopped)));
    assert_eq!(phase_of(&world, stop), TaskPhase::Succeeded);
    assert_eq!(phase_of(&world, kill), TaskPhase::Succeeded);
}

#[test]
fn a_reboot_comes_up_as_the_next_generation() {
    let mut world = World::with_web_running();
    let reboot = world.reboot(WEB);
    let task = world.ok(reboot).outcome.task.unwrap();
    world.ok(observed(WEB, 1, VmReport::Ended(VmExit::GuestPowerOff)));
    assert_eq!(world.vm(WEB).want(), Want::Up { generation: 2 });
    assert_eq!(phase_of(&world, task), TaskPhase::Running);
    world.ok(observed(WEB, 2, VmReport::Running));
    assert_eq!(phase_of(&world, task), TaskPhase::Succeeded);
}

#[test]
fn a_stop_during_a_reboot_leaves_it_down() {
    let mut world = World::with_web_running();
    let reboot = world.reboot(WEB);
    let reboot = world.ok(reboot).outcome.task.unwrap();
    let stop = world.stop(WEB);
    world.ok(stop);
    world.ok(observed(WEB, 1, VmReport::Ended(VmExit::GuestPowerOff)));
    assert_eq!(world.vm(WEB).phase, VmPhase::Stopped);
    assert!(matches!(phase_of(&world, reboot), TaskPhase::Failed { .. }));
}

#[test]
fn a_report_about_an_older_generation_is_void() {
    let mut world = World::with_web_running();
    world.ok(observed(WEB, 1, VmReport::Ended(VmExit::GuestReset)));
    assert_eq!(world.vm(WEB).generation, 2);
    let before = world.vm(WEB).clone();
    let applied = world.ok(observed(WEB, 1, died()));
    assert!(applied.changes.is_empty());
    assert_eq!(*world.vm(WEB), before);
}

#[test]
fn what_a_guest_does_to_itself_decides_what_is_wanted() {
    for (exit, on_crash, phase, generation) in [
        (VmExit::GuestPowerOff, OnCrash::Restart, VmPhase::Stopped, 1),
        (VmExit::GuestReset, OnCrash::Stay, VmPhase::Starting, 2),
        (VmExit::TripleFault, OnCrash::Stay, VmPhase::Failed, 1),
        (VmExit::TripleFault, OnCrash::Restart, VmPhase::Starting, 2),
        (VmExit::HostDown, OnCrash::Stay, VmPhase::Starting, 2),
    ] {
        let mut world = World::with_web();
        world.ok(update(
            WEB,
            VmUpdate {
                on_crash: Some(on_crash),
                ..VmUpdate::default()
            },
        ));
        let start = world.start(WEB);
        world.ok(start);
        world.ok(observed(WEB, 1, VmReport::Running));
        world.ok(observed(WEB, 1, VmReport::Ended(exit.clone())));
        let vm = world.vm(WEB);
        assert_eq!(
            (vm.phase, vm.generation),
            (phase, generation),
            "{exit:?} {on_crash:?}"
        );
        assert_eq!(vm.last_exit, Some(exit));
        assert_eq!(vm.condition.is_some(), phase == VmPhase::Failed);
    }
}

#[test]
fn a_vm_that_crashes_again_and_again_stays_down() {
    let mut world = World::with_web();
    world.ok(update(
        WEB,
        VmUpdate {
            on_crash: Some(OnCrash::Restart),
            ..VmUpdate::default()
        },
    ));
    let start = world.start(WEB);
    world.ok(start);
    for generation in 1..=6 {
        assert_eq!(world.vm(WEB).phase, VmPhase::Starting, "{generation}");
        world.ok(observed(WEB, generation, VmReport::Running));
        world.ok(observed(WEB, generation, died()));
    }
    assert_eq!(world.vm(WEB).phase, VmPhase::Failed);
    assert_eq!(world.vm(WEB).generation, 6);
    // Far apart, they do not add up.
    let start = world.start(WEB);
    world.ok(start);
    for generation in 7..20 {
        world.at.0 += 11 * 60 * 1000;
        world.ok(observed(WEB, generation, died()));
        assert_eq!(world.vm(WEB).phase, VmPhase::Starting, "{generation}");
    }
}

#[test]
fn a_launch_that_fails_says_why_in_vm_and_task() {
    let mut world = World::with_web();
    let start = world.start(WEB);
    let task = world.ok(start).outcome.task.unwrap();
    world.ok(observed(
        WEB,
        1,
        VmReport::LaunchFailed(fault("kernel_not_bootable")),
    ));
    assert_eq!(world.vm(WEB).phase, VmPhase::Failed);
    assert_eq!(
        world.vm(WEB).condition.as_ref().unwrap().code,
        "kernel_not_bootable"
    );
    let TaskPhase::Failed { error } = phase_of(&world, task) else {
        panic!("the task has not failed")
    };
    assert_eq!(
        (error.code, error.message.as_str()),
        (ErrorCode::Internal, "it did not work")
    );
    // And it may be tried again.
    let start = world.start(WEB);
    world.ok(start);
    assert_eq!(world.vm(WEB).generation, 2);
    assert_eq!(world.vm(WEB).condition, None);
}

#[test]
fn after_a_host_restart_everything_is_as_it_was_wanted() {
    let mut world = World::with_web_running();
    let db = VmCreate {
        autostart: true,
        ..vm_spec("db", 64)
    };
    world.ok(create(DB, db));
    let third = VmId(Uuid::from_u128(70));
    world.ok(vm_create(third, "third", 64));
    let start = world.start(third);
    world.ok(start);
    let stop = world.stop(third);
    let stop = world.ok(stop).outcome.task.unwrap();

    let booted = |boot_id: &str| Command::HostBooted {
        host: HOST,
        boot_id: boot_id.into(),
    };
    // The daemon restarted, not the kernel: nothing happened.
    assert!(world.ok(booted("boot-1")).changes.is_empty());

    world.ok(booted("boot-2"));
    assert_eq!(world.vm(WEB).want(), Want::Up { generation: 2 });
    assert_eq!(world.vm(WEB).last_exit, Some(VmExit::HostDown));
    assert_eq!(world.vm(DB).want(), Want::Up { generation: 1 });
    assert_eq!(world.vm(third).phase, VmPhase::Stopped);
    assert_eq!(phase_of(&world, stop), TaskPhase::Succeeded);
}

#[test]
fn after_a_restart_with_less_memory_the_rest_says_why() {
    let mut world = World::with_web_running();
    world.ok(vm_create(DB, "db", 1024));
    let start = world.start(DB);
    world.ok(start);
    // Both fitted into 2 GiB; 1 GiB is left after a module was taken out.
    let mut fresh = world.state.clone();
    let meta = Meta::host(world.at);
    let register = register(HOST, "alpha", 1024);
    fresh.apply(fresh.revision() + 1, &meta, &register).unwrap();
    let booted = Command::HostBooted {
        host: HOST,
        boot_id: "boot-2".into(),
    };
    fresh.apply(fresh.revision() + 1, &meta, &booted).unwrap();
    assert_eq!(fresh.vm(WEB).unwrap().phase, VmPhase::Starting);
    let db = fresh.vm(DB).unwrap();
    assert_eq!(db.phase, VmPhase::Failed);
    expect_test::expect!["its host restarted, and host `alpha` has 240 MiB left for guests, 1040 MiB are needed (1024 MiB and 16 MiB for its process)"]
        .assert_eq(&db.condition.as_ref().unwrap().cause);
    let wrong = hostd_state::invariants::violations(&fresh);
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn memory_is_promised_once_and_given_back() {
    let mut world = World::with_web();
    world.ok(vm_create(DB, "db", 1400));
    let start = world.start(DB);
    let host_changed = world.ok(start).changes.iter().any(|c| c.id == HOST.0);
    assert!(host_changed, "its host shows what it promised");
    let host = world.state.host(HOST).unwrap();
    assert_eq!(world.state.memory_promised(host), Mib(1400));
    let can_start = |world: &World| can::all(&world.state, world.vm(WEB))[0].why_not.clone();
    expect_test::expect!["host `alpha` has 120 MiB left for guests, 272 MiB are needed (256 MiB and 16 MiB for its process)"]
        .assert_eq(&can_start(&world).unwrap());
    world.ok(observed(DB, 1, died()));
    assert_eq!(can_start(&world), None);
}

#[test]
fn a_volume_shows_whose_it_is_from_creation_to_removal() {
    let mut world = World::furnished();
    world.volume(ROOT, "root");
    let spec = VmCreate {
        disks: vec![disk("root")],
        nics: vec![nic("lan"), nic("lan")],
        ..vm_spec("web", 256)
    };
    let changes = world.ok(create(WEB, spec)).changes;
    let view = |world: &World| world.state.volume_view(world.state.volume(ROOT).unwrap());
    assert_eq!(view(&world).attached_to, Some(WEB));
    assert!(changes.iter().any(|c| c.id == ROOT.0));
    let lan = world.state.network_view(world.state.network(LAN).unwrap());
    assert_eq!(lan.nics, 2);
    let delete = world.vm_delete(WEB);
    let task = world.ok(delete).outcome.task.unwrap();
    assert_eq!(world.vm(WEB).want(), Want::Gone);
    world.ok(Command::VmRemoved { vm: WEB });
    assert_eq!(view(&world).attached_to, None);
    assert_eq!(phase_of(&world, task), TaskPhase::Succeeded);
    let gone = world.task();
    world.ok(Command::VolumeDelete {
        volume: ROOT,
        task: gone,
    });
    world.ok(Command::VolumeRemoved { volume: ROOT });
    assert!(world.state.volume(ROOT).is_none());
}

#[test]
fn a_volume_grows_once_at_a_time_and_never_shrinks() {
    let mut world = World::furnished();
    world.volume(ROOT, "root");
    let view = |world: &World| world.state.volume_view(world.state.volume(ROOT).unwrap());
    let size = view(&world).size;
    let larger = |by| Mib(size.0 + by);
    let grow = |world: &mut World, to| {
        let update = VolumeUpdate {
            revision: None,
            size: to,
        };
        let task = world.task();
        (
            task,
            Command::VolumeGrow {
                volume: ROOT,
                task,
                update,
            },
        )
    };
    let grown = |size, fault| Command::VolumeGrown {
        volume: ROOT,
        size,
        fault,
    };
    let (task, command) = grow(&mut world, larger(5));
    world.ok(command);
    assert_eq!(view(&world).growing_to, Some(larger(5)));
    assert_eq!(view(&world).size, size, "not before it has");
    let (_, again) = grow(&mut world, larger(6));
    assert!(world.refused(again).starts_with("wrong_phase:"));
    let delete = world.task();
    let delete = Command::VolumeDelete {
        volume: ROOT,
        task: delete,
    };
    assert!(world.refused(delete).starts_with("wrong_phase:"));
    // About another size: nobody asked.
    world.ok(grown(larger(9), None));
    assert_eq!(phase_of(&world, task), TaskPhase::Running);
    world.ok(grown(larger(5), None));
    assert_eq!(phase_of(&world, task), TaskPhase::Succeeded);
    assert_eq!(
        (view(&world).size, view(&world).growing_to),
        (larger(5), None)
    );
    world.ok(grown(larger(5), Some(fault("late"))));
    assert_eq!(view(&world).size, larger(5));

    for wrong in [Mib(0), size, larger(5), Mib(api::volumes::SIZE_MAX.0 + 1)] {
        let (_, command) = grow(&mut world, wrong);
        assert!(world.refused(command).starts_with("invalid:"), "{wrong}");
    }
    let seen = view(&world).revision;
    for (revision, fits) in [(seen - 1, false), (seen, true)] {
        let task = world.task();
        let update = VolumeUpdate {
            revision: Some(revision),
            size: larger(7),
        };
        let command = Command::VolumeGrow {
            volume: ROOT,
            task,
            update,
        };
        match fits {
            true => drop(world.ok(command)),
            false => assert!(world.refused(command).starts_with("revision_conflict:")),
        }
    }
    // It could not: it is as it was, and may be asked again.
    world.ok(grown(larger(7), Some(fault("no_space"))));
    assert_eq!(
        (view(&world).size, view(&world).growing_to),
        (larger(5), None)
    );
    assert_eq!(view(&world).phase, api::volumes::VolumePhase::Ready);
    let (task, command) = grow(&mut world, larger(7));
    world.ok(command);
    // Its bytes are lost meanwhile.
    world.ok(Command::VolumeObserved {
        volume: ROOT,
        report: Report::Failed(fault("volume_lost")),
    });
    assert!(matches!(phase_of(&world, task), TaskPhase::Failed { .. }));
    assert_eq!(view(&world).growing_to, None);
}

#[test]
fn a_retry_gets_the_first_answer_and_another_request_does_not() {
    let mut world = World::with_web();
    let request = |digest: &str, at: Millis| Meta {
        request: Some(Idempotency {
            key: "k1".into(),
            digest: digest.into(),
        }),
        by: Some(ANNA),
        ..Meta::host(at)
    };
    let start = world.start(WEB);
    let first = world.apply_with(request("d1", world.at), start).unwrap();
    // The retry minted a fresh task id; the answer still names the first task.
    let again = world.start(WEB);
    let retry = world.apply_with(request("d1", world.at), again).unwrap();
    assert_eq!(retry.outcome.task, first.outcome.task);
    assert!(retry.outcome.replayed && retry.changes.is_empty());

    let other = world.stop(WEB);
    let refused = world
        .apply_with(request("d2", world.at), other)
        .unwrap_err();
    assert_eq!(refused.code, ErrorCode::IdempotencyMismatch);

    // Somebody else's key of the same text is another key.
    let mut meta = request("d2", world.at);
    meta.by = None;
    let stop = world.stop(WEB);
    assert!(!world.apply_with(meta, stop).unwrap().outcome.replayed);

    // After a day it is forgotten.
    world.at.0 += 25 * 3600 * 1000;
    world.ok(observed(WEB, 1, VmReport::Ended(VmExit::Stopped)));
    let start = world.start(WEB);
    let late = world.apply_with(request("d3", world.at), start).unwrap();
    assert!(!late.outcome.replayed);
}

#[test]
fn the_audit_ring_says_what_became_of_each_command() {
    let mut world = World::with_web();
    let audit = |n: u128, outcome: &str| AuditRecord {
        id: AuditId(Uuid::from_u128(n)),
        at: Millis(1),
        who: "anna".into(),
        from: "192.0.2.1".into(),
        action: "vm_start".into(),
        object: "web".into(),
        outcome: outcome.into(),
        request_id: "r".into(),
    };
    let meta = |n, outcome: &str| Meta {
        audit: Some(audit(n, outcome)),
        ..Meta::host(Millis(1))
    };
    let start = world.start(WEB);
    world.apply_with(meta(1, ""), start).unwrap();
    let start = world.start(WEB);
    world.apply_with(meta(2, ""), start).unwrap_err();
    world
        .apply_with(meta(3, "unauthenticated"), Command::AuditNote)
        .unwrap();
    let outcomes: Vec<&str> = world.state.audit().map(|r| r.outcome.as_str()).collect();
    assert_eq!(outcomes, ["ok", "wrong_phase", "unauthenticated"]);
}

#[test]
fn a_token_lives_until_its_end_and_is_swept_after() {
    let mut world = World::furnished();
    let token = |n: u128, ends: u64| Command::TokenCreate {
        token: TokenId(Uuid::from_u128(n)),
        kind: TokenKind::Session,
        name: name("s"),
        user: ANNA,
        role: Role::Admin,
        hash: Secret(format!("hash-{n}")),
        expires_at: Millis(ends),
    };
    world.ok(token(50, 2_000_000));
    let found = |world: &World, at| world.state.token_by_hash("hash-50", Millis(at)).is_some();
    assert!(found(&world, 1_999_999));
    assert!(!found(&world, 2_000_000));
    world.at = Millis(2_000_001);
    world.ok(token(51, 3_000_000));
    assert!(
        world.state.token(TokenId(Uuid::from_u128(50))).is_none(),
        "swept"
    );
    // Sessions are bounded: the one that ends first makes room.
    for n in 0..70 {
        world.ok(token(100 + n, 4_000_000 + n as u64));
    }
    assert_eq!(world.state.tokens().count(), 64);
    assert!(world.state.token(TokenId(Uuid::from_u128(51))).is_none());
    world.ok(Command::TokenRevoke {
        token: TokenId(Uuid::from_u128(169)),
    });
    assert!(world.state.token_by_hash("hash-169", Millis(0)).is_none());
}

#[test]
fn ended_tasks_are_forgotten_oldest_first_and_running_ones_never() {
    let mut world = World::with_web();
    let slow = world.volume_create(ROOT, "root", 64);
    let slow = world.ok(slow).outcome.task.unwrap();
    for generation in 1..=600 {
        let start = world.start(WEB);
        world.ok(start);
        let kill = world.kill(WEB);
        world.ok(kill);
        world.ok(observed(WEB, generation, VmReport::Ended(VmExit::Stopped)));
    }
    assert_eq!(world.state.tasks().count(), 1001);
    assert_eq!(phase_of(&world, slow), TaskPhase::Running);
    world.at.0 += 8 * 24 * 3600 * 1000;
    world.ok(Command::VolumeObserved {
        volume: ROOT,
        report: Report::Ready,
    });
    assert_eq!(world.state.tasks().count(), 1);
}

#[test]
fn a_qcow2_image_is_ready_once_its_disk_is_known_and_volumes_are_as_large_as_that() {
    let mut world = World::furnished();
    let image = ImageId(Uuid::from_u128(90));
    let with_format = |create: Command| match create {
        Command::ImageCreate {
            image,
            task,
            host,
            mut spec,
        } => {
            spec.format = ImageFormat::Qcow2;
            Command::ImageCreate {
                image,
                task,
                host,
                spec,
            }
        }
        other => other,
    };
    let kernel = with_format(world.image_create(image, "packed", ImageKind::Kernel));
    check(
        world.refused(kernel),
        expect![
            "invalid: only a disk has a format | leave `format` out, or upload it as kind `disk`"
        ],
    );
    let disk = with_format(world.image_create(image, "packed", ImageKind::Disk));
    world.ok(disk);
    let ready = |virtual_bytes| Command::ImageObserved {
        image,
        report: Report::Ready,
        virtual_bytes,
    };
    check(
        world.refused(ready(None)),
        expect![
            "invalid: image `packed` is qcow2 and its disk's size was not said | look into it first"
        ],
    );
    assert_eq!(
        world.state.image(image).unwrap().phase,
        ImagePhase::Uploading
    );
    world.ok(ready(Some((20 << 20) + 1)));
    let record = world.state.image(image).unwrap();
    assert_eq!(record.virtual_bytes, Some((20 << 20) + 1));
    assert_eq!(record.size_bytes, 10 << 20);

    let mut volume = |size: u64| {
        let id = VolumeId(Uuid::from_u128(91));
        match world.volume_create(id, "root", size) {
            Command::VolumeCreate {
                volume,
                task,
                host,
                mut spec,
            } => {
                spec.from_image = Some(by_name("packed"));
                Command::VolumeCreate {
                    volume,
                    task,
                    host,
                    spec,
                }
            }
            other => other,
        }
    };
    let (small, right) = (volume(20), volume(21));
    check(
        world.refused(small),
        expect![
            "invalid: image `packed` does not fit into 20 MiB | choose a size of at least 21 MiB"
        ],
    );
    world.ok(right);

    // What a raw image is said to hold inside is not believed.
    let raw = ImageId(Uuid::from_u128(92));
    let create = world.image_create(raw, "raw", ImageKind::Disk);
    world.ok(create);
    world.ok(Command::ImageObserved {
        image: raw,
        report: Report::Ready,
        virtual_bytes: Some(1),
    });
    assert_eq!(world.state.image(raw).unwrap().virtual_bytes, None);
}
