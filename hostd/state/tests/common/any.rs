//! Any sequence of commands, over so few objects and names that they meet.

use api::ids::*;
use api::images::{ImageFormat, ImageKind};
use api::limits::{NicLimits, RateLimits};
use api::names::Ref;
use api::networks::{NetworkCreate, NetworkKind};
use api::units::{Mib, Millis, Percent};
use api::users::{AuditRecord, Role, Secret, TokenKind};
use api::vms::*;
use api::volumes::{VolumeCreate, VolumeUpdate};
use hostd_state::{Command, Idempotency, Meta, Report, VmReport};
use proptest::prelude::*;
use uuid::Uuid;

use crate::common::{self, fault, name, register};

fn id(kind: u128) -> impl Strategy<Value = Uuid> + Clone {
    (0u128..4).prop_map(move |n| Uuid::from_u128(kind << 32 | n))
}

fn names() -> impl Strategy<Value = api::names::Name> + Clone {
    prop::sample::select(vec!["a", "b", "c", "d"]).prop_map(name)
}

fn refs(kind: u128) -> impl Strategy<Value = Ref> + Clone {
    prop_oneof![names().prop_map(Ref::Name), id(kind).prop_map(Ref::Id)]
}

fn host() -> impl Strategy<Value = HostId> + Clone {
    prop_oneof![
        20 => Just(common::HOST),
        1 => Just(HostId(Uuid::from_u128(99))),
    ]
}

/// Mostly fresh, at times one that was there before.
fn task() -> impl Strategy<Value = TaskId> + Clone {
    prop_oneof![
        20 => any::<u128>().prop_map(|n| TaskId(Uuid::from_u128(n))),
        1 => id(9).prop_map(TaskId),
    ]
}

fn vm() -> impl Strategy<Value = VmId> + Clone {
    id(1).prop_map(VmId)
}

fn report() -> impl Strategy<Value = Report> + Clone {
    prop_oneof![
        1 => any::<u8>().prop_map(|p| Report::Progress(Percent(p))),
        4 => Just(Report::Ready),
        1 => Just(Report::Failed(fault("exhausted"))),
    ]
}

fn exit() -> impl Strategy<Value = VmExit> + Clone {
    prop_oneof![
        Just(VmExit::GuestPowerOff),
        Just(VmExit::GuestReset),
        Just(VmExit::TripleFault),
        Just(VmExit::Stopped),
        Just(VmExit::ProcessDied {
            status: "exit 1".into()
        }),
        Just(VmExit::VmmError {
            message: "no".into()
        }),
        Just(VmExit::HostDown),
    ]
}

fn vm_report() -> impl Strategy<Value = VmReport> + Clone {
    prop_oneof![
        1 => Just(VmReport::Starting),
        4 => Just(VmReport::Running),
        1 => Just(VmReport::Paused),
        3 => exit().prop_map(VmReport::Ended),
        1 => Just(VmReport::LaunchFailed(fault("x"))),
    ]
}

fn boot() -> impl Strategy<Value = BootSpec> + Clone {
    let kernel = (refs(3), prop::option::weighted(0.2, refs(3))).prop_map(|(kernel, initrd)| {
        BootSpec::Kernel {
            kernel,
            initrd,
            cmdline: String::new(),
        }
    });
    prop_oneof![4 => kernel, 1 => Just(BootSpec::Firmware {})]
}

/// Mostly none; some that are refused.
fn limits() -> impl Strategy<Value = RateLimits> + Clone {
    let number = || prop::option::of(0..3_u64);
    let some = (number(), number()).prop_map(|(rate, burst)| RateLimits {
        operations_per_second: rate,
        operations_burst: burst,
        ..RateLimits::default()
    });
    prop_oneof![6 => Just(RateLimits::default()), 1 => some]
}

fn disks() -> impl Strategy<Value = Vec<DiskSpec>> + Clone {
    let disk =
        (refs(2), any::<bool>(), limits()).prop_map(|(volume, read_only, limits)| DiskSpec {
            volume,
            read_only,
            limits,
        });
    prop::collection::vec(disk, 0..3)
}

fn nics() -> impl Strategy<Value = Vec<NicSpec>> + Clone {
    let mac = prop::option::weighted(0.1, Just("52:54:00:00:00:01".to_owned()));
    let nic = (refs(4), mac, limits()).prop_map(|(network, mac, receive)| NicSpec {
        network,
        mac,
        limits: NicLimits {
            receive,
            ..NicLimits::default()
        },
    });
    prop::collection::vec(nic, 0..3)
}

fn macs() -> impl Strategy<Value = Vec<String>> + Clone {
    let mac = any::<[u8; 3]>().prop_map(|[a, b, c]| format!("52:54:01:{a:02x}:{b:02x}:{c:02x}"));
    prop::collection::vec(mac, 3)
}

fn on_crash() -> impl Strategy<Value = OnCrash> + Clone {
    prop_oneof![Just(OnCrash::Stay), Just(OnCrash::Restart)]
}

fn vm_command() -> impl Strategy<Value = Command> {
    let create = (
        names(),
        16u64..800,
        boot(),
        disks(),
        nics(),
        on_crash(),
        any::<bool>(),
    )
        .prop_map(
            |(name, memory, boot, disks, nics, on_crash, autostart)| VmCreate {
                name,
                memory: Mib(memory),
                vcpus: 1,
                boot,
                disks,
                nics,
                on_crash,
                autostart,
            },
        );
    let update = (
        prop::option::weighted(0.1, 0u64..40),
        prop::option::of(names()),
        prop::option::of(disks()),
        prop::option::of(nics()),
    )
        .prop_map(|(revision, name, disks, nics)| VmUpdate {
            revision,
            name,
            disks,
            nics,
            ..VmUpdate::default()
        });
    let deadline = Millis(u64::MAX);
    prop_oneof![
        4 => (vm(), host(), create, macs())
            .prop_map(|(vm, host, spec, macs)| Command::VmCreate { vm, host, spec, macs }),
        2 => (vm(), update, macs()).prop_map(|(vm, update, macs)| Command::VmUpdate { vm, update, macs }),
        6 => (vm(), task()).prop_map(|(vm, task)| Command::VmStart { vm, task }),
        2 => (vm(), task()).prop_map(move |(vm, task)| Command::VmStop { vm, task, deadline }),
        1 => (vm(), task()).prop_map(|(vm, task)| Command::VmKill { vm, task }),
        2 => (vm(), task()).prop_map(move |(vm, task)| Command::VmReboot { vm, task, deadline }),
        1 => (vm(), task()).prop_map(|(vm, task)| Command::VmDelete { vm, task }),
        10 => (vm(), prop_oneof![9 => Just(CURRENT), 1 => 0u64..4], vm_report())
            .prop_map(|(vm, generation, report)| Command::VmObserved { vm, generation, report }),
        1 => vm().prop_map(|vm| Command::VmRemoved { vm }),
    ]
}

fn image_command() -> impl Strategy<Value = Command> {
    let kind = prop_oneof![
        4 => Just(ImageKind::Kernel),
        1 => Just(ImageKind::Initrd),
        2 => Just(ImageKind::Disk),
    ];
    let format = prop_oneof![4 => Just(ImageFormat::Raw), 2 => Just(ImageFormat::Qcow2)];
    let inside = prop::option::weighted(
        0.7,
        prop_oneof![
            Just(1_u64),
            Just(1 << 20),
            Just((1 << 20) + 1),
            Just(u64::MAX)
        ],
    );
    let image = || id(3).prop_map(ImageId);
    prop_oneof![
        3 => (image(), task(), host(), names(), kind, format).prop_map(|(image, task, host, name, kind, format)| {
            let spec = api::images::ImageCreate {
                name,
                kind,
                format,
                size_bytes: 1 << 20,
                sha256: "0f".repeat(32),
            };
            Command::ImageCreate { image, task, host, spec }
        }),
        3 => (image(), report(), inside)
            .prop_map(|(image, report, virtual_bytes)| Command::ImageObserved { image, report, virtual_bytes }),
        1 => (image(), task()).prop_map(|(image, task)| Command::ImageDelete { image, task }),
        1 => image().prop_map(|image| Command::ImageRemoved { image }),
    ]
}

fn volume_command() -> impl Strategy<Value = Command> {
    let volume = || id(2).prop_map(VolumeId);
    let from_image = prop::option::weighted(0.3, refs(3));
    prop_oneof![
        3 => (volume(), task(), host(), names(), 0u64..3, from_image)
            .prop_map(|(volume, task, host, name, size, from_image)| {
                let spec = VolumeCreate { name, size: Mib(size), from_image };
                Command::VolumeCreate { volume, task, host, spec }
            }),
        4 => (volume(), report()).prop_map(|(volume, report)| Command::VolumeObserved { volume, report }),
        2 => (volume(), task(), 0u64..5).prop_map(|(volume, task, size)| {
            let update = VolumeUpdate { revision: None, size: Mib(size) };
            Command::VolumeGrow { volume, task, update }
        }),
        2 => (volume(), 0u64..5, any::<bool>()).prop_map(|(volume, size, fails)| {
            let fault = fails.then(|| fault("exhausted"));
            Command::VolumeGrown { volume, size: Mib(size), fault }
        }),
        1 => (volume(), task()).prop_map(|(volume, task)| Command::VolumeDelete { volume, task }),
        1 => volume().prop_map(|volume| Command::VolumeRemoved { volume }),
    ]
}

fn network_command() -> impl Strategy<Value = Command> {
    let network = || id(4).prop_map(NetworkId);
    let isolated = (0u8..3).prop_map(|n| NetworkKind::Isolated {
        subnet: format!("10.{n}.0.0/24"),
        dhcp: true,
    });
    let kind = prop_oneof![
        isolated,
        Just(NetworkKind::Uplink {
            uplink: "eth0".into()
        })
    ];
    prop_oneof![
        3 => (network(), task(), names(), kind).prop_map(|(network, task, name, kind)| {
            Command::NetworkCreate { network, task, spec: NetworkCreate { name, kind } }
        }),
        3 => (network(), report()).prop_map(|(network, report)| Command::NetworkObserved { network, report }),
        1 => (network(), task()).prop_map(|(network, task)| Command::NetworkDelete { network, task }),
        1 => network().prop_map(|network| Command::NetworkRemoved { network }),
    ]
}

fn user_command() -> impl Strategy<Value = Command> {
    let user = || id(5).prop_map(UserId);
    let role = || prop_oneof![Just(Role::Viewer), Just(Role::Operator), Just(Role::Admin)];
    let kind = prop_oneof![Just(TokenKind::Session), Just(TokenKind::Api)];
    prop_oneof![
        (user(), names()).prop_map(|(user, name)| Command::Setup {
            user,
            name,
            password_hash: Secret("h".into()),
        }),
        (user(), names(), role()).prop_map(|(user, name, role)| Command::UserCreate {
            user,
            name,
            role,
            password_hash: Secret("h".into()),
        }),
        user().prop_map(|user| Command::UserDelete { user }),
        (id(6), kind, user(), role(), 0u64..1000).prop_map(|(token, kind, user, role, days)| {
            Command::TokenCreate {
                token: TokenId(token),
                kind,
                name: name("t"),
                user,
                role,
                hash: Secret(format!("hash-{days}")),
                expires_at: Millis(days * 1_000),
            }
        }),
        id(6).prop_map(|token| Command::TokenRevoke {
            token: TokenId(token)
        }),
        Just(Command::AuditNote),
    ]
}

fn host_command() -> impl Strategy<Value = Command> {
    prop_oneof![
        Just(register(common::HOST, "alpha", 2048)),
        Just(register(common::HOST, "beta", 2048)),
        Just(register(HostId(Uuid::from_u128(98)), "alpha", 2048)),
        (host(), "[a-c]").prop_map(|(host, boot_id)| Command::HostBooted { host, boot_id }),
    ]
}

fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        10 => vm_command(),
        4 => image_command(),
        4 => volume_command(),
        4 => network_command(),
        2 => user_command(),
        1 => host_command(),
    ]
}

fn meta() -> impl Strategy<Value = Meta> {
    let request = ("[kl]", "[de]").prop_map(|(key, digest)| Idempotency { key, digest });
    let request = prop::option::weighted(0.1, request);
    let audit = prop::option::weighted(0.2, any::<u128>());
    let by = prop::option::of(id(5).prop_map(UserId));
    (0u64..1_000_000, by, request, audit).prop_map(|(at, by, request, audit)| Meta {
        at: Millis(at),
        by,
        request,
        audit: audit.map(|id| AuditRecord {
            id: AuditId(Uuid::from_u128(id)),
            at: Millis(at),
            who: "anna".into(),
            from: "console".into(),
            action: "vm_start".into(),
            object: "web".into(),
            outcome: String::new(),
            request_id: "r".into(),
        }),
    })
}

/// Stands for the VM's generation at that time.
const CURRENT: u64 = u64::MAX;

/// The command with the generation that its reporter would know.
pub fn at(state: &hostd_state::State, command: Command) -> Command {
    match command {
        Command::VmObserved {
            vm,
            generation: CURRENT,
            report,
        } => Command::VmObserved {
            vm,
            generation: state.vm(vm).map_or(1, |vm| vm.generation),
            report,
        },
        command => command,
    }
}

/// Something to begin with, so that most of what follows is not refused, then anything.
pub fn sequence() -> impl Strategy<Value = Vec<(Meta, Command)>> {
    let furnish = vec![
        (Meta::host(Millis(1)), register(common::HOST, "alpha", 2048)),
        (
            Meta::host(Millis(2)),
            Command::ImageCreate {
                image: ImageId(Uuid::from_u128(3 << 32)),
                task: TaskId(Uuid::from_u128(1)),
                host: common::HOST,
                spec: api::images::ImageCreate {
                    name: name("a"),
                    kind: ImageKind::Kernel,
                    format: ImageFormat::Raw,
                    size_bytes: 1,
                    sha256: "0f".repeat(32),
                },
            },
        ),
        (
            Meta::host(Millis(3)),
            Command::ImageObserved {
                image: ImageId(Uuid::from_u128(3 << 32)),
                report: Report::Ready,
                virtual_bytes: None,
            },
        ),
    ];
    let web = VmId(Uuid::from_u128(1 << 32));
    let root = VolumeId(Uuid::from_u128(2 << 32));
    let rest = [
        Command::VolumeCreate {
            volume: root,
            task: TaskId(Uuid::from_u128(2)),
            host: common::HOST,
            spec: VolumeCreate {
                name: name("a"),
                size: Mib(1),
                from_image: None,
            },
        },
        Command::VolumeObserved {
            volume: root,
            report: Report::Ready,
        },
        Command::VmCreate {
            vm: web,
            host: common::HOST,
            spec: VmCreate {
                disks: vec![DiskSpec {
                    volume: Ref::Id(root.0),
                    read_only: false,
                    limits: RateLimits::default(),
                }],
                ..plain("a")
            },
            macs: vec![],
        },
        Command::VmCreate {
            vm: VmId(Uuid::from_u128(1 << 32 | 1)),
            host: common::HOST,
            spec: plain("b"),
            macs: vec![],
        },
    ];
    let mut furnish = furnish;
    furnish.extend(rest.map(|command| (Meta::host(Millis(4)), command)));
    prop::collection::vec((meta(), command()), 0..120).prop_map(move |rest| {
        let mut all = furnish.clone();
        all.extend(rest);
        all
    })
}

fn plain(text: &str) -> VmCreate {
    VmCreate {
        name: name(text),
        memory: Mib(600),
        vcpus: 1,
        boot: BootSpec::Kernel {
            kernel: Ref::Id(Uuid::from_u128(3 << 32)),
            initrd: None,
            cmdline: String::new(),
        },
        disks: vec![],
        nics: vec![],
        on_crash: OnCrash::Restart,
        autostart: true,
    }
}
