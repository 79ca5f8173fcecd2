//! Volumes as files on a local file system.
//!
//! ```text
//! DATA/volumes/<id>.raw       complete; sparse, its size fixed
//! DATA/volumes/<id>.tmp       being filled; removed at start
//! DATA/firmware/<vm>.vars     a VM's UEFI variables: see `firmware`
//! ```
//! A volume appears under its name only when it is whole and on disk: fill, fsync, rename, fsync the folder. So a power
//! cut leaves either the volume or leftovers with another name.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::ids::{ImageId, VmId, VolumeId};
use api::images::ImageFormat;
use api::units::Percent;
use hostd_state::Fault;
use rustix::fs::{FlockOperation, SeekFrom};
use rustix::io::Errno;

use super::convert::{ConvertError, Converter};
use super::convert_process::ConvertProcess;
use super::firmware::Firmware;
use super::space::Space;
use super::{FirmwareFiles, Progress, Stored, VolumePlan, Volumes};
use crate::report::chain;
use crate::vms::fault;

/// How much is copied between two reports of progress.
const COPY_STEP_BYTES: u64 = 16 << 20;

/// A folder of volumes.
#[derive(Debug, Clone)]
pub struct FileVolumes {
    volumes: PathBuf,
    images: PathBuf,
    firmware: Firmware,
    converter: Arc<dyn Converter>,
}

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The file system.
    #[error("could not {step} `{path}`")]
    Io {
        /// What was tried.
        step: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// No space, before or while writing.
    #[error("{wanted} bytes are wanted, {left} are left on the data partition")]
    Full {
        /// What was wanted.
        wanted: u64,
        /// What may be given.
        left: u64,
    },
    /// The image is larger than the volume.
    #[error("the image has {image} bytes, the volume only {volume}")]
    ImageLarger {
        /// The image's length.
        image: u64,
        /// The volume's size.
        volume: u64,
    },
    /// The image is of another format than raw and could not be read.
    #[error(transparent)]
    Convert(ConvertError),
    /// Somebody has it open in a way that excludes this one.
    #[error("`{path}` is in use by another VM process")]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// The image carries none.
    #[error("this host has no UEFI firmware for VMs (`{path}`)")]
    NoFirmware {
        /// Where it would be.
        path: PathBuf,
    },
    /// The worker thread ended early.
    #[error("the storage worker stopped")]
    Worker,
}

impl From<StorageError> for Fault {
    fn from(error: StorageError) -> Self {
        let error = match error {
            StorageError::Convert(error) => return error.into(),
            other => other,
        };
        let (code, next) = match &error {
            StorageError::Full { .. } => (
                "no_space",
                "delete volumes or images that are not needed, then try again",
            ),
            StorageError::ImageLarger { .. } => (
                "image_too_large",
                "create the volume at least as large as the image",
            ),
            StorageError::Busy { .. } => {
                ("volume_in_use", "it is free once that process has ended")
            }
            StorageError::NoFirmware { .. } => (
                "no_firmware",
                "boot the VM from a kernel, or install an image with firmware on the host",
            ),
            StorageError::Io { .. } | StorageError::Convert(_) | StorageError::Worker => {
                ("storage_error", "see the host's log and its disk")
            }
        };
        fault(code, chain(&error), next)
    }
}

pub(super) fn at<E: Into<io::Error>>(
    step: &'static str,
    path: &Path,
) -> impl FnOnce(E) -> StorageError {
    move |error| StorageError::Io {
        step,
        path: path.to_owned(),
        source: error.into(),
    }
}

/// Runs file system work where it may block.
pub(super) async fn blocking<R: Send + 'static>(
    work: impl FnOnce() -> Result<R, StorageError> + Send + 'static,
) -> Result<R, Fault> {
    let done = tokio::task::spawn_blocking(work)
        .await
        .unwrap_or(Err(StorageError::Worker));
    done.map_err(Fault::from)
}

/// Removes what an earlier daemon did not finish. Only at start, before anything is written.
pub(super) fn remove_unfinished(folder: &Path) -> Result<(), StorageError> {
    for entry in fs::read_dir(folder).map_err(at("read", folder))? {
        let path = entry.map_err(at("read", folder))?.path();
        if path.extension().is_some_and(|extension| extension == "tmp") {
            fs::remove_file(&path).map_err(at("remove", &path))?;
        }
    }
    sync_folder(folder)
}

/// Makes the names in a folder durable.
pub(super) fn sync_folder(folder: &Path) -> Result<(), StorageError> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(at("sync", folder))
}

/// Removes a file durably. Absent is fine.
pub(super) fn remove_durably(path: &Path, folder: &Path) -> Result<(), StorageError> {
    match fs::remove_file(path) {
        Ok(()) => sync_folder(folder),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(at("remove", path)(error)),
    }
}

/// The complete files of a folder: their name without `extension`, parsed, and their length.
pub(super) fn list<Id: std::str::FromStr>(
    folder: &Path,
    extension: &str,
) -> Result<Vec<Stored<Id>>, StorageError> {
    let mut stored = Vec::new();
    for entry in fs::read_dir(folder).map_err(at("read", folder))? {
        let entry = entry.map_err(at("read", folder))?;
        let name = entry.file_name();
        let id = name
            .to_str()
            .and_then(|name| name.strip_suffix(extension))
            .and_then(|name| name.parse().ok());
        match (id, entry.metadata()) {
            (Some(id), Ok(metadata)) => stored.push(Stored {
                id,
                size_bytes: metadata.len(),
            }),
            // Not ours, or gone meanwhile.
            (None, _) | (_, Err(_)) => {}
        }
    }
    Ok(stored)
}

impl FileVolumes {
    /// The volumes below `data`. Removes what was left unfinished.
    ///
    /// # Errors
    /// The folder can not be made or cleaned.
    pub fn open_pool(data: &Path) -> Result<Self, StorageError> {
        let pool = Self {
            volumes: data.join("volumes"),
            images: data.join("images"),
            firmware: Firmware::in_image(data),
            converter: Arc::new(ConvertProcess::appliance()),
        };
        for folder in [&pool.volumes, &pool.images, pool.firmware.folder()] {
            fs::create_dir_all(folder).map_err(at("create", folder))?;
        }
        for folder in [&pool.volumes, pool.firmware.folder()] {
            remove_unfinished(folder)?;
        }
        Ok(pool)
    }

    /// The same, with images read by `converter`.
    #[must_use]
    pub fn with_converter(self, converter: Arc<dyn Converter>) -> Self {
        Self { converter, ..self }
    }

    /// What is left on the data partition.
    ///
    /// # Errors
    /// What the file system said.
    pub fn space(&self) -> Result<Space, StorageError> {
        Space::of(&self.volumes).map_err(at("look at", &self.volumes))
    }

    fn path(&self, volume: VolumeId) -> PathBuf {
        self.volumes.join(format!("{volume}.raw"))
    }

    fn image_path(&self, image: ImageId) -> PathBuf {
        super::images::image_path(&self.images, image)
    }

    fn create_now(&self, plan: &VolumePlan, progress: &Progress) -> Result<(), StorageError> {
        let path = self.path(plan.volume);
        if path.exists() {
            return Ok(());
        }
        let unfinished = self.volumes.join(format!("{}.tmp", plan.volume));
        let left = self.space()?.left();
        if plan.size_bytes > left {
            return Err(StorageError::Full {
                wanted: plan.size_bytes,
                left,
            });
        }
        let filled = self.fill(plan, &unfinished, progress).and_then(|()| {
            fs::rename(&unfinished, &path).map_err(at("rename", &unfinished))?;
            sync_folder(&self.volumes)
        });
        if filled.is_err() {
            // What can not be removed now is removed at the next start.
            let _ = fs::remove_file(&unfinished);
        }
        filled.map_err(|error| match error {
            StorageError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                StorageError::Full {
                    wanted: plan.size_bytes,
                    left: 0,
                }
            }
            other => other,
        })
    }

    fn grow_now(&self, volume: VolumeId, size_bytes: u64) -> Result<(), StorageError> {
        let path = self.path(volume);
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .open(&path)
            .map_err(at("open", &path))?;
        let have = file.metadata().map_err(at("look at", &path))?.len();
        let wanted = size_bytes.saturating_sub(have);
        let left = self.space()?.left();
        if wanted > left {
            return Err(StorageError::Full { wanted, left });
        }
        if wanted > 0 {
            file.set_len(size_bytes).map_err(at("size", &path))?;
        }
        // Also when it was long enough: by whom, and whether durably, nobody knows.
        file.sync_all().map_err(at("sync", &path))
    }

    fn fill(
        &self,
        plan: &VolumePlan,
        unfinished: &Path,
        progress: &Progress,
    ) -> Result<(), StorageError> {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600);
        let file = options.open(unfinished).map_err(at("create", unfinished))?;
        if let Some(from) = plan.from {
            let source_path = self.image_path(from.image);
            let source = File::open(&source_path).map_err(at("open", &source_path))?;
            match from.format {
                ImageFormat::Raw => {
                    let length = source
                        .metadata()
                        .map_err(at("look at", &source_path))?
                        .len();
                    if length > plan.size_bytes {
                        return Err(StorageError::ImageLarger {
                            image: length,
                            volume: plan.size_bytes,
                        });
                    }
                    copy(&source, &file, length, progress).map_err(at("fill", unfinished))?;
                }
                ImageFormat::Qcow2 => {
                    file.set_len(plan.size_bytes)
                        .map_err(at("size", unfinished))?;
                    let converted = self.converter.convert(&source, &file, progress);
                    converted.map_err(StorageError::Convert)?;
                }
            }
        }
        // Also after a conversion: somebody else had the file.
        file.set_len(plan.size_bytes)
            .map_err(at("size", unfinished))?;
        file.sync_all().map_err(at("sync", unfinished))?;
        progress.send_replace(Percent(100));
        Ok(())
    }
}

/// Copies `length` bytes: shared blocks where the file system can, else inside the kernel, holes left out.
fn copy(source: &File, target: &File, length: u64, progress: &Progress) -> io::Result<()> {
    if rustix::fs::ioctl_ficlone(target, source).is_ok() {
        return Ok(());
    }
    let mut at = 0;
    while at < length {
        at = match rustix::fs::seek(source.as_fd(), SeekFrom::Data(at)) {
            Ok(data) => data,
            // Only a hole is left.
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        let hole = rustix::fs::seek(source.as_fd(), SeekFrom::Hole(at))?.min(length);
        while at < hole {
            let step =
                usize::try_from((hole - at).min(COPY_STEP_BYTES)).map_err(io::Error::other)?;
            let (mut from, mut to) = (at, at);
            let copied =
                rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), step)?;
            if copied == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            at += copied as u64;
            let percent = u8::try_from(at * 100 / length).unwrap_or(100);
            progress.send_if_modified(|told| {
                std::mem::replace(told, Percent(percent)) != Percent(percent)
            });
        }
    }
    Ok(())
}

impl Volumes for FileVolumes {
    async fn list(&self) -> Result<Vec<Stored<VolumeId>>, Fault> {
        let folder = self.volumes.clone();
        blocking(move || list(&folder, ".raw")).await
    }

    async fn create(&self, plan: VolumePlan, progress: Progress) -> Result<(), Fault> {
        let pool = self.clone();
        blocking(move || pool.create_now(&plan, &progress)).await
    }

    async fn grow(&self, volume: VolumeId, size_bytes: u64) -> Result<(), Fault> {
        let pool = self.clone();
        blocking(move || pool.grow_now(volume, size_bytes)).await
    }

    async fn remove(&self, volume: VolumeId) -> Result<(), Fault> {
        let pool = self.clone();
        blocking(move || {
            let path = pool.path(volume);
            // Not while a process writes to it: the space would stay taken without a name.
            match open_locked(&path, false) {
                Ok(_) => {}
                Err(StorageError::Io { source, .. })
                    if source.kind() == io::ErrorKind::NotFound =>
                {
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
            remove_durably(&path, &pool.volumes)
        })
        .await
    }

    async fn open(&self, volume: VolumeId, read_only: bool) -> Result<File, Fault> {
        let path = self.path(volume);
        blocking(move || open_locked(&path, read_only)).await
    }

    async fn firmware(&self, vm: VmId) -> Result<FirmwareFiles, Fault> {
        let firmware = self.firmware.clone();
        blocking(move || firmware.open(vm)).await
    }

    async fn remove_firmware(&self, vm: VmId) -> Result<(), Fault> {
        let firmware = self.firmware.clone();
        blocking(move || firmware.remove(vm)).await
    }
}

/// A process that has ended may hold its files a moment longer: the kernel takes io_uring rings apart in the background.
const LOCK_WAIT: Duration = Duration::from_millis(500);
/// How often it is tried meanwhile.
const LOCK_POLL: Duration = Duration::from_millis(5);

/// flock belongs to the open file description: it goes with the descriptor to the VM process and lasts as long as any
/// copy of it, whatever becomes of the daemon.
pub(super) fn open_locked(path: &Path, read_only: bool) -> Result<File, StorageError> {
    let file = OpenOptions::new()
        .read(true)
        .write(!read_only)
        .open(path)
        .map_err(at("open", path))?;
    let operation = match read_only {
        true => FlockOperation::NonBlockingLockShared,
        false => FlockOperation::NonBlockingLockExclusive,
    };
    let until = Instant::now() + LOCK_WAIT;
    loop {
        match rustix::fs::flock(&file, operation) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK) if Instant::now() < until => std::thread::sleep(LOCK_POLL),
            Err(Errno::WOULDBLOCK) => {
                return Err(StorageError::Busy {
                    path: path.to_owned(),
                });
            }
            Err(errno) => return Err(at("lock", path)(errno)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{OpenConverter, qcow2_image};
    use crate::storage::Source;
    use std::os::unix::fs::{FileExt, MetadataExt};
    use tokio::sync::watch;

    fn pool() -> (tempfile::TempDir, FileVolumes) {
        let data = tempfile::tempdir().unwrap();
        let pool = FileVolumes::open_pool(data.path()).unwrap();
        (data, pool.with_converter(Arc::new(OpenConverter)))
    }

    fn plan(size_bytes: u64, image: Option<ImageId>) -> VolumePlan {
        let from = image.map(|image| Source {
            image,
            format: ImageFormat::Raw,
        });
        VolumePlan {
            volume: VolumeId::mint(),
            size_bytes,
            from,
        }
    }

    fn progress() -> Progress {
        watch::Sender::new(Percent(0))
    }

    #[tokio::test]
    async fn a_volume_is_made_once_and_removed_once() {
        let (_data, pool) = pool();
        let plan = plan(3 << 20, None);
        pool.create(plan.clone(), progress()).await.unwrap();
        pool.open(plan.volume, false)
            .await
            .unwrap()
            .write_all_at(b"kept", 0)
            .unwrap();
        pool.create(plan.clone(), progress()).await.unwrap();
        let mut start = [0; 4];
        pool.open(plan.volume, true)
            .await
            .unwrap()
            .read_exact_at(&mut start, 0)
            .unwrap();
        assert_eq!(&start, b"kept");
        assert_eq!(
            pool.list().await.unwrap(),
            [Stored {
                id: plan.volume,
                size_bytes: 3 << 20
            }]
        );
        pool.remove(plan.volume).await.unwrap();
        pool.remove(plan.volume).await.unwrap();
        assert_eq!(pool.list().await.unwrap(), []);
    }

    #[tokio::test]
    async fn a_volume_grows_while_it_is_open_and_never_shrinks() {
        let (_data, pool) = pool();
        let plan = plan(1 << 20, None);
        pool.create(plan.clone(), progress()).await.unwrap();
        let file = pool.open(plan.volume, false).await.unwrap();
        file.write_all_at(b"kept", (1 << 20) - 4).unwrap();
        for (asked, len) in [(3 << 20, 3 << 20), (2 << 20, 3 << 20), (3 << 20, 3 << 20)] {
            pool.grow(plan.volume, asked).await.unwrap();
            assert_eq!(file.metadata().unwrap().len(), len);
        }
        let mut around = [1; 8];
        file.read_exact_at(&mut around, (1 << 20) - 4).unwrap();
        assert_eq!(&around, b"kept\0\0\0\0");
        let full = pool.grow(plan.volume, 1 << 60).await.unwrap_err();
        assert_eq!(full.code, "no_space");
        assert_eq!(file.metadata().unwrap().len(), 3 << 20);
        let absent = pool.grow(VolumeId::mint(), 1 << 20).await.unwrap_err();
        assert_eq!(absent.code, "storage_error");
    }

    #[tokio::test]
    async fn a_volume_from_an_image_has_its_bytes_its_holes_and_its_own_size() {
        let (_data, pool) = pool();
        let image = ImageId::mint();
        let file = File::create(pool.image_path(image)).unwrap();
        file.write_all_at(&[7; 8192], 1 << 20).unwrap();
        file.set_len(40 << 20).unwrap();
        let plan = plan(64 << 20, Some(image));
        let told = progress();
        pool.create(plan.clone(), told.clone()).await.unwrap();
        assert_eq!(*told.borrow(), Percent(100));
        let volume = pool.open(plan.volume, true).await.unwrap();
        let mut bytes = [0; 8192];
        volume.read_exact_at(&mut bytes, 1 << 20).unwrap();
        assert_eq!(bytes, [7; 8192]);
        let metadata = volume.metadata().unwrap();
        assert_eq!(metadata.len(), 64 << 20);
        assert!(metadata.blocks() * 512 < 1 << 20, "holes were filled");
    }

    fn from_qcow2(pool: &FileVolumes, size_bytes: u64, bytes: &[u8]) -> VolumePlan {
        let image = ImageId::mint();
        fs::write(pool.image_path(image), bytes).unwrap();
        let from = Some(Source {
            image,
            format: ImageFormat::Qcow2,
        });
        VolumePlan {
            volume: VolumeId::mint(),
            size_bytes,
            from,
        }
    }

    #[tokio::test]
    async fn a_volume_from_a_qcow2_image_has_the_disk_that_is_inside() {
        let (data, pool) = pool();
        let plan = from_qcow2(&pool, 64 << 20, &qcow2_image(40 << 20, &[7; 8192]));
        let told = progress();
        pool.create(plan.clone(), told.clone()).await.unwrap();
        assert_eq!(*told.borrow(), Percent(100));
        let path = pool.path(plan.volume);
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 64 << 20);
        assert_eq!(bytes[..8192], [7; 8192]);
        assert!(bytes[8192..].iter().all(|byte| *byte == 0));
        let blocks = fs::metadata(&path).unwrap().blocks();
        assert!(blocks * 512 < 1 << 20, "zeroes were written");

        // One with much in it, packed by somebody else, against what they say is in it.
        let [raw, packed, back] =
            ["raw", "packed", "back"].map(|name| data.path().join(name).display().to_string());
        let mut disk = vec![0; (24 << 20) + 512];
        for (number, chunk) in disk.chunks_mut(4096).enumerate() {
            if number % 7 < 4 {
                chunk.fill((number % 251) as u8);
            }
        }
        fs::write(&raw, &disk).unwrap();
        let qemu_img = |args: &[&str]| std::process::Command::new("qemu-img").args(args).output();
        let Ok(done) = qemu_img(&["convert", "-c", "-f", "raw", "-O", "qcow2", &raw, &packed])
        else {
            eprintln!("SKIP: qemu-img does not run");
            return;
        };
        assert!(done.status.success(), "{done:?}");
        let plan = from_qcow2(&pool, 25 << 20, &fs::read(&packed).unwrap());
        pool.create(plan.clone(), progress()).await.unwrap();
        let volume = pool.path(plan.volume);
        fs::copy(&volume, &back).unwrap();
        let done = qemu_img(&["compare", "-f", "qcow2", "-F", "raw", &packed, &back]).unwrap();
        assert!(done.status.success(), "{done:?}");
        let written = fs::metadata(&volume).unwrap().blocks() * 512;
        assert!(written < 25 << 20, "{written}");
    }

    #[tokio::test]
    async fn a_qcow2_image_that_cannot_be_used_is_refused_in_words_and_leaves_nothing() {
        let (_data, pool) = pool();
        let good = qcow2_image(2 << 20, b"x");
        let with = |at: usize, field: &[u8]| {
            let mut bytes = good.clone();
            bytes[at..at + field.len()].copy_from_slice(field);
            bytes
        };
        for (bytes, code, words) in [
            (b"QFI\xfa".to_vec(), "image_unusable", "no qcow2 image"),
            (with(15, &[200]), "image_unusable", "backing file"),
            (with(79, &[4]), "image_unusable", "external data file"),
            (with(35, &[1]), "image_unusable", "encryption"),
            (with(4, &[9]), "image_unusable", "version"),
            // The L2 table leads out of the file: only seen on the way.
            (
                with(4 << 16, &[0x80, 0xff]),
                "image_unusable",
                "beyond the end",
            ),
            (good.clone(), "image_too_large", "2097152 bytes"),
        ] {
            let fault = pool
                .create(from_qcow2(&pool, 1 << 20, &bytes), progress())
                .await
                .unwrap_err();
            // The size is looked at before the tables.
            let fault = match words {
                "beyond the end" => {
                    assert_eq!(fault.code, "image_too_large");
                    let again = from_qcow2(&pool, 2 << 20, &bytes);
                    pool.create(again, progress()).await.unwrap_err()
                }
                _ => fault,
            };
            assert_eq!(fault.code, code, "{fault:?}");
            assert!(fault.cause.contains(words), "{words}: {fault:?}");
        }
        assert_eq!(fs::read_dir(&pool.volumes).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn what_does_not_fit_is_refused_in_words_and_leaves_nothing() {
        let (_data, pool) = pool();
        let fault = pool
            .create(plan(1 << 60, None), progress())
            .await
            .unwrap_err();
        assert_eq!(fault.code, "no_space");
        let image = ImageId::mint();
        File::create(pool.image_path(image))
            .unwrap()
            .set_len(2 << 20)
            .unwrap();
        let fault = pool
            .create(plan(1 << 20, Some(image)), progress())
            .await
            .unwrap_err();
        assert_eq!(fault.code, "image_too_large");
        let fault = pool
            .create(plan(1 << 20, Some(ImageId::mint())), progress())
            .await
            .unwrap_err();
        assert_eq!(fault.code, "storage_error");
        assert_eq!(fs::read_dir(&pool.volumes).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn one_writer_or_many_readers() {
        let (_data, pool) = pool();
        let plan = plan(1 << 20, None);
        pool.create(plan.clone(), progress()).await.unwrap();
        let readers = (
            pool.open(plan.volume, true).await.unwrap(),
            pool.open(plan.volume, true).await.unwrap(),
        );
        assert_eq!(
            pool.open(plan.volume, false).await.unwrap_err().code,
            "volume_in_use"
        );
        drop(readers);
        let writer = pool.open(plan.volume, false).await.unwrap();
        assert_eq!(
            pool.open(plan.volume, true).await.unwrap_err().code,
            "volume_in_use"
        );
        assert_eq!(
            pool.remove(plan.volume).await.unwrap_err().code,
            "volume_in_use"
        );
        // A copy of the descriptor, as the VM process has it, keeps the lock alive.
        let copy = writer.try_clone().unwrap();
        drop(writer);
        assert_eq!(
            pool.open(plan.volume, false).await.unwrap_err().code,
            "volume_in_use"
        );
        drop(copy);
        pool.open(plan.volume, false).await.unwrap();
    }

    #[tokio::test]
    async fn leftovers_of_a_power_cut_are_removed_at_start() {
        let (data, pool) = pool();
        let leftover = pool.volumes.join(format!("{}.tmp", VolumeId::mint()));
        fs::write(&leftover, b"half").unwrap();
        assert_eq!(pool.list().await.unwrap(), []);
        FileVolumes::open_pool(data.path()).unwrap();
        assert!(!leftover.exists());
    }
}
