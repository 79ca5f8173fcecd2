//! The firmware configuration device of QEMU: how OVMF learns about its machine (`docs/specs/fw_cfg.rst` of QEMU).
//!
//! ```text
//! 0x510 write 2   select an item, its first byte is next
//! 0x511 read  1   the next byte of it; zeroes after its end
//! 0x514 write 8   address of a request in guest memory, big endian; its lower half starts it
//!                 request: control, length, address ─► bytes copied to memory, control becomes 0, or 1 for an error
//! ```
//! Items are numbered or, from [`FIRST_FILE`] on, have names, which the directory lists. Nothing can be written.

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::bus::BusDevice;
use crate::memory::GuestMemory;
use crate::metrics::{Counter, Registry};

/// Item: the four letters that say the device is there.
const SIGNATURE: u16 = 0x00;
/// Item: which of its interfaces exist.
const FEATURES: u16 = 0x01;
/// Item: vCPUs at boot, 16 bits.
pub const CPUS: u16 = 0x05;
/// Item: most vCPUs, 16 bits.
pub const CPUS_MAX: u16 = 0x0f;
/// Item: the list of named items.
const DIRECTORY: u16 = 0x19;
/// The first named item.
const FIRST_FILE: u16 = 0x20;
/// Bit 14 asked for writing once, bit 15 is for the architecture's own items, of which there are none.
const KEY_MASK: u16 = 0x3fff;
/// A name with its terminator.
const NAME_BYTES: usize = 56;

/// The port interface and DMA.
const FEATURE_BITS: u32 = 0b11;
/// What the DMA register reads as.
const DMA_SIGNATURE: [u8; 8] = *b"QEMU CFG";

const CONTROL_ERROR: u32 = 1;
const CONTROL_READ: u32 = 1 << 1;
const CONTROL_SKIP: u32 = 1 << 2;
const CONTROL_SELECT: u32 = 1 << 3;
const CONTROL_WRITE: u32 = 1 << 4;

/// A longer request is refused: no item comes near it, and the vCPU waits meanwhile.
const REQUEST_MAX: u32 = 16 << 20;
const CHUNK: usize = 4096;

/// Makes the content of items anew, as (number, bytes). The lengths stay.
pub type Refresh = Box<dyn FnMut() -> Vec<(u16, Vec<u8>)> + Send>;

/// What the firmware can ask for.
#[derive(Default)]
pub struct Items {
    numbered: Vec<(u16, Vec<u8>)>,
    files: Vec<(&'static str, Vec<u8>)>,
}

/// There is no room for an item.
#[derive(Debug, thiserror::Error)]
#[error("the firmware configuration item `{0}` cannot be listed")]
pub struct ItemError(&'static str);

impl Items {
    /// Adds a numbered item.
    pub fn number(&mut self, key: u16, content: &[u8]) {
        self.numbered.push((key & KEY_MASK, content.to_vec()));
    }

    /// Adds a named item and says its number.
    pub fn file(&mut self, name: &'static str, content: Vec<u8>) -> Result<u16, ItemError> {
        let key = u16::try_from(self.files.len())
            .ok()
            .map(|at| FIRST_FILE + at);
        let key = key.filter(|key| *key <= KEY_MASK).ok_or(ItemError(name))?;
        if name.len() >= NAME_BYTES || u32::try_from(content.len()).is_err() {
            return Err(ItemError(name));
        }
        self.files.push((name, content));
        Ok(key)
    }

    fn directory(&self) -> Vec<u8> {
        let mut directory = (self.files.len() as u32).to_be_bytes().to_vec();
        for (key, (name, content)) in (FIRST_FILE..).zip(&self.files) {
            directory.extend_from_slice(&(content.len() as u32).to_be_bytes());
            directory.extend_from_slice(&key.to_be_bytes());
            directory.extend_from_slice(&[0; 2]);
            let mut padded = name.as_bytes().to_vec();
            padded.resize(NAME_BYTES, 0);
            directory.extend_from_slice(&padded);
        }
        directory
    }
}

/// The device; its ports are put on the bus as [`FwCfgPorts`] and [`FwCfgDma`].
pub struct FwCfg {
    items: Vec<(u16, Vec<u8>)>,
    selected: u16,
    offset: usize,
    address: u64,
    memory: Arc<GuestMemory>,
    refresh: Option<(Vec<u16>, Refresh)>,
    refused: Counter,
}

impl FwCfg {
    /// A device that offers `items` and copies them into `memory`.
    pub fn new(items: Items, memory: Arc<GuestMemory>, metrics: &Registry) -> Self {
        let mut all = vec![
            (SIGNATURE, b"QEMU".to_vec()),
            (FEATURES, FEATURE_BITS.to_le_bytes().to_vec()),
            (DIRECTORY, items.directory()),
        ];
        all.extend(items.numbered);
        let contents = items.files.into_iter().map(|(_, content)| content);
        all.extend((FIRST_FILE..).zip(contents));
        Self {
            items: all,
            selected: 0,
            offset: 0,
            address: 0,
            memory,
            refresh: None,
            refused: metrics.counter("fw_cfg_refused_requests_total"),
        }
    }

    /// Calls `refresh` whenever one of `keys` is selected.
    pub fn refresh_at(&mut self, keys: Vec<u16>, refresh: Refresh) {
        self.refresh = Some((keys, refresh));
    }

    fn select(&mut self, key: u16) {
        self.selected = key & KEY_MASK;
        self.offset = 0;
        let Some((keys, refresh)) = &mut self.refresh else {
            return;
        };
        if !keys.contains(&self.selected) {
            return;
        }
        for (key, fresh) in refresh() {
            for (_, content) in self.items.iter_mut().filter(|item| item.0 == key) {
                let len = content.len();
                content.clone_from(&fresh);
                content.resize(len, 0);
            }
        }
    }

    fn content(&self) -> &[u8] {
        let item = self.items.iter().find(|item| item.0 == self.selected);
        item.map_or(&[], |(_, content)| content)
    }

    /// The next bytes of the selected item, zeroes after its end.
    fn next(&mut self, data: &mut [u8]) {
        data.fill(0);
        let rest = self.content().get(self.offset..).unwrap_or(&[]);
        for (byte, value) in data.iter_mut().zip(rest) {
            *byte = *value;
        }
        self.offset = self.offset.saturating_add(data.len());
    }

    /// Serves the request at [`Self::address`].
    fn request(&mut self) {
        let at = GuestAddress(std::mem::take(&mut self.address));
        let mut request = [0; 16];
        if self.memory.read_slice(&mut request, at).is_err() {
            // There is nowhere to say so.
            return self.refused.count();
        }
        let [c0, c1, c2, c3, l0, l1, l2, l3, address @ ..] = request;
        let control = u32::from_be_bytes([c0, c1, c2, c3]);
        let length = u32::from_be_bytes([l0, l1, l2, l3]);
        let done = self.serve(control, length, u64::from_be_bytes(address));
        if done.is_none() {
            self.refused.count();
        }
        let outcome = if done.is_some() { 0 } else { CONTROL_ERROR };
        // The memory was there a moment ago; RAM does not go away.
        let _ = self.memory.write_slice(&outcome.to_be_bytes(), at);
    }

    fn serve(&mut self, control: u32, length: u32, address: u64) -> Option<()> {
        if control & CONTROL_SELECT != 0 {
            self.select((control >> 16) as u16);
        }
        if control & CONTROL_READ != 0 {
            self.copy(address, length)
        } else if control & CONTROL_WRITE != 0 {
            None
        } else {
            if control & CONTROL_SKIP != 0 {
                self.offset = self.offset.saturating_add(length as usize);
            }
            Some(())
        }
    }

    /// Copies to guest memory, all or nothing.
    fn copy(&mut self, address: u64, length: u32) -> Option<()> {
        let all = length as usize;
        if length > REQUEST_MAX || !self.memory.check_range(GuestAddress(address), all) {
            return None;
        }
        let mut chunk = [0; CHUNK];
        for start in (0..all).step_by(CHUNK) {
            let part = &mut chunk[..CHUNK.min(all - start)];
            self.next(part);
            let at = GuestAddress(address + start as u64);
            self.memory.write_slice(part, at).ok()?;
        }
        Some(())
    }

    /// Part of the DMA address, big endian; the last byte starts the request.
    fn dma_address(&mut self, offset: u64, data: &[u8]) {
        for (at, byte) in (offset..8).zip(data) {
            let shift = 8 * (7 - at);
            self.address = (self.address & !(0xff << shift)) | u64::from(*byte) << shift;
        }
        if offset + data.len() as u64 == 8 {
            self.request();
        }
    }
}

/// Selector and data, two ports.
pub struct FwCfgPorts(pub Arc<std::sync::Mutex<FwCfg>>);

/// The DMA address, eight ports.
pub struct FwCfgDma(pub Arc<std::sync::Mutex<FwCfg>>);

fn locked(device: &std::sync::Mutex<FwCfg>) -> std::sync::MutexGuard<'_, FwCfg> {
    device
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl BusDevice for FwCfgPorts {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match (offset, &mut *data) {
            (1, [byte]) => locked(&self.0).next(std::slice::from_mut(byte)),
            _ => data.fill(0),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (0, &[low, high]) = (offset, data) {
            locked(&self.0).select(u16::from_le_bytes([low, high]));
        }
    }
}

impl BusDevice for FwCfgDma {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset as usize..).zip(data) {
            *byte = DMA_SIGNATURE.get(at).copied().unwrap_or(0);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        locked(&self.0).dma_address(offset, data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::RamRange;
    use std::sync::Mutex;

    fn device() -> (Arc<GuestMemory>, FwCfgPorts, FwCfgDma, Registry) {
        let ram = RamRange {
            start: 0,
            size: 1 << 20,
        };
        let memory = Arc::new(crate::memory::create(&[ram]).unwrap());
        let mut items = Items::default();
        items.number(CPUS, &[4, 0]);
        items.file("etc/one", b"first".to_vec()).unwrap();
        items.file("etc/two", vec![7; 5000]).unwrap();
        let metrics = Registry::default();
        let device = FwCfg::new(items, memory.clone(), &metrics);
        let device = Arc::new(Mutex::new(device));
        (
            memory,
            FwCfgPorts(device.clone()),
            FwCfgDma(device),
            metrics,
        )
    }

    fn read(ports: &mut FwCfgPorts, key: u16, len: usize) -> Vec<u8> {
        ports.write(0, &key.to_le_bytes());
        let next = |_| {
            let mut byte = [0xaa];
            ports.read(1, &mut byte);
            byte[0]
        };
        (0..len).map(next).collect()
    }

    fn ask(dma: &mut FwCfgDma, memory: &GuestMemory, at: u64, request: [u32; 4]) -> u32 {
        for (field, value) in (0..).zip(request) {
            memory
                .write_slice(&value.to_be_bytes(), GuestAddress(at + 4 * field))
                .unwrap();
        }
        dma.write(0, &[0; 4]);
        dma.write(4, &(at as u32).to_be_bytes());
        let mut control = [0; 4];
        memory.read_slice(&mut control, GuestAddress(at)).unwrap();
        u32::from_be_bytes(control)
    }

    #[test]
    fn firmware_finds_signature_features_numbers_and_files() {
        let (_, mut ports, mut dma, _) = device();
        assert_eq!(read(&mut ports, SIGNATURE, 4), b"QEMU");
        assert_eq!(read(&mut ports, FEATURES, 4), [3, 0, 0, 0]);
        assert_eq!(read(&mut ports, CPUS, 4), [4, 0, 0, 0]);
        assert_eq!(read(&mut ports, 0x3000, 2), [0, 0], "no such item");
        let directory = read(&mut ports, DIRECTORY, 4 + 2 * 64);
        assert_eq!(directory[..4], [0, 0, 0, 2]);
        assert_eq!(directory[4..12], [0, 0, 0, 5, 0, 0x20, 0, 0]);
        assert_eq!(directory[12..20], *b"etc/one\0");
        assert_eq!(directory[68..76], [0, 0, 0x13, 0x88, 0, 0x21, 0, 0]);
        assert_eq!(read(&mut ports, 0x20, 6), b"first\0");
        let mut signature = [0; 8];
        dma.read(0, &mut signature);
        assert_eq!(&signature, b"QEMU CFG");
    }

    #[test]
    fn a_request_selects_skips_and_copies() {
        let (memory, _, mut dma, _) = device();
        let select = (0x20 << 16) | CONTROL_SELECT;
        let at = |address| {
            let mut bytes = [0xaa; 5];
            memory
                .read_slice(&mut bytes, GuestAddress(address))
                .unwrap();
            bytes
        };
        memory.write_slice(&[9; 8], GuestAddress(0x2000)).unwrap();
        assert_eq!(
            ask(
                &mut dma,
                &memory,
                0x100,
                [select | CONTROL_READ, 4, 0, 0x2000]
            ),
            0
        );
        assert_eq!(at(0x2000), *b"firs\x09");
        assert_eq!(
            ask(&mut dma, &memory, 0x100, [select | CONTROL_SKIP, 3, 0, 0]),
            0
        );
        assert_eq!(
            ask(&mut dma, &memory, 0x100, [CONTROL_READ, 4, 0, 0x2000]),
            0
        );
        assert_eq!(at(0x2000), *b"st\0\0\x09");
        let select = (0x21 << 16) | CONTROL_SELECT | CONTROL_READ;
        assert_eq!(ask(&mut dma, &memory, 0x100, [select, 5001, 0, 0x3000]), 0);
        assert_eq!(at(0x3000 + 4996), [7, 7, 7, 7, 0]);
    }

    #[test]
    fn what_is_outside_of_memory_or_would_write_is_refused() {
        let (memory, _, mut dma, metrics) = device();
        let select = (0x20 << 16) | CONTROL_SELECT;
        for (control, length, high, low) in [
            (select | CONTROL_READ, 4, 0, (1 << 20) - 3),
            (select | CONTROL_READ, 4, 1, 0),
            (select | CONTROL_READ, 4, u32::MAX, u32::MAX),
            (select | CONTROL_READ, u32::MAX, 0, 0),
            (select | CONTROL_WRITE, 4, 0, 0x2000),
        ] {
            let answer = ask(&mut dma, &memory, 0x100, [control, length, high, low]);
            assert_eq!(answer, CONTROL_ERROR);
        }
        assert_eq!(metrics.read()["fw_cfg_refused_requests_total"], 5);
        dma.write(0, &[0xff; 8]);
        assert_eq!(metrics.read()["fw_cfg_refused_requests_total"], 6);
    }

    #[test]
    fn fresh_content_keeps_its_length() {
        let (_, mut ports, _, _) = device();
        let mut count = 0;
        let refresh = Box::new(move || {
            count += 1;
            vec![(0x20, vec![count; 9])]
        });
        locked(&ports.0).refresh_at(vec![0x20], refresh);
        assert_eq!(read(&mut ports, 0x20, 6), [1, 1, 1, 1, 1, 0]);
        assert_eq!(read(&mut ports, 0x21, 1), [7]);
        assert_eq!(read(&mut ports, 0x20, 1), [2]);
    }

    #[test]
    fn names_that_do_not_fit_are_refused() {
        let mut items = Items::default();
        let long = "etc/a-name-of-fifty-six-bytes-is-one-more-than-there-is-room";
        assert!(items.file(long, vec![]).is_err());
    }
}
