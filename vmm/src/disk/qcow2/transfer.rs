//! Data to and from an image.

use super::image::{Image, ImageError, Mapping, Source};
use super::inflate::inflate;
use super::pieces::Pieces;

/// What is filled or copied at once.
const FILL_AT_ONCE: u64 = 64 << 10;

impl Source for Image {
    fn size(&self) -> u64 {
        self.header.size
    }

    fn fetch(&mut self, offset: u64, pieces: &mut Pieces) -> Result<(), ImageError> {
        self.read(offset, pieces)
    }
}

/// What a stretch of the disk reads as.
pub(super) enum Extent {
    Zero,
    Below,
    At(u64),
    Compressed { at: u64, len: u64 },
}

/// A new cluster for old content: where, and what was there before.
struct Fresh {
    at: u64,
    before: Mapping,
}

impl Image {
    /// Fills `pieces` with what is at `offset`.
    pub(super) fn read(&mut self, offset: u64, pieces: &mut Pieces) -> Result<(), ImageError> {
        let mut front = std::mem::take(&mut self.front);
        let result = self.read_through(offset, pieces, &mut front);
        front.clear();
        self.front = front;
        result
    }

    fn read_through(
        &mut self,
        mut offset: u64,
        pieces: &mut Pieces,
        front: &mut Pieces,
    ) -> Result<(), ImageError> {
        while !pieces.is_empty() {
            let (extent, len) = self.extent(offset, pieces.len())?;
            pieces.split_to(len, front);
            match extent {
                Extent::Zero => front.zero(),
                Extent::At(at) => self.storage.read(at, front)?,
                Extent::Below => self.read_below(offset, front)?,
                Extent::Compressed { at, len } => {
                    let from = (offset & (self.header.cluster_size() - 1)) as usize;
                    let cluster = self.decompress(at, len)?;
                    front.copy_from(&cluster[from..]);
                    self.scratch = cluster;
                }
            }
            offset += len;
        }
        Ok(())
    }

    /// How a stretch of at most `len` bytes begins, and how long it goes on like that.
    pub(super) fn extent(&mut self, offset: u64, len: u64) -> Result<(Extent, u64), ImageError> {
        let unmapped = self.unmapped(offset);
        if unmapped > 0 {
            return Ok((Extent::Below, unmapped.min(len)));
        }
        let cluster = self.header.cluster_size();
        let within = offset & (cluster - 1);
        let first = self.mapping(offset)?;
        let mut end = cluster - within;
        // As long as it goes on like that.
        while end < len && self.unmapped(offset + end) == 0 {
            let alike = match (first, self.mapping(offset + end)?) {
                (Mapping::Data { at, .. }, Mapping::Data { at: next, .. }) => {
                    next == at + within + end
                }
                (Mapping::Zero { .. }, Mapping::Zero { .. }) => true,
                (Mapping::Below, Mapping::Below) => true,
                _ => false,
            };
            if !alike {
                break;
            }
            end += cluster;
        }
        let extent = match first {
            Mapping::Below => Extent::Below,
            Mapping::Zero { .. } => Extent::Zero,
            Mapping::Data { at, .. } => Extent::At(at + within),
            Mapping::Compressed { at, len } => Extent::Compressed { at, len },
        };
        Ok((extent, end.min(len)))
    }

    fn read_below(&mut self, offset: u64, front: &mut Pieces) -> Result<(), ImageError> {
        let Some(below) = &mut self.below else {
            front.zero();
            return Ok(());
        };
        let there = below.size().saturating_sub(offset).min(front.len());
        if there == 0 {
            front.zero();
            return Ok(());
        }
        if there < front.len() {
            front.zero_from(there);
        }
        let mut inner = Pieces::default();
        front.split_to(there, &mut inner);
        below.fetch(offset, &mut inner)
    }

    /// The content of a compressed cluster. The buffer is to be put back into `scratch`.
    fn decompress(&mut self, at: u64, len: u64) -> Result<Vec<u8>, ImageError> {
        let mut packed = vec![0; len as usize];
        self.storage.read_bytes(at, &mut packed)?;
        let mut cluster = std::mem::take(&mut self.scratch);
        cluster.resize(self.header.cluster_size() as usize, 0);
        let unpacked = inflate(&packed, &mut cluster)
            .map_err(|_| ImageError::Corrupt("a compressed cluster cannot be unpacked"));
        // Of the guest's data only: the image's tables are as good as they were, so it may be written to.
        unpacked.map(|()| cluster)
    }

    /// Writes all of `pieces` from `offset` on.
    pub(super) fn write(&mut self, mut offset: u64, pieces: &mut Pieces) -> Result<(), ImageError> {
        self.check_writable()?;
        let mut front = std::mem::take(&mut self.front);
        let mut result = Ok(());
        while !pieces.is_empty() && result.is_ok() {
            result = self.write_run(offset, pieces, &mut front);
            offset += front.len();
        }
        front.clear();
        self.front = front;
        result
    }

    /// Writes bytes of our own.
    pub(super) fn write_own(&mut self, offset: u64, bytes: &mut [u8]) -> Result<(), ImageError> {
        Pieces::over(bytes, |pieces| self.write(offset, pieces))
    }

    /// Writes as much as goes to one stretch of the file, and leaves in `front` what that was.
    fn write_run(
        &mut self,
        offset: u64,
        pieces: &mut Pieces,
        front: &mut Pieces,
    ) -> Result<(), ImageError> {
        let cluster = self.header.cluster_size();
        let within = offset & (cluster - 1);
        let start = offset - within;
        let span = (within + pieces.len()).div_ceil(cluster) * cluster;
        let mut fresh: Vec<Option<Fresh>> = Vec::new();
        let mut first = None;
        let mut run = 0;
        while run < span {
            let made = match self.target(start + run) {
                Ok(made) => made,
                // What was prepared so far is written; the rest is asked for again, and fails again.
                Err(_) if run > 0 => break,
                Err(error) => return Err(error),
            };
            let (at, new) = made;
            if first.is_some_and(|first: u64| first + run != at) {
                self.undo([new])?;
                break;
            }
            first = first.or(Some(at));
            fresh.push(new);
            run += cluster;
        }
        let Some(first) = first else {
            return Err(ImageError::Full);
        };
        let end = (run - within).min(pieces.len());
        pieces.split_to(end, front);
        let written = self.write_clusters(start, first, within, front, &fresh, run);
        if let Err(error) = written {
            self.undo(fresh)?;
            return Err(error);
        }
        for (number, new) in (0..).zip(&fresh) {
            if let Some(Fresh { at, .. }) = new {
                let data = Mapping::Data { at: *at, own: true };
                self.map(start + number * cluster, data)?;
            }
        }
        Ok(())
    }

    /// Where the cluster at `offset` can be written to, and whether it is a new place for it.
    fn target(&mut self, offset: u64) -> Result<(u64, Option<Fresh>), ImageError> {
        self.own_l2(offset)?;
        let before = self.mapping(offset)?;
        match before {
            Mapping::Data { at, own: true } => Ok((at, None)),
            Mapping::Zero {
                kept: Some((at, true)),
            } => Ok((at, Some(Fresh { at, before }))),
            _ => {
                let at = self.allocate()?;
                Ok((at, Some(Fresh { at, before })))
            }
        }
    }

    /// Gives back what was allocated for a write that did not come about.
    fn undo(&mut self, fresh: impl IntoIterator<Item = Option<Fresh>>) -> Result<(), ImageError> {
        for Fresh { at, before } in fresh.into_iter().flatten() {
            let kept = matches!(before, Mapping::Zero { kept: Some((kept, true)) } if kept == at);
            if !kept {
                self.refcounts.give_back(&mut *self.storage, at)?;
            }
        }
        Ok(())
    }

    /// The data, and around it what was in new clusters before.
    fn write_clusters(
        &mut self,
        start: u64,
        first: u64,
        within: u64,
        data: &Pieces,
        fresh: &[Option<Fresh>],
        run: u64,
    ) -> Result<(), ImageError> {
        let end = within + data.len();
        if let Some(Some(Fresh { before, .. })) = fresh.first()
            && within > 0
        {
            self.fill(start, first, within, *before)?;
        }
        self.storage.write(first + within, data)?;
        if let Some(Some(Fresh { before, .. })) = fresh.last()
            && end < run
        {
            self.fill(start + end, first + end, run - end, *before)?;
        }
        Ok(())
    }

    /// Copies a part of a cluster to its new place `to`.
    fn fill(&mut self, offset: u64, to: u64, len: u64, before: Mapping) -> Result<(), ImageError> {
        let zero = match before {
            Mapping::Zero { .. } => true,
            Mapping::Below => self
                .below
                .as_ref()
                .is_none_or(|below| below.size() <= offset),
            Mapping::Data { .. } | Mapping::Compressed { .. } => false,
        };
        if zero && self.storage.grows() && to >= self.storage.end() {
            // Behind the end everything is zero.
            return Ok(());
        }
        if zero {
            return Ok(self.storage.write_zeroes(to, len)?);
        }
        let mut bytes = vec![0; len.min(FILL_AT_ONCE) as usize];
        let mut done = 0;
        while done < len {
            let here = (len - done).min(FILL_AT_ONCE);
            let bytes = &mut bytes[..here as usize];
            // The mapping is still the old one. Through pieces of its own: `front` is in use.
            Pieces::over(bytes, |pieces| {
                self.read_through(offset + done, pieces, &mut Pieces::default())
            })?;
            self.storage.write_bytes(to + done, bytes)?;
            done += here;
        }
        Ok(())
    }
}
