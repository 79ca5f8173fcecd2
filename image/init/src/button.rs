//! The power button, as an input device: there is no daemon for it here.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use crate::console::{Log, log};

/// Linux `input-event-codes.h`.
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;
/// `struct input_event` with 64-bit time.
const EVENT_BYTES: usize = 24;

/// All input devices that have a power key.
pub(crate) struct PowerButtons(Vec<File>);

impl PowerButtons {
    /// Looks for them; keyboards that have a power key count.
    pub(crate) fn find() -> Self {
        let mut buttons = Vec::new();
        for entry in fs::read_dir("/sys/class/input")
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = entry.file_name().to_string_lossy().into_owned();
            let keys = fs::read_to_string(entry.path().join("device/capabilities/key"))
                .unwrap_or_default();
            if !name.starts_with("event") || !has_key(&keys, KEY_POWER) {
                continue;
            }
            match open(&Path::new("/dev/input").join(&name)) {
                Ok(file) => buttons.push(file),
                Err(error) => log(
                    Log::Error,
                    &format!("the power button {name} cannot be read: {error}"),
                ),
            }
        }
        Self(buttons)
    }

    /// To wait for.
    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().map(AsFd::as_fd)
    }

    /// Whether one was pressed. A device that has gone is dropped.
    pub(crate) fn pressed(&mut self) -> bool {
        let mut pressed = false;
        self.0.retain_mut(|file| {
            let mut buffer = [0; EVENT_BYTES * 16];
            match file.read(&mut buffer) {
                Ok(length) => {
                    pressed |= buffer[..length]
                        .chunks_exact(EVENT_BYTES)
                        .any(is_power_press);
                    length > 0
                }
                Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
            }
        });
        pressed
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
}

fn is_power_press(event: &[u8]) -> bool {
    let word = |at: usize| {
        event
            .get(at..at + 2)
            .map_or(0, |b| u16::from_ne_bytes([b[0], b[1]]))
    };
    word(16) == EV_KEY && word(18) == KEY_POWER && word(20) == 1
}

/// sysfs writes the bit mask as 64-bit words in hexadecimal, the highest first.
fn has_key(mask: &str, key: u16) -> bool {
    let word = mask.split_whitespace().rev().nth(usize::from(key / 64));
    word.and_then(|word| u64::from_str_radix(word, 16).ok())
        .is_some_and(|word| word & (1 << (key % 64)) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_mask_of_sysfs_is_understood() {
        assert!(
            has_key("10000000000000 0\n", KEY_POWER),
            "an ACPI power button"
        );
        assert!(!has_key("0 fff\n", KEY_POWER));
        assert!(!has_key("rubbish", KEY_POWER));
    }

    #[test]
    fn only_the_press_counts_not_the_release() {
        let event = |value: u8| {
            let mut bytes = [0; EVENT_BYTES];
            bytes[16] = 1;
            bytes[18] = 116;
            bytes[20] = value;
            bytes
        };
        assert!(is_power_press(&event(1)));
        assert!(!is_power_press(&event(0)));
        assert!(!is_power_press(&[1, 2, 3]));
    }
}
