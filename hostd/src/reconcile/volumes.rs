//! Volumes: created, filled, removed.
//!
//! A file that no record knows is left alone: bytes are never removed on a suspicion.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::ids::{HostId, VolumeId};
use api::images::ImageFormat;
use api::units::Percent;
use api::volumes::VolumePhase;
use futures_util::future::join_all;
use hostd_state::{Command, Report, State};
use tokio::sync::watch;
use tracing::{info, warn};

use super::{Agreed, Hands, IDLE, Reconciler, RoundError};
use crate::storage::{Source, Stored, VolumePlan, Volumes};
use crate::vms::fault;

/// How often the progress of filling a volume is told.
const TELL: Duration = Duration::from_secs(1);
/// A volume in use can not be removed; when to look again.
const RETRY: Duration = Duration::from_secs(1);

/// Wanted volumes and what the pool holds.
#[derive(Debug)]
pub struct VolumeReconciler<A, L, V, I, N> {
    pub(super) agreed: A,
    pub(super) host: HostId,
    pub(super) hands: Arc<Hands<L, V, I, N>>,
}

/// A volume of this host, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedVolume {
    /// Its phase.
    pub phase: VolumePhase,
    /// What it shall be.
    pub plan: VolumePlan,
}

/// What there is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make it, then report.
    Create(VolumePlan),
    /// It is there, but nobody was told.
    ReportReady(VolumeId),
    /// Its bytes are gone.
    ReportLost(VolumeId),
    /// Remove it and say so.
    Remove(VolumeId),
}

/// The volumes this host shall have.
pub fn wanted(state: &State, host: HostId) -> Vec<WantedVolume> {
    let here = state.volumes().filter(|volume| volume.host == host);
    here.map(|volume| WantedVolume {
        phase: volume.phase,
        plan: VolumePlan {
            volume: volume.id,
            size_bytes: volume.size.bytes().unwrap_or(u64::MAX),
            from: volume.from_image.map(|image| Source {
                image,
                // While the volume is being made, its image stays.
                format: state
                    .image(image)
                    .map_or(ImageFormat::Raw, |image| image.format),
            }),
        },
    })
    .collect()
}

/// From what is wanted and what there is to what is to be done.
pub fn plan(want: &[WantedVolume], have: &[Stored<VolumeId>]) -> Vec<Step> {
    let have: BTreeMap<VolumeId, u64> = have
        .iter()
        .map(|stored| (stored.id, stored.size_bytes))
        .collect();
    let step = |want: &WantedVolume| {
        let id = want.plan.volume;
        let there = have.contains_key(&id);
        match (want.phase, there) {
            (VolumePhase::Creating, false) => Some(Step::Create(want.plan.clone())),
            (VolumePhase::Creating, true) => Some(Step::ReportReady(id)),
            (VolumePhase::Ready, false) => Some(Step::ReportLost(id)),
            (VolumePhase::Ready, true) | (VolumePhase::Failed, _) => None,
            (VolumePhase::Deleting, _) => Some(Step::Remove(id)),
        }
    };
    want.iter().filter_map(step).collect()
}

impl<A, L, V, I, N> VolumeReconciler<A, L, V, I, N>
where
    A: Agreed,
    V: Volumes,
{
    /// Performs a step. Gives when to look again.
    async fn perform(&self, step: Step) -> Result<Duration, RoundError> {
        let report = match step {
            Step::Create(plan) => {
                let volume = plan.volume;
                Command::VolumeObserved {
                    volume,
                    report: self.create(plan).await?,
                }
            }
            Step::ReportReady(volume) => Command::VolumeObserved {
                volume,
                report: Report::Ready,
            },
            Step::ReportLost(volume) => {
                let lost = fault(
                    "volume_lost",
                    "its bytes are not on the host any more",
                    "restore it from a backup",
                );
                Command::VolumeObserved {
                    volume,
                    report: Report::Failed(lost),
                }
            }
            Step::Remove(volume) => match self.hands.volumes.remove(volume).await {
                Ok(()) => {
                    info!(%volume, "volume removed");
                    Command::VolumeRemoved { volume }
                }
                Err(fault) => {
                    warn!(%volume, cause = fault.cause, "a volume can not be removed yet");
                    return Ok(RETRY);
                }
            },
        };
        self.agreed.report(report).await?;
        Ok(IDLE)
    }

    async fn create(&self, plan: VolumePlan) -> Result<Report, RoundError> {
        let volume = plan.volume;
        let (progress, told) = watch::channel(Percent(0));
        let create = self.hands.volumes.create(plan, progress);
        tokio::pin!(create);
        let mut last = Percent(0);
        loop {
            tokio::select! {
                created = &mut create => return Ok(match created {
                    Ok(()) => {
                        info!(%volume, "volume created");
                        Report::Ready
                    }
                    Err(fault) => {
                        warn!(%volume, cause = fault.cause, "a volume can not be created");
                        Report::Failed(fault)
                    }
                }),
                () = tokio::time::sleep(TELL) => {
                    let now = *told.borrow();
                    if now != last {
                        last = now;
                        let report = Report::Progress(now);
                        self.agreed.report(Command::VolumeObserved { volume, report }).await?;
                    }
                }
            }
        }
    }
}

impl<A, L, V, I, N> Reconciler for VolumeReconciler<A, L, V, I, N>
where
    A: Agreed,
    V: Volumes,
    L: Send + Sync + 'static,
    I: Send + Sync + 'static,
    N: Send + Sync + 'static,
{
    const NAME: &'static str = "volumes";

    async fn round(&self) -> Result<Duration, RoundError> {
        let want = self.agreed.read(|state| wanted(state, self.host));
        let have = self.hands.volumes.list().await?;
        // Side by side: filling a large one does not hold up a small one of the same round.
        let steps = plan(&want, &have)
            .into_iter()
            .map(|step| self.perform(step));
        let again = join_all(steps)
            .await
            .into_iter()
            .collect::<Result<Vec<Duration>, RoundError>>()?;
        Ok(again.into_iter().min().unwrap_or(IDLE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_phase_and_file_has_one_answer() {
        let volume = VolumeId::mint();
        let wanted = VolumePlan {
            volume,
            size_bytes: 7,
            from: None,
        };
        let there = [Stored {
            id: volume,
            size_bytes: 7,
        }];
        for (phase, present, absent) in [
            (
                VolumePhase::Creating,
                Some(Step::ReportReady(volume)),
                Some(Step::Create(wanted.clone())),
            ),
            (VolumePhase::Ready, None, Some(Step::ReportLost(volume))),
            (VolumePhase::Failed, None, None),
            (
                VolumePhase::Deleting,
                Some(Step::Remove(volume)),
                Some(Step::Remove(volume)),
            ),
        ] {
            let want = [WantedVolume {
                phase,
                plan: wanted.clone(),
            }];
            assert_eq!(plan(&want, &there).first(), present.as_ref(), "{phase:?}");
            assert_eq!(plan(&want, &[]).first(), absent.as_ref(), "{phase:?}");
        }
        assert_eq!(plan(&[], &there), [], "an unknown file is left alone");
    }
}
