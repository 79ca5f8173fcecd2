//! Images read in this very process, and one to read.

use std::fs::File;

use crate::storage::Progress;
use crate::storage::convert::{ConvertError, Converter, Job, Said, work};

/// Reads images here, without walls.
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenConverter;

impl Converter for OpenConverter {
    fn run(
        &self,
        job: Job,
        image: &File,
        volume: Option<&File>,
        progress: Option<&Progress>,
    ) -> Result<u64, ConvertError> {
        let image = image.try_clone().map_err(|error| ConvertError::Host {
            cause: error.to_string(),
        })?;
        let say = |said| {
            if let (Said::Progress(percent), Some(progress)) = (said, progress) {
                progress.send_replace(percent);
            }
            Ok(())
        };
        work(job, image.into(), volume, || Ok(()), say)
    }
}

/// A qcow2 image of a disk of `size` bytes, with clusters of 64 KiB of which the first holds `content`; `size` is at most
/// 512 MiB.
pub fn qcow2_image(size: u64, content: &[u8]) -> Vec<u8> {
    const CLUSTER: usize = 1 << 16;
    // Header, refcount table, refcounts, L1 table, L2 table, content.
    let mut image = vec![0; 6 * CLUSTER];
    let mut put = |at: usize, field: &[u8]| image[at..at + field.len()].copy_from_slice(field);
    let offset = |cluster: u64| cluster << 16;
    put(0, b"QFI\xfb");
    put(4, &3_u32.to_be_bytes());
    put(20, &16_u32.to_be_bytes());
    put(24, &size.to_be_bytes());
    put(36, &1_u32.to_be_bytes());
    put(40, &offset(3).to_be_bytes());
    put(48, &offset(1).to_be_bytes());
    put(56, &1_u32.to_be_bytes());
    put(96, &4_u32.to_be_bytes());
    put(100, &104_u32.to_be_bytes());
    put(CLUSTER, &offset(2).to_be_bytes());
    for number in 0..6 {
        put(2 * CLUSTER + 2 * number, &1_u16.to_be_bytes());
    }
    let own = 1 << 63;
    put(3 * CLUSTER, &(offset(4) | own).to_be_bytes());
    put(4 * CLUSTER, &(offset(5) | own).to_be_bytes());
    put(5 * CLUSTER, &content[..content.len().min(CLUSTER)]);
    image
}
