//! Giving up data: discard, and zeroes without writing them.

use super::image::{Image, ImageError, Mapping};

/// What is written at once where zeroes have to be.
const ZEROES_AT_ONCE: u64 = 64 << 10;

impl Image {
    /// The range is not needed any more. Only whole clusters are given up; the rest keeps its content.
    pub(super) fn discard(&mut self, offset: u64, len: u64) -> Result<(), ImageError> {
        self.check_writable()?;
        let cluster = self.header.cluster_size();
        let end = self.whole_end(offset + len);
        let mut at = offset.next_multiple_of(cluster);
        while at < end {
            let unmapped = self.unmapped(at);
            if unmapped > 0 {
                at += unmapped;
                continue;
            }
            match self.mapping(at)? {
                Mapping::Below | Mapping::Zero { kept: None } => {}
                _ => {
                    if let Some(nothing) = self.nothing() {
                        self.own_l2(at)?;
                        self.map(at, nothing)?;
                    }
                }
            }
            at += cluster;
        }
        Ok(())
    }

    /// Where the last whole cluster before `end` ends. The disk's own end counts as one.
    fn whole_end(&self, end: u64) -> u64 {
        let cluster = self.header.cluster_size();
        if end >= self.header.size {
            end.next_multiple_of(cluster)
        } else {
            end & !(cluster - 1)
        }
    }

    /// The mapping of a cluster that reads as zeroes and takes no space, if there can be one.
    fn nothing(&self) -> Option<Mapping> {
        if self.below.is_none() {
            Some(Mapping::Below)
        } else if self.header.version >= 3 {
            Some(Mapping::Zero { kept: None })
        } else {
            None
        }
    }

    /// The range reads as zeroes from now on. Its space is given back if `unmap` says that it may.
    pub(super) fn write_zeroes(
        &mut self,
        offset: u64,
        len: u64,
        unmap: bool,
    ) -> Result<(), ImageError> {
        self.check_writable()?;
        let cluster = self.header.cluster_size();
        let end = offset + len;
        let whole_end = self.whole_end(end);
        let mut at = offset;
        while at < end {
            let unmapped = self.unmapped(at);
            if unmapped > 0 && self.below.is_none() {
                at += unmapped;
                continue;
            }
            let here = (cluster - (at & (cluster - 1))).min(end - at);
            let whole = at.is_multiple_of(cluster) && at + cluster <= whole_end;
            self.zero_cluster(at, here, whole, unmap)?;
            at += here;
        }
        Ok(())
    }

    /// Zeroes within one cluster, or all of it.
    fn zero_cluster(
        &mut self,
        at: u64,
        len: u64,
        whole: bool,
        unmap: bool,
    ) -> Result<(), ImageError> {
        let mapping = self.mapping(at)?;
        let has_zero_flag = self.header.version >= 3;
        let new = match mapping {
            Mapping::Below if self.below.is_none() => return Ok(()),
            Mapping::Zero { kept: None } => return Ok(()),
            Mapping::Zero { kept: Some(_) } if !(whole && unmap) => return Ok(()),
            Mapping::Data { at, own: true } if whole && !unmap && has_zero_flag => {
                Some(Mapping::Zero {
                    kept: Some((at, true)),
                })
            }
            Mapping::Data { own: true, .. } if !unmap => None,
            _ if whole => self.nothing(),
            _ => None,
        };
        match new {
            Some(new) => {
                self.own_l2(at)?;
                self.map(at, new)
            }
            None => self.write_zeroed(at, len),
        }
    }

    fn write_zeroed(&mut self, at: u64, len: u64) -> Result<(), ImageError> {
        let mut zeroes = vec![0; len.min(ZEROES_AT_ONCE) as usize];
        let mut done = 0;
        while done < len {
            let here = (len - done).min(ZEROES_AT_ONCE);
            self.write_own(at + done, &mut zeroes[..here as usize])?;
            done += here;
        }
        Ok(())
    }
}
