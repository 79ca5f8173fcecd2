//! The installer on files: a whole install from a medium, the power cut at every write, every step failing.
//!
//! Programs that a machine lacks are named and the test is skipped.

use std::cell::RefCell;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use api::install::InstallStep;
use tempfile::TempDir;

use super::fat::Fat;
use super::*;
use crate::host::content::{BOOT_FILE, starts};
use crate::host::partitions::{DISK_LEN_MIN, MIB, TYPE_DATA, TYPE_ESP, TYPE_STATE, Table};
use crate::host::read_at::{ReadAt, Window};

const LOADER_BYTES: &[u8] = b"MZ this stands for systemd-boot";

/// `false`, and says so, when one of the programs is not installed.
fn have(programs: &[&str]) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    let missing = programs.iter().find(|program| {
        !path
            .split(':')
            .any(|folder| Path::new(folder).join(program).exists())
    });
    if let Some(program) = missing {
        eprintln!("skipped: `{program}` is not installed");
    }
    missing.is_none()
}

const MAKERS: [&str; 4] = ["mkfs.vfat", "mke2fs", "e2fsck", "debugfs"];

fn run(program: &str, arguments: &[&str]) -> String {
    let ended = Command::new(program).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&ended.stdout).into_owned();
    let errors = String::from_utf8_lossy(&ended.stderr);
    assert!(
        ended.status.success(),
        "{program} {arguments:?}: {text}{errors}"
    );
    text
}

fn sparse(path: &Path, len: u64) {
    fs::File::create(path).unwrap().set_len(len).unwrap();
}

/// A disk whose power is cut at a given write: that write and all later ones fail, and of what was not flushed,
/// sectors chosen by a seed are as they were before.
struct CutDisk {
    real: RealDisk,
    left: RefCell<usize>,
    pending: RefCell<Vec<(u64, Vec<u8>)>>,
    seed: u64,
}

impl CutDisk {
    fn open(path: &Path, writes: usize, seed: u64) -> Self {
        Self {
            real: RealDisk::open(path, 512).unwrap(),
            left: RefCell::new(writes),
            pending: RefCell::default(),
            seed,
        }
    }

    fn spend(&self) -> io::Result<()> {
        let mut left = self.left.borrow_mut();
        if *left == 0 {
            return Err(io::Error::other("power cut"));
        }
        *left -= 1;
        Ok(())
    }

    /// What the medium has after the cut.
    fn tear(&self) {
        let mut dice = self.seed;
        for (offset, before) in self.pending.borrow().iter().rev() {
            for (index, sector) in before.chunks(512).enumerate() {
                // splitmix64
                dice = dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mixed = (dice ^ (dice >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                if (mixed >> 40) & 1 == 0 {
                    self.real
                        .write_at(offset + index as u64 * 512, sector)
                        .unwrap();
                }
            }
        }
    }
}

impl ReadAt for CutDisk {
    fn len(&self) -> u64 {
        self.real.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.real.read_at(offset, buf)
    }
}

impl Disk for CutDisk {
    fn path(&self) -> &Path {
        self.real.path()
    }

    fn sector(&self) -> u64 {
        512
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        // The write during which the power goes may be half done.
        let before = self.real.read_vec(offset, bytes.len())?;
        self.pending.borrow_mut().push((offset, before));
        self.real.write_at(offset, bytes)?;
        self.spend()
    }

    fn sync(&self) -> io::Result<()> {
        self.spend()?;
        self.pending.borrow_mut().clear();
        Ok(())
    }

    fn read_back(&self) -> io::Result<Box<dyn ReadAt + '_>> {
        Ok(Box::new(crate::host::read_at::Device::open(self.path())?))
    }

    fn run(&self, program: &str, arguments: &[String]) -> io::Result<Output> {
        self.spend()?;
        Command::new(program).args(arguments).output()
    }
}

fn plan(len: u64, sector: u64, version: &str) -> Plan {
    let config = HostConfig {
        install: Uuid::new_v4(),
        host: HostId::mint(),
        name: "lqx-1".parse().unwrap(),
        network: api::system::NetworkSettings::default(),
    };
    let ids = [Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4()];
    Plan::new(len, sector, config, version, ids).unwrap()
}

/// Does all writing steps; the step that failed.
fn install(
    disk: &dyn Disk,
    plan: &Plan,
    uki: &Vec<u8>,
    scratch: &Path,
) -> Result<(), (InstallStep, String)> {
    let loader = LOADER_BYTES.to_vec();
    let mut work = Work {
        plan,
        disk,
        uki,
        loader: &loader,
        scratch,
        uki_sha256: None,
    };
    for step in WRITING_STEPS {
        work.step(step, &mut |_| {})
            .map_err(|error| (step, chain(&error)))?;
    }
    Ok(())
}

/// What firmware and the next boot would find.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    DoesNotStart,
    Starts,
}

fn firmware_finds(path: &Path, sector: u64) -> Found {
    let disk = Device::open(path).unwrap();
    match Table::read(&disk, sector) {
        Some(table) if starts(&disk, &table) => Found::Starts,
        _ => Found::DoesNotStart,
    }
}

fn file_on_esp(path: &Path, plan: &Plan, name: &str) -> Option<Vec<u8>> {
    let disk = Device::open(path).unwrap();
    let esp = plan.partition(TYPE_ESP).unwrap();
    let window = Window::new(&disk, esp.start, esp.len);
    let fat = Fat::open(&window).ok()?;
    let entry = fat.find(name).unwrap()?;
    let file = fat.open_file(&entry).unwrap();
    Some(
        file.read_vec(0, usize::try_from(file.len()).unwrap())
            .unwrap(),
    )
}

/// Everything that a finished install must be.
fn assert_whole(path: &Path, plan: &Plan, uki: &[u8]) {
    let sector = plan.table.sector;
    let disk = Device::open(path).unwrap();
    assert_eq!(Table::read(&disk, sector).as_ref(), Some(&plan.table));
    assert_eq!(
        Content::of(&disk, sector),
        Content::Install(plan.table.disk)
    );
    assert_eq!(file_on_esp(path, plan, BOOT_FILE).unwrap(), LOADER_BYTES);
    assert_eq!(
        file_on_esp(path, plan, "EFI/systemd/systemd-bootx64.efi").unwrap(),
        LOADER_BYTES
    );
    assert!(
        file_on_esp(path, plan, &plan.slot).unwrap() == uki,
        "the UKI differs"
    );
    let state = plan.partition(TYPE_STATE).unwrap();
    let place = format!("{}?offset={}", path.display(), state.start);
    let text = run("debugfs", &["-R", "cat host.toml", &place]);
    let start = text.find("install =").unwrap();
    let config: HostConfig = toml::from_str(&text[start..]).unwrap();
    assert_eq!(config, plan.config);
    for kind in [TYPE_STATE, TYPE_DATA] {
        let start = plan.partition(kind).unwrap().start;
        run(
            "e2fsck",
            &["-f", "-n", &format!("{}?offset={start}", path.display())],
        );
    }
}

#[test]
fn a_finished_install_is_whole_for_other_programs_too() {
    if !have(&MAKERS) || !have(&["sgdisk", "fsck.vfat"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    for sector in [512, 4096] {
        let path = folder.path().join(format!("disk-{sector}"));
        sparse(&path, DISK_LEN_MIN + 12345 * 4096);
        let disk = RealDisk::open(&path, sector).unwrap();
        let plan = plan(disk.len(), sector, "0.1.0");
        let uki = uki::fake("0.1.0", 5 << 20);
        install(&disk, &plan, &uki, folder.path()).unwrap();
        assert_whole(&path, &plan, &uki);
        // sgdisk and the copy below take 512-byte sectors for granted on files.
        if sector == 512 {
            let text = run("sgdisk", &["-v", path.to_str().unwrap()]);
            assert!(text.contains("No problems found"), "{text}");
            let text = run("sgdisk", &["-p", path.to_str().unwrap()]);
            assert!(
                text.contains("EF00") && text.contains("lqx-state"),
                "{text}"
            );
        }
        if sector != 512 {
            continue;
        }
        let esp = folder.path().join("esp");
        run(
            "dd",
            &[
                &format!("if={}", path.display()),
                &format!("of={}", esp.display()),
                "bs=1M",
                "skip=1",
                "count=768",
                "conv=sparse",
                "status=none",
            ],
        );
        let text = run("fsck.vfat", &["-n", "-v", esp.to_str().unwrap()]);
        let clean =
            !text.contains("wrong") && !text.contains("differ") && text.contains("10 files");
        assert!(clean, "{text}");
    }
}

#[test]
fn a_power_cut_at_any_write_leaves_a_disk_that_does_not_start_and_installs_without_consent() {
    if !have(&MAKERS) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("disk");
    let uki = uki::fake("0.1.0", 300_000);
    let mut cut_in = Vec::new();
    // Each write of the table, then every fourth: the files are written one like the other.
    for writes in (0..20).chain((20..).step_by(4)) {
        sparse(&path, DISK_LEN_MIN);
        let disk = CutDisk::open(&path, writes, writes as u64 * 77 + 1);
        let first = plan(DISK_LEN_MIN, 512, "0.1.0");
        let Err((step, why)) = install(&disk, &first, &uki, folder.path()) else {
            break;
        };
        assert!(why.contains("power cut"), "{why}");
        disk.tear();
        drop(disk);
        let content = Content::of(&Device::open(&path).unwrap(), 512);
        match firmware_finds(&path, 512) {
            Found::DoesNotStart => {
                assert!(content.is_blank(), "write {writes}, {step:?}: {content}");
            }
            // The boot file is there but its mark is not off yet: whole all the same, and no longer blank.
            Found::Starts => {
                assert_eq!(step, InstallStep::Activate, "write {writes}");
                assert_whole(&path, &first, &uki);
                assert!(!content.is_blank(), "write {writes}");
            }
        }
        // A first cut in each step: the next try succeeds.
        if cut_in.last() != Some(&step) {
            cut_in.push(step);
            let again = plan(DISK_LEN_MIN, 512, "0.1.0");
            let disk = RealDisk::open(&path, 512).unwrap();
            install(&disk, &again, &uki, folder.path()).unwrap();
            assert_whole(&path, &again, &uki);
        }
    }
    assert_eq!(
        cut_in,
        [
            InstallStep::Partition,
            InstallStep::Format,
            InstallStep::Copy,
            InstallStep::Configure,
            InstallStep::Activate
        ]
    );
}

#[test]
fn a_power_cut_while_replacing_an_install_never_mixes_the_two() {
    if !have(&MAKERS) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let golden = folder.path().join("old");
    sparse(&golden, DISK_LEN_MIN);
    let old_uki = uki::fake("0.0.9", 200_000);
    let old = plan(DISK_LEN_MIN, 512, "0.0.9");
    install(
        &RealDisk::open(&golden, 512).unwrap(),
        &old,
        &old_uki,
        folder.path(),
    )
    .unwrap();
    let uki = uki::fake("0.1.0", 300_000);
    let path = folder.path().join("disk");
    for writes in 0.. {
        run(
            "cp",
            &[
                "--sparse=always",
                golden.to_str().unwrap(),
                path.to_str().unwrap(),
            ],
        );
        let disk = CutDisk::open(&path, writes, writes as u64 + 5);
        let new = plan(DISK_LEN_MIN, 512, "0.1.0");
        let ended = install(&disk, &new, &uki, folder.path());
        if ended.is_ok() {
            assert_whole(&path, &new, &uki);
            break;
        }
        disk.tear();
        if firmware_finds(&path, 512) == Found::Starts {
            let disk = Device::open(&path).unwrap();
            let table = Table::read(&disk, 512).unwrap();
            if table.disk == old.table.disk {
                assert!(
                    file_on_esp(&path, &old, &old.slot).unwrap() == old_uki,
                    "write {writes}"
                );
            } else {
                assert_whole(&path, &new, &uki);
            }
        }
        // From the first write to the table on it is the same sequence as on a blank disk.
        if matches!(ended, Err((InstallStep::Copy, _))) {
            break;
        }
    }
}

#[test]
fn a_power_cut_while_starting_over_needs_no_consent_either() {
    if !have(&MAKERS) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let uki = uki::fake("0.1.0", 100_000);
    let golden = folder.path().join("cut");
    sparse(&golden, DISK_LEN_MIN);
    // Somewhere in Copy.
    let disk = CutDisk::open(&golden, 40, 3);
    let ended = install(
        &disk,
        &plan(DISK_LEN_MIN, 512, "0.1.0"),
        &uki,
        folder.path(),
    );
    assert_eq!(ended.unwrap_err().0, InstallStep::Copy);
    disk.tear();
    let path = folder.path().join("disk");
    for writes in 0.. {
        run(
            "cp",
            &[
                "--sparse=always",
                golden.to_str().unwrap(),
                path.to_str().unwrap(),
            ],
        );
        let disk = CutDisk::open(&path, writes, writes as u64 + 11);
        let ended = install(
            &disk,
            &plan(DISK_LEN_MIN, 512, "0.1.0"),
            &uki,
            folder.path(),
        );
        disk.tear();
        let content = Content::of(&Device::open(&path).unwrap(), 512);
        assert!(content.is_blank(), "write {writes}: {content}");
        assert_eq!(
            firmware_finds(&path, 512),
            Found::DoesNotStart,
            "write {writes}"
        );
        if ended.unwrap_err().0 != InstallStep::Partition {
            break;
        }
    }
}

/// A machine made of files: `/sys`, `/dev`, `/proc`.
struct FakeMachine {
    folder: TempDir,
    roots: Roots,
}

impl FakeMachine {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let roots = Roots::below(folder.path());
        for part in [
            "sys/class/block",
            "sys/class/net",
            "dev",
            "proc/sys/kernel/random",
        ] {
            fs::create_dir_all(folder.path().join(part)).unwrap();
        }
        fs::write(roots.proc.join("sys/kernel/random/uuid"), "abcdef01-2345\n").unwrap();
        Self { folder, roots }
    }

    /// A disk; its node.
    fn disk(&self, name: &str, len: u64, serial: &str) -> PathBuf {
        let node = self.roots.dev.join(name);
        if !node.exists() {
            sparse(&node, len);
        }
        let sys = self.roots.sys.join("class/block").join(name);
        fs::create_dir_all(sys.join("queue")).unwrap();
        fs::write(sys.join("size"), format!("{}\n", len / 512)).unwrap();
        fs::write(sys.join("ro"), "0\n").unwrap();
        fs::write(sys.join("removable"), "0\n").unwrap();
        fs::write(sys.join("serial"), format!("{serial}\n")).unwrap();
        fs::write(sys.join("queue/logical_block_size"), "512\n").unwrap();
        node
    }

    /// A disk whose node is this file.
    fn disk_from(&self, name: &str, image: &Path) {
        fs::copy(image, self.roots.dev.join(name)).unwrap();
        let len = fs::metadata(image).unwrap().len();
        self.disk(name, len, name);
    }

    fn booted_from(&self, partition: Uuid) {
        let folder = self.roots.sys.join("firmware/efi/efivars");
        fs::create_dir_all(&folder).unwrap();
        let mut bytes = vec![6, 0, 0, 0];
        let text = partition.to_string().to_uppercase();
        bytes.extend(text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes));
        let vendor = crate::host::efivars::LOADER;
        fs::write(folder.join(format!("LoaderDevicePartUUID-{vendor}")), bytes).unwrap();
    }

    fn installer(&self) -> Installer {
        Installer::new(self.environment())
    }

    fn environment(&self) -> Environment {
        let loader = self.folder.path().join("systemd-bootx64.efi");
        fs::write(&loader, LOADER_BYTES).unwrap();
        Environment {
            roots: self.roots.clone(),
            version: "0.1.0".into(),
            cmdline: Cmdline::default(),
            loader,
            scratch: self.folder.path().join("scratch"),
            power: Power::Pretend,
        }
    }

    /// The installer medium, as `image` makes it: an ISO with a FAT image in it.
    fn medium(&self, name: &str, version: &str) -> Vec<u8> {
        let at = self.folder.path().join("medium");
        let _ = fs::remove_dir_all(&at);
        fs::create_dir_all(&at).unwrap();
        let uki = uki::fake(version, 3_000_000);
        let file = at.join("uki");
        fs::write(&file, &uki).unwrap();
        let image = at.join("efi.img");
        sparse(&image, 8 << 20);
        run("mkfs.vfat", &["-n", "LQX_BOOT", image.to_str().unwrap()]);
        let image = image.to_str().unwrap();
        run("mmd", &["-i", image, "::/EFI", "::/EFI/BOOT"]);
        run(
            "mcopy",
            &[
                "-i",
                image,
                file.to_str().unwrap(),
                "::/EFI/BOOT/BOOTX64.EFI",
            ],
        );
        let iso = at.join("iso");
        run(
            "xorriso",
            &[
                "-as",
                "mkisofs",
                "-quiet",
                "-V",
                "LQX",
                "-J",
                "-R",
                "-o",
                iso.to_str().unwrap(),
                image,
            ],
        );
        self.disk_from(name, &iso);
        uki
    }
}

fn request(disk: &str, erase: Option<&str>) -> InstallRequest {
    InstallRequest {
        disk: disk.to_owned(),
        erase: erase.map(str::to_owned),
        hostname: None,
        network: None,
        dry_run: false,
    }
}

async fn to_the_end(installer: &Installer) -> InstallPhase {
    let mut phase = installer.watch();
    let ended = phase.wait_for(|p| matches!(p, InstallPhase::Done | InstallPhase::Failed { .. }));
    let ended = tokio::time::timeout(Duration::from_secs(120), ended).await;
    ended.unwrap().unwrap().clone()
}

const MEDIUM_MAKERS: [&str; 3] = ["xorriso", "mcopy", "mmd"];

#[tokio::test]
async fn from_medium_and_seed_to_an_installed_disk_that_is_found_again() {
    if !have(&MAKERS) || !have(&MEDIUM_MAKERS) {
        return;
    }
    let machine = FakeMachine::new();
    let uki = machine.medium("sr0", "0.1.0");
    let target = machine.disk("nvme0n1", DISK_LEN_MIN, "S-1");
    machine.disk("vdb", 100 << 20, "small");
    let seed = machine.disk("vdc", 8 << 20, "seed");
    run("mkfs.vfat", &["-n", "LQX_SEED", seed.to_str().unwrap()]);
    let text = machine.folder.path().join("seed.toml");
    fs::write(&text, "[install]\ndisk = \"S-1\"\nhostname = \"lqx-7\"\n").unwrap();
    run(
        "mcopy",
        &[
            "-i",
            seed.to_str().unwrap(),
            text.to_str().unwrap(),
            "::/seed.toml",
        ],
    );

    let installer = machine.installer();
    let status = installer.status().await;
    let shown: Vec<(&str, &str)> = status
        .disks
        .iter()
        .map(|disk| (disk.name.as_str(), disk.content.as_str()))
        .collect();
    assert_eq!(
        shown,
        [
            ("nvme0n1", "blank"),
            ("vdb", "blank"),
            ("vdc", "FAT file system")
        ]
    );
    let found = seed::SeedPlace::find(&machine.roots, &Cmdline::default())
        .unwrap()
        .unwrap();
    let mut seen = installer.watch();
    installer
        .unattended(found.load().await.unwrap())
        .await
        .unwrap();
    assert_eq!(*seen.borrow_and_update(), InstallPhase::Done);

    let disk = Device::open(&target).unwrap();
    let table = Table::read(&disk, 512).unwrap();
    machine.booted_from(table.only(TYPE_ESP).unwrap().id);
    let state = table.only(TYPE_STATE).unwrap().start;
    let place = format!("{}?offset={state}", target.display());
    let config = run("debugfs", &["-R", "cat host.toml", &place]);
    assert!(config.contains("name = \"lqx-7\""), "{config}");
    let esp = table.only(TYPE_ESP).unwrap();
    let window = Window::new(&disk, esp.start, esp.len);
    let fat = Fat::open(&window).unwrap();
    let slot = fat
        .find("EFI/Linux/limiquantix_0.1.0+3.efi")
        .unwrap()
        .unwrap();
    assert_eq!(slot.len, uki.len() as u64);
    match discover::discover(&machine.roots, &Cmdline::default()) {
        discover::Discovered::Run(install) => {
            assert_eq!(install.id, table.disk);
            assert_eq!(install.state, machine.roots.dev.join("nvme0n1p2"));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_seed_on_an_iso_and_a_uki_by_url_install_too() {
    if !have(&MAKERS) || !have(&["xorriso"]) {
        return;
    }
    let machine = FakeMachine::new();
    machine.disk("vda", DISK_LEN_MIN, "S-1");
    let text = machine.folder.path().join("seed.toml");
    fs::write(&text, "[install]\ndisk = \"vda\"\n").unwrap();
    let iso = machine.folder.path().join("seed.iso");
    let (iso_name, text) = (iso.to_str().unwrap(), text.to_str().unwrap());
    run(
        "xorriso",
        &[
            "-as", "mkisofs", "-quiet", "-V", "LQX_SEED", "-o", iso_name, text,
        ],
    );
    machine.disk_from("sr0", &iso);
    let uki = uki::fake("0.1.0", 700_000);
    let url = fetch::tests::serve("200 OK", uki.clone()).await;
    let mut environment = machine.environment();
    environment.cmdline.uki = Some(url);
    environment.cmdline.uki_sha256 = Some(fetch::hex(&[0; 32]));
    let seed = || async {
        let place = seed::SeedPlace::find(&machine.roots, &Cmdline::default());
        place.unwrap().unwrap().load().await.unwrap()
    };
    let error = Installer::new(environment.clone())
        .unattended(seed().await)
        .await
        .unwrap_err();
    assert!(error.message.contains("SHA-256"), "{error:?}");
    environment.cmdline.uki_sha256 = None;
    Installer::new(environment)
        .unattended(seed().await)
        .await
        .unwrap();
    assert_eq!(
        firmware_finds(&machine.roots.dev.join("vda"), 512),
        Found::Starts
    );
}

#[tokio::test]
async fn a_disk_with_data_is_not_touched_without_consent_and_a_refusal_can_be_repeated() {
    if !have(&MAKERS) || !have(&MEDIUM_MAKERS) {
        return;
    }
    let machine = FakeMachine::new();
    machine.medium("sda", "0.1.0");
    let stick = machine.roots.dev.join("sda");
    fs::File::options()
        .write(true)
        .open(stick)
        .unwrap()
        .set_len(DISK_LEN_MIN)
        .unwrap();
    machine.disk("sda", DISK_LEN_MIN, "stick");
    let target = machine.disk("vda", DISK_LEN_MIN, "S-1");
    run("mke2fs", &["-q", "-F", target.to_str().unwrap()]);
    let before = fs::metadata(&target).unwrap().modified().unwrap();
    let installer = machine.installer();
    for (wish, code) in [
        (request("vda", None), ErrorCode::ConsentRequired),
        (request("vda", Some("sda")), ErrorCode::ConsentRequired),
        (request("sda", Some("sda")), ErrorCode::InUse),
        (request("vdz", None), ErrorCode::NotFound),
    ] {
        let error = installer.start(wish.clone()).await.unwrap_err();
        assert_eq!(error.code, code, "{wish:?}: {error:?}");
    }
    let dry = InstallRequest {
        dry_run: true,
        ..request("vda", Some("S-1"))
    };
    installer.start(dry).await.unwrap();
    assert_eq!(fs::metadata(&target).unwrap().modified().unwrap(), before);
    installer.start(request("vda", Some("S-1"))).await.unwrap();
    let again = installer.start(request("vda", Some("S-1"))).await;
    assert!(again.is_err() || to_the_end(&installer).await == InstallPhase::Done);
    assert_eq!(to_the_end(&installer).await, InstallPhase::Done);
    assert_eq!(firmware_finds(&target, 512), Found::Starts);
}

#[tokio::test]
async fn without_a_medium_of_this_version_nothing_is_written() {
    if !have(&MAKERS) || !have(&MEDIUM_MAKERS) {
        return;
    }
    let machine = FakeMachine::new();
    let target = machine.disk("vda", DISK_LEN_MIN, "S-1");
    let installer = machine.installer();
    let error = installer.start(request("vda", None)).await.unwrap_err();
    assert_eq!(error.message, "no medium with a limiquantix UKI was found");
    machine.medium("sr0", "0.2.0");
    let error = installer.start(request("vda", None)).await.unwrap_err();
    assert_eq!(
        error.message,
        "this is limiquantix 0.1.0, but there is only 0.2.0 on /dev/sr0 (efi.img)"
    );
    match installer.status().await.phase {
        InstallPhase::Failed { step, .. } => assert_eq!(step, InstallStep::Check),
        other => panic!("{other:?}"),
    }
    assert_eq!(
        Content::of(&Device::open(&target).unwrap(), 512),
        Content::Blank
    );
}

#[test]
fn two_stale_installs_on_other_disks_do_not_confuse() {
    if !have(&MAKERS) {
        return;
    }
    let machine = FakeMachine::new();
    let uki = uki::fake("0.1.0", 100_000);
    let mut plans = Vec::new();
    for name in ["vda", "vdb", "vdc"] {
        let path = machine.disk(name, DISK_LEN_MIN, name);
        let plan = plan(DISK_LEN_MIN, 512, "0.1.0");
        install(
            &RealDisk::open(&path, 512).unwrap(),
            &plan,
            &uki,
            machine.folder.path(),
        )
        .unwrap();
        plans.push(plan);
    }
    // Nothing says that we came from any of them: a CD, say.
    let nothing = Cmdline::default();
    let found = discover::discover(&machine.roots, &nothing);
    assert!(
        matches!(found, discover::Discovered::Install { .. }),
        "{found:?}"
    );
    for (plan, name) in plans.iter().zip(["vda", "vdb", "vdc"]) {
        let by_command_line = Cmdline {
            install: Some(plan.table.disk),
            ..Cmdline::default()
        };
        machine.booted_from(plan.partition(TYPE_ESP).unwrap().id);
        for cmdline in [&nothing, &by_command_line] {
            match discover::discover(&machine.roots, cmdline) {
                discover::Discovered::Run(install) => assert_eq!(install.disk, name),
                other => panic!("{other:?}"),
            }
        }
    }
    let gone = Cmdline {
        install: Some(Uuid::from_u128(1)),
        ..Cmdline::default()
    };
    let found = discover::discover(&machine.roots, &gone);
    assert!(
        matches!(found, discover::Discovered::Rescue { .. }),
        "{found:?}"
    );
}

/// Says that it wrote, and did not.
struct LyingDisk {
    real: RealDisk,
    lose: u64,
}

impl ReadAt for LyingDisk {
    fn len(&self) -> u64 {
        self.real.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.real.read_at(offset, buf)
    }
}

impl Disk for LyingDisk {
    fn path(&self) -> &Path {
        self.real.path()
    }

    fn sector(&self) -> u64 {
        512
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut bytes = bytes.to_vec();
        if let Some(at) = self
            .lose
            .checked_sub(offset)
            .and_then(|at| usize::try_from(at).ok())
            && let Some(byte) = bytes.get_mut(at)
        {
            *byte ^= 1;
        }
        self.real.write_at(offset, &bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.real.sync()
    }

    fn read_back(&self) -> io::Result<Box<dyn ReadAt + '_>> {
        self.real.read_back()
    }
}

#[test]
fn one_wrong_bit_on_the_medium_is_found_by_verify() {
    if !have(&MAKERS) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("disk");
    sparse(&path, DISK_LEN_MIN);
    let uki = uki::fake("0.1.0", 2_000_000);
    let plan = plan(DISK_LEN_MIN, 512, "0.1.0");
    let disk = LyingDisk {
        real: RealDisk::open(&path, 512).unwrap(),
        // Somewhere in the UKI: it begins a few clusters after the tables, some 3 MiB into the disk.
        lose: 4 * MIB,
    };
    let (step, why) = install(&disk, &plan, &uki, folder.path()).unwrap_err();
    assert_eq!(step, InstallStep::Verify, "{why}");
    assert!(why.contains("limiquantix_0.1.0"), "{why}");
    assert_eq!(firmware_finds(&path, 512), Found::DoesNotStart);
}
