//! Reconcilers over a bare state and fake hands: they converge from any start, and twice is once.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use api::ids::{HostId, ImageId, NetworkId, TaskId, VmId, VolumeId};
use api::images::{ImageCreate, ImageFormat, ImageKind};
use api::names::Ref;
use api::networks::{NetworkCreate, NetworkKind, NetworkPhase};
use api::tasks::TaskPhase;
use api::units::{Mib, Millis};
use api::vms::{BootSpec, DiskSpec, NicSpec, OnCrash, VmCreate, VmExit, VmPhase, VmUpdate};
use api::volumes::{VolumeCreate, VolumePhase, VolumeUpdate};
use common::{Alone, host, name};
use hostd::fake::{self, FakeHands};
use hostd::reconcile::{Agreed, once};
use hostd::storage::{Images, Stored, Volumes};
use hostd::vms::{HaveVm, Launcher, Phase};
use hostd_state::{Command, Fault, State};
use tokio::sync::watch;

struct World {
    agreed: Alone,
    hands: Arc<FakeHands>,
    host: HostId,
    kernel: ImageId,
    network: NetworkId,
    volume: VolumeId,
    vm: VmId,
}

impl World {
    /// A host with a kernel image, and records of a network, a volume and a VM on both; nothing is made yet.
    fn new() -> Self {
        Self::with(OnCrash::Stay)
    }

    fn with(on_crash: OnCrash) -> Self {
        let agreed = Alone::default();
        let host = host(&agreed);
        let (kernel, network, volume, vm) = (
            ImageId::mint(),
            NetworkId::mint(),
            VolumeId::mint(),
            VmId::mint(),
        );
        let spec = ImageCreate {
            name: name("kernel"),
            kind: ImageKind::Kernel,
            format: ImageFormat::Raw,
            size_bytes: 7,
            sha256: "0".repeat(64),
        };
        agreed.apply(Command::ImageCreate {
            image: kernel,
            task: TaskId::mint(),
            host,
            spec,
        });
        let kind = NetworkKind::Isolated {
            subnet: "10.77.0.0/24".into(),
            dhcp: true,
        };
        let spec = NetworkCreate {
            name: name("lan"),
            kind,
        };
        agreed.apply(Command::NetworkCreate {
            network,
            task: TaskId::mint(),
            spec,
        });
        let spec = VolumeCreate {
            name: name("root"),
            size: Mib(64),
            from_image: None,
        };
        agreed.apply(Command::VolumeCreate {
            volume,
            task: TaskId::mint(),
            host,
            spec,
        });
        let hands = Arc::new(fake::hands());
        hands.images.store(kernel, 7);
        let world = Self {
            agreed,
            hands,
            host,
            kernel,
            network,
            volume,
            vm,
        };
        world.vm_create(on_crash);
        world
    }

    fn vm_create(&self, on_crash: OnCrash) {
        // The kernel has to be ready before a VM may name it.
        self.agreed.apply(Command::ImageObserved {
            image: self.kernel,
            report: hostd_state::Report::Ready,
            virtual_bytes: None,
        });
        let boot = BootSpec::Kernel {
            kernel: Ref::Id(self.kernel.0),
            initrd: None,
            cmdline: "console=ttyS0".into(),
        };
        let spec = VmCreate {
            name: name("web"),
            memory: Mib(128),
            vcpus: 1,
            boot,
            disks: vec![DiskSpec {
                volume: Ref::Id(self.volume.0),
                read_only: false,
                limits: Default::default(),
            }],
            nics: vec![NicSpec {
                network: Ref::Id(self.network.0),
                mac: None,
                limits: Default::default(),
            }],
            on_crash,
            autostart: false,
        };
        let macs = vec!["02:00:00:00:00:01".into()];
        self.agreed.apply(Command::VmCreate {
            vm: self.vm,
            host: self.host,
            spec,
            macs,
        });
    }

    /// Rounds until nothing changes any more.
    async fn settle(&self) {
        let mut before = self.everything();
        for _ in 0..20 {
            once(&self.agreed, self.host, &self.hands).await.unwrap();
            let now = self.everything();
            if now == before {
                return;
            }
            before = now;
        }
        panic!("does not settle: {before:?}");
    }

    /// All that agreement and the world hold, but for how long ago a button was pressed.
    fn everything(&self) -> (u64, Vec<HaveVm>, usize, u64, u64, u64) {
        let mut vms = self.hands.launcher.list();
        vms.iter_mut()
            .for_each(|vm| vm.button = vm.button.map(|_| std::time::Duration::ZERO));
        let networks = self.hands.links.networks().len();
        (
            self.agreed.read(State::revision),
            vms,
            networks,
            self.hands.links.made(),
            self.hands.volumes.made(),
            self.hands.launcher.launches(),
        )
    }

    fn start(&self) -> TaskId {
        self.agreed
            .apply(Command::VmStart {
                vm: self.vm,
                task: TaskId::mint(),
            })
            .task
            .unwrap()
    }

    fn phase(&self) -> VmPhase {
        self.agreed.read(|state| state.vm(self.vm).unwrap().phase)
    }

    fn task(&self, task: TaskId) -> TaskPhase {
        self.agreed
            .read(|state| state.task(task).unwrap().phase.clone())
    }

    fn process(&self) -> Option<(u64, Phase)> {
        let have = self.hands.launcher.list();
        have.into_iter()
            .find(|have| have.vm == self.vm)
            .map(|have| (have.generation, have.phase))
    }
}

#[tokio::test]
async fn a_start_goes_all_the_way_and_a_second_round_does_nothing() {
    let world = World::new();
    world.settle().await;
    assert_eq!(
        world.agreed.read(|s| s.volume(world.volume).unwrap().phase),
        VolumePhase::Ready
    );
    assert_eq!(
        world
            .agreed
            .read(|s| s.network(world.network).unwrap().phase),
        NetworkPhase::Ready
    );
    assert_eq!(world.process(), None);

    let task = world.start();
    world.settle().await;
    assert_eq!(world.phase(), VmPhase::Running);
    assert_eq!(world.process(), Some((1, Phase::Running)));
    assert_eq!(world.task(task), TaskPhase::Succeeded);
    let guests = world.hands.links.networks()[0].guests.clone();
    assert_eq!(guests.len(), 1);
    assert_eq!(
        (guests[0].mac, guests[0].name.as_str()),
        ([2, 0, 0, 0, 0, 1], "web")
    );

    let before = world.everything();
    once(&world.agreed, world.host, &world.hands).await.unwrap();
    assert_eq!(world.everything(), before);
    assert_eq!(world.hands.launcher.launches(), 1);
}

#[tokio::test]
async fn a_vm_with_firmware_needs_no_image_and_its_variables_go_with_it() {
    let world = World::new();
    let (vm, task) = (world.vm, TaskId::mint);
    let update = VmUpdate {
        boot: Some(BootSpec::Firmware {}),
        ..VmUpdate::default()
    };
    world.agreed.apply(Command::VmUpdate {
        vm,
        update,
        macs: vec![],
    });
    let image = world.kernel;
    world.agreed.apply(Command::ImageDelete {
        image,
        task: task(),
    });
    world.settle().await;
    assert!(!world.hands.volumes.has_variables(vm));
    world.start();
    world.settle().await;
    assert_eq!(world.process(), Some((1, Phase::Running)));
    let exit = Phase::Ended(VmExit::GuestPowerOff);
    world.hands.launcher.becomes(vm, exit);
    world.settle().await;
    assert_eq!(world.phase(), VmPhase::Stopped);
    assert!(
        world.hands.volumes.has_variables(vm),
        "kept while it is off"
    );
    world.agreed.apply(Command::VmDelete { vm, task: task() });
    world.settle().await;
    assert!(!world.hands.volumes.has_variables(vm));
}

/// What an earlier daemon may have left.
#[derive(Debug, Clone, Copy)]
enum Left {
    Nothing,
    Process(Over),
    Older(Over),
    Unknown(Over),
}

#[derive(Debug, Clone, Copy)]
enum Over {
    No,
    Yes,
}

/// What is wanted by now.
#[derive(Debug, Clone, Copy)]
enum Asked {
    Nothing,
    Stop,
    Kill,
    Reboot,
    Delete,
}

#[tokio::test]
async fn they_converge_from_any_start() {
    let over = [Over::No, Over::Yes];
    let left: Vec<Left> = [Left::Nothing]
        .into_iter()
        .chain(over.map(Left::Process))
        .chain(over.map(Left::Older))
        .chain(over.map(Left::Unknown))
        .collect();
    for started in [false, true] {
        for left in &left {
            for asked in [
                Asked::Nothing,
                Asked::Stop,
                Asked::Kill,
                Asked::Reboot,
                Asked::Delete,
            ] {
                converges(started, *left, asked).await;
            }
        }
    }
}

async fn converges(started: bool, left: Left, asked: Asked) {
    let case = format!("started {started}, left {left:?}, asked {asked:?}");
    let world = World::new();
    world.settle().await;
    if started {
        world.start();
        world.settle().await;
    }
    // Another daemon's hands: what ours did is forgotten, what is left is put there.
    let hands = fake::hands();
    hands.images.store(world.kernel, 7);
    let generation = world
        .agreed
        .read(|state| state.vm(world.vm).unwrap().generation);
    let leftover = match left {
        Left::Nothing => None,
        Left::Process(over) => Some((world.vm, generation, over)),
        Left::Older(over) => Some((world.vm, generation.saturating_sub(1), over)),
        Left::Unknown(over) => Some((VmId::mint(), 3, over)),
    };
    if let Some((vm, generation, over)) = leftover {
        let phase = match over {
            Over::No => Phase::Running,
            Over::Yes => Phase::Ended(VmExit::TripleFault),
        };
        hands.launcher.place(vm, generation, phase);
    }
    // The pool kept its bytes.
    let plan = hostd::storage::VolumePlan {
        volume: world.volume,
        size_bytes: 64 << 20,
        from: None,
    };
    hands
        .volumes
        .create(plan, watch::Sender::new(api::units::Percent(0)))
        .await
        .unwrap();
    let world = World {
        hands: Arc::new(hands),
        ..world
    };

    let (vm, task) = (world.vm, TaskId::mint());
    let deadline = Millis(Millis::now().0 + 3_600_000);
    let up = world.agreed.read(|state| state.vm(vm).unwrap().is_up());
    match (asked, up) {
        (Asked::Stop, true) => drop(world.agreed.apply(Command::VmStop { vm, task, deadline })),
        (Asked::Kill, true) => drop(world.agreed.apply(Command::VmKill { vm, task })),
        (Asked::Reboot, true) => drop(world.agreed.apply(Command::VmReboot { vm, task, deadline })),
        (Asked::Delete, false) => drop(world.agreed.apply(Command::VmDelete { vm, task })),
        _ => {}
    }
    world.settle().await;

    let record = world.agreed.read(|state| state.vm(vm).cloned());
    let have = world.hands.launcher.list();
    let expected: Vec<(VmId, u64)> = match &record {
        Some(record) if record.is_up() => vec![(record.id, record.generation)],
        _ => Vec::new(),
    };
    let got: Vec<(VmId, u64)> = have.iter().map(|have| (have.vm, have.generation)).collect();
    assert_eq!(got, expected, "{case}");
    assert!(
        have.iter().all(|have| have.phase == Phase::Running),
        "{case}: {have:?}"
    );
    match (asked, up) {
        (Asked::Delete, false) => assert_eq!(record, None, "{case}"),
        (Asked::Stop | Asked::Kill, true) => {
            assert_eq!(record.unwrap().phase, VmPhase::Stopped, "{case}");
        }
        (Asked::Reboot, true) => {
            let record = record.unwrap();
            assert_eq!(
                (record.phase, record.generation),
                (VmPhase::Running, 2),
                "{case}"
            );
        }
        _ => {
            let phase = record.unwrap().phase;
            let survived = matches!(left, Left::Process(Over::No));
            let expected = match (up, survived) {
                (false, _) => VmPhase::Stopped,
                (true, true) => VmPhase::Running,
                // A process that is not there crashed, and it shall stay down then.
                (true, false) => VmPhase::Failed,
            };
            assert_eq!(phase, expected, "{case}");
        }
    }
    let before = world.everything();
    once(&world.agreed, world.host, &world.hands).await.unwrap();
    assert_eq!(world.everything(), before, "{case}: twice is not once");
}

#[tokio::test]
async fn what_the_guest_does_is_reported_and_cleared_away() {
    let world = World::with(OnCrash::Restart);
    world.settle().await;
    world.start();
    world.settle().await;

    world
        .hands
        .launcher
        .becomes(world.vm, Phase::Ended(VmExit::GuestReset));
    world.settle().await;
    assert_eq!(
        world.process(),
        Some((2, Phase::Running)),
        "a reset starts it anew"
    );

    world
        .hands
        .launcher
        .becomes(world.vm, Phase::Ended(VmExit::TripleFault));
    world.settle().await;
    assert_eq!(
        world.process(),
        Some((3, Phase::Running)),
        "a crash too, as it was asked for"
    );

    world
        .hands
        .launcher
        .becomes(world.vm, Phase::Ended(VmExit::GuestPowerOff));
    world.settle().await;
    assert_eq!(world.phase(), VmPhase::Stopped);
    assert_eq!(world.process(), None);
}

#[tokio::test]
async fn a_launch_that_fails_is_told_with_its_reason_and_not_repeated() {
    let world = World::new();
    world.settle().await;
    let no_kvm = Fault {
        code: "no_kvm".into(),
        cause: "there is no /dev/kvm".into(),
        next: "n".into(),
    };
    world.hands.launcher.fail(Some(no_kvm));
    let task = world.start();
    world.settle().await;
    assert_eq!(world.phase(), VmPhase::Failed);
    let condition = world
        .agreed
        .read(|state| state.vm(world.vm).unwrap().condition.clone())
        .unwrap();
    assert_eq!(
        (condition.code.as_str(), condition.cause.as_str()),
        ("no_kvm", "there is no /dev/kvm")
    );
    assert!(matches!(world.task(task), TaskPhase::Failed { .. }));
    world.hands.launcher.fail(None);
    world.start();
    world.settle().await;
    assert_eq!(world.phase(), VmPhase::Running);
}

#[tokio::test]
async fn a_deaf_guest_is_ended_when_its_time_is_over() {
    let world = World::new();
    world.settle().await;
    world.start();
    world.settle().await;
    world.hands.launcher.deaf(true);
    let (vm, task) = (world.vm, TaskId::mint());
    let deadline = Millis(Millis::now().0 + 2000);
    world.agreed.apply(Command::VmStop { vm, task, deadline });
    world.settle().await;
    assert_eq!(world.phase(), VmPhase::Stopping);
    assert_eq!(world.process(), Some((1, Phase::Running)));
    while Millis::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.settle().await;
    assert_eq!(world.phase(), VmPhase::Stopped);
    assert_eq!(world.process(), None);
    let exit = world
        .agreed
        .read(|state| state.vm(vm).unwrap().last_exit.clone());
    assert_eq!(exit, Some(VmExit::Stopped));
}

#[tokio::test]
async fn a_full_pool_and_a_missing_cable_are_told_and_a_cable_is_found_again() {
    let world = World::new();
    let fault = |code: &str| Fault {
        code: code.into(),
        cause: "cause".into(),
        next: "next".into(),
    };
    world.hands.volumes.fail(Some(fault("no_space")));
    world.hands.links.fail(Some(fault("network_error")));
    world.settle().await;
    let volume = world
        .agreed
        .read(|state| state.volume(world.volume).cloned())
        .unwrap();
    assert_eq!(
        (volume.phase, volume.condition.unwrap().code),
        (VolumePhase::Failed, "no_space".into())
    );
    let network = || {
        world
            .agreed
            .read(|state| state.network(world.network).unwrap().phase)
    };
    assert_eq!(network(), NetworkPhase::Failed);
    world.hands.links.fail(None);
    world.settle().await;
    assert_eq!(network(), NetworkPhase::Ready);
}

#[tokio::test]
async fn what_is_deleted_is_gone_from_the_world_and_then_from_the_state() {
    let world = World::new();
    world.settle().await;
    let task = TaskId::mint;
    world.agreed.apply(Command::VmDelete {
        vm: world.vm,
        task: task(),
    });
    world.settle().await;
    world.agreed.apply(Command::VolumeDelete {
        volume: world.volume,
        task: task(),
    });
    world.agreed.apply(Command::NetworkDelete {
        network: world.network,
        task: task(),
    });
    world.agreed.apply(Command::ImageDelete {
        image: world.kernel,
        task: task(),
    });
    world.settle().await;
    assert_eq!(world.hands.volumes.list().await.unwrap(), []);
    assert_eq!(
        world.hands.images.list().await.unwrap(),
        [] as [Stored<ImageId>; 0]
    );
    assert!(world.hands.links.networks().is_empty());
    world.agreed.read(|state| {
        assert!(state.vm(world.vm).is_none());
        assert!(state.volume(world.volume).is_none());
        assert!(state.network(world.network).is_none());
        assert!(state.image(world.kernel).is_none());
    });
}

#[tokio::test]
async fn a_volume_grows_first_on_disk_then_for_its_vms_then_in_the_record() {
    let world = World::new();
    world.settle().await;
    let grow = |size| {
        let update = VolumeUpdate {
            revision: None,
            size: Mib(size),
        };
        let task = TaskId::mint();
        world.agreed.apply(Command::VolumeGrow {
            volume: world.volume,
            task,
            update,
        });
        task
    };
    let size = || {
        let view = |state: &State| state.volume(world.volume).unwrap().size;
        world.agreed.read(view).0
    };
    let there = || world.hands.volumes.size(world.volume).unwrap() >> 20;
    // Nobody has it open.
    let task = grow(65);
    world.settle().await;
    assert_eq!(world.task(task), TaskPhase::Succeeded);
    assert_eq!((size(), there()), (65, 65));
    assert_eq!(world.hands.launcher.grown(), []);

    // Its VM is just being started and may have looked already: it is told once it can be.
    world.start();
    let launcher = &world.hands.launcher;
    launcher.place(world.vm, 1, Phase::Starting);
    let task = grow(66);
    world.settle().await;
    assert_eq!(world.phase(), VmPhase::Starting);
    assert_eq!(world.task(task), TaskPhase::Running);
    assert_eq!((size(), there()), (65, 66));
    launcher.becomes(world.vm, Phase::Running);
    world.settle().await;
    assert_eq!(world.task(task), TaskPhase::Succeeded);
    assert_eq!((size(), there()), (66, 66));
    assert_eq!(launcher.grown(), [(world.vm, 0, 66 << 20)]);

    // What its process refuses is told, and asked again it is done again.
    let fault = |code: &str| Fault {
        code: code.into(),
        cause: "no".into(),
        next: "again".into(),
    };
    launcher.fail(Some(fault("disk_not_grown")));
    let task = grow(67);
    world.settle().await;
    assert!(matches!(world.task(task), TaskPhase::Failed { .. }));
    assert_eq!((size(), there()), (66, 67));
    launcher.fail(None);
    let task = grow(67);
    world.settle().await;
    assert_eq!(world.task(task), TaskPhase::Succeeded);
    assert_eq!((size(), there()), (67, 67));
    world.hands.volumes.fail(Some(fault("no_space")));
    let task = grow(68);
    world.settle().await;
    assert!(matches!(world.task(task), TaskPhase::Failed { .. }));
    assert_eq!((size(), there()), (67, 67));
}

#[tokio::test]
async fn a_lost_volume_is_told_once() {
    let world = World::new();
    world.settle().await;
    world.hands.volumes.lose(world.volume);
    world.settle().await;
    let volume = world
        .agreed
        .read(|state| state.volume(world.volume).cloned())
        .unwrap();
    assert_eq!(
        (volume.phase, volume.condition.unwrap().code),
        (VolumePhase::Failed, "volume_lost".into())
    );
}
