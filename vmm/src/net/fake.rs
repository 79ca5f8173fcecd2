//! A network connection that ends in the test: a pair of datagram sockets keeps frames whole.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::sync::Mutex;

use super::{NetBackend, Offloads};
use crate::disk::IoVec;

pub(crate) struct FakeNet {
    socket: UnixDatagram,
    pub(crate) offloads: Mutex<Option<Offloads>>,
    pub(crate) attached: Mutex<bool>,
}

impl FakeNet {
    /// The NIC's end and the network's end.
    pub(crate) fn pair() -> (Self, UnixDatagram) {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        (
            Self {
                socket: ours,
                offloads: Mutex::new(None),
                attached: Mutex::new(true),
            },
            theirs,
        )
    }
}

impl NetBackend for FakeNet {
    fn receive(&self, frame: &mut [u8]) -> io::Result<usize> {
        // As a tap is read: a worker may make no other call.
        Ok(rustix::io::read(&self.socket, frame)?)
    }

    unsafe fn send(&self, frame: &[IoVec]) -> io::Result<usize> {
        // SAFETY: the caller says that the buffers are readable during the call.
        let sent = unsafe {
            libc::writev(
                self.socket.as_raw_fd(),
                IoVec::as_raw(frame),
                frame.len() as i32,
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        *self.offloads.lock().unwrap() = Some(offloads);
        Ok(())
    }

    fn set_attached(&self, attached: bool) -> io::Result<()> {
        *self.attached.lock().unwrap() = attached;
        Ok(())
    }

    fn descriptor(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
