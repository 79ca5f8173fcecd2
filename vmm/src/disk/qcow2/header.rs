//! What an image says of itself in its first bytes (qcow2 specification, "Header").

use super::OpenQcow2Error;
use crate::disk::Access;

/// Bytes that are read to parse a header.
pub(super) const HEADER_BYTES: usize = 512;

const MAGIC: u32 = u32::from_be_bytes(*b"QFI\xfb");
/// Smallest and largest cluster: 512 bytes and 2 MiB.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// Largest L1 or refcount table, so that a header cannot make us allocate more.
pub(super) const TABLE_MAX: u64 = 8 << 20;
/// Offsets in tables have 56 bits.
pub(super) const OFFSET_MAX: u64 = 1 << 56;
const V3_HEADER_LENGTH: u32 = 104;

/// Where fields are that are changed later.
pub(super) const SIZE_AT: u64 = 24;
pub(super) const REFCOUNT_TABLE_AT: u64 = 48;
pub(super) const INCOMPATIBLE_AT: u64 = 72;
pub(super) const AUTOCLEAR_AT: u64 = 88;

/// Bits of `incompatible_features`.
const DIRTY: u64 = 1 << 0;
pub(super) const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

/// A checked header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    /// 2 or 3.
    pub(super) version: u32,
    /// The cluster size is two to this power.
    pub(super) cluster_bits: u32,
    /// The disk's size in bytes.
    pub(super) size: u64,
    /// Where the L1 table is, and how many entries it has.
    pub(super) l1_offset: u64,
    pub(super) l1_entries: u64,
    /// Where the refcount table is, and how many clusters it fills.
    pub(super) refcount_offset: u64,
    pub(super) refcount_clusters: u64,
    /// A refcount has two to this power bits.
    pub(super) refcount_order: u32,
    /// It is an overlay.
    pub(super) has_backing: bool,
    /// Number of internal snapshots.
    pub(super) snapshots: u32,
    pub(super) incompatible: u64,
    pub(super) autoclear: u64,
}

fn invalid(what: &'static str) -> OpenQcow2Error {
    OpenQcow2Error::Invalid { what }
}

impl Header {
    /// Parses the first bytes of a file and refuses what we would not do justice to.
    pub(super) fn parse(
        bytes: &[u8; HEADER_BYTES],
        file_size: u64,
        access: Access,
    ) -> Result<Self, OpenQcow2Error> {
        let u32_at = |at: usize| {
            let mut field = [0; 4];
            field.copy_from_slice(&bytes[at..at + 4]);
            u32::from_be_bytes(field)
        };
        let u64_at = |at: usize| u64::from(u32_at(at)) << 32 | u64::from(u32_at(at + 4));
        if file_size < 72 || u32_at(0) != MAGIC {
            return Err(OpenQcow2Error::NotQcow2);
        }
        let version = u32_at(4);
        let (incompatible, autoclear, refcount_order, length) = match version {
            2 => (0, 0, 4, 72),
            3 => (u64_at(72), u64_at(88), u32_at(96), u32_at(100)),
            _ => return Err(OpenQcow2Error::Version { version }),
        };
        let header = Self {
            version,
            cluster_bits: u32_at(20),
            size: u64_at(24),
            l1_offset: u64_at(40),
            l1_entries: u64::from(u32_at(36)),
            refcount_offset: u64_at(48),
            refcount_clusters: u64::from(u32_at(56)),
            refcount_order,
            has_backing: u64_at(8) != 0,
            snapshots: u32_at(60),
            incompatible,
            autoclear,
        };
        if !CLUSTER_BITS.contains(&header.cluster_bits) {
            return Err(invalid("its cluster size"));
        }
        let length_fits = u64::from(length) <= header.cluster_size() && length % 8 == 0;
        if version == 3 && (length < V3_HEADER_LENGTH || !length_fits) {
            return Err(invalid("the length of its header"));
        }
        header.check_features()?;
        if u32_at(32) != 0 {
            return Err(OpenQcow2Error::Unsupported { what: "encryption" });
        }
        if access == Access::ReadWrite {
            if incompatible & CORRUPT != 0 {
                return Err(OpenQcow2Error::Corrupt);
            }
            if incompatible & DIRTY != 0 {
                return Err(OpenQcow2Error::Dirty);
            }
        }
        header.check_tables(file_size)?;
        Ok(header)
    }

    fn check_features(&self) -> Result<(), OpenQcow2Error> {
        let unsupported = |what| Err(OpenQcow2Error::Unsupported { what });
        let known = DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION_TYPE | EXTENDED_L2;
        if self.incompatible & !known != 0 {
            let bits = self.incompatible & !known;
            return Err(OpenQcow2Error::UnknownFeatures { bits });
        }
        if self.incompatible & EXTERNAL_DATA != 0 {
            return unsupported("an external data file");
        }
        if self.incompatible & EXTENDED_L2 != 0 {
            return unsupported("subclusters (extended L2 entries)");
        }
        if self.incompatible & COMPRESSION_TYPE != 0 {
            return unsupported("a compression other than zlib");
        }
        Ok(())
    }

    fn check_tables(&self, file_size: u64) -> Result<(), OpenQcow2Error> {
        if self.refcount_order > 6 {
            return Err(invalid("the width of its refcounts"));
        }
        if self.size > OFFSET_MAX {
            return Err(invalid("its size"));
        }
        let cluster = self.cluster_size();
        let inside = |offset: u64, len: u64| {
            offset.is_multiple_of(cluster)
                && offset != 0
                && offset
                    .checked_add(len)
                    .is_some_and(|end| end <= file_size.next_multiple_of(cluster))
        };
        let l1_bytes = self.l1_entries * 8;
        if l1_bytes > TABLE_MAX || (l1_bytes > 0 && !inside(self.l1_offset, l1_bytes)) {
            return Err(invalid("its L1 table"));
        }
        if u128::from(self.l1_entries) << (2 * self.cluster_bits - 3) < u128::from(self.size) {
            return Err(invalid("its L1 table, which is too short for the disk"));
        }
        let refcount_bytes = self.refcount_clusters << self.cluster_bits;
        if refcount_bytes == 0
            || refcount_bytes > TABLE_MAX
            || !inside(self.refcount_offset, refcount_bytes)
        {
            return Err(invalid("its refcount table"));
        }
        Ok(())
    }

    /// In bytes.
    pub(super) fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v3() -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, b"QFI\xfb");
        put(4, &3_u32.to_be_bytes());
        put(20, &16_u32.to_be_bytes());
        put(24, &(1_u64 << 30).to_be_bytes());
        put(36, &2_u32.to_be_bytes());
        put(40, &0x3_0000_u64.to_be_bytes());
        put(48, &0x1_0000_u64.to_be_bytes());
        put(56, &1_u32.to_be_bytes());
        put(96, &4_u32.to_be_bytes());
        put(100, &112_u32.to_be_bytes());
        bytes
    }

    fn refused(at: usize, field: &[u8], access: Access) -> String {
        let mut bytes = v3();
        bytes[at..at + field.len()].copy_from_slice(field);
        let parsed = Header::parse(&bytes, 0x4_0000, access);
        parsed.map_or_else(|error| error.to_string(), |_| "accepted".into())
    }

    #[test]
    fn a_plain_header_is_accepted_and_each_bad_field_refused_with_its_reason() {
        use Access::{ReadOnly, ReadWrite};
        assert_eq!(refused(0, b"QFI\xfb", ReadWrite), "accepted");
        for (at, field, reason) in [
            (0, &b"RAW!"[..], "does not hold"),
            (4, &[0, 0, 0, 4], "version 4"),
            (20, &[0, 0, 0, 8], "cluster size"),
            (20, &[0, 0, 0, 63], "cluster size"),
            (24, &[0xff; 8], "size"),
            (24, &[0, 0, 1, 0, 0, 0, 0, 0], "too short"),
            (32, &[0, 0, 0, 1], "encryption"),
            (36, &[0xff; 4], "L1 table"),
            (40, &[0, 0, 0, 0, 0, 0, 2, 0], "L1 table"),
            (40, &[0xff; 8], "L1 table"),
            (48, &[0, 0, 0, 0, 0, 9, 0, 0], "refcount table"),
            (56, &[0, 0, 0, 0], "refcount table"),
            (56, &[0xff; 4], "refcount table"),
            (79, &[1], "repaired"),
            (79, &[2], "corrupt"),
            (79, &[4], "external data file"),
            (79, &[8], "zlib"),
            (79, &[16], "subclusters"),
            (72, &[0x80], "0x8000000000000000"),
            (96, &[0, 0, 0, 7], "refcounts"),
            (100, &[0, 0, 0, 72], "length of its header"),
            (100, &[0xff; 4], "length of its header"),
        ] {
            let said = refused(at, field, ReadWrite);
            let also = refused(at, field, ReadOnly);
            assert!(said.contains(reason), "{reason}: {said}");
            let readable = at == 79 && field[0] < 4;
            assert_eq!(also == "accepted", readable, "{reason}");
        }
    }
}
