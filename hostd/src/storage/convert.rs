//! What an image that a stranger made holds: looked into, or written out as a raw volume.
//!
//! ```text
//! daemon: Converter ── the image, the volume, a pipe ──► `hostd convert`, jailed: work()
//!              ◄────────────── Said, a line each ────────┘
//! ```
//! [`work`] is what is done wherever it is done; [`crate::storage::convert_process`] has it done by a process that can
//! do nothing else.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use api::units::Percent;
use hostd_state::Fault;
use serde::{Deserialize, Serialize};
use vmm::disk::qcow2::{ImageFile, OpenQcow2Error, ReadQcow2Error, Stretch};

use super::Progress;
use crate::report::chain;
use crate::vms::fault;

/// What is written at once, unless all of it is zeroes.
const PIECE_BYTES: usize = 64 << 10;
/// So many bytes of the disk are passed between two words of progress, at most.
const TELL_BYTES: u64 = 16 << 20;

/// What is to be done with an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Job {
    /// Look whether it can be used, and how large its disk is.
    Examine,
    /// Write its disk to a file that reads as zeroes.
    Convert {
        /// That file's length.
        size_bytes: u64,
    },
}

/// Why nothing came of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConvertError {
    /// The magic number is missing.
    #[error("the bytes are no qcow2 image")]
    NotQcow2,
    /// An overlay.
    #[error("the image has a backing file; only a complete image can be used")]
    BackingFile,
    /// Something that is left out on purpose.
    #[error("{cause}")]
    Unsupported {
        /// What it uses.
        cause: String,
    },
    /// It contradicts itself.
    #[error("{cause}")]
    Damaged {
        /// Where.
        cause: String,
    },
    /// Its disk is larger than the volume.
    #[error("the image's disk has {image} bytes, the volume only {volume}")]
    Larger {
        /// The disk inside.
        image: u64,
        /// The volume.
        volume: u64,
    },
    /// No space.
    #[error("there is no space left for the volume")]
    Full,
    /// This host.
    #[error("{cause}")]
    Host {
        /// What it said.
        cause: String,
    },
}

impl ConvertError {
    /// Whether the image is to blame, so that trying again is no use.
    pub fn is_the_images(&self) -> bool {
        match self {
            Self::NotQcow2
            | Self::BackingFile
            | Self::Unsupported { .. }
            | Self::Damaged { .. } => true,
            Self::Larger { .. } | Self::Full | Self::Host { .. } => false,
        }
    }

    pub(super) fn host(step: &str, error: impl Into<io::Error>) -> Self {
        let error = error.into();
        Self::Host {
            cause: format!("could not {step}: {error}"),
        }
    }
}

impl From<OpenQcow2Error> for ConvertError {
    fn from(error: OpenQcow2Error) -> Self {
        let cause = chain(&error);
        match error {
            OpenQcow2Error::NotQcow2 => Self::NotQcow2,
            OpenQcow2Error::BackingMissing { .. } => Self::BackingFile,
            OpenQcow2Error::Version { .. }
            | OpenQcow2Error::Unsupported { .. }
            | OpenQcow2Error::UnknownFeatures { .. } => Self::Unsupported { cause },
            OpenQcow2Error::Invalid { .. } | OpenQcow2Error::Dirty | OpenQcow2Error::Corrupt => {
                Self::Damaged { cause }
            }
            OpenQcow2Error::Volume(_)
            | OpenQcow2Error::Read(_)
            | OpenQcow2Error::BackingUnexpected { .. }
            | OpenQcow2Error::Loop
            | OpenQcow2Error::ChainTooLong { .. } => Self::Host { cause },
        }
    }
}

impl From<ReadQcow2Error> for ConvertError {
    fn from(error: ReadQcow2Error) -> Self {
        let cause = chain(&error);
        match error {
            ReadQcow2Error::Corrupt { .. } => Self::Damaged { cause },
            ReadQcow2Error::Read(_) => Self::Host { cause },
        }
    }
}

impl From<ConvertError> for Fault {
    fn from(error: ConvertError) -> Self {
        let (code, next) = match &error {
            error if error.is_the_images() => (
                "image_unusable",
                "convert it to a complete, plain qcow2 image or to raw, and upload that",
            ),
            ConvertError::Larger { .. } => (
                "image_too_large",
                "create the volume at least as large as the image's disk",
            ),
            ConvertError::Full => (
                "no_space",
                "delete volumes or images that are not needed, then try again",
            ),
            _ => (
                "conversion_failed",
                "see the host's log and its disk, then try again",
            ),
        };
        fault(code, error.to_string(), next)
    }
}

/// Looks into images.
pub trait Converter: std::fmt::Debug + Send + Sync {
    /// Does a job; `volume` is there when it is to convert. Gives the size of the disk inside. Blocks.
    ///
    /// # Errors
    /// The image cannot be used, does not fit, or this host cannot.
    fn run(
        &self,
        job: Job,
        image: &File,
        volume: Option<&File>,
        progress: Option<&Progress>,
    ) -> Result<u64, ConvertError>;

    /// The size of the disk inside, if the image can be used. Blocks.
    ///
    /// # Errors
    /// It cannot be used, or this host cannot look.
    fn examine(&self, image: &File) -> Result<u64, ConvertError> {
        self.run(Job::Examine, image, None, None)
    }

    /// Writes the disk inside to `volume`, which has its length and reads as zeroes. Does not make it durable. Blocks.
    ///
    /// # Errors
    /// It cannot be used, does not fit, or this host cannot.
    fn convert(
        &self,
        image: &File,
        volume: &File,
        progress: &Progress,
    ) -> Result<(), ConvertError> {
        let metadata = volume.metadata();
        let size_bytes = metadata
            .map_err(|error| ConvertError::host("look at the volume", error))?
            .len();
        let job = Job::Convert { size_bytes };
        self.run(job, image, Some(volume), Some(progress)).map(drop)
    }
}

/// What is said of a job while it is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    /// It is under way.
    Progress(Percent),
    /// It is done; the disk has so many bytes.
    Done(u64),
    /// It failed.
    Failed(ConvertError),
}

/// Does a job. `lock_in` is called when all descriptors are known and nothing of the image has been looked at. What is
/// said in between goes to `say`; when nobody listens any more, it ends.
///
/// # Errors
/// See there.
pub fn work(
    job: Job,
    image: OwnedFd,
    volume: Option<&File>,
    lock_in: impl FnOnce() -> Result<(), ConvertError>,
    mut say: impl FnMut(Said) -> io::Result<()>,
) -> Result<u64, ConvertError> {
    let file = ImageFile::new(image)?;
    lock_in()?;
    let mut reader = file.open()?;
    let image = reader.size();
    let (Job::Convert { size_bytes }, Some(volume)) = (job, volume) else {
        return Ok(image);
    };
    if image > size_bytes {
        return Err(ConvertError::Larger {
            image,
            volume: size_bytes,
        });
    }
    let (mut at, mut told) = (0, 0);
    while let Some(stretch) = reader.at(at)? {
        at += match stretch {
            Stretch::Zeroes(len) => len,
            Stretch::Bytes(bytes) => {
                write_sparse(volume, at, bytes).map_err(not_written)?;
                bytes.len() as u64
            }
        };
        if at - told >= TELL_BYTES {
            told = at;
            let percent = u8::try_from(u128::from(at) * 100 / u128::from(image)).unwrap_or(100);
            say(Said::Progress(Percent(percent)))
                .map_err(|error| ConvertError::host("say how far it is", error))?;
        }
    }
    Ok(image)
}

fn not_written(error: io::Error) -> ConvertError {
    match error.kind() {
        io::ErrorKind::StorageFull => ConvertError::Full,
        _ => ConvertError::host("write to the volume", error),
    }
}

/// Leaves out what is zeroes.
fn write_sparse(volume: &File, at: u64, bytes: &[u8]) -> io::Result<()> {
    let mut offset = at;
    for piece in bytes.chunks(PIECE_BYTES) {
        if piece.iter().any(|byte| *byte != 0) {
            volume.write_all_at(piece, offset)?;
        }
        offset += piece.len() as u64;
    }
    Ok(())
}
