//! A medium that loses power, and images made by hand, for tests.

use std::io;
use std::sync::{Arc, Mutex};

use super::image::Image;
use super::pieces::Pieces;
use super::storage::Storage;
use super::{Reader, Stretch};
use crate::disk::Access;

/// The medium is not larger than this.
const MEDIUM_MAX: u64 = 64 << 20;
const SECTOR: usize = 512;

/// Random numbers that can be had again.
#[derive(Debug, Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Below `bound`.
    pub(crate) fn roll(&mut self, bound: u64) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % bound
    }
}

#[derive(Debug, Default)]
struct State {
    content: Vec<u8>,
    /// As of the last flush.
    durable: Vec<u8>,
    /// Writes since then.
    since: Vec<(usize, Vec<u8>)>,
    /// How many writes and flushes are still carried out.
    left: Option<u64>,
    calls: u64,
}

impl State {
    fn step(&mut self) -> io::Result<()> {
        self.calls += 1;
        match &mut self.left {
            Some(0) => return Err(io::Error::from_raw_os_error(libc::EIO)),
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(())
    }

    fn put(&mut self, at: u64, bytes: Vec<u8>) -> io::Result<()> {
        if at.saturating_add(bytes.len() as u64) > MEDIUM_MAX {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        let at = at as usize;
        apply(&mut self.content, at, &bytes);
        self.since.push((at, bytes));
        Ok(())
    }
}

fn apply(content: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if content.len() < at + bytes.len() {
        content.resize(at + bytes.len(), 0);
    }
    content[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A file in memory that knows what of it is durable. Clones are the same file.
#[derive(Debug, Clone, Default)]
pub(crate) struct Medium(Arc<Mutex<State>>);

impl Medium {
    pub(crate) fn new(content: Vec<u8>) -> Self {
        let durable = content.clone();
        Self(Arc::new(Mutex::new(State {
            content,
            durable,
            ..State::default()
        })))
    }

    pub(crate) fn content(&self) -> Vec<u8> {
        self.0.lock().unwrap().content.clone()
    }

    /// Writes, flushes and holes so far.
    pub(crate) fn calls(&self) -> u64 {
        self.0.lock().unwrap().calls
    }

    /// Nothing is carried out any more after so many writes and flushes.
    pub(crate) fn fail_after(&self, calls: u64) {
        self.0.lock().unwrap().left = Some(calls);
    }

    /// What may be found after a loss of power: of what was written since the last flush, any sectors, in any order.
    pub(crate) fn after_power_loss(&self, dice: &mut Dice) -> Vec<u8> {
        let state = self.0.lock().unwrap();
        let mut found = state.durable.clone();
        let mut order: Vec<usize> = (0..state.since.len()).collect();
        for last in (1..order.len()).rev() {
            order.swap(last, dice.roll(last as u64 + 1) as usize);
        }
        // Of a hundred sectors: nearly none, half, nearly all; or whole writes only.
        let chance = [3, 50, 97][dice.roll(3) as usize];
        let whole = dice.roll(2) == 0;
        for number in order {
            let (at, bytes) = &state.since[number];
            let kept = dice.roll(100) < chance;
            let mut from = 0;
            while from < bytes.len() {
                let sector_end = (at + from + 1).next_multiple_of(SECTOR) - at;
                let to = sector_end.min(bytes.len());
                if if whole { kept } else { dice.roll(100) < chance } {
                    apply(&mut found, at + from, &bytes[from..to]);
                }
                from = to;
            }
        }
        found
    }
}

impl Storage for Medium {
    fn end(&self) -> u64 {
        self.0.lock().unwrap().content.len() as u64
    }

    fn grows(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, pieces: &Pieces) -> io::Result<()> {
        let state = self.0.lock().unwrap();
        let from = state.content.len().min(offset as usize);
        let there = &state.content[from..];
        pieces.copy_from(there);
        pieces.zero_from(there.len() as u64);
        Ok(())
    }

    fn write(&mut self, offset: u64, pieces: &Pieces) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state.step()?;
        state.put(offset, pieces.to_vec())
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state.step()?;
        state.durable = state.content.clone();
        state.since.clear();
        Ok(())
    }

    fn punch(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state.step()?;
        let end = (state.content.len() as u64).min(offset + len);
        let zeroes = vec![0; end.saturating_sub(offset) as usize];
        state.put(offset, zeroes)
    }
}

/// An empty image without a backing file: header, refcount table, one block, L1 table.
pub(crate) fn empty_image(cluster_bits: u32, size: u64, refcount_order: u32) -> Vec<u8> {
    let cluster = 1_usize << cluster_bits;
    let l1_entries = size.div_ceil((cluster * cluster / 8) as u64) as usize;
    let l1_clusters = (l1_entries * 8).div_ceil(cluster);
    let mut image = vec![0; (3 + l1_clusters) * cluster];
    let mut put = |at: usize, field: &[u8]| image[at..at + field.len()].copy_from_slice(field);
    put(0, b"QFI\xfb");
    put(4, &3_u32.to_be_bytes());
    put(20, &cluster_bits.to_be_bytes());
    put(24, &size.to_be_bytes());
    put(36, &(l1_entries as u32).to_be_bytes());
    put(40, &(3 * cluster as u64).to_be_bytes());
    put(48, &(cluster as u64).to_be_bytes());
    put(56, &1_u32.to_be_bytes());
    put(96, &refcount_order.to_be_bytes());
    put(100, &104_u32.to_be_bytes());
    put(cluster, &(2 * cluster as u64).to_be_bytes());
    for number in 0..3 + l1_clusters {
        let bits = 1 << refcount_order;
        if bits < 8 {
            image[2 * cluster + number * bits / 8] |= 1 << (number * bits % 8);
        } else {
            image[2 * cluster + (number + 1) * bits / 8 - 1] = 1;
        }
    }
    image
}

/// Says what came of an image that a stranger made: whether it opened, and how many bytes were read and written.
pub(crate) fn hostile_image(data: &[u8]) -> (bool, u64, u64) {
    const SIZE: u64 = 256 << 10;
    let mut input = data.iter().copied();
    let mut next = || input.next().unwrap_or(0);
    let order = u32::from(next() % 7);
    let medium = Medium::new(empty_image(9 + u32::from(next() % 4), SIZE, order));
    let open = || Image::open(Box::new(medium.clone()), Access::ReadWrite, None, 0);
    let mut own = open().unwrap();
    for _ in 0..next() % 8 {
        let at = u64::from(next()) * 1024 % (SIZE - 4096);
        own.write_own(at, &mut [next(); 3000]).unwrap();
    }
    own.commit().unwrap();
    drop(own);

    // The stranger's hand: fields of the header, entries of tables, anything anywhere.
    let mut content = medium.content();
    for _ in 0..next() % 12 {
        let anywhere = usize::from(next()) << 8 | usize::from(next());
        let at = match next() % 4 {
            0 => usize::from(next()) % 112,
            1 => (anywhere * 8) % content.len(),
            2 => 512 * (anywhere % 16) + 8 * usize::from(next() % 8),
            _ => anywhere % content.len(),
        };
        let at = at.min(content.len() - 8);
        match next() % 4 {
            0 => content[at] = next(),
            1 => content[at..at + 8].copy_from_slice(&[next(); 8]),
            2 => {
                let offset = u64::from(next()) << 9 | u64::from(next() & 0xc1) << 56;
                content[at..at + 8].copy_from_slice(&offset.to_be_bytes());
            }
            _ => content[at] ^= 1 << (next() % 8),
        }
    }
    let medium = Medium::new(content);
    read_from_front_to_back(&medium);
    let Ok(mut image) = Image::open(Box::new(medium.clone()), Access::ReadWrite, None, 0) else {
        return (false, 0, 0);
    };
    let (mut read, mut written) = (0, 0);
    let size = image.header.size.clamp(1, SIZE * 2);
    for _ in 0..40 {
        let at = (u64::from(next()) << 12 | u64::from(next())) % size;
        let len = (u64::from(next()) * 64).min(size - at);
        let mut bytes = vec![next(); len as usize];
        match next() % 8 {
            0..=2 => {
                if Pieces::over(&mut bytes, |pieces| image.read(at, pieces)).is_ok() {
                    read += len;
                }
            }
            3..=4 => {
                if image.write_own(at, &mut bytes).is_ok() {
                    written += len;
                }
            }
            5 => drop(image.commit()),
            6 => drop(image.discard(at, len)),
            _ => drop(image.write_zeroes(at, len, len % 2 == 0)),
        }
    }
    let _ = image.commit();
    assert!(medium.content().len() as u64 <= MEDIUM_MAX);
    (true, read, written)
}

/// As a volume is filled from an image: each step gets further, and none past the end.
fn read_from_front_to_back(medium: &Medium) {
    let Ok(mut reader) = Reader::over(Box::new(medium.clone())) else {
        return;
    };
    let (size, mut done) = (reader.size(), 0);
    for _ in 0..1000 {
        let len = match reader.at(done) {
            Ok(Some(Stretch::Zeroes(len))) => len,
            Ok(Some(Stretch::Bytes(bytes))) => bytes.len() as u64,
            Ok(None) => {
                assert_eq!(done, size);
                return;
            }
            Err(_) => return,
        };
        done += len;
        assert!(
            len > 0 && done <= size,
            "{len} bytes up to {done} of {size}"
        );
    }
}
