//! The kernel's announcements of devices that appear after we looked.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::console::{Log, log};
use crate::sys;

/// What an announcement says, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Uevent {
    /// A device was added (or changed); its removal is of no interest.
    pub(crate) added: bool,
    /// What kind of device it is, for the choice of drivers.
    pub(crate) modalias: Option<String>,
    /// `input`, `block`, `net` …
    pub(crate) subsystem: Option<String>,
}

/// The socket; without one (a kernel without netlink) there is no hot-plug, and nothing else is lost.
pub(crate) struct Uevents(Option<OwnedFd>);

impl Uevents {
    /// Starts listening.
    pub(crate) fn open() -> Self {
        match sys::uevent_socket() {
            Ok(socket) => Self(Some(socket)),
            Err(error) => {
                log(
                    Log::Error,
                    &format!("devices that appear later will not be seen: {error}"),
                );
                Self(None)
            }
        }
    }

    /// To wait for.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.as_ref().map(AsFd::as_fd)
    }

    /// All announcements so far.
    pub(crate) fn drain(&self) -> Vec<Uevent> {
        let Some(socket) = &self.0 else {
            return Vec::new();
        };
        let mut buffer = vec![0; 16 << 10];
        let mut events = Vec::new();
        // An overrun (ENOBUFS) ends the loop as well; the rest is read at the next wake-up.
        while let Ok(length) = rustix::io::read(socket, &mut buffer) {
            if length == 0 {
                break;
            }
            events.push(parse(&buffer[..length]));
        }
        events
    }
}

/// `ACTION@DEVPATH\0KEY=value\0…`
fn parse(message: &[u8]) -> Uevent {
    let mut event = Uevent::default();
    for field in message
        .split(|byte| *byte == 0)
        .filter_map(|field| std::str::from_utf8(field).ok())
    {
        match field.split_once('=') {
            Some(("ACTION", action)) => event.added = matches!(action, "add" | "change" | "bind"),
            Some(("MODALIAS", alias)) => event.modalias = Some(alias.to_owned()),
            Some(("SUBSYSTEM", subsystem)) => event.subsystem = Some(subsystem.to_owned()),
            _ => {}
        }
    }
    event
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_added_device_is_understood() {
        let message = b"add@/devices/pci0000:00/0000:00:03.0\0ACTION=add\0DEVPATH=/devices/x\0SUBSYSTEM=pci\0MODALIAS=pci:v00001AF4d00001000\0SEQNUM=1\0";
        assert_eq!(
            parse(message),
            Uevent {
                added: true,
                modalias: Some("pci:v00001AF4d00001000".into()),
                subsystem: Some("pci".into())
            }
        );
    }

    #[test]
    fn removals_and_rubbish_bring_nothing() {
        assert!(!parse(b"remove@/x\0ACTION=remove\0MODALIAS=usb:v1\0").added);
        assert_eq!(parse(&[0xff, 0, 0xfe, b'=', 0]), Uevent::default());
        assert_eq!(parse(b""), Uevent::default());
    }
}
