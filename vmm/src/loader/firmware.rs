//! Firmware in flash: code up to the last byte below 4 GiB, variables right below it, as QEMU's machines have them.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use crate::arch::x86_64::layout;
use crate::devices::flash::BLOCK;
use crate::machine::RamRange;
use crate::memory::{self, GuestMemory, MemoryError};

/// Why there is no firmware.
#[derive(Debug, thiserror::Error)]
pub enum FirmwareError {
    /// A file could not be read.
    #[error("could not read the {what}")]
    Read {
        /// Code or variables.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// No code has such a size.
    #[error(
        "the firmware's code is {size} bytes long; it must be a multiple of {BLOCK}, of at most {} MiB, \
         and leave room for variables below the next power of two",
        layout::FLASH_MAX >> 20
    )]
    Size {
        /// Bytes.
        size: u64,
    },
    /// The volume is shorter than what the code leaves for the variables.
    #[error("the firmware's variables need {needed} bytes; their volume has {size}")]
    Variables {
        /// As many as the chip has.
        needed: u64,
        /// As many as there are.
        size: u64,
    },
    /// No memory for it.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// It does not fit into that.
    #[error("could not copy the firmware")]
    Copy(#[from] vm_memory::GuestMemoryError),
}

/// One chip's content, in memory of its own.
pub struct Image {
    /// Holds the one range.
    pub memory: Arc<GuestMemory>,
    /// Where it is in the guest's address space.
    pub start: u64,
    /// Bytes.
    pub size: u64,
}

/// Where variables and code are, for code of this size.
fn places(code: u64) -> Option<(RamRange, RamRange)> {
    let all = code.checked_next_power_of_two()?;
    let fits = code > 0 && all > code && code.is_multiple_of(BLOCK) && all <= layout::FLASH_MAX;
    let start = layout::FLASH_END - all;
    let variables = RamRange {
        start,
        size: all - code,
    };
    let code = RamRange {
        start: start + variables.size,
        size: code,
    };
    fits.then_some((variables, code))
}

/// Reads both; `variables` is only read here.
pub fn load(code: &mut File, variables: &File) -> Result<(Image, Image), FirmwareError> {
    let unread = |what| move |source| FirmwareError::Read { what, source };
    let unread_code = || unread("firmware's code");
    let size = code.seek(SeekFrom::End(0)).map_err(unread_code())?;
    code.seek(SeekFrom::Start(0)).map_err(unread_code())?;
    let (low, high) = places(size).ok_or(FirmwareError::Size { size })?;
    let mut bytes = vec![0; high.size as usize];
    code.read_exact(&mut bytes).map_err(unread_code())?;
    let code = image(high, &bytes)?;

    let unread_variables = || unread("firmware's variables");
    let size = { variables }
        .seek(SeekFrom::End(0))
        .map_err(unread_variables())?;
    if size < low.size {
        return Err(FirmwareError::Variables {
            needed: low.size,
            size,
        });
    }
    let mut bytes = vec![0; low.size as usize];
    variables
        .read_exact_at(&mut bytes, 0)
        .map_err(unread_variables())?;
    Ok((code, image(low, &bytes)?))
}

fn image(range: RamRange, bytes: &[u8]) -> Result<Image, FirmwareError> {
    let memory = memory::create(&[range])?;
    memory.write_slice(bytes, GuestAddress(range.start))?;
    Ok(Image {
        memory: Arc::new(memory),
        start: range.start,
        size: range.size,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn code_ends_at_4_gib_and_variables_fill_the_rest() {
        let mut code = file(&[1; 3 * 4096]);
        let variables = file(&[2; 4096 + 7]);
        let (code, variables) = load(&mut code, &variables).unwrap();
        assert_eq!((code.start, code.size), ((1 << 32) - 3 * 4096, 3 * 4096));
        assert_eq!(
            (variables.start, variables.size),
            ((1 << 32) - 4 * 4096, 4096)
        );
        let at = |image: &Image, address| image.memory.read_obj::<u8>(GuestAddress(address));
        assert_eq!(at(&code, u64::from(u32::MAX)).unwrap(), 1);
        assert_eq!(at(&variables, variables.start).unwrap(), 2);
        // Debian's OVMF_CODE_4M.fd and OVMF_VARS_4M.fd.
        let (low, high) = places(3_653_632).unwrap();
        assert_eq!((low.size, low.start), (540_672, 0xffc0_0000));
        assert_eq!(high.start, 0xffc8_4000);
    }

    #[test]
    fn what_cannot_be_flash_is_refused() {
        let refused = |code: usize, variables: usize| {
            let variables = file(&vec![0; variables]);
            match load(&mut file(&vec![0; code]), &variables) {
                Err(error) => error.to_string(),
                Ok(_) => panic!("{code} bytes are taken"),
            }
        };
        for code in [0, 100, 4096, 8192, (12 << 20) + 1, 17 << 20] {
            assert!(refused(code, 1 << 20).contains("code is"), "{code}");
        }
        assert!(refused(3 * 4096, 4095).contains("need 4096 bytes"));
    }
}
