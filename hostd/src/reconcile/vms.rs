//! VMs: wanted ones and living processes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::ids::{HostId, NetworkId, VmId};
use api::networks::NetworkPhase;
use api::units::Millis;
use api::vms::{VmExit, VmPhase};
use hostd_state::{Command, Fault, State, StopMode, VmRecord, VmReport, Want};
use tracing::{info, warn};

use super::{Agreed, Hands, IDLE, Reconciler, RoundError};
use crate::network::Links;
use crate::report::chain;
use crate::storage::{Images, Volumes};
use crate::vms::plan::PlannedBoot;
use crate::vms::{
    HaveVm, Launcher, Opened, OpenedBoot, Phase, VmPlan, VmRequest, fault, plan as vm_plan,
};

/// While something is under way that nobody tells of.
const SOON: Duration = Duration::from_millis(500);
/// How often the power button is pressed: a guest that still boots does not hear it.
const PRESS_AGAIN: Duration = Duration::from_secs(5);
/// The kernel may hold a volume's lock for a moment after its last process: how often, and for how long, to try.
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(100);

/// Wanted VMs and living children.
#[derive(Debug)]
pub struct VmReconciler<A, L, V, I, N> {
    pub(super) agreed: A,
    pub(super) host: HostId,
    pub(super) hands: Arc<Hands<L, V, I, N>>,
}

/// What there is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Open what it needs and start it, or report why not.
    Launch(VmId),
    /// Tell what was seen.
    Report(VmId, u64, VmReport),
    /// Press its power button.
    Press(VmId),
    /// End its process.
    Kill(VmId),
    /// Clear away what is left of an ended process.
    Forget(VmId),
    /// Nothing is left of it: say so.
    Removed(VmId),
}

/// A VM of this host, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WantedVm {
    /// Which.
    pub vm: VmId,
    /// What shall be.
    pub want: Want,
    /// What was told last.
    pub phase: VmPhase,
}

/// The VMs of this host.
pub fn wanted(state: &State, host: HostId) -> Vec<WantedVm> {
    let here = state.vms().filter(|vm| vm.host == host);
    here.map(|vm| WantedVm {
        vm: vm.id,
        want: vm.want(),
        phase: vm.phase,
    })
    .collect()
}

/// From what is wanted and what there is to what is to be done: at most one step for each VM.
pub fn plan(want: &[WantedVm], have: &[HaveVm], now: Millis) -> Vec<Step> {
    let mut have: BTreeMap<VmId, &HaveVm> = have.iter().map(|vm| (vm.vm, vm)).collect();
    let wanted: Vec<Step> = want
        .iter()
        .filter_map(|want| step(want, have.remove(&want.vm), now))
        .collect();
    // What no record knows was removed while nobody looked.
    let unknown = have.into_values().map(away);
    wanted.into_iter().chain(unknown).collect()
}

/// Out of the way with it.
fn away(have: &HaveVm) -> Step {
    match have.phase {
        Phase::Ended(_) => Step::Forget(have.vm),
        Phase::Starting | Phase::Running | Phase::Paused => Step::Kill(have.vm),
    }
}

fn step(want: &WantedVm, have: Option<&HaveVm>, now: Millis) -> Option<Step> {
    let vm = want.vm;
    match (want.want, have) {
        (Want::Nothing, None) => None,
        (Want::Gone, None) => Some(Step::Removed(vm)),
        (Want::Nothing | Want::Gone, Some(have)) => Some(away(have)),
        (Want::Up { generation } | Want::Down { generation, .. }, Some(have))
            if have.generation != generation =>
        {
            Some(away(have))
        }
        (Want::Up { generation }, None) => Some(match want.phase {
            VmPhase::Starting => Step::Launch(vm),
            VmPhase::Stopped
            | VmPhase::Running
            | VmPhase::Paused
            | VmPhase::Stopping
            | VmPhase::Failed
            | VmPhase::Deleting => {
                let status = "it is gone without a trace".to_owned();
                Step::Report(
                    vm,
                    generation,
                    VmReport::Ended(VmExit::ProcessDied { status }),
                )
            }
        }),
        (Want::Down { generation, .. }, None) => Some(Step::Report(
            vm,
            generation,
            VmReport::Ended(VmExit::Stopped),
        )),
        (
            Want::Up { generation } | Want::Down { generation, .. },
            Some(HaveVm {
                phase: Phase::Ended(exit),
                ..
            }),
        ) => Some(Step::Report(vm, generation, VmReport::Ended(exit.clone()))),
        (Want::Up { generation }, Some(have)) => match (&have.phase, want.phase) {
            (Phase::Running, VmPhase::Running) | (Phase::Paused, VmPhase::Paused) => None,
            (Phase::Running, _) => Some(Step::Report(vm, generation, VmReport::Running)),
            (Phase::Paused, _) => Some(Step::Report(vm, generation, VmReport::Paused)),
            (Phase::Starting | Phase::Ended(_), _) => None,
        },
        (Want::Down { mode, .. }, Some(have)) => match mode {
            StopMode::Kill => Some(Step::Kill(vm)),
            StopMode::Graceful { deadline } if now >= deadline => Some(Step::Kill(vm)),
            StopMode::Graceful { .. } => {
                let due = have.button.is_none_or(|ago| ago >= PRESS_AGAIN);
                (due && have.phase == Phase::Running).then_some(Step::Press(vm))
            }
        },
    }
}

/// A VM to be started, with what its start depends on.
enum Start {
    Now(VmPlan),
    NotYet,
    Never(Fault),
}

/// Whether a VM can be started now.
fn start(record: &VmRecord, state: &State, networks: &[NetworkId]) -> Start {
    for nic in &record.nics {
        let failed = state
            .network(nic.network)
            .filter(|network| network.phase == NetworkPhase::Failed);
        if let Some(network) = failed {
            let cause = format!("network `{}` is not up", network.name);
            return Start::Never(fault(
                "network_failed",
                cause,
                "mend the network, then start it again",
            ));
        }
        if !networks.contains(&nic.network) {
            return Start::NotYet;
        }
    }
    match vm_plan::plan(record) {
        Ok(plan) => Start::Now(plan),
        Err(error) => Start::Never(fault("invalid", chain(&error), "update the VM")),
    }
}

impl<A, L, V, I, N> VmReconciler<A, L, V, I, N>
where
    A: Agreed,
    L: Launcher,
    V: Volumes,
    I: Images,
    N: Links,
{
    async fn perform(&self, step: Step) -> Result<(), RoundError> {
        let launcher = &self.hands.launcher;
        match step {
            Step::Launch(vm) => self.launch(vm).await?,
            Step::Report(vm, generation, report) => {
                self.agreed
                    .report(Command::VmObserved {
                        vm,
                        generation,
                        report,
                    })
                    .await?;
            }
            Step::Press(vm) => launcher.request(vm, VmRequest::PowerButton).await,
            Step::Kill(vm) => launcher.request(vm, VmRequest::Kill).await,
            Step::Forget(vm) => launcher.forget(vm).await?,
            Step::Removed(vm) => {
                self.hands.volumes.remove_firmware(vm).await?;
                self.agreed.report(Command::VmRemoved { vm }).await?;
            }
        }
        Ok(())
    }

    async fn launch(&self, vm: VmId) -> Result<(), RoundError> {
        let networks = self.hands.links.list().await?;
        let start = self.agreed.read(|state| {
            let record = state
                .vm(vm)
                .filter(|record| record.phase == VmPhase::Starting)?;
            Some((record.generation, start(record, state, &networks)))
        });
        let (generation, failed) = match start {
            // Not wanted any more, or not yet possible: the next round decides.
            None | Some((_, Start::NotYet)) => return Ok(()),
            Some((generation, Start::Never(fault))) => (generation, fault),
            Some((generation, Start::Now(plan))) => {
                let launched = match self.open(&plan).await {
                    Ok(opened) => self.hands.launcher.launch(plan, opened).await,
                    Err(fault) => Err(fault),
                };
                match launched {
                    Ok(()) => return Ok(()),
                    Err(fault) => (generation, fault),
                }
            }
        };
        warn!(%vm, generation, code = failed.code, cause = failed.cause, "a VM can not be started");
        let report = VmReport::LaunchFailed(failed);
        Ok(self
            .agreed
            .report(Command::VmObserved {
                vm,
                generation,
                report,
            })
            .await?)
    }

    /// Opens all that a VM needs, in the order in which it is likely to fail.
    async fn open(&self, plan: &VmPlan) -> Result<Opened, Fault> {
        let hands = &self.hands;
        let boot = match &plan.boot {
            PlannedBoot::Kernel { kernel, initrd } => OpenedBoot::Kernel {
                kernel: hands.images.open(*kernel).await?,
                initrd: match initrd {
                    Some(initrd) => Some(hands.images.open(*initrd).await?),
                    None => None,
                },
            },
            PlannedBoot::Firmware => {
                OpenedBoot::Firmware(unlocked(|| hands.volumes.firmware(plan.vm)).await?)
            }
        };
        let mut disks = Vec::new();
        for disk in &plan.disks {
            disks.push(unlocked(|| hands.volumes.open(disk.volume, disk.read_only)).await?);
        }
        let mut taps = Vec::new();
        for nic in &plan.nics {
            taps.push(hands.links.tap(nic.network, &nic.tap).await?);
        }
        Ok(Opened { boot, disks, taps })
    }
}

/// Opens what an ended process may still hold for a moment.
async fn unlocked<T, F: Future<Output = Result<T, Fault>>>(
    open: impl Fn() -> F,
) -> Result<T, Fault> {
    let mut tries = 1;
    loop {
        match open().await {
            Err(fault) if fault.code == "volume_in_use" && tries < LOCK_TRIES => {
                tries += 1;
                tokio::time::sleep(LOCK_PAUSE).await;
            }
            other => return other,
        }
    }
}

impl<A, L, V, I, N> Reconciler for VmReconciler<A, L, V, I, N>
where
    A: Agreed,
    L: Launcher,
    V: Volumes,
    I: Images,
    N: Links,
{
    const NAME: &'static str = "vms";

    async fn round(&self) -> Result<Duration, RoundError> {
        let want = self.agreed.read(|state| wanted(state, self.host));
        let have = self.hands.launcher.list();
        let steps = plan(&want, &have, Millis::now());
        // One VM's trouble is not another's.
        let mut trouble = None;
        for step in steps.iter().cloned() {
            if !matches!(step, Step::Press(_)) {
                info!(?step, "VM step");
            }
            if let Err(error) = self.perform(step).await {
                trouble = trouble.or(Some(error));
            }
        }
        let under_way = |want: &WantedVm| matches!(want.want, Want::Down { .. } | Want::Gone);
        match trouble {
            Some(error) => Err(error),
            None if !steps.is_empty() || want.iter().any(under_way) => Ok(SOON),
            None => Ok(IDLE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = Millis(1_000_000);

    fn have(vm: VmId, generation: u64, phase: Phase) -> HaveVm {
        HaveVm {
            vm,
            generation,
            phase,
            button: None,
        }
    }

    fn one(want: Want, phase: VmPhase, have: Option<HaveVm>) -> Option<Step> {
        let vm = have.as_ref().map_or_else(VmId::mint, |have| have.vm);
        let steps = plan(&[WantedVm { vm, want, phase }], have.as_slice(), NOW);
        assert!(steps.len() <= 1);
        steps.into_iter().next()
    }

    #[test]
    fn a_wanted_vm_is_launched_reported_and_then_left_alone() {
        let vm = VmId::mint();
        let up = Want::Up { generation: 7 };
        assert!(matches!(
            one(up, VmPhase::Starting, None),
            Some(Step::Launch(_))
        ));
        assert_eq!(
            one(up, VmPhase::Starting, Some(have(vm, 7, Phase::Starting))),
            None
        );
        let running = Some(Step::Report(vm, 7, VmReport::Running));
        assert_eq!(
            one(up, VmPhase::Starting, Some(have(vm, 7, Phase::Running))),
            running
        );
        assert_eq!(
            one(up, VmPhase::Paused, Some(have(vm, 7, Phase::Running))),
            running
        );
        assert_eq!(
            one(up, VmPhase::Running, Some(have(vm, 7, Phase::Running))),
            None
        );
    }

    #[test]
    fn an_end_is_reported_before_it_is_cleared_away() {
        let vm = VmId::mint();
        let ended = || Some(have(vm, 7, Phase::Ended(VmExit::TripleFault)));
        let told = Some(Step::Report(vm, 7, VmReport::Ended(VmExit::TripleFault)));
        assert_eq!(
            one(Want::Up { generation: 7 }, VmPhase::Running, ended()),
            told
        );
        assert_eq!(
            one(
                Want::Down {
                    generation: 7,
                    mode: StopMode::Kill
                },
                VmPhase::Stopping,
                ended()
            ),
            told
        );
        assert_eq!(
            one(Want::Nothing, VmPhase::Failed, ended()),
            Some(Step::Forget(vm))
        );
        assert_eq!(
            one(Want::Up { generation: 8 }, VmPhase::Starting, ended()),
            Some(Step::Forget(vm))
        );
        assert_eq!(
            one(Want::Gone, VmPhase::Deleting, ended()),
            Some(Step::Forget(vm))
        );
        assert!(matches!(
            one(Want::Gone, VmPhase::Deleting, None),
            Some(Step::Removed(_))
        ));
    }

    #[test]
    fn a_process_of_another_generation_or_of_no_record_is_ended() {
        let vm = VmId::mint();
        let old = have(vm, 6, Phase::Running);
        assert_eq!(
            one(
                Want::Up { generation: 7 },
                VmPhase::Starting,
                Some(old.clone())
            ),
            Some(Step::Kill(vm))
        );
        assert_eq!(plan(&[], &[old], NOW), [Step::Kill(vm)]);
        assert_eq!(
            plan(&[], &[have(vm, 6, Phase::Ended(VmExit::Stopped))], NOW),
            [Step::Forget(vm)]
        );
    }

    #[test]
    fn a_running_vm_without_a_process_is_reported_and_never_started_twice() {
        let step = one(Want::Up { generation: 7 }, VmPhase::Running, None);
        assert!(matches!(
            step,
            Some(Step::Report(
                _,
                7,
                VmReport::Ended(VmExit::ProcessDied { .. })
            ))
        ));
        let step = one(
            Want::Down {
                generation: 7,
                mode: StopMode::Kill,
            },
            VmPhase::Stopping,
            None,
        );
        assert!(matches!(
            step,
            Some(Step::Report(_, 7, VmReport::Ended(VmExit::Stopped)))
        ));
    }

    #[test]
    fn a_graceful_stop_presses_now_and_then_and_kills_at_the_deadline() {
        let vm = VmId::mint();
        let graceful = |deadline| Want::Down {
            generation: 7,
            mode: StopMode::Graceful { deadline },
        };
        let later = graceful(Millis(NOW.0 + 1));
        let mut running = have(vm, 7, Phase::Running);
        assert_eq!(
            one(later, VmPhase::Stopping, Some(running.clone())),
            Some(Step::Press(vm))
        );
        running.button = Some(Duration::from_secs(1));
        assert_eq!(one(later, VmPhase::Stopping, Some(running.clone())), None);
        running.button = Some(PRESS_AGAIN);
        assert_eq!(
            one(later, VmPhase::Stopping, Some(running.clone())),
            Some(Step::Press(vm))
        );
        assert_eq!(
            one(graceful(NOW), VmPhase::Stopping, Some(running)),
            Some(Step::Kill(vm))
        );
        // Before its guest runs there is nobody to hear the button.
        assert_eq!(
            one(later, VmPhase::Stopping, Some(have(vm, 7, Phase::Starting))),
            None
        );
    }
}
