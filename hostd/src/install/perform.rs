//! Doing what the plan says, step by step; every write is in an order that survives a power cut.
//!
//! ```text
//! Partition  old table off · mark on · old beginnings zeroed · new table (second copy first)
//! Format     FAT32 on the ESP, ext4 on data
//! Copy       loader.conf, loader under its own name, UKI
//! Verify     read back from the medium: table, every file's SHA-256
//! Configure  ext4 on state, made with host.toml already in it
//! Activate   EFI/BOOT/BOOTX64.EFI: now firmware can start it · mark off
//! ```
//! Before the one directory entry that Activate writes there is nothing on the disk that firmware starts. The mark
//! (see `host::partitions`) tells the next installer that what is there was never used, so it needs no new consent.
//! No partition nodes and no mounts are needed: everything happens on the whole disk at offsets, so the kernel's idea
//! of the old partitions does not matter, and it works on a file as on a disk.

use std::cell::RefCell;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use api::install::InstallStep;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::disk::Disk;
use super::esp::{Esp, EspError};
use super::fat::{Fat, FatError};
use super::plan::{Plan, render};
use crate::config::{ConfigError, HostConfig};
use crate::host::content::BOOT_FILE;
use crate::host::partitions::{
    MARK_OFFSET, MIB, Partition, TYPE_DATA, TYPE_ESP, TYPE_STATE, Table, mark,
};
use crate::host::read_at::{ReadAt, Window};

/// The loader under its own name, where systemd's tools look for it.
const LOADER_FILE: &str = "EFI/systemd/systemd-bootx64.efi";
/// What the loader is told: start at once, and nobody edits the command line.
const LOADER_CONF: &str = "timeout 0\neditor no\n";
/// How much is hashed at once.
const CHUNK: usize = 4 << 20;

/// A step went wrong.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The disk.
    #[error("could not {0}")]
    Disk(&'static str, #[source] io::Error),
    /// The ESP.
    #[error(transparent)]
    Esp(#[from] EspError),
    /// A file on the ESP could not be read back.
    #[error("could not read `{0}` back")]
    ReadBack(String, #[source] FatError),
    /// A program could not be started.
    #[error("could not start {0}")]
    Start(String, #[source] io::Error),
    /// A program failed.
    #[error("{program} failed: {output}")]
    Program {
        /// Which.
        program: String,
        /// The end of what it said.
        output: String,
    },
    /// What was read back is not what was written.
    #[error("what was read back differs: {0}")]
    Differs(String),
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The plan has no such partition.
    #[error("the plan is not whole")]
    Plan,
}

/// An install in progress.
pub struct Work<'a> {
    /// What it will be.
    pub plan: &'a Plan,
    /// Where to.
    pub disk: &'a dyn Disk,
    /// The operating system.
    pub uki: &'a dyn ReadAt,
    /// The boot loader.
    pub loader: &'a Vec<u8>,
    /// A folder for the state partition's first content.
    pub scratch: &'a Path,
    /// SHA-256 of the UKI, from `Copy` on.
    pub uki_sha256: Option<[u8; 32]>,
}

/// The steps that write, in order.
pub const WRITING_STEPS: [InstallStep; 6] = [
    InstallStep::Partition,
    InstallStep::Format,
    InstallStep::Copy,
    InstallStep::Verify,
    InstallStep::Configure,
    InstallStep::Activate,
];

impl Work<'_> {
    /// Does one step. `progress` hears 0 to 100 within the step.
    pub fn step(
        &mut self,
        step: InstallStep,
        progress: &mut dyn FnMut(u8),
    ) -> Result<(), StepError> {
        match step {
            InstallStep::Check | InstallStep::Reboot => Ok(()),
            InstallStep::Partition => self.partition(),
            InstallStep::Format => self.format(progress),
            InstallStep::Copy => self.copy(progress),
            InstallStep::Verify => self.verify(progress),
            InstallStep::Configure => self.configure(),
            InstallStep::Activate => self.activate(),
        }
    }

    fn partition(&self) -> Result<(), StepError> {
        let failed = |source| StepError::Disk("write the partition table", source);
        let table = &self.plan.table;
        let rendered = render(table, self.plan.disk_len).map_err(failed)?;
        // MBR and header: the sectors that make or unmake a table.
        let front = usize::try_from(table.sector * 2).map_err(|_| StepError::Plan)?;
        let mark_at = usize::try_from(MARK_OFFSET).map_err(|_| StepError::Plan)?;
        let zeros = vec![0; MIB as usize];
        let tail = self.plan.disk_len - MIB;
        let put = |at: u64, bytes: &[u8]| self.disk.write_at(at, bytes).map_err(failed);
        let sync = || self.disk.sync().map_err(failed);
        // Off with the old: header, then the rest, and a mark from an earlier try stays until the new one takes its
        // place. With the header gone but the second copy there, that copy speaks for the disk; it goes before what
        // it points to. So at each moment the disk is what it was, or known as interrupted, or says nothing.
        put(0, &zeros[..front])?;
        sync()?;
        put(front as u64, &zeros[front..mark_at])?;
        put(MARK_OFFSET + 512, &zeros[mark_at + 512..])?;
        sync()?;
        put(MARK_OFFSET, &mark(table.disk))?;
        sync()?;
        put(tail, &zeros)?;
        sync()?;
        for partition in &table.partitions {
            put(partition.start, &zeros)?;
        }
        sync()?;
        // On with the new: second copy, entries, header.
        put(tail, &rendered.tail)?;
        sync()?;
        put(front as u64, &rendered.head[front..mark_at])?;
        sync()?;
        put(0, &rendered.head[..front])?;
        sync()
    }

    fn format(&self, progress: &mut dyn FnMut(u8)) -> Result<(), StepError> {
        let esp = self.find(TYPE_ESP)?;
        let sector = self.plan.table.sector;
        let first = (esp.start / sector).to_string();
        // The smallest cluster that FAT32 is happy with at this size; 4 KiB like the page cache.
        let per_cluster = (4096 / sector).to_string();
        let volume_id = format!("{:08x}", esp.id.as_fields().0);
        self.run(
            "mkfs.vfat",
            &[
                // On a whole disk, where it would rather not; and no table of its own in the boot sector.
                "-I",
                "--mbr=n",
                "-F",
                "32",
                "-S",
                &sector.to_string(),
                "-s",
                &per_cluster,
                "-n",
                "LQX_ESP",
                "-i",
                &volume_id,
                "--offset",
                &first,
                "-h",
                &first,
                &self.path()?,
                &(esp.len / 1024).to_string(),
            ],
        )?;
        progress(30);
        self.ext4(self.find(TYPE_DATA)?, "lqx-data", 64, None)?;
        self.disk
            .sync()
            .map_err(|source| StepError::Disk("flush the new file systems", source))
    }

    fn ext4(
        &self,
        partition: &Partition,
        label: &str,
        journal_mib: u32,
        content: Option<&str>,
    ) -> Result<(), StepError> {
        let journal = format!("size={journal_mib}");
        // Nothing outside of the partition is to be discarded, by whatever version of mke2fs.
        let extended = format!("offset={},lazy_itable_init=1,nodiscard", partition.start);
        let id = partition.id.to_string();
        let path = self.path()?;
        let kib = format!("{}k", partition.len / 1024);
        let mut arguments = vec![
            "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-L", label, "-U", &id, "-J",
            &journal, "-E", &extended,
        ];
        if let Some(folder) = content {
            arguments.extend(["-d", folder]);
        }
        arguments.extend([path.as_str(), kib.as_str()]);
        self.run("mke2fs", &arguments)
    }

    fn copy(&mut self, progress: &mut dyn FnMut(u8)) -> Result<(), StepError> {
        let esp = self.find(TYPE_ESP)?;
        let mut files = Esp::open(self.disk, esp.start, esp.len)?;
        for folder in ["loader", "EFI", "EFI/BOOT", "EFI/systemd", "EFI/Linux"] {
            files.mkdir(folder)?;
        }
        let conf = LOADER_CONF.as_bytes().to_vec();
        files.create("loader/loader.conf", &conf, &mut |_| {})?;
        files.create(LOADER_FILE, self.loader, &mut |_| {})?;
        let hashing = Hashing::new(self.uki);
        let len = self.uki.len().max(1);
        files.create(&self.plan.slot, &hashing, &mut |done| {
            progress(u8::try_from(done * 100 / len).unwrap_or(100));
        })?;
        self.uki_sha256 = hashing.finish();
        Ok(())
    }

    fn verify(&self, progress: &mut dyn FnMut(u8)) -> Result<(), StepError> {
        let failed = |source| StepError::Disk("read the disk back", source);
        let fresh = self.disk.read_back().map_err(failed)?;
        let table = Table::read(fresh.as_ref(), self.plan.table.sector);
        if table.as_ref() != Some(&self.plan.table) {
            return Err(StepError::Differs("the partition table".to_owned()));
        }
        let wanted = self.uki_sha256.ok_or(StepError::Plan)?;
        let conf = LOADER_CONF.as_bytes();
        self.same(
            fresh.as_ref(),
            "loader/loader.conf",
            sha256(conf),
            &mut |_| {},
        )?;
        self.same(
            fresh.as_ref(),
            LOADER_FILE,
            sha256(self.loader),
            &mut |_| {},
        )?;
        self.same(fresh.as_ref(), &self.plan.slot, wanted, progress)
    }

    /// The file on the medium has this hash.
    fn same(
        &self,
        fresh: &dyn ReadAt,
        path: &str,
        wanted: [u8; 32],
        progress: &mut dyn FnMut(u8),
    ) -> Result<(), StepError> {
        let failed = |source| StepError::ReadBack(path.to_owned(), source);
        let esp = self.find(TYPE_ESP)?;
        let window = Window::new(fresh, esp.start, esp.len);
        let fat = Fat::open(&window).map_err(failed)?;
        let entry = fat.find(path).map_err(failed)?;
        let entry = entry.ok_or_else(|| StepError::Differs(format!("`{path}` is not there")))?;
        let file = fat.open_file(&entry).map_err(failed)?;
        let mut hash = Sha256::new();
        let mut at = 0;
        while at < file.len() {
            let take = usize::try_from(file.len() - at).map_or(CHUNK, |left| left.min(CHUNK));
            let bytes = file.read_vec(at, take).map_err(|e| failed(e.into()))?;
            hash.update(&bytes);
            at += take as u64;
            progress(u8::try_from(at * 100 / file.len()).unwrap_or(100));
        }
        match hash.finalize()[..] == wanted {
            true => Ok(()),
            false => Err(StepError::Differs(format!("`{path}`"))),
        }
    }

    fn configure(&self) -> Result<(), StepError> {
        let failed = |source| StepError::Disk("prepare the state partition's content", source);
        let content = self.scratch.join(format!("state-{}", Uuid::new_v4()));
        std::fs::create_dir_all(&content).map_err(failed)?;
        let made = self.configure_from(&content, &self.plan.config);
        std::fs::remove_dir_all(&content).map_err(failed)?;
        made
    }

    fn configure_from(&self, content: &Path, config: &HostConfig) -> Result<(), StepError> {
        let failed = |source| StepError::Disk("make the state partition", source);
        std::fs::set_permissions(content, std::fs::Permissions::from_mode(0o700))
            .map_err(failed)?;
        config.write(content)?;
        let state = self.find(TYPE_STATE)?;
        let folder = content.to_str().ok_or(StepError::Plan)?;
        self.ext4(state, "lqx-state", 16, Some(folder))?;
        self.disk.sync().map_err(failed)?;
        // Both are checked once more as the next boot will find them.
        for partition in [state, self.find(TYPE_DATA)?] {
            let place = format!("{}?offset={}", self.path()?, partition.start);
            self.run("e2fsck", &["-f", "-n", &place])?;
        }
        Ok(())
    }

    fn activate(&self) -> Result<(), StepError> {
        let failed = |source| StepError::Disk("activate the install", source);
        let esp = self.find(TYPE_ESP)?;
        let mut files = Esp::open(self.disk, esp.start, esp.len)?;
        files.create(BOOT_FILE, self.loader, &mut |_| {})?;
        let fresh = self.disk.read_back().map_err(failed)?;
        self.same(fresh.as_ref(), BOOT_FILE, sha256(self.loader), &mut |_| {})?;
        self.disk.write_at(MARK_OFFSET, &[0; 512]).map_err(failed)?;
        self.disk.sync().map_err(failed)
    }

    fn find(&self, kind: Uuid) -> Result<&Partition, StepError> {
        self.plan.partition(kind).ok_or(StepError::Plan)
    }

    fn path(&self) -> Result<String, StepError> {
        let path = self.disk.path().to_str();
        path.map(str::to_owned).ok_or(StepError::Plan)
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<(), StepError> {
        let arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
        let ended = self
            .disk
            .run(program, &arguments)
            .map_err(|source| StepError::Start(program.to_owned(), source))?;
        if ended.status.success() {
            return Ok(());
        }
        let mut output = String::from_utf8_lossy(&ended.stdout).into_owned();
        output.push_str(&String::from_utf8_lossy(&ended.stderr));
        let last: Vec<&str> = output.lines().rev().take(3).collect();
        Err(StepError::Program {
            program: program.to_owned(),
            output: last.into_iter().rev().collect::<Vec<_>>().join("; "),
        })
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Hashes what is read from it, front to back.
struct Hashing<'a> {
    inner: &'a dyn ReadAt,
    so_far: RefCell<(Sha256, u64)>,
}

impl<'a> Hashing<'a> {
    fn new(inner: &'a dyn ReadAt) -> Self {
        Self {
            inner,
            so_far: RefCell::new((Sha256::new(), 0)),
        }
    }

    /// The hash, when everything was read once and in order.
    fn finish(self) -> Option<[u8; 32]> {
        let (hash, len) = self.so_far.into_inner();
        (len == self.inner.len()).then(|| hash.finalize().into())
    }
}

impl ReadAt for Hashing<'_> {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.inner.read_at(offset, buf)?;
        let mut so_far = self.so_far.borrow_mut();
        if so_far.1 == offset {
            so_far.0.update(&*buf);
            so_far.1 += buf.len() as u64;
        }
        Ok(())
    }
}
