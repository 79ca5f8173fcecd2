//! Uploaded images as files: received under another name, verified, then given their own.
//!
//! ```text
//! DATA/images/<id>        complete: its length and SHA-256 were the promised ones, and its format was looked into
//! DATA/images/<id>.tmp    being received; removed at start
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use api::ids::ImageId;
use api::images::ImageFormat;
use api::{ApiError, ErrorCode};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{Stream, StreamExt};
use hostd_state::Fault;
use rustix::fs::FlockOperation;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::convert::{ConvertError, Converter};
use super::convert_process::ConvertProcess;
use super::file::{
    StorageError, at, blocking, list, remove_durably, remove_unfinished, sync_folder,
};
use super::space::Space;
use super::{Images, Stored};
use crate::http::hands::{ImageStore, NotReceived, Promise, Upload};
use crate::report::chain;
use crate::vms::fault;

/// Chunks that may wait between the network and the disk.
const CHUNKS_MAX: usize = 8;

/// Why an upload did not become an image. Nothing is left of it.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// Fewer or more bytes than promised.
    #[error("{promised} bytes were promised, {got} came")]
    Length {
        /// Promised.
        promised: u64,
        /// What came, at least.
        got: u64,
    },
    /// Other bytes than promised.
    #[error("the bytes have SHA-256 {got}, {promised} was promised")]
    Checksum {
        /// Promised.
        promised: String,
        /// What came.
        got: String,
    },
    /// The promised bytes, but nothing that can be used.
    #[error(transparent)]
    Unusable(ConvertError),
    /// The sender stopped.
    #[error("the upload was interrupted")]
    Interrupted(#[source] io::Error),
    /// Another upload of the same image is under way.
    #[error("this image is being uploaded already")]
    Busy,
    /// The disk.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl From<ReceiveError> for Fault {
    fn from(error: ReceiveError) -> Self {
        let code = match error {
            ReceiveError::Storage(error) => return error.into(),
            ReceiveError::Unusable(error) => return error.into(),
            ReceiveError::Length { .. } | ReceiveError::Checksum { .. } => "checksum_mismatch",
            ReceiveError::Interrupted(_) => "upload_interrupted",
            ReceiveError::Busy => "upload_in_progress",
        };
        fault(code, chain(&error), "upload it again")
    }
}

/// A folder of images.
#[derive(Debug, Clone)]
pub struct FileImages {
    images: PathBuf,
    volumes: PathBuf,
    converter: Arc<dyn Converter>,
}

pub(super) fn image_path(images: &Path, image: ImageId) -> PathBuf {
    images.join(image.to_string())
}

impl FileImages {
    /// The images below `data`. Removes what was left unfinished.
    ///
    /// # Errors
    /// The folder can not be made or cleaned.
    pub fn open_store(data: &Path) -> Result<Self, StorageError> {
        let store = Self {
            images: data.join("images"),
            volumes: data.join("volumes"),
            converter: Arc::new(ConvertProcess::appliance()),
        };
        for folder in [&store.images, &store.volumes] {
            fs::create_dir_all(folder).map_err(at("create", folder))?;
        }
        remove_unfinished(&store.images)?;
        Ok(store)
    }

    /// The same, with images read by `converter`.
    #[must_use]
    pub fn with_converter(self, converter: Arc<dyn Converter>) -> Self {
        Self { converter, ..self }
    }

    /// Receives an image. It is there, durably, when this returns; otherwise nothing is left of it. Gives the size of
    /// the disk inside, if that is another than the image's.
    ///
    /// # Errors
    /// Not the promised bytes, no space, or the sender stopped.
    pub async fn receive_stream<S>(
        &self,
        image: ImageId,
        promise: &Promise,
        mut body: S,
    ) -> Result<Option<u64>, ReceiveError>
    where
        S: Stream<Item = io::Result<Bytes>> + Send + Unpin,
    {
        let (chunks, receiver) = mpsc::channel(CHUNKS_MAX);
        let (store, promise) = (self.clone(), promise.clone());
        let writer = tokio::task::spawn_blocking(move || store.write(image, &promise, receiver));
        let mut interrupted = None;
        while let Some(chunk) = body.next().await {
            let chunk = match chunk {
                Ok(chunk) => chunk,
                Err(error) => {
                    interrupted = Some(error);
                    break;
                }
            };
            if chunks.send(Chunk::Bytes(chunk)).await.is_err() {
                // The writer has given up and will say why.
                break;
            }
        }
        if interrupted.is_none() {
            let _ = chunks.send(Chunk::End).await;
        }
        drop(chunks);
        let written = writer
            .await
            .unwrap_or(Err(ReceiveError::Storage(StorageError::Worker)));
        match (written, interrupted) {
            (Err(ReceiveError::Interrupted(_)), Some(error)) => {
                Err(ReceiveError::Interrupted(error))
            }
            (written, _) => written,
        }
    }

    fn write(
        &self,
        image: ImageId,
        promise: &Promise,
        chunks: mpsc::Receiver<Chunk>,
    ) -> Result<Option<u64>, ReceiveError> {
        let left = Space::of(&self.volumes)
            .map_err(at("look at", &self.volumes))?
            .left();
        if promise.size_bytes > left {
            return Err(StorageError::Full {
                wanted: promise.size_bytes,
                left,
            }
            .into());
        }
        let unfinished = self.images.join(format!("{image}.tmp"));
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let file = options
            .open(&unfinished)
            .map_err(at("create", &unfinished))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(ReceiveError::Busy),
            Err(errno) => return Err(at("lock", &unfinished)(errno).into()),
        }
        let received = fill(&file, &unfinished, promise, chunks).and_then(|()| {
            let inside = match promise.format {
                ImageFormat::Raw => None,
                ImageFormat::Qcow2 => Some(self.examine_now(&unfinished)?),
            };
            fs::rename(&unfinished, image_path(&self.images, image))
                .map_err(at("rename", &unfinished))?;
            sync_folder(&self.images)?;
            Ok(inside)
        });
        if received.is_err() {
            // What can not be removed now is removed at the next start.
            let _ = fs::remove_file(&unfinished);
        }
        received
    }

    fn examine_now(&self, path: &Path) -> Result<u64, ReceiveError> {
        // For reading only: it is handed on.
        let image = File::open(path).map_err(at("open", path))?;
        let examined = self.converter.examine(&image);
        examined.map_err(|error| match error.is_the_images() {
            true => ReceiveError::Unusable(error),
            false => StorageError::Convert(error).into(),
        })
    }
}

/// What comes from the network. Without an `End` the sender stopped early.
enum Chunk {
    Bytes(Bytes),
    End,
}

fn fill(
    mut file: &File,
    unfinished: &Path,
    promise: &Promise,
    mut chunks: mpsc::Receiver<Chunk>,
) -> Result<(), ReceiveError> {
    file.set_len(0).map_err(at("truncate", unfinished))?;
    let mut digest = Sha256::new();
    let mut got = 0;
    loop {
        match chunks.blocking_recv() {
            Some(Chunk::Bytes(bytes)) => {
                got += bytes.len() as u64;
                if got > promise.size_bytes {
                    return Err(ReceiveError::Length {
                        promised: promise.size_bytes,
                        got,
                    });
                }
                digest.update(&bytes);
                file.write_all(&bytes).map_err(|error| match error.kind() {
                    io::ErrorKind::StorageFull => StorageError::Full {
                        wanted: promise.size_bytes,
                        left: 0,
                    },
                    _ => at("write", unfinished)(error),
                })?;
            }
            Some(Chunk::End) => break,
            None => {
                return Err(ReceiveError::Interrupted(
                    io::ErrorKind::UnexpectedEof.into(),
                ));
            }
        }
    }
    if got != promise.size_bytes {
        return Err(ReceiveError::Length {
            promised: promise.size_bytes,
            got,
        });
    }
    let got: String = digest
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    if !got.eq_ignore_ascii_case(&promise.sha256) {
        return Err(ReceiveError::Checksum {
            promised: promise.sha256.clone(),
            got,
        });
    }
    Ok(file.sync_all().map_err(at("sync", unfinished))?)
}

impl ImageStore for FileImages {
    fn receive(
        &self,
        image: ImageId,
        promise: Promise,
        bytes: Upload,
    ) -> BoxFuture<'_, Result<Option<u64>, NotReceived>> {
        Box::pin(async move {
            let received = self.receive_stream(image, &promise, bytes).await;
            received.map_err(|error| match error {
                ReceiveError::Unusable(error) => NotReceived::Unusable(error.into()),
                other => NotReceived::Refused(other.into()),
            })
        })
    }
}

impl From<ReceiveError> for ApiError {
    fn from(error: ReceiveError) -> Self {
        let (code, hint) = match &error {
            ReceiveError::Length { .. } | ReceiveError::Checksum { .. } => (
                ErrorCode::ChecksumMismatch,
                "check the file and its SHA-256, then upload it again",
            ),
            ReceiveError::Unusable(_) => (
                ErrorCode::ImageUnusable,
                "convert it to a complete, plain image first",
            ),
            ReceiveError::Interrupted(_) => (ErrorCode::Unavailable, "upload it again"),
            ReceiveError::Busy => (ErrorCode::InUse, "wait until the other upload has ended"),
            ReceiveError::Storage(StorageError::Full { .. }) => (
                ErrorCode::Exhausted,
                "delete volumes or images that are not needed, then upload it again",
            ),
            ReceiveError::Storage(_) => (ErrorCode::Internal, "see the host's log and its disk"),
        };
        Self::new(code, chain(&error), hint)
    }
}

impl Images for FileImages {
    async fn list(&self) -> Result<Vec<Stored<ImageId>>, Fault> {
        let folder = self.images.clone();
        blocking(move || list(&folder, "")).await
    }

    async fn remove(&self, image: ImageId) -> Result<(), Fault> {
        let folder = self.images.clone();
        blocking(move || {
            remove_durably(&folder.join(format!("{image}.tmp")), &folder)?;
            remove_durably(&image_path(&folder, image), &folder)
        })
        .await
    }

    async fn open(&self, image: ImageId) -> Result<File, Fault> {
        let path = image_path(&self.images, image);
        blocking(move || File::open(&path).map_err(at("open", &path))).await
    }

    async fn examine(&self, image: ImageId) -> Result<u64, Fault> {
        let store = self.clone();
        let path = image_path(&self.images, image);
        let examined = tokio::task::spawn_blocking(move || store.examine_now(&path)).await;
        examined
            .unwrap_or(Err(ReceiveError::Storage(StorageError::Worker)))
            .map_err(Fault::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;

    /// SHA-256 of `hello world`.
    const HELLO: &str = "b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9";

    fn store() -> (tempfile::TempDir, FileImages) {
        let data = tempfile::tempdir().unwrap();
        let store = FileImages::open_store(data.path()).unwrap();
        (data, store)
    }

    async fn send(
        store: &FileImages,
        image: ImageId,
        promise: (u64, &str),
        parts: Vec<io::Result<Bytes>>,
    ) -> Result<Option<u64>, ReceiveError> {
        let promise = Promise {
            size_bytes: promise.0,
            sha256: promise.1.to_owned(),
            format: ImageFormat::Raw,
        };
        store
            .receive_stream(image, &promise, stream::iter(parts))
            .await
    }

    fn hello() -> Vec<io::Result<Bytes>> {
        vec![
            Ok(Bytes::from_static(b"hello ")),
            Ok(Bytes::from_static(b"world")),
        ]
    }

    #[tokio::test]
    async fn the_promised_bytes_become_an_image_and_nothing_else_does() {
        let (_data, store) = store();
        let image = ImageId::mint();
        let short = send(&store, image, (12, HELLO), hello()).await.unwrap_err();
        assert!(matches!(
            short,
            ReceiveError::Length {
                promised: 12,
                got: 11
            }
        ));
        let long = send(&store, image, (10, HELLO), hello()).await.unwrap_err();
        assert!(matches!(
            long,
            ReceiveError::Length {
                promised: 10,
                got: 11
            }
        ));
        let other = send(&store, image, (11, &"0".repeat(64)), hello())
            .await
            .unwrap_err();
        assert!(matches!(other, ReceiveError::Checksum { .. }));
        let mut broken = hello();
        broken.push(Err(io::ErrorKind::ConnectionReset.into()));
        let interrupted = send(&store, image, (11, HELLO), broken).await.unwrap_err();
        assert!(matches!(interrupted, ReceiveError::Interrupted(_)));
        let huge = send(&store, image, (1 << 60, HELLO), hello())
            .await
            .unwrap_err();
        assert_eq!(Fault::from(huge).code, "no_space");
        assert_eq!(fs::read_dir(&store.images).unwrap().count(), 0);

        send(&store, image, (11, &HELLO.to_uppercase()), hello())
            .await
            .unwrap();
        assert_eq!(
            store.list().await.unwrap(),
            [Stored {
                id: image,
                size_bytes: 11
            }]
        );
        let text = io::read_to_string(store.open(image).await.unwrap()).unwrap();
        assert_eq!(text, "hello world");
        store.remove(image).await.unwrap();
        store.remove(image).await.unwrap();
        assert_eq!(store.list().await.unwrap(), []);
    }

    #[tokio::test]
    async fn a_dropped_upload_leaves_nothing() {
        let (_data, store) = store();
        let image = ImageId::mint();
        let promise = Promise {
            size_bytes: 11,
            sha256: HELLO.to_owned(),
            format: ImageFormat::Raw,
        };
        let endless = stream::iter(hello()).chain(stream::pending());
        let upload = store.receive_stream(image, &promise, endless);
        let waited = tokio::time::timeout(std::time::Duration::from_millis(50), upload).await;
        assert!(waited.is_err());
        // The writer notices that nobody sends any more.
        let gone = async {
            while fs::read_dir(&store.images).unwrap().count() > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(10), gone)
            .await
            .unwrap();
    }
}
