//! Where the UKI to install comes from: the medium we were booted from, a volume, or a URL.
//!
//! ```text
//! lqx.uki=URL ───────────────────────────► downloaded
//! any block device, iso9660, /efi.img ───► FAT inside it, EFI/BOOT/BOOTX64.EFI     (CD and stick alike)
//! any block device, FAT ─────────────────► EFI/BOOT/BOOTX64.EFI or limiquantix.efi
//! ```
//! Only a UKI of the version that is running is installed: what was tried is what is put on the disk.
//! Slots of other installs (`EFI/Linux`) are not looked at.

use std::path::Path;

use super::fat::Fat;
use super::iso::Iso;
use super::uki::Uki;
use crate::host::Roots;
use crate::host::blocks::{self, Block};
use crate::host::content::BOOT_FILE;
use crate::host::read_at::{Device, Pieces, ReadAt, Window};

/// The image inside the medium that firmware boots from.
const EFI_IMAGE: &str = "efi.img";
/// A UKI lying on a volume under its own name.
const PLAIN_FILE: &str = "limiquantix.efi";

/// A UKI that can be read.
pub struct Source {
    device: Device,
    pieces: Vec<(u64, u64)>,
    /// Its version.
    pub version: String,
    /// Where it is, in words.
    pub place: String,
    /// The disk it lies on, which therefore is not installed to.
    pub disk: Option<String>,
}

impl Source {
    /// Its bytes.
    pub fn bytes(&self) -> Pieces<'_> {
        Pieces::new(&self.device, self.pieces.clone())
    }

    /// A plain file, for instance a downloaded one.
    pub fn of_file(path: &Path, place: &str) -> std::io::Result<Option<Self>> {
        let device = Device::open(path)?;
        let version = Uki::of(&device).map(|uki| uki.version);
        Ok(version.map(|version| Self {
            pieces: vec![(0, device.len())],
            device,
            version,
            place: place.to_owned(),
            disk: None,
        }))
    }
}

/// There is nothing to install from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MediumError {
    /// No UKI anywhere.
    #[error("no medium with a limiquantix UKI was found")]
    None,
    /// There are some, of other versions.
    #[error("this is limiquantix {running}, but there is only {found}")]
    OtherVersion {
        /// What runs.
        running: String,
        /// What was found.
        found: String,
    },
}

/// Finds the UKI of this version on any block device.
pub fn find(roots: &Roots, version: &str) -> Result<Source, MediumError> {
    let mut others = Vec::new();
    for block in blocks::all(roots) {
        for source in on(&block) {
            if source.version == version {
                return Ok(source);
            }
            others.push(format!("{} on {}", source.version, source.place));
        }
    }
    match others.is_empty() {
        true => Err(MediumError::None),
        false => Err(MediumError::OtherVersion {
            running: version.to_owned(),
            found: others.join(", "),
        }),
    }
}

/// The UKIs on one device.
fn on(block: &Block) -> Vec<Source> {
    let disk = match &block.partition {
        Some((_, disk)) => disk.clone(),
        None => block.name.clone(),
    };
    let mut found = Vec::new();
    for (pieces, place) in places(block) {
        let Ok(device) = Device::open(&block.path) else {
            continue;
        };
        let uki = Uki::of(&Pieces::new(&device, pieces.clone()));
        if let Some(Uki { version }) = uki {
            found.push(Source {
                device,
                pieces,
                version,
                place: format!("/dev/{} ({place})", block.name),
                disk: Some(disk.clone()),
            });
        }
    }
    found
}

/// Where on the device a UKI could be.
fn places(block: &Block) -> Vec<(Vec<(u64, u64)>, String)> {
    let mut found = Vec::new();
    let Ok(device) = Device::open(&block.path) else {
        return found;
    };
    if let Some(image) = Iso::open(&device).and_then(|iso| iso.file(EFI_IMAGE))
        && let Some(pieces) = in_fat(&image, BOOT_FILE)
    {
        found.push((shifted(pieces, image.start()), EFI_IMAGE.to_owned()));
    }
    let whole = Window::new(&device, 0, device.len());
    for path in [BOOT_FILE, PLAIN_FILE] {
        if let Some(pieces) = in_fat(&whole, path) {
            found.push((pieces, path.to_owned()));
        }
    }
    found
}

fn in_fat(image: &dyn ReadAt, path: &str) -> Option<Vec<(u64, u64)>> {
    let fat = Fat::open(image).ok()?;
    let entry = fat.find(path).ok()??;
    let file = fat.open_file(&entry).ok()?;
    Some(file.pieces().to_vec())
}

fn shifted(pieces: Vec<(u64, u64)>, by: u64) -> Vec<(u64, u64)> {
    pieces.into_iter().map(|(at, len)| (at + by, len)).collect()
}
