//! A small world to try commands in: readable ids, a clock that steps, invariants checked after every command.
#![allow(dead_code)] // each test binary uses its part
#![allow(clippy::panic, clippy::unwrap_used)] // tests

use api::hosts::Inventory;
use api::ids::*;
use api::images::{ImageCreate, ImageFormat, ImageKind};
use api::names::{Name, Ref};
use api::networks::{NetworkCreate, NetworkKind};
use api::units::{Mib, Millis};
use api::users::{Role, Secret};
use api::vms::*;
use api::volumes::VolumeCreate;
use hostd_state::{Applied, Command, Fault, Meta, Refused, Report, State, VmReport, invariants};
use uuid::Uuid;

pub const HOST: HostId = HostId(Uuid::from_u128(1));
pub const KERNEL: ImageId = ImageId(Uuid::from_u128(2));
pub const INITRD: ImageId = ImageId(Uuid::from_u128(3));
pub const DISK_IMAGE: ImageId = ImageId(Uuid::from_u128(4));
pub const LAN: NetworkId = NetworkId(Uuid::from_u128(5));
pub const WEB: VmId = VmId(Uuid::from_u128(6));
pub const DB: VmId = VmId(Uuid::from_u128(7));
pub const ROOT: VolumeId = VolumeId(Uuid::from_u128(8));
pub const ANNA: UserId = UserId(Uuid::from_u128(9));

pub struct World {
    pub state: State,
    pub at: Millis,
    pub tasks: u128,
    pub log: Vec<(Meta, Command)>,
}

impl Default for World {
    fn default() -> Self {
        Self {
            state: State::default(),
            at: Millis(1_000_000),
            tasks: 1000,
            log: Vec::new(),
        }
    }
}

impl World {
    /// One host of 2 GiB, an administrator, ready images and a ready network.
    pub fn furnished() -> Self {
        let mut world = Self::default();
        world.ok(register(HOST, "alpha", 2048));
        world.ok(Command::HostBooted {
            host: HOST,
            boot_id: "boot-1".into(),
        });
        world.ok(Command::Setup {
            user: ANNA,
            name: name("anna"),
            password_hash: Secret("$argon2id$".into()),
        });
        for (id, text, kind) in [
            (KERNEL, "kernel", ImageKind::Kernel),
            (INITRD, "initrd", ImageKind::Initrd),
            (DISK_IMAGE, "debian", ImageKind::Disk),
        ] {
            let create = world.image_create(id, text, kind);
            world.ok(create);
            world.ok(Command::ImageObserved {
                image: id,
                report: Report::Ready,
                virtual_bytes: None,
            });
        }
        let create = world.network_create(LAN, "lan", "10.77.0.0/24");
        world.ok(create);
        world.ok(Command::NetworkObserved {
            network: LAN,
            report: Report::Ready,
        });
        world
    }

    /// `furnished`, and vm `web`, stopped.
    pub fn with_web() -> Self {
        let mut world = Self::furnished();
        world.ok(vm_create(WEB, "web", 256));
        world
    }

    /// `with_web`, running as generation 1.
    pub fn with_web_running() -> Self {
        let mut world = Self::with_web();
        let start = world.start(WEB);
        world.ok(start);
        world.ok(observed(WEB, 1, VmReport::Running));
        world
    }

    pub fn apply(&mut self, command: Command) -> Result<Applied, Refused> {
        let meta = Meta::host(self.at);
        self.apply_with(meta, command)
    }

    pub fn apply_with(&mut self, meta: Meta, command: Command) -> Result<Applied, Refused> {
        self.at.0 = self.at.0.max(meta.at.0) + 10;
        self.log.push((meta.clone(), command.clone()));
        let before = self.state.clone();
        let revision = before.revision() + 1;
        let applied = self.state.apply(revision, &meta, &command);
        let wrong = invariants::violations(&self.state);
        assert!(wrong.is_empty(), "after {command:?}: {wrong:?}");
        if applied.is_err() && meta.audit.is_none() {
            let mut expected = before;
            expected.skip(revision);
            assert_eq!(self.state, expected, "a refused command changed something");
        }
        applied
    }

    pub fn ok(&mut self, command: Command) -> Applied {
        let shown = format!("{command:?}");
        self.apply(command)
            .unwrap_or_else(|refused| panic!("{shown}: {refused}"))
    }

    /// The refusal as `code: message | hint`.
    pub fn refused(&mut self, command: Command) -> String {
        let shown = format!("{command:?}");
        match self.apply(command) {
            Ok(_) => panic!("{shown} was not refused"),
            Err(r) => format!(
                "{}: {} | {}",
                hostd_state::refused::code_name(r.code),
                r.message,
                r.hint
            ),
        }
    }

    pub fn task(&mut self) -> TaskId {
        self.tasks += 1;
        TaskId(Uuid::from_u128(self.tasks))
    }

    pub fn start(&mut self, vm: VmId) -> Command {
        let task = self.task();
        Command::VmStart { vm, task }
    }

    pub fn stop(&mut self, vm: VmId) -> Command {
        let task = self.task();
        Command::VmStop {
            vm,
            task,
            deadline: Millis(self.at.0 + 30_000),
        }
    }

    pub fn kill(&mut self, vm: VmId) -> Command {
        let task = self.task();
        Command::VmKill { vm, task }
    }

    pub fn reboot(&mut self, vm: VmId) -> Command {
        let task = self.task();
        Command::VmReboot {
            vm,
            task,
            deadline: Millis(self.at.0 + 30_000),
        }
    }

    pub fn vm_delete(&mut self, vm: VmId) -> Command {
        let task = self.task();
        Command::VmDelete { vm, task }
    }

    pub fn image_create(&mut self, image: ImageId, text: &str, kind: ImageKind) -> Command {
        let task = self.task();
        Command::ImageCreate {
            image,
            task,
            host: HOST,
            spec: ImageCreate {
                name: name(text),
                kind,
                format: ImageFormat::Raw,
                size_bytes: 10 << 20,
                sha256: "ab".repeat(32),
            },
        }
    }

    pub fn network_create(&mut self, network: NetworkId, text: &str, subnet: &str) -> Command {
        let task = self.task();
        Command::NetworkCreate {
            network,
            task,
            spec: NetworkCreate {
                name: name(text),
                kind: NetworkKind::Isolated {
                    subnet: subnet.into(),
                    dhcp: true,
                },
            },
        }
    }

    pub fn volume_create(&mut self, volume: VolumeId, text: &str, size: u64) -> Command {
        let task = self.task();
        Command::VolumeCreate {
            volume,
            task,
            host: HOST,
            spec: VolumeCreate {
                name: name(text),
                size: Mib(size),
                from_image: None,
            },
        }
    }

    /// A volume that is ready.
    pub fn volume(&mut self, volume: VolumeId, text: &str) {
        let create = self.volume_create(volume, text, 64);
        self.ok(create);
        self.ok(Command::VolumeObserved {
            volume,
            report: Report::Ready,
        });
    }

    pub fn vm(&self, id: VmId) -> &hostd_state::VmRecord {
        self.state.vm(id).expect("the vm is there")
    }
}

pub fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

pub fn by_name(text: &str) -> Ref {
    Ref::Name(name(text))
}

pub fn register(host: HostId, text: &str, memory: u64) -> Command {
    Command::HostRegister {
        host,
        name: name(text),
        version: "0.1.0".into(),
        inventory: Inventory {
            memory: Mib(memory),
            cpus: 2,
            kvm: true,
            ..Inventory::default()
        },
        fingerprint: "00".repeat(32),
    }
}

pub fn vm_spec(text: &str, memory: u64) -> VmCreate {
    VmCreate {
        name: name(text),
        memory: Mib(memory),
        vcpus: 1,
        boot: BootSpec::Kernel {
            kernel: by_name("kernel"),
            initrd: Some(Ref::Id(INITRD.0)),
            cmdline: "console=ttyS0".into(),
        },
        disks: vec![],
        nics: vec![],
        on_crash: OnCrash::Stay,
        autostart: false,
    }
}

pub fn vm_create(vm: VmId, text: &str, memory: u64) -> Command {
    create(vm, vm_spec(text, memory))
}

pub fn create(vm: VmId, spec: VmCreate) -> Command {
    let macs = (0..spec.nics.len())
        .map(|at| format!("52:54:00:00:{:02x}:{at:02x}", vm.0.as_u128() & 0xff))
        .collect();
    Command::VmCreate {
        vm,
        host: HOST,
        spec,
        macs,
    }
}

pub fn update(vm: VmId, update: VmUpdate) -> Command {
    let macs = update.nics.iter().flatten().enumerate();
    let macs = macs
        .map(|(at, _)| format!("52:54:00:01:{:02x}:{at:02x}", vm.0.as_u128() & 0xff))
        .collect();
    Command::VmUpdate { vm, update, macs }
}

pub fn disk(text: &str) -> DiskSpec {
    DiskSpec {
        volume: by_name(text),
        read_only: false,
        limits: Default::default(),
    }
}

pub fn nic(text: &str) -> NicSpec {
    NicSpec {
        network: by_name(text),
        mac: None,
        limits: Default::default(),
    }
}

pub fn observed(vm: VmId, generation: u64, report: VmReport) -> Command {
    Command::VmObserved {
        vm,
        generation,
        report,
    }
}

pub fn died() -> VmReport {
    VmReport::Ended(VmExit::ProcessDied {
        status: "killed by signal 9".into(),
    })
}

pub fn fault(code: &str) -> Fault {
    Fault {
        code: code.into(),
        cause: "it did not work".into(),
        next: "look at the log".into(),
    }
}

pub fn viewer(user: UserId, text: &str) -> Command {
    Command::UserCreate {
        user,
        name: name(text),
        role: Role::Viewer,
        password_hash: Secret("$argon2id$".into()),
    }
}
