//! The port firmware writes its log to, as QEMU's and Bochs's: it says that it is there, and counts.

use crate::bus::BusDevice;
use crate::metrics::{Counter, Registry};

/// What a read gives: "somebody listens".
const PRESENT: u8 = 0xe9;

/// The port.
pub struct DebugPort {
    bytes: Counter,
}

impl DebugPort {
    /// A port that counts what is written.
    pub fn new(metrics: &Registry) -> Self {
        Self {
            bytes: metrics.counter("debug_port_bytes_total"),
        }
    }
}

impl BusDevice for DebugPort {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(PRESENT);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        self.bytes.add(data.len() as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_there_and_counts() {
        let metrics = Registry::default();
        let mut port = DebugPort::new(&metrics);
        let mut byte = [0];
        port.read(0, &mut byte);
        assert_eq!(byte, [0xe9]);
        port.write(0, b"SEC");
        assert_eq!(metrics.read()["debug_port_bytes_total"], 3);
    }
}
