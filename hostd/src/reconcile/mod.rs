//! What is wanted is made true on this host. The only code that acts on the machine.
//!
//! ```text
//!        changes ─┐
//!   own events  ──┼─► round:  want = from the state    (pure)
//!        timer  ──┘           have = look at the world
//!                             plan(want, have) → steps (pure)
//!                             perform each step, report what came of it through `propose`
//! ```
//! A reconciler takes no other input, keeps no memory and may be run twice: normal start, restart of the daemon and
//! repair are one path.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use api::ids::HostId;
use api::units::Millis;
use hostd_state::{Command, Fault, Meta, State};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use crate::cluster::{Cluster, ProposeError};
use crate::network::Links;
use crate::storage::{Images, Volumes};
use crate::vms::Launcher;

pub mod images;
pub mod networks;
pub mod vms;
pub mod volumes;

/// The longest time between two rounds: the world may change without anybody telling.
const IDLE: Duration = Duration::from_secs(10);
/// Changes come in flocks: a round waits this long for the rest of them.
const SETTLE: Duration = Duration::from_millis(10);
/// The pause after a round that failed, doubled each time.
const BACK_OFF_FIRST: Duration = Duration::from_millis(250);
/// And at most this.
const BACK_OFF_MAX: Duration = Duration::from_secs(30);

/// Agreement, as a reconciler needs it: the cluster's handle, or a bare state in tests.
pub trait Agreed: Clone + Send + Sync + 'static {
    /// Looks at the state.
    fn read<R>(&self, look: impl FnOnce(&State) -> R) -> R;

    /// Reports an observation. A refusal is an answer too: the report was late.
    fn report(&self, command: Command) -> impl Future<Output = Result<(), ProposeError>> + Send;

    /// Told after each change.
    fn watch(&self) -> watch::Receiver<u64>;
}

impl Agreed for Cluster {
    fn read<R>(&self, look: impl FnOnce(&State) -> R) -> R {
        Cluster::read(self, look)
    }

    async fn report(&self, command: Command) -> Result<(), ProposeError> {
        match self.propose(Meta::host(Millis::now()), command).await {
            Ok(_) => Ok(()),
            Err(ProposeError::Refused(refused)) => {
                debug!(%refused, "a report was refused");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn watch(&self) -> watch::Receiver<u64> {
        Cluster::watch(self)
    }
}

/// Why a round ended early. The next one begins from the start.
#[derive(Debug, thiserror::Error)]
pub enum RoundError {
    /// The cluster did not take a report.
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// The world could not be looked at, or did not do what it was told.
    #[error("{}: {}", .0.code, .0.cause)]
    World(Fault),
}

impl From<Fault> for RoundError {
    fn from(fault: Fault) -> Self {
        Self::World(fault)
    }
}

/// Something that makes one kind of thing true.
pub trait Reconciler: Send + Sync + 'static {
    /// For the log.
    const NAME: &'static str;

    /// Looks and acts once. Gives the time after which it wants to look again even if nothing changes.
    fn round(&self) -> impl Future<Output = Result<Duration, RoundError>> + Send;
}

/// The hands of this host.
#[derive(Debug)]
pub struct Hands<L, V, I, N> {
    /// Starts VM processes.
    pub launcher: L,
    /// Keeps volumes.
    pub volumes: V,
    /// Keeps images.
    pub images: I,
    /// Makes networks.
    pub links: N,
}

/// Runs one round of each reconciler: what [`Reconcilers`] do again and again.
///
/// # Errors
/// The first round that failed; the others are run all the same.
pub async fn once<A, L, V, I, N>(
    agreed: &A,
    host: HostId,
    hands: &Arc<Hands<L, V, I, N>>,
) -> Result<(), RoundError>
where
    A: Agreed,
    L: Launcher,
    V: Volumes,
    I: Images,
    N: Links,
{
    let rounds = [
        images::ImageReconciler {
            agreed: agreed.clone(),
            host,
            hands: Arc::clone(hands),
        }
        .round()
        .await,
        volumes::VolumeReconciler {
            agreed: agreed.clone(),
            host,
            hands: Arc::clone(hands),
        }
        .round()
        .await,
        networks::NetworkReconciler {
            agreed: agreed.clone(),
            host,
            hands: Arc::clone(hands),
        }
        .round()
        .await,
        vms::VmReconciler {
            agreed: agreed.clone(),
            host,
            hands: Arc::clone(hands),
        }
        .round()
        .await,
    ];
    rounds.into_iter().try_for_each(|round| round.map(drop))
}

/// The reconcilers of this host at work.
#[derive(Debug)]
pub struct Reconcilers {
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Reconcilers {
    /// Starts all of them.
    ///
    /// Call it after this daemon's own `HostBooted` was applied here: then the local state is at least as new as
    /// everything that was acknowledged before, and a VM it does not know was really removed.
    pub fn spawn<A, L, V, I, N>(agreed: &A, host: HostId, hands: Hands<L, V, I, N>) -> Self
    where
        A: Agreed,
        L: Launcher,
        V: Volumes,
        I: Images,
        N: Links,
    {
        let (stop, stopped) = watch::channel(false);
        let hands = Arc::new(hands);
        let agreed = || agreed.clone();
        let tasks = vec![
            tokio::spawn(drive(
                images::ImageReconciler {
                    agreed: agreed(),
                    host,
                    hands: Arc::clone(&hands),
                },
                vec![agreed().watch()],
                stopped.clone(),
            )),
            tokio::spawn(drive(
                volumes::VolumeReconciler {
                    agreed: agreed(),
                    host,
                    hands: Arc::clone(&hands),
                },
                vec![agreed().watch()],
                stopped.clone(),
            )),
            tokio::spawn(drive(
                networks::NetworkReconciler {
                    agreed: agreed(),
                    host,
                    hands: Arc::clone(&hands),
                },
                vec![agreed().watch()],
                stopped.clone(),
            )),
            tokio::spawn(drive(
                vms::VmReconciler {
                    agreed: agreed(),
                    host,
                    hands: Arc::clone(&hands),
                },
                vec![agreed().watch(), hands.launcher.changed()],
                stopped,
            )),
        ];
        Self { stop, tasks }
    }

    /// Ends them: each finishes the step it is at, or is cut off after a moment. VMs are not touched.
    pub async fn shutdown(self) {
        self.stop.send_replace(true);
        for mut task in self.tasks {
            if tokio::time::timeout(Duration::from_secs(2), &mut task)
                .await
                .is_err()
            {
                task.abort();
                let _ = task.await;
            }
        }
    }
}

async fn drive<R: Reconciler>(
    reconciler: R,
    mut wakes: Vec<watch::Receiver<u64>>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut back_off = BACK_OFF_FIRST;
    loop {
        // What changes during the round wakes the next one.
        for wake in &mut wakes {
            wake.mark_unchanged();
        }
        let pause = tokio::select! {
            biased;
            () = told(&mut stopped) => return,
            round = reconciler.round() => match round {
                Ok(again) => {
                    back_off = BACK_OFF_FIRST;
                    again.min(IDLE)
                }
                Err(error) => {
                    warn!(reconciler = R::NAME, %error, retry_ms = back_off.as_millis(), "a round failed");
                    let pause = back_off;
                    back_off = (back_off * 2).min(BACK_OFF_MAX);
                    pause
                }
            },
        };
        let failing = back_off > BACK_OFF_FIRST;
        tokio::select! {
            () = told(&mut stopped) => return,
            () = tokio::time::sleep(pause) => {}
            // A failing round is not repeated faster because something else changes.
            () = any(&mut wakes), if !failing => tokio::time::sleep(SETTLE).await,
        }
    }
}

/// Returns when it is time to stop.
async fn told(stopped: &mut watch::Receiver<bool>) {
    // Nobody left to tell is as good as being told.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// Returns when one of them has news.
async fn any(wakes: &mut [watch::Receiver<u64>]) {
    let news = wakes.iter_mut().map(|wake| {
        Box::pin(async move {
            if wake.changed().await.is_err() {
                // Nobody is left to tell.
                std::future::pending::<()>().await;
            }
        })
    });
    futures_util::future::select_all(news).await;
}
