//! The guest's side of a transfer: stretches of memory, taken from the front.

#![allow(unsafe_code)] // UNSAFETY: guest memory is known by address only; see `DiskBackend::submit`.

use crate::disk::IoVec;

/// Stretches of memory that a request moves data from or to.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    list: Vec<IoVec>,
    len: u64,
}

impl Pieces {
    /// Takes over a request's buffers.
    ///
    /// # Safety
    /// Until [`Self::clear`], the next `load` or the end of `self`, and of what was split off it, the memory stays mapped,
    /// readable and (if anything here writes to it) writable.
    pub(super) unsafe fn load(&mut self, buffers: &[IoVec]) {
        self.clear();
        self.list.extend_from_slice(buffers);
        self.len = buffers.iter().map(|buffer| buffer.len() as u64).sum();
    }

    /// Calls `act` with pieces that are `bytes`.
    pub(super) fn over<T>(bytes: &mut [u8], act: impl FnOnce(&mut Self) -> T) -> T {
        let mut pieces = Self::default();
        // SAFETY: `bytes` is borrowed for longer than `pieces` lives.
        unsafe { pieces.load(&[IoVec::new(bytes.as_mut_ptr(), bytes.len())]) };
        act(&mut pieces)
    }

    /// Forgets all of them.
    pub(super) fn clear(&mut self) {
        self.list.clear();
        self.len = 0;
    }

    /// Bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing is left.
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// As system calls want them.
    pub(super) fn list(&self) -> &[IoVec] {
        &self.list
    }

    /// Moves the first `len` bytes over to `front`, whose own content is forgotten.
    pub(super) fn split_to(&mut self, len: u64, front: &mut Self) {
        front.clear();
        let len = len.min(self.len);
        let mut left = len as usize;
        for buffer in &self.list {
            if left == 0 {
                break;
            }
            let here = buffer.len().min(left);
            front
                .list
                .push(IoVec::new(buffer.0.iov_base.cast::<u8>(), here));
            left -= here;
        }
        front.len = len;
        IoVec::advance(&mut self.list, len as usize);
        self.len -= len;
    }

    /// Writes zeroes to all of it.
    pub(super) fn zero(&self) {
        for buffer in &self.list {
            // SAFETY: `load` was promised that the memory is there and writable.
            unsafe { std::ptr::write_bytes(buffer.0.iov_base.cast::<u8>(), 0, buffer.len()) };
        }
    }

    /// Writes zeroes to what is behind the first `skip` bytes.
    pub(super) fn zero_from(&self, skip: u64) {
        let mut rest = Self {
            list: self.list.clone(),
            len: self.len,
        };
        rest.split_to(skip, &mut Self::default());
        rest.zero();
    }

    /// Writes the first bytes of `data` to it, as many as there are of both.
    pub(super) fn copy_from(&self, mut data: &[u8]) {
        for buffer in &self.list {
            let here = buffer.len().min(data.len());
            let (now, rest) = data.split_at(here);
            // SAFETY: as above; guest memory and our own do not overlap.
            unsafe {
                std::ptr::copy_nonoverlapping(now.as_ptr(), buffer.0.iov_base.cast::<u8>(), here);
            }
            data = rest;
        }
    }

    /// Reads all of it.
    #[cfg(test)]
    pub(super) fn to_vec(&self) -> Vec<u8> {
        let mut all = Vec::new();
        for buffer in &self.list {
            // SAFETY: `load` was promised that the memory is there and readable.
            all.extend_from_slice(unsafe {
                std::slice::from_raw_parts(buffer.0.iov_base.cast::<u8>(), buffer.len())
            });
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_front_is_taken_across_buffers() {
        let mut bytes = [1_u8; 10];
        let (left, right) = bytes.split_at_mut(4);
        let mut pieces = Pieces::default();
        // SAFETY: the array outlives the pieces.
        unsafe {
            pieces.load(&[
                IoVec::new(left.as_mut_ptr(), 4),
                IoVec::new(right.as_mut_ptr(), 6),
            ]);
        }
        let mut front = Pieces::default();
        pieces.split_to(6, &mut front);
        assert_eq!((front.len(), pieces.len()), (6, 4));
        front.copy_from(&[2, 3, 4, 5, 6, 7, 8]);
        pieces.zero();
        assert_eq!(front.to_vec(), [2, 3, 4, 5, 6, 7]);
        pieces.split_to(9, &mut front);
        assert_eq!((front.len(), pieces.is_empty()), (4, true));
        assert_eq!(bytes, [2, 3, 4, 5, 6, 7, 0, 0, 0, 0]);
    }
}
