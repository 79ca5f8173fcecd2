//! Networks: bridges, addresses and DHCP on this host.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use api::ids::{HostId, NetworkId};
use api::networks::{NetworkKind, NetworkPhase};
use hostd_state::networks::Subnet;
use hostd_state::{Command, Fault, Report, State};
use tracing::{info, warn};

use super::{Agreed, Hands, IDLE, Reconciler, RoundError};
use crate::network::{Guest, Links, NetworkPlan, PlanKind};
use crate::vms::fault;
use crate::vms::plan::parse_mac;

/// A network that could not be made is tried again: a cable, a driver, an address may come.
const RETRY: Duration = Duration::from_secs(5);

/// Wanted networks and the kernel's links.
#[derive(Debug)]
pub struct NetworkReconciler<A, L, V, I, N> {
    pub(super) agreed: A,
    pub(super) host: HostId,
    pub(super) hands: Arc<Hands<L, V, I, N>>,
}

/// A network, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedNetwork {
    /// Its phase.
    pub phase: NetworkPhase,
    /// Why it is not well, as it was told.
    pub told: Option<String>,
    /// What it shall be.
    pub plan: Result<NetworkPlan, (NetworkId, Fault)>,
}

/// What there is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make or repair it; report if that is news.
    Ensure(NetworkPlan, NetworkPhase, Option<String>),
    /// It can not be made; say so.
    Report(NetworkId, Fault),
    /// Remove it and say so.
    Remove(NetworkId),
    /// Remove what is left of one that nobody wants.
    Sweep(NetworkId),
}

/// The networks this host shall have.
pub fn wanted(state: &State, host: HostId) -> Vec<WantedNetwork> {
    // Ids are in the order of creation, so the longest known VM comes first.
    let guests = |network: NetworkId| {
        let here = state.vms().filter(|vm| vm.host == host);
        here.flat_map(|vm| vm.nics.iter().map(move |nic| (vm, nic)))
            .filter(|(_, nic)| nic.network == network)
            .filter_map(|(vm, nic)| {
                Some(Guest {
                    mac: parse_mac(&nic.mac)?,
                    name: vm.name.as_str().to_owned(),
                })
            })
            .collect()
    };
    let plan = |network: NetworkId, kind: &NetworkKind| {
        let kind = match kind {
            NetworkKind::Uplink { uplink } => PlanKind::Uplink {
                nic: uplink.clone(),
            },
            NetworkKind::Isolated { subnet, dhcp } => PlanKind::Isolated {
                subnet: Subnet::parse(subnet).map_err(|refused| {
                    (
                        network,
                        fault("invalid", refused.to_string(), "create another network"),
                    )
                })?,
                dhcp: *dhcp,
            },
        };
        Ok(NetworkPlan {
            network,
            kind,
            guests: guests(network),
        })
    };
    state
        .networks()
        .map(|network| WantedNetwork {
            phase: network.phase,
            told: network
                .condition
                .as_ref()
                .map(|condition| condition.cause.clone()),
            plan: plan(network.id, &network.kind),
        })
        .collect()
}

/// From what is wanted and what there is to what is to be done.
pub fn plan(want: &[WantedNetwork], have: &[NetworkId]) -> Vec<Step> {
    let known: BTreeSet<NetworkId> = want.iter().map(WantedNetwork::id).collect();
    let unwanted = have
        .iter()
        .filter(|network| !known.contains(network))
        .map(|network| Step::Sweep(*network));
    let wanted = want
        .iter()
        .filter_map(|want| match (want.phase, &want.plan) {
            (NetworkPhase::Deleting, _) => Some(Step::Remove(want.id())),
            (NetworkPhase::Creating | NetworkPhase::Ready | NetworkPhase::Failed, Ok(plan)) => {
                Some(Step::Ensure(plan.clone(), want.phase, want.told.clone()))
            }
            (NetworkPhase::Creating | NetworkPhase::Ready, Err((network, fault))) => {
                Some(Step::Report(*network, fault.clone()))
            }
            (NetworkPhase::Failed, Err(_)) => None,
        });
    // First what is in the way of others: an uplink that is given up and taken by another network.
    let (removals, rest): (Vec<Step>, Vec<Step>) = unwanted
        .chain(wanted)
        .partition(|step| matches!(step, Step::Sweep(_) | Step::Remove(_)));
    removals.into_iter().chain(rest).collect()
}

impl WantedNetwork {
    fn id(&self) -> NetworkId {
        match &self.plan {
            Ok(plan) => plan.network,
            Err((network, _)) => *network,
        }
    }
}

/// What to report of an attempt, if it is news.
fn news(phase: NetworkPhase, told: Option<&str>, outcome: Result<(), Fault>) -> Option<Report> {
    match (outcome, phase) {
        (Ok(()), NetworkPhase::Ready) => None,
        (Ok(()), _) => Some(Report::Ready),
        (Err(fault), NetworkPhase::Failed) if told == Some(&fault.cause) => None,
        (Err(fault), _) => Some(Report::Failed(fault)),
    }
}

impl<A, L, V, I, N> Reconciler for NetworkReconciler<A, L, V, I, N>
where
    A: Agreed,
    N: Links,
    L: Send + Sync + 'static,
    V: Send + Sync + 'static,
    I: Send + Sync + 'static,
{
    const NAME: &'static str = "networks";

    async fn round(&self) -> Result<Duration, RoundError> {
        let want = self.agreed.read(|state| wanted(state, self.host));
        let have = self.hands.links.list().await?;
        let mut again = IDLE;
        for step in plan(&want, &have) {
            match step {
                Step::Ensure(wanted, phase, told) => {
                    let network = wanted.network;
                    let outcome = self.hands.links.ensure(wanted).await;
                    if let Err(fault) = &outcome {
                        again = RETRY;
                        warn!(%network, cause = fault.cause, "a network can not be made");
                    }
                    if let Some(report) = news(phase, told.as_deref(), outcome) {
                        self.agreed
                            .report(Command::NetworkObserved { network, report })
                            .await?;
                    }
                }
                Step::Report(network, fault) => {
                    let report = Report::Failed(fault);
                    self.agreed
                        .report(Command::NetworkObserved { network, report })
                        .await?;
                }
                Step::Remove(network) => {
                    self.hands.links.remove(network).await?;
                    self.agreed
                        .report(Command::NetworkRemoved { network })
                        .await?;
                }
                Step::Sweep(network) => {
                    info!(%network, "a network that nobody wants is removed");
                    self.hands.links.remove(network).await?;
                }
            }
        }
        Ok(again)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(phase: NetworkPhase) -> WantedNetwork {
        let kind = PlanKind::Uplink {
            nic: "eth0".to_owned(),
        };
        WantedNetwork {
            phase,
            told: None,
            plan: Ok(NetworkPlan {
                network: NetworkId::mint(),
                kind,
                guests: Vec::new(),
            }),
        }
    }

    #[test]
    fn what_is_given_up_goes_before_what_is_made() {
        let (kept, leaving, stray) = (
            network(NetworkPhase::Ready),
            network(NetworkPhase::Deleting),
            NetworkId::mint(),
        );
        let steps = plan(&[kept.clone(), leaving.clone()], &[stray]);
        let expected = [
            Step::Sweep(stray),
            Step::Remove(leaving.id()),
            Step::Ensure(kept.plan.unwrap(), NetworkPhase::Ready, None),
        ];
        assert_eq!(steps, expected);
    }

    #[test]
    fn only_news_is_reported() {
        let cable = || fault("network_error", "no cable", "plug it in");
        assert_eq!(
            news(NetworkPhase::Creating, None, Ok(())),
            Some(Report::Ready)
        );
        assert_eq!(news(NetworkPhase::Ready, None, Ok(())), None);
        assert_eq!(
            news(NetworkPhase::Failed, Some("no cable"), Ok(())),
            Some(Report::Ready)
        );
        assert_eq!(
            news(NetworkPhase::Failed, Some("no cable"), Err(cable())),
            None
        );
        assert_eq!(
            news(NetworkPhase::Ready, None, Err(cable())),
            Some(Report::Failed(cable()))
        );
    }
}
