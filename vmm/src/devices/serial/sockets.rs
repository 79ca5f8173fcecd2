//! Who watches COM1: connections of the serial socket.
//!
//! Each connection has a position in the ring and gets what follows it, from the oldest byte kept on. One that reads too
//! slowly skips what the ring has lost; nobody else notices. What any of them sends is typed into COM1.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags};

use super::Com1;
use crate::event_loop::{EventLoop, Interest, Ready, Token};

/// Most watchers at once; a further one is closed at once.
pub const WATCHERS_MAX: usize = 16;
/// Bytes moved per system call.
const CHUNK: usize = 8 << 10;

struct Watcher {
    socket: OwnedFd,
    position: u64,
    interest: Interest,
}

/// The listening socket and its connections.
pub struct SerialSockets {
    listener: OwnedFd,
    watchers: BTreeMap<u32, Watcher>,
    next: u32,
}

impl SerialSockets {
    /// Takes over a listening socket.
    pub fn new(listener: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&listener, true)?;
        Ok(Self {
            listener,
            watchers: BTreeMap::new(),
            next: 0,
        })
    }

    /// The listening socket, to wait for.
    pub fn listener(&self) -> &OwnedFd {
        &self.listener
    }

    /// Takes all waiting connections.
    pub fn accept(&mut self, events: &EventLoop) {
        while let Ok(socket) =
            rustix::net::accept_with(&self.listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)
        {
            let interest = Interest {
                read: true,
                write: true,
            };
            let id = self.next;
            if self.watchers.len() >= WATCHERS_MAX
                || events.add(&socket, Token::Serial(id), interest).is_err()
            {
                continue;
            }
            self.next = self.next.wrapping_add(1);
            self.watchers.insert(
                id,
                Watcher {
                    socket,
                    position: 0,
                    interest,
                },
            );
        }
    }

    /// A connection is ready.
    pub fn ready(&mut self, events: &EventLoop, com1: &Mutex<Com1>, id: u32, ready: Ready) {
        let Some(watcher) = self.watchers.get_mut(&id) else {
            return;
        };
        let alive =
            (!ready.read || type_in(watcher, com1)) && (!ready.write || show(watcher, com1));
        if alive {
            set_interest(events, watcher, id, com1)
        } else {
            drop(self.watchers.remove(&id))
        }
    }

    /// COM1 has output, or room for input.
    pub fn woken(&mut self, events: &EventLoop, com1: &Mutex<Com1>) {
        self.watchers.retain(|id, watcher| {
            let alive = show(watcher, com1);
            if alive {
                set_interest(events, watcher, *id, com1);
            }
            alive
        });
    }

    /// Whether every connection has all there is.
    pub fn are_up_to_date(&self, com1: &Mutex<Com1>) -> bool {
        let end = lock(com1).output().end();
        self.watchers
            .values()
            .all(|watcher| watcher.position == end)
    }
}

fn lock(com1: &Mutex<Com1>) -> std::sync::MutexGuard<'_, Com1> {
    com1.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Socket to COM1, as far as there is room. False when the other side is gone.
fn type_in(watcher: &Watcher, com1: &Mutex<Com1>) -> bool {
    let mut chunk = [0; CHUNK];
    let room = lock(com1).input_room().min(CHUNK);
    if room == 0 {
        return true;
    }
    match rustix::net::recv(
        watcher.socket.as_fd(),
        &mut chunk[..room],
        RecvFlags::empty(),
    ) {
        Ok((_, 0)) => false,
        Ok((_, count)) => {
            lock(com1).input(&chunk[..count]);
            true
        }
        Err(errno) => matches!(errno, Errno::AGAIN | Errno::INTR),
    }
}

/// COM1 to socket, until either has no more. False when the other side is gone.
fn show(watcher: &mut Watcher, com1: &Mutex<Com1>) -> bool {
    let mut chunk = [0; CHUNK];
    loop {
        let (count, end) = lock(com1).output().read(watcher.position, &mut chunk);
        if count == 0 {
            watcher.position = end;
            return true;
        }
        match rustix::net::send(watcher.socket.as_fd(), &chunk[..count], SendFlags::NOSIGNAL) {
            Ok(sent) => watcher.position = end - (count - sent) as u64,
            Err(Errno::AGAIN) => return true,
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// Waits for room only where output is left, for input only where it is welcome.
fn set_interest(events: &EventLoop, watcher: &mut Watcher, id: u32, com1: &Mutex<Com1>) {
    let mut com1 = lock(com1);
    let interest = Interest {
        read: com1.input_room() > 0,
        write: watcher.position < com1.output().end(),
    };
    if interest != watcher.interest
        && events
            .change(&watcher.socket, Token::Serial(id), interest)
            .is_ok()
    {
        watcher.interest = interest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::BusDevice;
    use crate::event_loop::Wake;
    use crate::metrics::Registry;
    use std::io::{Read, Write};
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
    use std::time::Duration;
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    struct Bench {
        events: EventLoop,
        sockets: SerialSockets,
        com1: Mutex<Com1>,
        address: SocketAddr,
    }

    fn bench(name: &str) -> Bench {
        let address =
            SocketAddr::from_abstract_name(format!("lqx-serial-{name}-{}", std::process::id()))
                .unwrap();
        let sockets =
            SerialSockets::new(UnixListener::bind_addr(&address).unwrap().into()).unwrap();
        let com1 = Com1::new(
            EventFd::new(EFD_NONBLOCK).unwrap(),
            Wake::new().unwrap(),
            &Registry::default(),
        );
        Bench {
            events: EventLoop::new().unwrap(),
            sockets,
            com1: Mutex::new(com1),
            address,
        }
    }

    impl Bench {
        fn connect(&mut self) -> UnixStream {
            let stream = UnixStream::connect_addr(&self.address).unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(5)))
                .unwrap();
            self.sockets.accept(&self.events);
            stream
        }

        fn print(&mut self, text: &[u8]) {
            for byte in text {
                self.com1.lock().unwrap().write(0, &[*byte]);
            }
            self.sockets.woken(&self.events, &self.com1);
        }

        fn turn(&mut self) {
            for ready in self.events.wait(Some(Duration::from_millis(2))).unwrap() {
                if let Token::Serial(id) = ready.token {
                    self.sockets.ready(&self.events, &self.com1, id, ready);
                }
            }
        }
    }

    #[test]
    fn a_late_watcher_gets_the_past_and_then_the_present() {
        let mut bench = bench("late");
        bench.print(b"past ");
        let mut watcher = bench.connect();
        bench.turn();
        bench.print(b"present");
        let mut got = [0; 12];
        watcher.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"past present");
        assert!(bench.sockets.are_up_to_date(&bench.com1));
    }

    #[test]
    fn a_watcher_that_never_reads_costs_nothing_and_one_that_leaves_is_forgotten() {
        let mut bench = bench("slow");
        let lazy = bench.connect();
        for _ in 0..40 {
            bench.print(&[b'x'; 32 << 10]);
        }
        assert_eq!(bench.sockets.watchers.len(), 1);
        drop(lazy);
        bench.turn();
        assert!(bench.sockets.watchers.is_empty());
    }

    #[test]
    fn what_a_watcher_sends_is_typed_and_too_much_waits_in_the_socket() {
        let mut bench = bench("typed");
        let mut watcher = bench.connect();
        watcher
            .write_all(&vec![b'a'; super::super::INPUT_BYTES])
            .unwrap();
        for _ in 0..50 {
            bench.turn();
        }
        assert!(bench.com1.lock().unwrap().input_room() <= 64);
        watcher.write_all(&[b'b'; 100]).unwrap();
        let mut got = 0;
        let mut last = 0;
        while last != b'b' {
            let mut byte = [0];
            bench.com1.lock().unwrap().read(0, &mut byte);
            last = byte[0];
            got += 1;
            if got % 64 == 0 {
                let (events, com1) = (&bench.events, &bench.com1);
                bench.sockets.woken(events, com1);
                bench.turn();
            }
            assert!(got < 70_000);
        }
        assert!(got > super::super::INPUT_BYTES);
    }

    #[test]
    fn watchers_beyond_the_limit_are_closed() {
        let mut bench = bench("limit");
        let _watchers: Vec<UnixStream> = (0..WATCHERS_MAX).map(|_| bench.connect()).collect();
        let mut refused = bench.connect();
        assert_eq!(refused.read(&mut [0]).unwrap(), 0);
    }
}
