//! What is refused, in which words: a code for programs, a sentence and a hint for people.

mod common;

use api::ids::*;
use api::images::ImageKind;
use api::limits::{NicLimits, RateLimits};
use api::names::Ref;
use api::networks::{NetworkCreate, NetworkKind};
use api::units::{Mib, Millis};
use api::users::{Role, Secret, TokenKind};
use api::vms::*;
use api::volumes::VolumeCreate;
use common::*;
use expect_test::{Expect, expect};
use hostd_state::{Command, Report, VmReport};
use uuid::Uuid;

fn check(refused: String, expected: Expect) {
    expected.assert_eq(&refused);
}

#[test]
fn what_a_vm_may_not_be() {
    let mut world = World::with_web();
    world.volume(ROOT, "root");
    let broken = VolumeId(Uuid::from_u128(80));
    let make = world.volume_create(broken, "broken", 64);
    world.ok(make);
    world.ok(Command::VolumeObserved {
        volume: broken,
        report: Report::Failed(fault("no_space")),
    });
    let with = |change: &dyn Fn(&mut VmCreate)| {
        let mut spec = vm_spec("db", 256);
        change(&mut spec);
        create(DB, spec)
    };
    let kernel = |kernel: &str, initrd: Option<&str>, cmdline: &str| BootSpec::Kernel {
        kernel: by_name(kernel),
        initrd: initrd.map(by_name),
        cmdline: cmdline.into(),
    };
    let mac = |mac: &str| NicSpec {
        mac: Some(mac.into()),
        ..nic("lan")
    };
    let rate = |rate| RateLimits {
        operations_per_second: rate,
        operations_burst: Some(7),
        ..RateLimits::default()
    };
    let table: Vec<(Command, Expect)> = vec![
        (
            with(&|s| {
                s.disks = vec![DiskSpec {
                    limits: rate(None),
                    ..disk("root")
                }]
            }),
            expect![
                "invalid: the limits of volume `root`: operations_burst needs operations_per_second | leave out what is not to be limited"
            ],
        ),
        (
            with(&|s| {
                s.nics = vec![NicSpec {
                    limits: NicLimits {
                        transmit: rate(Some(0)),
                        ..NicLimits::default()
                    },
                    ..nic("lan")
                }]
            }),
            expect![
                "invalid: the limits of NIC 0, transmit: operations_per_second is 0; it must be between 1 and 1125899906842624, or absent | leave out what is not to be limited"
            ],
        ),
        (
            with(&|s| s.name = name("web")),
            expect![
                "exists: there is a vm `web` already | choose another name, or delete the one that is there"
            ],
        ),
        (
            with(&|s| s.memory = Mib(31)),
            expect![
                "invalid: a vm has 32 MiB to 4194304 MiB of memory, not 31 MiB | choose another amount"
            ],
        ),
        (
            with(&|s| s.vcpus = 0),
            expect!["invalid: a vm has 1 to 64 vCPUs, not 0 | choose another number"],
        ),
        (
            with(&|s| s.vcpus = 65),
            expect!["invalid: a vm has 1 to 64 vCPUs, not 65 | choose another number"],
        ),
        (
            with(&|s| s.boot = kernel("nothing", None, "")),
            expect![
                "not_found: there is no image `nothing` | list the images to see which there are"
            ],
        ),
        (
            with(&|s| s.boot = kernel("initrd", None, "")),
            expect!["invalid: image `initrd` is not a kernel | choose an image of the right kind"],
        ),
        (
            with(&|s| s.boot = kernel("kernel", Some("debian"), "")),
            expect!["invalid: image `debian` is not an initrd | choose an image of the right kind"],
        ),
        (
            with(&|s| s.boot = kernel("kernel", None, "a\nb")),
            expect![
                "invalid: the kernel's command line has a control character | separate its words by spaces"
            ],
        ),
        (
            with(&|s| s.boot = kernel("kernel", None, &"a".repeat(2048))),
            expect![
                "invalid: the kernel's command line is longer than 2047 bytes | shorten it; a guest can read more from its disk"
            ],
        ),
        (
            with(&|s| s.disks = vec![disk("nothing")]),
            expect![
                "not_found: there is no volume `nothing` | list the volumes to see which there are"
            ],
        ),
        (
            with(&|s| s.disks = vec![disk("root"), disk("root")]),
            expect!["invalid: volume `root` is named twice | give each disk its own volume"],
        ),
        (
            with(&|s| s.disks = vec![disk("broken")]),
            expect!["not_ready: volume `broken` has failed | delete it and create it again"],
        ),
        (
            with(&|s| s.disks = vec![disk("root"); 17]),
            expect!["invalid: a vm has at most 16 disks, not 17 | leave some out"],
        ),
        (
            with(&|s| s.nics = vec![nic("nothing")]),
            expect![
                "not_found: there is no network `nothing` | list the networks to see which there are"
            ],
        ),
        (
            with(&|s| s.nics = vec![nic("lan"); 17]),
            expect!["invalid: a vm has at most 16 NICs, not 17 | leave some out"],
        ),
        (
            with(&|s| s.nics = vec![mac("52:54:00:12:34")]),
            expect![
                "invalid: `52:54:00:12:34` is not a MAC address for a NIC: it has not six pairs of hexadecimal digits | write for instance `52:54:00:12:34:56`"
            ],
        ),
        (
            with(&|s| s.nics = vec![mac("01:00:5e:00:00:01")]),
            expect![
                "invalid: `01:00:5e:00:00:01` is not a MAC address for a NIC: it is a group address | write for instance `52:54:00:12:34:56`"
            ],
        ),
        (
            with(&|s| s.nics = vec![mac("00:00:00:00:00:00")]),
            expect![
                "invalid: `00:00:00:00:00:00` is not a MAC address for a NIC: it is all zero | write for instance `52:54:00:12:34:56`"
            ],
        ),
        (
            with(&|s| s.nics = vec![mac("52:54:00:00:00:0A"), mac("52:54:00:00:00:0a")]),
            expect![
                "exists: MAC address 52:54:00:00:00:0a is taken | choose another, or none and get one"
            ],
        ),
        (
            Command::VmCreate {
                vm: DB,
                host: HostId(Uuid::nil()),
                spec: vm_spec("db", 256),
                macs: vec![],
            },
            expect![
                "not_found: there is no host `00000000-0000-0000-0000-000000000000` | list the hosts to see which there are"
            ],
        ),
    ];
    for (command, expected) in table {
        check(world.refused(command), expected);
    }
}

#[test]
fn what_is_used_is_not_taken_away() {
    let mut world = World::furnished();
    world.volume(ROOT, "root");
    world.ok(create(
        WEB,
        VmCreate {
            disks: vec![disk("root")],
            nics: vec![nic("lan")],
            ..vm_spec("web", 256)
        },
    ));
    let filled = VolumeId(Uuid::from_u128(80));
    let task = world.task();
    world.ok(Command::VolumeCreate {
        volume: filled,
        task,
        host: HOST,
        spec: VolumeCreate {
            name: name("filled"),
            size: Mib(10),
            from_image: Some(by_name("debian")),
        },
    });
    let task = TaskId(Uuid::from_u128(7777));
    let reader = DiskSpec {
        read_only: true,
        ..disk("root")
    };
    let shares = |disks| {
        create(
            DB,
            VmCreate {
                disks,
                ..vm_spec("db", 64)
            },
        )
    };
    let table: Vec<(Command, Expect)> = vec![
        (
            Command::VolumeDelete { volume: ROOT, task },
            expect![
                "in_use: volume `root` belongs to vm `web` | delete the VM, or take the disk from it, first"
            ],
        ),
        (
            Command::VolumeDelete {
                volume: filled,
                task,
            },
            expect!["wrong_phase: volume `filled` is still being made | wait for its task"],
        ),
        (
            Command::ImageDelete {
                image: KERNEL,
                task,
            },
            expect![
                "in_use: image `kernel` is used by vm `web` | delete the VM, or have it boot from another image, first"
            ],
        ),
        (
            Command::ImageDelete {
                image: DISK_IMAGE,
                task,
            },
            expect![
                "in_use: volume `filled` is being filled from image `debian` | wait until the volume is ready"
            ],
        ),
        (
            Command::NetworkDelete { network: LAN, task },
            expect![
                "in_use: network `lan` is used by vm `web` | delete the VM, or take the NIC from it, first"
            ],
        ),
        (
            shares(vec![disk("root")]),
            expect![
                "in_use: volume `root` belongs to vm `web` | a volume has one VM that writes to it, or several that only read"
            ],
        ),
        (
            shares(vec![reader]),
            expect![
                "in_use: volume `root` belongs to vm `web` | a volume has one VM that writes to it, or several that only read"
            ],
        ),
        (
            Command::VolumeRemoved { volume: ROOT },
            expect!["wrong_phase: volume `root` is not being deleted | delete it first"],
        ),
        (
            Command::VmRemoved { vm: WEB },
            expect!["wrong_phase: vm `web` is not being deleted | delete it first"],
        ),
        (
            Command::UserDelete { user: ANNA },
            expect!["in_use: `anna` is the last administrator | make another administrator first"],
        ),
    ];
    for (command, expected) in table {
        check(world.refused(command), expected);
    }
}

#[test]
fn what_may_not_be_done_in_which_phase() {
    let mut world = World::with_web();
    let task = TaskId(Uuid::from_u128(7777));
    let deadline = Millis(u64::MAX);
    let verbs: [fn(TaskId, Millis) -> Command; 6] = [
        |task, _| Command::VmStart { vm: WEB, task },
        |task, deadline| Command::VmStop {
            vm: WEB,
            task,
            deadline,
        },
        |task, _| Command::VmKill { vm: WEB, task },
        |task, deadline| Command::VmReboot {
            vm: WEB,
            task,
            deadline,
        },
        |task, _| Command::VmDelete { vm: WEB, task },
        |_, _| {
            update(
                WEB,
                VmUpdate {
                    memory: Some(Mib(64)),
                    ..VmUpdate::default()
                },
            )
        },
    ];
    let table = |world: &World| {
        let mut lines = String::new();
        for verb in verbs {
            let mut copy = world.state.clone();
            let command = verb(task, deadline);
            let answer = copy.apply(copy.revision() + 1, &Default::default(), &command);
            let line = answer.map_or_else(|r| format!("{r} | {}", r.hint), |_| "ok".into());
            lines.push_str(&line);
            lines.push('\n');
        }
        // What the API shows as possible is what is possible.
        let can = hostd_state::can::all(&world.state, world.vm(WEB));
        let shown: Vec<bool> = can.iter().map(|c| c.why_not.is_none()).collect();
        let mut done: Vec<bool> = lines.lines().map(|line| line == "ok").collect();
        done.swap(4, 5);
        assert_eq!(shown, done);
        lines
    };
    check(
        table(&world),
        expect![[r#"
        ok
        vm `web` is stopped | start it first
        vm `web` is stopped | start it first
        vm `web` is stopped | start it first
        ok
        ok
    "#]],
    );
    let start = world.start(WEB);
    world.ok(start);
    check(
        table(&world),
        expect![[r#"
        vm `web` is starting | start it when it is stopped
        ok
        ok
        vm `web` is starting | wait until it runs
        vm `web` is starting | stop it first
        vm `web` is starting | stop it first
    "#]],
    );
    world.ok(observed(WEB, 1, VmReport::Running));
    check(
        table(&world),
        expect![[r#"
        vm `web` is running | start it when it is stopped
        ok
        ok
        ok
        vm `web` is running | stop it first
        vm `web` is running | stop it first
    "#]],
    );
    let stop = world.stop(WEB);
    world.ok(stop);
    check(
        table(&world),
        expect![[r#"
        vm `web` is stopping | start it when it is stopped
        vm `web` is stopping already | wait, or kill it
        ok
        vm `web` is stopping | wait until it runs
        vm `web` is stopping | stop it first
        vm `web` is stopping | stop it first
    "#]],
    );
    let kill = world.kill(WEB);
    world.ok(kill);
    check(
        table(&world),
        expect![[r#"
        vm `web` is stopping | start it when it is stopped
        vm `web` is stopping already | wait, or kill it
        vm `web` is being killed already | wait for its task
        vm `web` is stopping | wait until it runs
        vm `web` is stopping | stop it first
        vm `web` is stopping | stop it first
    "#]],
    );
    world.ok(observed(WEB, 1, VmReport::Ended(VmExit::Stopped)));
    let delete = world.vm_delete(WEB);
    world.ok(delete);
    check(
        table(&world),
        expect![[r#"
        vm `web` is being deleted | start it when it is stopped
        vm `web` is being deleted | start it first
        vm `web` is being deleted | start it first
        vm `web` is being deleted | start it first
        vm `web` is being deleted | stop it first
        vm `web` is being deleted | stop it first
    "#]],
    );
}

#[test]
fn what_is_not_ready_does_not_start() {
    let mut world = World::with_web();
    let raw = ImageId(Uuid::from_u128(90));
    let upload = world.image_create(raw, "raw", ImageKind::Kernel);
    world.ok(upload);
    let boot = BootSpec::Kernel {
        kernel: Ref::Id(raw.0),
        initrd: None,
        cmdline: String::new(),
    };
    world.ok(create(
        DB,
        VmCreate {
            boot,
            ..vm_spec("db", 64)
        },
    ));
    let start = world.start(DB);
    check(
        world.refused(start),
        expect!["not_ready: image `raw` is still uploading | wait for its task"],
    );

    let make = world.volume_create(ROOT, "root", 64);
    world.ok(make);
    world.ok(update(
        WEB,
        VmUpdate {
            disks: Some(vec![disk("root")]),
            ..VmUpdate::default()
        },
    ));
    let start = world.start(WEB);
    check(
        world.refused(start),
        expect!["not_ready: volume `root` is still being made | wait for its task"],
    );

    let task = world.task();
    let from_image = Command::VolumeCreate {
        volume: VolumeId(Uuid::from_u128(91)),
        task,
        host: HOST,
        spec: VolumeCreate {
            name: name("small"),
            size: Mib(9),
            from_image: Some(by_name("debian")),
        },
    };
    check(
        world.refused(from_image),
        expect![
            "invalid: image `debian` does not fit into 9 MiB | choose a size of at least 10 MiB"
        ],
    );
}

#[test]
fn a_change_made_on_an_old_reading_is_refused() {
    let mut world = World::with_web();
    let read = world.vm(WEB).revision;
    let change = |revision| {
        update(
            WEB,
            VmUpdate {
                revision: Some(revision),
                vcpus: Some(2),
                ..VmUpdate::default()
            },
        )
    };
    world.ok(change(read));
    check(
        world.refused(change(read)),
        expect![
            "revision_conflict: vm `web` has changed: it is at revision 13 | read it again and repeat the change on what it is now"
        ],
    );
    world.ok(vm_create(DB, "db", 64));
    let rename = update(
        DB,
        VmUpdate {
            name: Some(name("web")),
            ..VmUpdate::default()
        },
    );
    check(
        world.refused(rename),
        expect![
            "exists: there is a vm `web` already | choose another name, or delete the one that is there"
        ],
    );
}

#[test]
fn what_a_network_may_not_be() {
    let mut world = World::furnished();
    let id = NetworkId(Uuid::from_u128(60));
    let uplink = |uplink: &str, task| Command::NetworkCreate {
        network: id,
        task,
        spec: NetworkCreate {
            name: name("up"),
            kind: NetworkKind::Uplink {
                uplink: uplink.into(),
            },
        },
    };
    for (subnet, expected) in [
        (
            "10.77.0.128/25",
            expect!["in_use: `10.77.0.128/25` overlaps network `lan` | choose another subnet"],
        ),
        (
            "10.0.0.0/8",
            expect![
                "invalid: `10.0.0.0/8` is not a subnet for guests: the prefix length is not within 16 to 29 | write for instance `10.77.0.0/24`"
            ],
        ),
        (
            "10.0.0.1/24",
            expect![
                "invalid: `10.0.0.1/24` is not a subnet for guests: the address has bits beyond the prefix | write for instance `10.77.0.0/24`"
            ],
        ),
        (
            "127.0.0.0/24",
            expect![
                "invalid: `127.0.0.0/24` is not a subnet for guests: these addresses have another meaning | write for instance `10.77.0.0/24`"
            ],
        ),
        (
            "fe80::/64",
            expect![
                "invalid: `fe80::/64` is not a subnet for guests: not an IPv4 address | write for instance `10.77.0.0/24`"
            ],
        ),
        (
            "10.0.0.0",
            expect![
                "invalid: `10.0.0.0` is not a subnet for guests: no prefix length | write for instance `10.77.0.0/24`"
            ],
        ),
    ] {
        let command = world.network_create(id, "other", subnet);
        check(world.refused(command), expected);
    }
    let task = world.task();
    check(
        world.refused(uplink("../eth0", task)),
        expect![
            "invalid: `../eth0` is not the name of a NIC | look at the host's inventory for its NICs"
        ],
    );
    world.ok(uplink("eth0", task));
    let again = Command::NetworkCreate {
        network: NetworkId(Uuid::from_u128(61)),
        task: world.task(),
        spec: NetworkCreate {
            name: name("up2"),
            kind: NetworkKind::Uplink {
                uplink: "eth0".into(),
            },
        },
    };
    check(
        world.refused(again),
        expect![
            "in_use: NIC `eth0` carries network `up` already | use that network, or another NIC"
        ],
    );
}

#[test]
fn who_may_not_be_made() {
    let mut world = World::default();
    let bob = UserId(Uuid::from_u128(20));
    check(
        world.refused(viewer(bob, "bob")),
        expect!["setup_required: no administrator exists yet | do the setup first"],
    );
    let setup = |id| Command::Setup {
        user: id,
        name: name("anna"),
        password_hash: Secret("h".into()),
    };
    world.ok(setup(ANNA));
    check(
        world.refused(setup(bob)),
        expect!["setup_done: setup was done already | sign in; an administrator can add users"],
    );
    world.ok(viewer(bob, "bob"));
    let token = |role, expires_at| Command::TokenCreate {
        token: TokenId(Uuid::from_u128(21)),
        kind: TokenKind::Api,
        name: name("ci"),
        user: bob,
        role,
        hash: Secret("hash".into()),
        expires_at: Millis(expires_at),
    };
    check(
        world.refused(token(Role::Operator, u64::MAX)),
        expect![
            "forbidden: a token of `bob` may not do more than its user | ask for the user's own role, or a lesser one"
        ],
    );
    check(
        world.refused(token(Role::Viewer, 0)),
        expect![
            "invalid: the token would have ended already | choose a later end, and check the host's clock"
        ],
    );
    world.ok(token(Role::Viewer, u64::MAX));
    world.ok(Command::UserDelete { user: bob });
    assert_eq!(
        world.state.tokens().count(),
        0,
        "a user's tokens go with it"
    );
}
