//! Power cuts at every write: nothing that was acknowledged is lost, nothing is half done, and after the first failed
//! write nothing is acknowledged any more.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use api::units::Millis;
use hostd_state::{Command, Meta};
use openraft::{CommittedLeaderId, EntryPayload};
use redb::StorageBackend;

use crate::cluster::log::Log;
use crate::cluster::types::{Batch, Entry, LogId, Member, Proposal, Vote};
use crate::cluster::writer::WriteError;

/// A disk with a volatile cache: what was written since the last sync may be there after a cut, or not, in any mixture.
#[derive(Debug, Default, Clone)]
struct Disk {
    durable: Vec<u8>,
    volatile: Vec<Change>,
}

#[derive(Debug, Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Len(usize),
}

const SECTOR: usize = 512;

impl Disk {
    fn now(&self) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        for change in &self.volatile {
            change.apply(&mut bytes);
        }
        bytes
    }

    /// After a power cut. Each sector that was not synced made it or did not.
    fn after_cut(&self, dice: &mut Dice) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        for change in &self.volatile {
            match change {
                Change::Len(_) if dice.roll(2) == 0 => {}
                Change::Len(_) => change.apply(&mut bytes),
                Change::Write(at, data) => {
                    let mut from = 0;
                    while from < data.len() {
                        let to = data.len().min((from + at) / SECTOR * SECTOR + SECTOR - at);
                        if dice.roll(2) == 1 {
                            Change::Write(at + from, data[from..to].to_vec()).apply(&mut bytes);
                        }
                        from = to;
                    }
                }
            }
        }
        bytes
    }
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Len(len) => bytes.resize(*len, 0),
            Self::Write(at, data) => {
                if bytes.len() < at + data.len() {
                    bytes.resize(at + data.len(), 0);
                }
                bytes[*at..at + data.len()].copy_from_slice(data);
            }
        }
    }
}

/// xorshift64*: repeatable, and no dependency.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % sides
    }
}

/// The disk, and after how many changes the power fails.
#[derive(Clone)]
pub(super) struct Backend {
    disk: Arc<Mutex<Disk>>,
    pub(super) left: Arc<AtomicUsize>,
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Backend")
    }
}

impl Backend {
    pub(super) fn new(bytes: Vec<u8>, left: usize) -> Self {
        let disk = Disk {
            durable: bytes,
            volatile: Vec::new(),
        };
        Self {
            disk: Arc::new(Mutex::new(disk)),
            left: Arc::new(AtomicUsize::new(left)),
        }
    }

    fn spend(&self) -> io::Result<()> {
        let spent = self
            .left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        spent.map(|_| ()).map_err(|_| io::Error::other("power cut"))
    }
}

type BackendResult<T> = io::Result<T>;

impl StorageBackend for Backend {
    fn len(&self) -> BackendResult<u64> {
        Ok(self.disk.lock().unwrap().now().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> BackendResult<()> {
        let disk = self.disk.lock().unwrap();
        let bytes = disk.now();
        let at = offset as usize;
        match bytes.get(at..at + out.len()) {
            Some(part) => {
                out.copy_from_slice(part);
                Ok(())
            }
            None => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
        }
    }

    fn set_len(&self, len: u64) -> BackendResult<()> {
        self.spend()?;
        self.disk
            .lock()
            .unwrap()
            .volatile
            .push(Change::Len(len as usize));
        Ok(())
    }

    fn sync_data(&self) -> BackendResult<()> {
        self.spend()?;
        let mut disk = self.disk.lock().unwrap();
        disk.durable = disk.now();
        disk.volatile.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> BackendResult<()> {
        self.spend()?;
        let change = Change::Write(offset as usize, data.to_vec());
        self.disk.lock().unwrap().volatile.push(change);
        Ok(())
    }
}

pub(super) fn open(backend: Backend) -> Option<Log> {
    // Small regions: the simulated disk is copied often.
    let db = redb::Builder::new()
        .set_cache_size(1 << 20)
        .create_with_backend(backend)
        .ok()?;
    Log::with_database(db).ok()
}

fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term, Member::from(1)), index)
}

fn entry(term: u64, index: u64) -> Entry {
    Entry {
        log_id: log_id(term, index),
        payload: EntryPayload::Normal(Batch(vec![Proposal {
            meta: Meta::host(Millis(index)),
            command: Command::AuditNote,
        }])),
    }
}

/// What a log holds: vote, the last entry purged, entries.
#[derive(Debug, Clone, Default, PartialEq)]
struct Model {
    vote: Option<Vote>,
    purged: Option<u64>,
    entries: BTreeMap<u64, u64>,
}

impl Model {
    fn of(log: &Log) -> Self {
        let entries = log.entries_read(0, u64::MAX).unwrap();
        let entries: BTreeMap<u64, u64> = entries
            .iter()
            .map(|e| (e.log_id.index, e.log_id.leader_id.term))
            .collect();
        Self {
            vote: log.vote(),
            purged: log.purged().map(|id| id.index),
            entries,
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Vote(term) => self.vote = Some(Vote::new(*term, Member::from(1))),
            Step::Append(term, from, count) => {
                self.entries
                    .extend((*from..from + count).map(|index| (index, *term)));
            }
            Step::Truncate(from) => {
                self.entries.split_off(from);
            }
            Step::Purge(upto) => {
                self.entries = self.entries.split_off(&(upto + 1));
                self.purged = Some(*upto);
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Vote(u64),
    Append(u64, u64, u64),
    Truncate(u64),
    Purge(u64),
}

/// A life with everything in it: elections, appends, a conflict that truncates, purges.
const LIFE: &[Step] = &[
    Step::Vote(1),
    Step::Append(1, 0, 1),
    Step::Append(1, 1, 3),
    Step::Append(1, 4, 4),
    Step::Vote(2),
    Step::Truncate(6),
    Step::Append(2, 6, 2),
    Step::Purge(3),
    Step::Append(2, 8, 3),
    Step::Vote(3),
    Step::Truncate(9),
    Step::Append(3, 9, 1),
    Step::Purge(8),
    Step::Append(3, 10, 2),
];

/// Lives that life until the power fails. Gives how many steps were acknowledged: all up to the last acknowledgement,
/// for the log has one order.
async fn live(log: &Log) -> usize {
    let mut acknowledged = 0;
    for (at, step) in LIFE.iter().enumerate() {
        // As openraft: after the first error there is no next step.
        let done = match step {
            Step::Vote(term) => log
                .vote_save(&Vote::new(*term, Member::from(1)))
                .await
                .is_ok(),
            Step::Append(term, from, count) => {
                let entries = (*from..from + count)
                    .map(|index| entry(*term, index))
                    .collect();
                append(log, entries).await.is_ok()
            }
            Step::Truncate(from) => {
                log.entries_truncate(*from).unwrap();
                continue;
            }
            Step::Purge(upto) => {
                let term = Model::of(log).entries.get(upto).copied().unwrap();
                log.entries_purge(log_id(term, *upto)).unwrap();
                continue;
            }
        };
        if !done {
            break;
        }
        acknowledged = at + 1;
    }
    acknowledged
}

async fn append(log: &Log, entries: Vec<Entry>) -> Result<(), WriteError> {
    let (tell, told) = tokio::sync::oneshot::channel();
    log.entries_append(entries, move |result| drop(tell.send(result)))?;
    told.await.unwrap()
}

#[tokio::test]
async fn a_power_cut_at_any_write_loses_nothing_acknowledged() {
    // The states the log goes through, one after each step.
    let mut states = vec![Model::default()];
    for step in LIFE {
        let mut next = states.last().unwrap().clone();
        next.step(step);
        states.push(next);
    }
    // `Log::open` makes the file under another name: what has its name is whole.
    let fresh = {
        let backend = Backend::new(Vec::new(), usize::MAX);
        drop(open(backend.clone()).unwrap());
        let disk = backend.disk.lock().unwrap();
        disk.now()
    };
    let mut cut_lives = 0;
    for left in 0.. {
        let backend = Backend::new(fresh.clone(), left);
        let acknowledged = match open(backend.clone()) {
            Some(log) => {
                let acknowledged = live(&log).await;
                drop(log);
                acknowledged
            }
            None => 0,
        };
        let whole = backend.left.load(Ordering::SeqCst) > 0;
        // Several fates of the same cut: what the disk still had in its cache.
        for fate in 1..=4 {
            let mut dice = Dice(left as u64 * 7 + fate);
            let disk = backend.disk.lock().unwrap().after_cut(&mut dice);
            let reopened = Backend::new(disk, usize::MAX);
            let log = open(reopened).unwrap_or_else(|| panic!("cut {left}.{fate}: does not open"));
            let found = Model::of(&log);
            let possible = states.get(acknowledged..).unwrap();
            assert!(
                possible.contains(&found),
                "cut {left}.{fate}: {acknowledged} steps were acknowledged, but found {found:?}"
            );
            // And life goes on.
            assert!(log.vote_save(&Vote::new(9, Member::from(1))).await.is_ok());
        }
        if whole {
            assert_eq!(acknowledged, LIFE.len());
            break;
        }
        cut_lives += 1;
    }
    assert!(cut_lives > 50, "only {cut_lives} writes were cut");
}

#[tokio::test]
async fn after_the_first_failed_write_nothing_is_acknowledged() {
    let backend = Backend::new(Vec::new(), usize::MAX);
    let log = open(backend.clone()).unwrap();
    append(&log, vec![entry(1, 0)]).await.unwrap();
    backend.left.store(0, Ordering::SeqCst);
    append(&log, vec![entry(1, 1)]).await.unwrap_err();
    // The disk is well again, but who knows what it has dropped.
    backend.left.store(usize::MAX, Ordering::SeqCst);
    append(&log, vec![entry(1, 2)]).await.unwrap_err();
    log.vote_save(&Vote::new(2, Member::from(1)))
        .await
        .unwrap_err();
    drop(log);
    let disk = backend.disk.lock().unwrap().now();
    let found = Model::of(&open(Backend::new(disk, usize::MAX)).unwrap());
    assert_eq!(found.entries, BTreeMap::from([(0, 1)]));
    assert_eq!(found.vote, None);
}

#[tokio::test]
async fn what_is_appended_can_be_read_before_it_is_durable_and_acknowledgements_come_in_order() {
    let log = open(Backend::new(Vec::new(), usize::MAX)).unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut told = Vec::new();
    for index in 0..2000 {
        let (tell, telling) = tokio::sync::oneshot::channel();
        told.push(telling);
        let order = order.clone();
        let done = move |result: Result<(), WriteError>| {
            order.lock().unwrap().push(index);
            drop(tell.send(result));
        };
        log.entries_append(vec![entry(1, index)], done).unwrap();
        let read = log
            .entries_read(index.saturating_sub(1), index + 1)
            .unwrap();
        assert_eq!(read.last(), Some(&entry(1, index)));
    }
    for told in told {
        told.await.unwrap().unwrap();
    }
    assert_eq!(*order.lock().unwrap(), (0..2000).collect::<Vec<u64>>());
    // The older ones left the cache and come from the disk, without a seam.
    let all = log.entries_read(0, u64::MAX).unwrap();
    assert_eq!(
        all,
        (0..2000).map(|index| entry(1, index)).collect::<Vec<_>>()
    );
}
