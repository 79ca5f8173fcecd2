//! Recent changes by revision: subscribe, resume where one left off, or hear "too old, list again".

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::stream::{self, Stream};
use hostd_state::Change;
use tokio::sync::watch;

/// How many changes are remembered: at a hundred per second, more than a minute of being away.
pub const CHANGES_MAX: usize = 8192;

/// The changes after that revision are forgotten: list, then watch from the list's revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("changes after revision {asked} are gone; the oldest kept are those after {oldest}")]
pub struct TooOld {
    /// What was asked for.
    pub asked: u64,
    /// The smallest revision one may resume from.
    pub oldest: u64,
}

/// The recent changes of this host's state. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Changes {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    recent: Mutex<Recent>,
    revision: watch::Sender<u64>,
}

#[derive(Debug)]
struct Recent {
    /// Oldest first.
    changes: VecDeque<Change>,
    /// Every change after this revision is in `changes`.
    floor: u64,
}

impl Changes {
    /// Nothing remembered yet, from this revision on.
    pub fn new(revision: u64) -> Self {
        Self {
            shared: Arc::new(Shared {
                recent: Mutex::new(Recent {
                    changes: VecDeque::new(),
                    floor: revision,
                }),
                revision: watch::Sender::new(revision),
            }),
        }
    }

    /// The revision this host's state has reached.
    pub fn revision(&self) -> u64 {
        *self.shared.revision.borrow()
    }

    /// Told after every applied command.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.shared.revision.subscribe()
    }

    /// All changes after `revision`, then those to come, in order and without a gap. A reader that falls too far
    /// behind gets [`TooOld`] as the last item.
    pub fn since(
        &self,
        revision: u64,
    ) -> Result<impl Stream<Item = Result<Change, TooOld>> + Send + use<>, TooOld> {
        // Check now, so that a caller can still answer with an error instead of a stream.
        self.read(revision)?;
        let reader = Reader {
            changes: self.clone(),
            told: self.watch(),
            at: revision,
            ready: VecDeque::new(),
            over: false,
        };
        Ok(stream::unfold(reader, |mut reader| async move {
            let item = reader.next().await?;
            Some((item, reader))
        }))
    }

    /// A command was applied and made these changes.
    pub(crate) fn push(&self, revision: u64, changes: Vec<Change>) {
        {
            let mut recent = lock(&self.shared.recent);
            recent.changes.extend(changes);
            while recent.changes.len() > CHANGES_MAX {
                // Whole revisions go: half of one would look like all of it.
                if let Some(gone) = recent.changes.front().map(|c| c.revision) {
                    recent.floor = gone;
                    while recent.changes.front().is_some_and(|c| c.revision == gone) {
                        recent.changes.pop_front();
                    }
                }
            }
        }
        self.shared.revision.send_replace(revision);
    }

    /// The state was replaced as a whole: nothing before is known any more.
    pub(crate) fn reset(&self, revision: u64) {
        {
            let mut recent = lock(&self.shared.recent);
            recent.changes.clear();
            recent.floor = revision;
        }
        self.shared.revision.send_replace(revision);
    }

    fn read(&self, after: u64) -> Result<VecDeque<Change>, TooOld> {
        let recent = lock(&self.shared.recent);
        if after < recent.floor {
            return Err(TooOld {
                asked: after,
                oldest: recent.floor,
            });
        }
        let first = recent.changes.partition_point(|c| c.revision <= after);
        Ok(recent.changes.range(first..).cloned().collect())
    }
}

fn lock(recent: &Mutex<Recent>) -> std::sync::MutexGuard<'_, Recent> {
    recent.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Reader {
    changes: Changes,
    told: watch::Receiver<u64>,
    at: u64,
    ready: VecDeque<Change>,
    over: bool,
}

impl Reader {
    async fn next(&mut self) -> Option<Result<Change, TooOld>> {
        if self.over {
            return None;
        }
        loop {
            if let Some(change) = self.ready.pop_front() {
                self.at = change.revision;
                return Some(Ok(change));
            }
            self.told.borrow_and_update();
            match self.changes.read(self.at) {
                Err(too_old) => {
                    self.over = true;
                    return Some(Err(too_old));
                }
                Ok(more) if !more.is_empty() => self.ready = more,
                Ok(_) => self.told.changed().await.ok()?,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use api::events::{ChangeOp, Noun};
    use futures_util::StreamExt;
    use uuid::Uuid;

    use super::*;

    fn change(revision: u64) -> Change {
        Change {
            revision,
            noun: Noun::Vm,
            id: Uuid::from_u128(u128::from(revision)),
            op: ChangeOp::Put,
        }
    }

    #[tokio::test]
    async fn a_reader_that_resumes_misses_nothing_and_hears_nothing_twice() {
        let changes = Changes::new(10);
        changes.push(11, vec![change(11)]);
        changes.push(12, vec![change(12), change(12)]);
        let mut stream = Box::pin(changes.since(11).unwrap());
        changes.push(13, vec![]);
        changes.push(14, vec![change(14)]);
        let mut seen = Vec::new();
        for _ in 0..3 {
            seen.push(stream.next().await.unwrap().unwrap().revision);
        }
        assert_eq!(seen, [12, 12, 14]);
    }

    #[tokio::test]
    async fn what_is_forgotten_is_said_to_be_forgotten() {
        let changes = Changes::new(10);
        assert_eq!(
            changes.since(9).err(),
            Some(TooOld {
                asked: 9,
                oldest: 10
            })
        );
        let mut slow = Box::pin(changes.since(10).unwrap());
        for revision in 11..=(20 + CHANGES_MAX as u64) {
            changes.push(revision, vec![change(revision)]);
        }
        assert!(slow.next().await.unwrap().is_err());
        assert!(slow.next().await.is_none());
        assert!(changes.since(20).is_ok());
        assert!(changes.since(19).is_err());
    }
}
