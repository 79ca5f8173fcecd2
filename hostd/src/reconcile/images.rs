//! Images: the bytes come by upload; here is what remains when something went wrong in between.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::ids::{HostId, ImageId};
use api::images::{ImageFormat, ImagePhase};
use hostd_state::{Command, Fault, Report, State};

use super::{Agreed, Hands, IDLE, Reconciler, RoundError};
use crate::storage::{Images, Stored};
use crate::vms::fault;

/// Wanted images and files.
#[derive(Debug)]
pub struct ImageReconciler<A, L, V, I, N> {
    pub(super) agreed: A,
    pub(super) host: HostId,
    pub(super) hands: Arc<Hands<L, V, I, N>>,
}

/// An image of this host, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedImage {
    /// Which.
    pub image: ImageId,
    /// Its phase.
    pub phase: ImagePhase,
    /// Its promised length.
    pub size_bytes: u64,
    /// How its bytes are understood.
    pub format: ImageFormat,
}

/// What there is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The upload was finished, but nobody was told.
    ReportReady(ImageId, ImageFormat),
    /// The bytes are gone.
    ReportLost(ImageId),
    /// Remove the bytes and say so.
    Remove(ImageId),
}

/// The images this host shall have.
pub fn wanted(state: &State, host: HostId) -> Vec<WantedImage> {
    let here = state.images().filter(|image| image.host == host);
    here.map(|image| WantedImage {
        image: image.id,
        phase: image.phase,
        size_bytes: image.size_bytes,
        format: image.format,
    })
    .collect()
}

/// From what is wanted and what there is to what is to be done.
pub fn plan(want: &[WantedImage], have: &[Stored<ImageId>]) -> Vec<Step> {
    let have: BTreeMap<ImageId, u64> = have
        .iter()
        .map(|stored| (stored.id, stored.size_bytes))
        .collect();
    let step = |want: &WantedImage| {
        let whole = have.get(&want.image) == Some(&want.size_bytes);
        match (want.phase, whole) {
            (ImagePhase::Uploading, true) => Some(Step::ReportReady(want.image, want.format)),
            (ImagePhase::Ready, false) => Some(Step::ReportLost(want.image)),
            (ImagePhase::Uploading, false)
            | (ImagePhase::Ready, true)
            | (ImagePhase::Failed, _) => None,
            (ImagePhase::Deleting, _) => Some(Step::Remove(want.image)),
        }
    };
    want.iter().filter_map(step).collect()
}

impl<A, L, V, I, N> Reconciler for ImageReconciler<A, L, V, I, N>
where
    A: Agreed,
    I: Images,
    L: Send + Sync + 'static,
    V: Send + Sync + 'static,
    N: Send + Sync + 'static,
{
    const NAME: &'static str = "images";

    async fn round(&self) -> Result<Duration, RoundError> {
        let want = self.agreed.read(|state| wanted(state, self.host));
        let have = self.hands.images.list().await?;
        for step in plan(&want, &have) {
            let report = match step {
                Step::ReportReady(image, ImageFormat::Raw) => ready(image, None),
                Step::ReportReady(image, ImageFormat::Qcow2) => {
                    match self.hands.images.examine(image).await {
                        Ok(size) => ready(image, Some(size)),
                        Err(fault) => failed(image, fault),
                    }
                }
                Step::ReportLost(image) => {
                    let lost = fault(
                        "image_lost",
                        "its bytes are not on the host any more",
                        "upload it again under another name",
                    );
                    failed(image, lost)
                }
                Step::Remove(image) => {
                    self.hands.images.remove(image).await?;
                    Command::ImageRemoved { image }
                }
            };
            self.agreed.report(report).await?;
        }
        Ok(IDLE)
    }
}

fn ready(image: ImageId, virtual_bytes: Option<u64>) -> Command {
    Command::ImageObserved {
        image,
        report: Report::Ready,
        virtual_bytes,
    }
}

fn failed(image: ImageId, fault: Fault) -> Command {
    Command::ImageObserved {
        image,
        report: Report::Failed(fault),
        virtual_bytes: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_phase_and_file_has_one_answer() {
        let image = ImageId::mint();
        let whole = [Stored {
            id: image,
            size_bytes: 7,
        }];
        let other = [Stored {
            id: image,
            size_bytes: 6,
        }];
        for (phase, there, damaged, absent) in [
            (
                ImagePhase::Uploading,
                Some(Step::ReportReady(image, ImageFormat::Qcow2)),
                None,
                None,
            ),
            (
                ImagePhase::Ready,
                None,
                Some(Step::ReportLost(image)),
                Some(Step::ReportLost(image)),
            ),
            (ImagePhase::Failed, None, None, None),
            (
                ImagePhase::Deleting,
                Some(Step::Remove(image)),
                Some(Step::Remove(image)),
                Some(Step::Remove(image)),
            ),
        ] {
            let want = [WantedImage {
                image,
                phase,
                size_bytes: 7,
                format: ImageFormat::Qcow2,
            }];
            assert_eq!(plan(&want, &whole).first(), there.as_ref(), "{phase:?}");
            assert_eq!(plan(&want, &other).first(), damaged.as_ref(), "{phase:?}");
            assert_eq!(plan(&want, &[]).first(), absent.as_ref(), "{phase:?}");
        }
    }
}
