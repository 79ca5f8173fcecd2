//! Decompression of a cluster: a raw deflate stream (RFC 1951) of which the length is known.
//!
//! Written for bounded output: it stops when the output is full, and no input makes it work longer than that.

/// The stream is not one.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadStream;

/// Longest code (RFC 1951 §3.2.7).
const BITS_MAX: usize = 15;

const LENGTH_BASE: [u16; 29] = [
    3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131,
    163, 195, 227, 258,
];
const LENGTH_EXTRA: [u8; 29] = [
    0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0,
];
const DISTANCE_BASE: [u16; 30] = [
    1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537,
    2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577,
];
/// In which order the lengths of the codes for lengths come.
const ORDER: [usize; 19] = [
    16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15,
];

struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
    held: u32,
    count: u32,
}

impl Input<'_> {
    fn bits(&mut self, need: u32) -> Result<u32, BadStream> {
        while self.count < need {
            let byte = *self.bytes.get(self.at).ok_or(BadStream)?;
            self.at += 1;
            self.held |= u32::from(byte) << self.count;
            self.count += 8;
        }
        let value = self.held & ((1 << need) - 1);
        self.held >>= need;
        self.count -= need;
        Ok(value)
    }
}

/// A canonical Huffman code: how many codes there are of each length, and the symbols in order.
struct Code {
    counts: [u16; BITS_MAX + 1],
    symbols: [u16; 288],
}

impl Code {
    /// Refuses lengths that promise more codes than there are; fewer are found out when one is met.
    fn new(lengths: &[u8]) -> Result<Self, BadStream> {
        let mut counts = [0_u16; BITS_MAX + 1];
        for length in lengths {
            counts[usize::from(*length)] += 1;
        }
        counts[0] = 0;
        let mut left = 1_i32;
        for count in &counts[1..] {
            left = left * 2 - i32::from(*count);
            if left < 0 {
                return Err(BadStream);
            }
        }
        let mut offsets = [0_u16; BITS_MAX + 2];
        for bits in 1..=BITS_MAX {
            offsets[bits + 1] = offsets[bits] + counts[bits];
        }
        let mut symbols = [0; 288];
        for (symbol, length) in (0_u16..).zip(lengths).filter(|(_, length)| **length > 0) {
            let place = &mut offsets[usize::from(*length)];
            symbols[usize::from(*place)] = symbol;
            *place += 1;
        }
        Ok(Self { counts, symbols })
    }

    fn next(&self, input: &mut Input<'_>) -> Result<u16, BadStream> {
        let (mut code, mut first, mut index) = (0_i32, 0_i32, 0_i32);
        for count in &self.counts[1..] {
            code |= input.bits(1)? as i32;
            let count = i32::from(*count);
            if code - first < count {
                return Ok(self.symbols[(index + code - first) as usize]);
            }
            index += count;
            first = (first + count) << 1;
            code <<= 1;
        }
        Err(BadStream)
    }
}

/// Fills `output`. What the stream has beyond that, or what is behind it, does not matter.
pub(super) fn inflate(input: &[u8], output: &mut [u8]) -> Result<(), BadStream> {
    let mut input = Input {
        bytes: input,
        at: 0,
        held: 0,
        count: 0,
    };
    let mut done = 0;
    while done < output.len() {
        let last = input.bits(1)? == 1;
        match input.bits(2)? {
            0 => stored(&mut input, output, &mut done)?,
            1 => {
                let mut lengths = [8_u8; 288];
                lengths[144..256].fill(9);
                lengths[256..280].fill(7);
                let (symbols, distances) = (Code::new(&lengths)?, Code::new(&[5; 30])?);
                coded(&mut input, output, &mut done, &symbols, &distances)?;
            }
            2 => {
                let (symbols, distances) = dynamic(&mut input)?;
                coded(&mut input, output, &mut done, &symbols, &distances)?;
            }
            _ => return Err(BadStream),
        }
        if last && done < output.len() {
            return Err(BadStream);
        }
    }
    Ok(())
}

fn stored(input: &mut Input<'_>, output: &mut [u8], done: &mut usize) -> Result<(), BadStream> {
    (input.held, input.count) = (0, 0);
    let header = input.bytes.get(input.at..input.at + 4).ok_or(BadStream)?;
    let len = u16::from_le_bytes([header[0], header[1]]);
    if len != !u16::from_le_bytes([header[2], header[3]]) {
        return Err(BadStream);
    }
    input.at += 4;
    let from = input.bytes.get(input.at..).ok_or(BadStream)?;
    let take = usize::from(len).min(output.len() - *done);
    let from = from.get(..take).ok_or(BadStream)?;
    output[*done..*done + take].copy_from_slice(from);
    *done += take;
    input.at += take;
    Ok(())
}

fn dynamic(input: &mut Input<'_>) -> Result<(Code, Code), BadStream> {
    let symbols = input.bits(5)? as usize + 257;
    let distances = input.bits(5)? as usize + 1;
    let given = input.bits(4)? as usize + 4;
    if symbols > 286 || distances > 30 {
        return Err(BadStream);
    }
    let mut lengths = [0_u8; 19];
    for place in &ORDER[..given] {
        lengths[*place] = input.bits(3)? as u8;
    }
    let code = Code::new(&lengths)?;
    let mut lengths = [0_u8; 286 + 30];
    let all = symbols + distances;
    let mut at = 0;
    while at < all {
        let symbol = code.next(input)?;
        let (value, times) = match symbol {
            0..=15 => (symbol as u8, 1),
            16 if at == 0 => return Err(BadStream),
            16 => (lengths[at - 1], 3 + input.bits(2)? as usize),
            17 => (0, 3 + input.bits(3)? as usize),
            _ => (0, 11 + input.bits(7)? as usize),
        };
        if at + times > all {
            return Err(BadStream);
        }
        lengths[at..at + times].fill(value);
        at += times;
    }
    Ok((
        Code::new(&lengths[..symbols])?,
        Code::new(&lengths[symbols..all])?,
    ))
}

fn coded(
    input: &mut Input<'_>,
    output: &mut [u8],
    done: &mut usize,
    symbols: &Code,
    distances: &Code,
) -> Result<(), BadStream> {
    while *done < output.len() {
        let symbol = usize::from(symbols.next(input)?);
        match symbol {
            0..=255 => {
                output[*done] = symbol as u8;
                *done += 1;
            }
            256 => return Ok(()),
            257..=285 => {
                let kind = symbol - 257;
                let extra = input.bits(u32::from(LENGTH_EXTRA[kind]))? as usize;
                let len = usize::from(LENGTH_BASE[kind]) + extra;
                let kind = usize::from(distances.next(input)?);
                let base = usize::from(*DISTANCE_BASE.get(kind).ok_or(BadStream)?);
                let extra = input.bits((kind as u32 / 2).saturating_sub(1))? as usize;
                let distance = base + extra;
                if distance > *done {
                    return Err(BadStream);
                }
                for _ in 0..len.min(output.len() - *done) {
                    output[*done] = output[*done - distance];
                    *done += 1;
                }
            }
            _ => return Err(BadStream),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_and_fixed_blocks_are_unpacked() {
        let mut out = [0; 5];
        inflate(
            &[1, 5, 0, 0xfa, 0xff, b'h', b'e', b'l', b'l', b'o'],
            &mut out,
        )
        .unwrap();
        assert_eq!(&out, b"hello");
        // "aaaaaaaaaa", as zlib writes it: one literal, one match, fixed codes.
        let mut out = [0; 10];
        inflate(&[0x4b, 0x84, 0x03, 0x00], &mut out).unwrap();
        assert_eq!(&out, b"aaaaaaaaaa");
        assert_eq!(
            inflate(&[0x4b, 0x84, 0x03, 0x00], &mut [0; 11]),
            Err(BadStream)
        );
    }

    #[test]
    fn no_stream_makes_it_panic_or_stay() {
        let mut state = 1_u32;
        for _ in 0..20_000 {
            let bytes: Vec<u8> = (0..40)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 24) as u8
                })
                .collect();
            let _ = inflate(&bytes, &mut [0; 512]);
        }
    }
}
