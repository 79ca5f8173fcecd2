//! UEFI firmware for VMs: the code, which the image carries and all share, and each VM's variables.
//!
//! Variables appear under the VM's name only when they are whole and on disk, like volumes.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use api::ids::VmId;

use super::FirmwareFiles;
use super::file::{StorageError, at, open_locked, remove_durably, sync_folder};

/// Where Debian's `ovmf` has the code, and so our image.
const CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
/// The variables a new VM begins with.
const TEMPLATE: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// Where the files are.
#[derive(Debug, Clone)]
pub struct Firmware {
    code: PathBuf,
    template: PathBuf,
    folder: PathBuf,
}

impl Firmware {
    /// The image's, with variables below `data`.
    pub fn in_image(data: &Path) -> Self {
        Self {
            code: CODE.into(),
            template: TEMPLATE.into(),
            folder: data.join("firmware"),
        }
    }

    /// The folder of the variables.
    pub fn folder(&self) -> &PathBuf {
        &self.folder
    }

    fn path(&self, vm: VmId) -> PathBuf {
        self.folder.join(format!("{vm}.vars"))
    }

    /// Opens it for a VM; the first time makes its variables.
    ///
    /// # Errors
    /// There is no firmware, another process has the variables, or what the file system said.
    pub fn open(&self, vm: VmId) -> Result<FirmwareFiles, StorageError> {
        let present = |path: &Path| {
            File::open(path).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => StorageError::NoFirmware {
                    path: path.to_owned(),
                },
                _ => at("open", path)(error),
            })
        };
        let code = present(&self.code)?;
        let path = self.path(vm);
        if !path.exists() {
            let mut template = present(&self.template)?;
            let unfinished = self.folder.join(format!("{vm}.tmp"));
            let mut file = File::create(&unfinished).map_err(at("create", &unfinished))?;
            io::copy(&mut template, &mut file).map_err(at("fill", &unfinished))?;
            file.sync_all().map_err(at("sync", &unfinished))?;
            fs::rename(&unfinished, &path).map_err(at("rename", &unfinished))?;
            sync_folder(&self.folder)?;
        }
        Ok(FirmwareFiles {
            code,
            variables: open_locked(&path, false)?,
        })
    }

    /// Removes a VM's variables, durably. Absent is fine.
    ///
    /// # Errors
    /// What the file system said.
    pub fn remove(&self, vm: VmId) -> Result<(), StorageError> {
        remove_durably(&self.path(vm), &self.folder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    fn firmware(data: &Path) -> Firmware {
        let firmware = Firmware {
            code: data.join("code"),
            template: data.join("template"),
            folder: data.join("firmware"),
        };
        fs::create_dir(&firmware.folder).unwrap();
        firmware
    }

    fn start(file: &File) -> [u8; 5] {
        let mut start = [0; 5];
        file.read_exact_at(&mut start, 0).unwrap();
        start
    }

    #[test]
    fn variables_are_made_once_kept_and_removed_with_the_vm() {
        let data = tempfile::tempdir().unwrap();
        let firmware = firmware(data.path());
        let vm = VmId::mint();
        let none = firmware.open(vm).unwrap_err();
        assert!(matches!(none, StorageError::NoFirmware { .. }), "{none}");
        fs::write(&firmware.code, "code").unwrap();
        fs::write(&firmware.template, "fresh").unwrap();

        let files = firmware.open(vm).unwrap();
        assert_eq!(&start(&files.variables), b"fresh");
        files.variables.write_all_at(b"order", 0).unwrap();
        let busy = firmware.open(vm).unwrap_err();
        assert!(matches!(busy, StorageError::Busy { .. }), "{busy}");
        drop(files);
        assert_eq!(&start(&firmware.open(vm).unwrap().variables), b"order");
        let other = firmware.open(VmId::mint()).unwrap();
        assert_eq!(&start(&other.variables), b"fresh");

        firmware.remove(vm).unwrap();
        firmware.remove(vm).unwrap();
        assert_eq!(&start(&firmware.open(vm).unwrap().variables), b"fresh");
    }
}
