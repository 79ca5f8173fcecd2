//! COM1, a 16550: what the guest prints goes into a ring, what somebody types comes from a queue.
//!
//! The guest never waits for a reader. [`Com1`] is shared between vCPU threads, which touch its ports, and the event
//! loop, which carries bytes to and from [`sockets`]. Start reading at [`Com1::write`](BusDevice::write).

pub mod sockets;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;
use crate::event_loop::Wake;
use crate::metrics::{Counter, Registry};

/// How much of the output is kept.
pub const RING_BYTES: usize = 256 << 10;
/// How much input waits for the guest before typing is held back.
pub const INPUT_BYTES: usize = 64 << 10;

/// The last [`RING_BYTES`] of an endless stream. Positions count from its beginning.
#[derive(Default)]
pub struct Ring {
    bytes: Vec<u8>,
    total: u64,
}

impl Ring {
    fn push(&mut self, byte: u8) {
        let at = (self.total % RING_BYTES as u64) as usize;
        match self.bytes.get_mut(at) {
            Some(old) => *old = byte,
            None => self.bytes.push(byte),
        }
        self.total += 1;
    }

    /// The position after the newest byte.
    pub fn end(&self) -> u64 {
        self.total
    }

    /// Copies what follows `position` into `out`, or from the oldest byte kept if `position` is older. Returns how many
    /// bytes, and the position after them.
    pub fn read(&self, position: u64, out: &mut [u8]) -> (usize, u64) {
        let oldest = self.total - self.bytes.len() as u64;
        let start = position.clamp(oldest, self.total);
        let mut count = 0;
        for (position, slot) in (start..self.total).zip(out) {
            *slot = self.bytes[(position % RING_BYTES as u64) as usize];
            count += 1;
        }
        (count, start + count as u64)
    }
}

/// The interrupt line: an eventfd that KVM turns into a pulse.
struct Line(EventFd);

impl Trigger for Line {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        // A counter at its maximum is a pulse on its way.
        let _ = self.0.write(1);
        Ok(())
    }
}

/// The transmitter's other end. Wakes the event loop once per batch.
struct Output {
    ring: Ring,
    wake: Wake,
    woken: bool,
    written: Counter,
}

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            self.ring.push(*byte);
        }
        self.written.add(bytes.len() as u64);
        if !self.woken {
            self.woken = true;
            self.wake.ring();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The serial port.
pub struct Com1 {
    uart: Serial<Line, NoEvents, Output>,
    pending: VecDeque<u8>,
    read: Counter,
}

impl Com1 {
    /// A port that interrupts by `line` and tells of output, and of room for input, by `wake`.
    pub fn new(line: EventFd, wake: Wake, metrics: &Registry) -> Self {
        let written = metrics.counter("serial_output_bytes_total");
        let output = Output {
            ring: Ring::default(),
            wake,
            woken: false,
            written,
        };
        Self {
            uart: Serial::new(Line(line), output),
            pending: VecDeque::new(),
            read: metrics.counter("serial_input_bytes_total"),
        }
    }

    /// How many bytes of input are welcome.
    pub fn input_room(&self) -> usize {
        INPUT_BYTES - self.pending.len().min(INPUT_BYTES)
    }

    /// Somebody typed; what exceeds [`Self::input_room`] is dropped.
    pub fn input(&mut self, bytes: &[u8]) {
        let welcome = &bytes[..bytes.len().min(self.input_room())];
        self.pending.extend(welcome);
        self.feed();
    }

    /// The output so far. The event loop calls this when woken; the next output wakes it again.
    pub fn output(&mut self) -> &Ring {
        self.uart.writer_mut().woken = false;
        &self.uart.writer().ring
    }

    /// Fills the receive FIFO.
    fn feed(&mut self) {
        let was_full = self.input_room() == 0;
        while self.uart.fifo_capacity() > 0 {
            let (front, _) = self.pending.as_slices();
            let Ok(taken @ 1..) = self.uart.enqueue_raw_bytes(front) else {
                break;
            };
            self.pending.drain(..taken);
            self.read.add(taken as u64);
        }
        if was_full && self.input_room() > 0 {
            self.uart.writer().wake.ring();
        }
    }
}

impl BusDevice for Com1 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let ([byte], Ok(register)) = (data, u8::try_from(offset)) {
            *byte = self.uart.read(register);
            if register == 0 && !self.pending.is_empty() {
                self.feed();
            }
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let ([byte], Ok(register)) = (data, u8::try_from(offset)) {
            // Neither the interrupt line nor the ring can fail.
            let _ = self.uart.write(register, *byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    fn port() -> (Com1, EventFd, Wake) {
        let (line, wake) = (EventFd::new(EFD_NONBLOCK).unwrap(), Wake::new().unwrap());
        let port = Com1::new(
            line.try_clone().unwrap(),
            wake.clone(),
            &Registry::default(),
        );
        (port, line, wake)
    }

    fn all(ring: &Ring, from: u64) -> Vec<u8> {
        let mut out = vec![0; RING_BYTES];
        let (count, end) = ring.read(from, &mut out);
        assert_eq!(end, ring.end());
        out.truncate(count);
        out
    }

    #[test]
    fn output_lands_in_the_ring_and_wakes_once_per_batch() {
        let (mut port, _, wake) = port();
        for byte in b"hello" {
            port.write(0, &[*byte]);
        }
        assert!(wake.clear());
        assert_eq!(all(port.output(), 0), b"hello");
        port.write(0, b"!");
        assert!(wake.clear());
        assert_eq!(all(port.output(), 5), b"!");
    }

    #[test]
    fn a_reader_that_is_too_slow_continues_with_the_oldest_byte_kept() {
        let mut ring = Ring::default();
        for n in 0..RING_BYTES + 10 {
            ring.push((n % 251) as u8);
        }
        let bytes = all(&ring, 3);
        assert_eq!(bytes.len(), RING_BYTES);
        assert_eq!(bytes[0], 10);
        assert_eq!(*bytes.last().unwrap(), ((RING_BYTES + 9) % 251) as u8);
    }

    #[test]
    fn more_input_than_the_fifo_holds_arrives_whole_and_in_order() {
        let (mut port, line, _) = port();
        port.write(1, &[1]);
        let typed: Vec<u8> = (0..200).collect();
        port.input(&typed);
        assert!(line.read().is_ok());
        let mut got = vec![];
        loop {
            let mut status = [0];
            port.read(5, &mut status);
            if status[0] & 1 == 0 {
                break;
            }
            let mut byte = [0];
            port.read(0, &mut byte);
            got.push(byte[0]);
        }
        assert_eq!(got, typed);
    }

    #[test]
    fn input_is_bounded_and_room_is_announced() {
        let (mut port, _, wake) = port();
        port.input(&vec![1; INPUT_BYTES]);
        port.input(&vec![1; INPUT_BYTES]);
        assert_eq!(port.input_room(), 0);
        let mut byte = [0];
        for _ in 0..64 {
            port.read(0, &mut byte);
        }
        assert!(port.input_room() > 0);
        assert!(wake.clear());
    }

    proptest! {
        #[test]
        fn any_access_is_answered(
            accesses in prop::collection::vec((0u8..3, 0u64..8, prop::collection::vec(any::<u8>(), 0..5)), 0..100),
        ) {
            let (mut port, _, _) = port();
            for (kind, offset, mut data) in accesses {
                match kind {
                    0 => port.read(offset, &mut data),
                    1 => port.write(offset, &data),
                    _ => port.input(&data),
                }
            }
        }
    }
}
