//! A VM process on real KVM, seen from outside: its walls, its limits, its life across a restart of the daemon.
//! Needs root and `/dev/kvm`.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api::ids::{ImageId, VmId, VolumeId};
use api::images::ImageFormat;
use api::units::Percent;
use api::vms::VmExit;
use common::launch_config;
use hostd::http::hands::VmProcesses;
use hostd::network::Leases;
use hostd::storage::convert_process::ConvertProcess;
use hostd::storage::file::FileVolumes;
use hostd::storage::images::FileImages;
use hostd::storage::{Images, Source, VolumePlan, Volumes};
use hostd::vms::launch::UID_FIRST;
use hostd::vms::plan::{PlannedBoot, PlannedDisk};
use hostd::vms::{Launcher, Opened, OpenedBoot, Phase, Supervisors, VmPlan, VmRequest};
use tokio::io::AsyncReadExt;
use tokio::sync::watch;

/// An ELF kernel with a PVH entry (Xen's PHYS32_ENTRY note): prints `OK` on COM1 and halts for ever.
fn kernel() -> Vec<u8> {
    const ENTRY: u64 = 0x10_0000;
    let code = [
        0xba, 0xf8, 0x03, 0, 0, // mov edx, 0x3f8
        0xb0, b'O', 0xee, // mov al, 'O'; out dx, al
        0xb0, b'K', 0xee, //
        0xb0, b'\n', 0xee, //
        0xf4, 0xeb, 0xfd, // hlt; jmp to the hlt
    ];
    let mut note = Vec::new();
    for word in [4_u32, 8, 18] {
        note.extend(word.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend(ENTRY.to_le_bytes());
    let (note_at, code_at) = (64 + 2 * 56, 0x1000);

    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    elf.extend(2_u16.to_le_bytes());
    elf.extend(62_u16.to_le_bytes());
    elf.extend(1_u32.to_le_bytes());
    for word in [ENTRY, 64, 0] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 2, 0, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    let mut header = |kind: u32, at: u64, address: u64, length: u64, align: u64| {
        elf.extend(kind.to_le_bytes());
        elf.extend(7_u32.to_le_bytes());
        for word in [at, address, address, length, length, align] {
            elf.extend(word.to_le_bytes());
        }
    };
    header(1, code_at, ENTRY, code.len() as u64, 0x1000);
    header(4, note_at, 0, note.len() as u64, 4);
    elf.extend(note);
    elf.resize(usize::try_from(code_at).unwrap(), 0);
    elf.extend(code);
    elf
}

fn plan(volume: VolumeId) -> VmPlan {
    VmPlan {
        vm: VmId::mint(),
        generation: 3,
        name: "jailed".into(),
        memory_mib: 32,
        vcpus: 1,
        boot: PlannedBoot::Kernel {
            kernel: ImageId::mint(),
            initrd: None,
        },
        cmdline: "x".into(),
        disks: vec![PlannedDisk {
            volume,
            read_only: false,
            limits: api::limits::RateLimits {
                bytes_per_second: Some(1 << 30),
                ..Default::default()
            },
        }],
        nics: Vec::new(),
    }
}

fn kernel_in(file: &Path) -> OpenedBoot {
    OpenedBoot::Kernel {
        kernel: fs::File::open(file).unwrap(),
        initrd: None,
    }
}

async fn reaches(supervisors: &Supervisors, vm: VmId, wanted: impl Fn(&Phase) -> bool) -> Phase {
    let mut changed = supervisors.changed();
    let waiting = async {
        loop {
            let have = supervisors.list().into_iter().find(|have| have.vm == vm);
            let phase = have.expect("the VM is listed").phase;
            if wanted(&phase) {
                return phase;
            }
            assert!(!matches!(phase, Phase::Ended(_)), "it ended: {phase:?}");
            changed.changed().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting)
        .await
        .expect("the phase comes in time")
}

/// A field of `/proc/PID/status`.
fn status(pid: u32, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{field}:")));
    line.unwrap_or_else(|| panic!("no {field}"))
        .trim()
        .to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_process_is_walled_in_outlives_its_daemon_and_ends_when_told() {
    let folder = tempfile::tempdir().unwrap();
    let Some(config) = launch_config(folder.path()) else {
        return;
    };
    let pool = FileVolumes::open_pool(&folder.path().join("data")).unwrap();
    let volume = VolumeId::mint();
    let wanted = VolumePlan {
        volume,
        size_bytes: 1 << 20,
        from: None,
    };
    pool.create(wanted, watch::Sender::new(Percent(0)))
        .await
        .unwrap();
    fs::write(folder.path().join("kernel"), kernel()).unwrap();

    let plan = plan(volume);
    let vm = plan.vm;
    let supervisors = Supervisors::start(config.clone()).unwrap();
    let opened = Opened {
        boot: kernel_in(&folder.path().join("kernel")),
        disks: vec![pool.open(volume, false).await.unwrap()],
        taps: Vec::new(),
    };
    supervisors.launch(plan, opened).await.unwrap();
    reaches(&supervisors, vm, |phase| *phase == Phase::Running).await;
    let pid = supervisors.pid(vm).unwrap();

    // Its disk grows under it, once its volume has.
    let early = supervisors.grow_disk(vm, 0, 2 << 20).await.unwrap_err();
    assert_eq!(early.code, "disk_not_grown");
    pool.grow(volume, 2 << 20).await.unwrap();
    supervisors.grow_disk(vm, 0, 2 << 20).await.unwrap();
    assert!(supervisors.grow_disk(vm, 1, 2 << 20).await.is_err());
    // A VM without a process has nobody to tell.
    supervisors
        .grow_disk(VmId::mint(), 0, 2 << 20)
        .await
        .unwrap();

    // Who it is and what it may.
    let uid = UID_FIRST.to_string();
    assert!(
        status(pid, "Uid").split_whitespace().all(|id| id == uid),
        "{}",
        status(pid, "Uid")
    );
    assert!(status(pid, "Gid").split_whitespace().all(|id| id == uid));
    assert_eq!(status(pid, "Groups"), "");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status(pid, set), "0000000000000000", "{set}");
    }
    assert_eq!(status(pid, "NoNewPrivs"), "1");
    let mut threads = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let task = task.unwrap().path();
        let status = fs::read_to_string(task.join("status")).unwrap();
        assert!(
            status.contains("Seccomp:\t2"),
            "a thread without a filter: {status}"
        );
        threads.push(fs::read_to_string(task.join("comm")).unwrap());
    }
    for kind in ["vcpu0", "disk-"] {
        assert!(
            threads.iter().any(|name| name.starts_with(kind)),
            "no {kind} in {threads:?}"
        );
    }
    // What it sees.
    for kind in ["pid", "mnt", "net", "ipc", "uts"] {
        let link = |of: &str| fs::read_link(format!("/proc/{of}/ns/{kind}")).unwrap();
        assert_ne!(link(&pid.to_string()), link("self"), "{kind}");
    }
    assert_eq!(
        fs::read_dir(format!("/proc/{pid}/root")).unwrap().count(),
        0,
        "its root is empty"
    );
    assert_eq!(status(pid, "NSpid").split_whitespace().last(), Some("1"));
    let mounts = fs::read_to_string(format!("/proc/{pid}/mounts")).unwrap();
    let mounts: Vec<&str> = mounts.lines().collect();
    assert_eq!(mounts.len(), 1, "{mounts:?}");
    assert!(
        mounts[0].contains(" / tmpfs ro,nosuid,nodev,noexec"),
        "{mounts:?}"
    );
    // What it holds: what it was given, and nothing of the daemon's. The kernel names files without symbolic links.
    let top = folder.path().canonicalize().unwrap();
    for fd in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let target = fs::read_link(fd.unwrap().path()).unwrap();
        let target = target.to_string_lossy().into_owned();
        let own = [
            "anon_inode:",
            "socket:",
            "/memfd:",
            "/dev/null",
            "/dev/kvm",
            "pipe:",
        ];
        let given = [top.join("kernel"), top.join("vms"), top.join("data")];
        let fine = own.iter().any(|kind| target.starts_with(kind))
            || given
                .iter()
                .any(|path| Path::new(&target).starts_with(path));
        assert!(fine, "it holds {target}");
    }
    // What it may take.
    if let Some(root) = &config.cgroup_root {
        let group = root.join(format!("lqx/vms/{vm}"));
        // A thread of the kernel, which KVM makes for each machine, may be in it too.
        let members = fs::read_to_string(group.join("cgroup.procs")).unwrap();
        assert!(
            members.lines().any(|member| member == pid.to_string()),
            "{members}"
        );
        assert_eq!(
            fs::read_to_string(group.join("memory.max")).unwrap().trim(),
            ((32 + 96) << 20).to_string()
        );
        assert_eq!(
            fs::read_to_string(group.join("pids.max")).unwrap().trim(),
            "129"
        );
    }

    // Its console has what was said since power-on.
    let processes = supervisors.processes(Leases::default());
    let mut serial = processes.connect(vm).await.unwrap();
    let mut said = [0; 3];
    tokio::time::timeout(Duration::from_secs(60), serial.read_exact(&mut said))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&said, b"OK\n");
    assert!(
        processes.counters(vm).await["vcpu0_io_exits_total"] >= 3,
        "one exit for each byte it printed"
    );

    // Nobody else writes to its volume, also when the daemon is gone.
    supervisors.shutdown().await;
    drop(supervisors);
    assert_eq!(
        pool.open(volume, false).await.unwrap_err().code,
        "volume_in_use"
    );

    // The next daemon adopts it.
    let heir = Supervisors::start(config.clone()).unwrap();
    assert_eq!(heir.list()[0].generation, 3);
    reaches(&heir, vm, |phase| *phase == Phase::Running).await;
    assert_eq!(heir.pid(vm), Some(pid));
    assert_eq!(heir.forget(vm).await.unwrap_err().code, "still_running");
    heir.request(vm, VmRequest::Kill).await;
    let ended = reaches(&heir, vm, |phase| matches!(phase, Phase::Ended(_))).await;
    assert_eq!(ended, Phase::Ended(VmExit::Stopped));
    heir.forget(vm).await.unwrap();
    assert!(heir.list().is_empty());
    assert!(!config.run.join(vm.to_string()).exists());
    // An ended process has let go of its volume, its io_uring included.
    pool.open(volume, false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ended_badly_is_told_honestly() {
    let folder = tempfile::tempdir().unwrap();
    let Some(config) = launch_config(folder.path()) else {
        return;
    };
    fs::write(folder.path().join("kernel"), kernel()).unwrap();
    fs::write(folder.path().join("garbage"), b"no kernel at all").unwrap();
    let supervisors = Supervisors::start(config.clone()).unwrap();
    let launch = async |kernel: &str| {
        let plan = VmPlan {
            disks: Vec::new(),
            ..plan(VolumeId::mint())
        };
        let vm = plan.vm;
        let opened = Opened {
            boot: kernel_in(&folder.path().join(kernel)),
            disks: Vec::new(),
            taps: Vec::new(),
        };
        supervisors.launch(plan, opened).await.unwrap();
        vm
    };

    // Two at once have different ids.
    let (first, second) = (launch("kernel").await, launch("kernel").await);
    for vm in [first, second] {
        reaches(&supervisors, vm, |phase| *phase == Phase::Running).await;
    }
    let uids = [first, second].map(|vm| status(supervisors.pid(vm).unwrap(), "Uid"));
    assert_ne!(uids[0], uids[1]);

    // Killed from outside: said so, and the other one does not notice.
    let pid = i32::try_from(supervisors.pid(first).unwrap()).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let ended = reaches(&supervisors, first, |phase| {
        matches!(phase, Phase::Ended(_))
    })
    .await;
    let Phase::Ended(VmExit::ProcessDied { status }) = ended else {
        panic!("{ended:?}")
    };
    assert!(status.starts_with("killed by signal 9"), "{status}");
    assert!(
        supervisors
            .list()
            .iter()
            .any(|have| have.vm == second && have.phase == Phase::Running)
    );

    // A kernel that is none.
    let third = launch("garbage").await;
    let ended = reaches(&supervisors, third, |phase| {
        matches!(phase, Phase::Ended(_))
    })
    .await;
    assert!(
        matches!(ended, Phase::Ended(VmExit::VmmError { .. })),
        "{ended:?}"
    );

    // One that ends while no daemon watches.
    let pid = supervisors.pid(second).unwrap();
    supervisors.shutdown().await;
    drop(supervisors);
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let id = rustix::process::WaitId::PidFd(std::os::fd::AsFd::as_fd(&pidfd));
    rustix::process::waitid(id, rustix::process::WaitIdOptions::EXITED).unwrap();
    let heir = Supervisors::start(config).unwrap();
    for have in heir.list() {
        assert!(matches!(have.phase, Phase::Ended(_)), "{have:?}");
        heir.forget(have.vm).await.unwrap();
    }
    assert!(heir.list().is_empty());
}

/// An image of `size` bytes all of which are in the one cluster that it has.
fn repeating_image(size: u64) -> Vec<u8> {
    let mut image = hostd::fake::qcow2_image(size, &[7; 1 << 16]);
    let l2 = 4 << 16;
    let entry: [u8; 8] = image[l2..l2 + 8].try_into().unwrap();
    for number in 0..usize::try_from(size >> 16).unwrap() {
        image[l2 + 8 * number..l2 + 8 * number + 8].copy_from_slice(&entry);
    }
    image
}

/// The first child of ours that reads an image and has a system call filter, standing still. The other tests have
/// children too.
fn stopped_child() -> rustix::process::Pid {
    let me = std::process::id();
    let until = std::time::Instant::now() + Duration::from_secs(30);
    while std::time::Instant::now() < until {
        for task in fs::read_dir(format!("/proc/{me}/task")).unwrap() {
            let children = task.unwrap().path().join("children");
            let children = fs::read_to_string(children).unwrap_or_default();
            for child in children.split_whitespace() {
                let read = |file: &str| fs::read_to_string(format!("/proc/{child}/{file}"));
                if read("cmdline").is_ok_and(|line| line == "hostd\0convert\0")
                    && read("status").is_ok_and(|status| status.contains("Seccomp:\t2"))
                {
                    let pid = rustix::process::Pid::from_raw(child.parse().unwrap()).unwrap();
                    let stop = rustix::process::Signal::STOP;
                    rustix::process::kill_process(pid, stop).unwrap();
                    return pid;
                }
            }
        }
        std::thread::yield_now();
    }
    panic!("no child locked itself in");
}

/// The first file is converted while it is looked at, the second one is cut off in the middle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_is_read_inside_the_walls_and_a_torn_volume_does_not_stay() {
    const SIZE: u64 = 64 << 20;
    let folder = tempfile::tempdir().unwrap();
    let Some(config) = launch_config(folder.path()) else {
        return;
    };
    let data = folder.path().join("data");
    let converter = Arc::new(ConvertProcess {
        program: config.program,
        root: folder.path().join("convert"),
    });
    let open = || {
        let pool = FileVolumes::open_pool(&data).unwrap();
        pool.with_converter(converter.clone())
    };
    let pool = open();
    let image = ImageId::mint();
    fs::write(
        data.join("images").join(image.to_string()),
        repeating_image(SIZE),
    )
    .unwrap();
    let wanted = || VolumePlan {
        volume: VolumeId::mint(),
        size_bytes: SIZE,
        from: Some(Source {
            image,
            format: ImageFormat::Qcow2,
        }),
    };
    let begin = |plan: VolumePlan| {
        let pool = pool.clone();
        let progress = watch::Sender::new(Percent(0));
        let told = progress.subscribe();
        (
            tokio::spawn(async move { pool.create(plan, progress).await }),
            told,
        )
    };

    let plan = wanted();
    let (whole, told) = begin(plan.clone());
    let child = tokio::task::spawn_blocking(stopped_child).await.unwrap();
    let pid = u32::try_from(child.as_raw_pid()).unwrap();
    let uid = (UID_FIRST - 1).to_string();
    assert!(status(pid, "Uid").split_whitespace().all(|id| id == uid));
    assert!(status(pid, "Gid").split_whitespace().all(|id| id == uid));
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status(pid, set), "0000000000000000", "{set}");
    }
    assert_eq!(status(pid, "NoNewPrivs"), "1");
    assert_eq!(status(pid, "Threads"), "1");
    for kind in ["pid", "mnt", "net", "ipc", "uts"] {
        let link = |of: &str| fs::read_link(format!("/proc/{of}/ns/{kind}")).unwrap();
        assert_ne!(link(&pid.to_string()), link("self"), "{kind}");
    }
    let its_root = fs::read_dir(format!("/proc/{pid}/root")).unwrap();
    assert_eq!(its_root.count(), 0, "its root is empty");
    let mut files: Vec<String> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|fd| fs::read_link(fd.unwrap().path()).unwrap())
        .map(|file| file.to_string_lossy().into_owned())
        .filter(|file| file != "/dev/null" && !file.starts_with("pipe:"))
        .collect();
    files.retain(|file| !file.starts_with("/memfd:convert-config"));
    files.sort();
    let top = data.canonicalize().unwrap();
    let given = [
        top.join("images").join(image.to_string()),
        top.join("volumes").join(format!("{}.tmp", plan.volume)),
    ];
    assert_eq!(files, given.map(|path| path.display().to_string()));
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        let hard = line[name.len()..].split_whitespace().nth(1).unwrap();
        hard.to_owned()
    };
    assert_eq!(limit("Max file size"), SIZE.to_string());
    assert_eq!(limit("Max address space"), (512_u64 << 20).to_string());
    assert_eq!(pool.list().await.unwrap(), [], "half a volume is none");
    rustix::process::kill_process(child, rustix::process::Signal::CONT).unwrap();
    whole.await.unwrap().unwrap();
    assert_eq!(*told.borrow(), Percent(100));
    let mut volume = fs::File::open(data.join(format!("volumes/{}.raw", plan.volume))).unwrap();
    let mut piece = vec![0; 1 << 20];
    let mut length = 0;
    loop {
        let got = std::io::Read::read(&mut volume, &mut piece).unwrap();
        if got == 0 {
            break;
        }
        assert!(piece[..got].iter().all(|byte| *byte == 7), "at {length}");
        length += got as u64;
    }
    assert_eq!(length, SIZE);
    pool.remove(plan.volume).await.unwrap();

    let (torn, _told) = begin(wanted());
    let child = tokio::task::spawn_blocking(stopped_child).await.unwrap();
    rustix::process::kill_process(child, rustix::process::Signal::KILL).unwrap();
    let fault = torn.await.unwrap().unwrap_err();
    assert_eq!(fault.code, "conversion_failed");
    assert!(fault.cause.contains("ended by signal 9"), "{fault:?}");
    assert_eq!(fs::read_dir(data.join("volumes")).unwrap().count(), 0);

    // The image's own fault is told from inside.
    let path = data.join("images").join(image.to_string());
    let store = FileImages::open_store(&data).unwrap();
    let store = store.with_converter(converter.clone());
    assert_eq!(store.examine(image).await.unwrap(), SIZE);
    let mut bytes = repeating_image(SIZE);
    bytes[15] = 200;
    fs::write(&path, bytes).unwrap();
    assert_eq!(
        store.examine(image).await.unwrap_err().code,
        "image_unusable"
    );
    let fault = pool
        .create(wanted(), watch::Sender::new(Percent(0)))
        .await
        .unwrap_err();
    assert_eq!(fault.code, "image_unusable");
    assert!(fault.cause.contains("backing file"), "{fault:?}");
}

/// Stock OVMF, as the image has it and as Debian's package puts it in the same place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn firmware_runs_inside_the_walls_and_its_variables_stay() {
    if let Ok(reason) = std::env::var("LQX_TEST_NO_FIRMWARE") {
        eprintln!("SKIP: {reason}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let Some(config) = launch_config(folder.path()) else {
        return;
    };
    let pool = FileVolumes::open_pool(&folder.path().join("data")).unwrap();
    let plan = VmPlan {
        boot: PlannedBoot::Firmware,
        memory_mib: 128,
        disks: Vec::new(),
        ..plan(VolumeId::mint())
    };
    let vm = plan.vm;
    let files = match pool.firmware(vm).await {
        Err(fault) if fault.code == "no_firmware" => {
            eprintln!("SKIP: {}", fault.cause);
            return;
        }
        files => files.unwrap(),
    };
    let variables = folder.path().join(format!("data/firmware/{vm}.vars"));
    let fresh = fs::read(&variables).unwrap();
    let supervisors = Supervisors::start(config).unwrap();
    let opened = Opened {
        boot: OpenedBoot::Firmware(files),
        disks: Vec::new(),
        taps: Vec::new(),
    };
    supervisors.launch(plan, opened).await.unwrap();
    reaches(&supervisors, vm, |phase| *phase == Phase::Running).await;

    let processes = supervisors.processes(Leases::default());
    let mut serial = processes.connect(vm).await.unwrap();
    let until_its_shell = async {
        let mut said = Vec::new();
        while !String::from_utf8_lossy(&said).contains("UEFI Interactive Shell") {
            let more = serial.read_buf(&mut said).await.unwrap();
            assert!(more > 0, "it ended: {}", String::from_utf8_lossy(&said));
        }
    };
    tokio::time::timeout(Duration::from_secs(120), until_its_shell)
        .await
        .expect("the firmware comes to its shell");
    let counters = processes.counters(vm).await;
    assert!(counters["flash_syncs_total"] > 0);
    assert_eq!(counters["flash_volume_errors_total"], 0);
    assert_eq!(
        pool.firmware(vm).await.unwrap_err().code,
        "volume_in_use",
        "nobody else writes them"
    );

    supervisors.request(vm, VmRequest::Kill).await;
    reaches(&supervisors, vm, |phase| matches!(phase, Phase::Ended(_))).await;
    pool.firmware(vm).await.unwrap();
    assert_ne!(fs::read(&variables).unwrap(), fresh);
    pool.remove_firmware(vm).await.unwrap();
    assert!(!variables.exists());
}
