//! Volumes: created, filled, grown, removed.
//!
//! A file that no record knows is left alone: bytes are never removed on a suspicion.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::ids::{HostId, VmId, VolumeId};
use api::images::ImageFormat;
use api::units::{Mib, Percent};
use api::vms::VmPhase;
use api::volumes::VolumePhase;
use futures_util::future::join_all;
use hostd_state::{Command, Fault, Report, State};
use tokio::sync::watch;
use tracing::{info, warn};

use super::{Agreed, Hands, IDLE, Reconciler, RoundError};
use crate::storage::{Source, Stored, VolumePlan, Volumes};
use crate::vms::{Launcher, fault};

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
    /// The size it shall have, while it grows.
    pub growing_to: Option<Mib>,
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
    /// Make it longer, tell its VMs, then report.
    Grow(VolumeId, Mib),
    /// Remove it and say so.
    Remove(VolumeId),
}

/// The volumes this host shall have.
pub fn wanted(state: &State, host: HostId) -> Vec<WantedVolume> {
    let here = state.volumes().filter(|volume| volume.host == host);
    here.map(|volume| WantedVolume {
        phase: volume.phase,
        growing_to: volume.growing_to,
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

/// The VMs that have a volume, as which of their disks, and where they stand.
fn users(state: &State, host: HostId, volume: VolumeId) -> Vec<(VmId, u8, VmPhase)> {
    let here = state.vms().filter(|vm| vm.host == host);
    here.filter_map(|vm| {
        let disk = vm.disks.iter().position(|disk| disk.volume == volume)?;
        Some((vm.id, u8::try_from(disk).ok()?, vm.phase))
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
            (VolumePhase::Ready, true) => want.growing_to.map(|size| Step::Grow(id, size)),
            (VolumePhase::Failed, _) => None,
            (VolumePhase::Deleting, _) => Some(Step::Remove(id)),
        }
    };
    want.iter().filter_map(step).collect()
}

impl<A, L, V, I, N> VolumeReconciler<A, L, V, I, N>
where
    A: Agreed,
    L: Launcher,
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
            Step::Grow(volume, size) => match self.grow(volume, size).await {
                Ok(false) => return Ok(RETRY),
                done => {
                    let fault = done.err();
                    if let Some(fault) = &fault {
                        warn!(%volume, cause = fault.cause, "a volume can not grow");
                    }
                    Command::VolumeGrown {
                        volume,
                        size,
                        fault,
                    }
                }
            },
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

    /// Its bytes first, then its VMs; true when all have it.
    async fn grow(&self, volume: VolumeId, size: Mib) -> Result<bool, Fault> {
        let bytes = size.bytes().unwrap_or(u64::MAX);
        self.hands.volumes.grow(volume, bytes).await?;
        // Read behind that: a VM that is started from now on finds it as it is.
        let users = self.agreed.read(|state| users(state, self.host, volume));
        if users.iter().any(|(.., phase)| *phase == VmPhase::Starting) {
            // It may have looked before and can not be told yet.
            return Ok(false);
        }
        for (vm, disk, _) in users {
            self.hands.launcher.grow_disk(vm, disk, bytes).await?;
        }
        info!(%volume, %size, "volume grown");
        Ok(true)
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
    L: Launcher,
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
                growing_to: None,
            }];
            assert_eq!(plan(&want, &there).first(), present.as_ref(), "{phase:?}");
            assert_eq!(plan(&want, &[]).first(), absent.as_ref(), "{phase:?}");
        }
        let want = WantedVolume {
            phase: VolumePhase::Ready,
            plan: wanted,
            growing_to: Some(Mib(9)),
        };
        let want = [want];
        assert_eq!(plan(&want, &there), [Step::Grow(volume, Mib(9))]);
        assert_eq!(plan(&want, &[]), [Step::ReportLost(volume)]);
        assert_eq!(plan(&[], &there), [], "an unknown file is left alone");
    }
}
