//! Entries and vote on disk, as openraft wants them.
//!
//! What was appended can be read at once, from a cache of the newest entries; `LogFlushed` is told by the writer's
//! thread once the disk has it. The cache is always a suffix of the log, and an entry that is not on the disk yet never
//! leaves it.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::storage::{LogFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use redb::Database;
use tokio::sync::{oneshot, watch};

use super::encoding::{self, DecodeError};
use super::types::{Entry, LogId, StorageError, StorageIoError, TypeConfig, Vote};
use super::writer::{self, Write, WriteError, Writer};

/// Newest entries kept in memory, for applying and replicating them without reading.
const CACHE_MAX: usize = 512;
/// redb's cache: the log is written once and hardly read.
const CACHE_BYTES: usize = 4 << 20;
/// Most entries read for a follower at once.
const READ_MAX: u64 = 256;

/// Why the log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenLogError {
    /// Its directory.
    #[error("could not prepare the directory of the log")]
    Directory(#[source] io::Error),
    /// Its database.
    #[error("could not open the log")]
    Database(#[from] redb::Error),
    /// Its content.
    #[error("the log's {what} cannot be read: {why}")]
    Content {
        /// Which part.
        what: &'static str,
        /// Why.
        why: String,
    },
    /// Its thread.
    #[error("could not start the log's thread")]
    Thread(#[source] io::Error),
}

/// The log. Clones are readers and share it.
#[derive(Debug, Clone)]
pub(super) struct Log {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    // Before `db`: its thread ends first.
    writer: Writer,
    db: Arc<Database>,
    view: Arc<Mutex<View>>,
    // Last: who waits for its end finds everything before it gone.
    open: watch::Sender<()>,
}

/// What the log is, with all that was handed to the writer.
#[derive(Debug, Default)]
struct View {
    cache: BTreeMap<u64, Cached>,
    /// Numbers appends in order.
    appends: u64,
    /// All appends up to this number are on the disk.
    flushed: u64,
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    /// The last entry that is there, or else the last one purged.
    last: Option<LogId>,
}

#[derive(Debug)]
struct Cached {
    entry: Entry,
    append: u64,
}

impl View {
    fn first_index(&self) -> u64 {
        self.purged.map_or(0, |id| id.index + 1)
    }

    fn end_index(&self) -> u64 {
        self.last.map_or(0, |id| id.index + 1)
    }

    fn evict(&mut self) {
        while self.cache.len() > CACHE_MAX
            && let Some(first) = self.cache.first_entry()
            && first.get().append <= self.flushed
        {
            first.remove();
        }
    }
}

impl Log {
    /// Opens the log in this directory, or makes it.
    pub(super) fn open(dir: &Path) -> Result<Self, OpenLogError> {
        let path = dir.join("log.redb");
        if !path.exists() {
            make(dir, &path)?;
        }
        Self::with_database(database(&path)?)
    }

    /// Opens the log in this database, or makes it there.
    pub(super) fn with_database(db: Database) -> Result<Self, OpenLogError> {
        let found = writer::prepare(&db)?;
        let content = |what| {
            move |error: DecodeError| OpenLogError::Content {
                what,
                why: error.to_string(),
            }
        };
        let log_id = |bytes: Option<Vec<u8>>, what| {
            let id = bytes.map(|bytes| encoding::log_id_decode(&bytes));
            id.transpose().map_err(content(what))
        };
        let vote = found.vote.map(|bytes| encoding::vote_decode(&bytes));
        let last = found.last.map(|bytes| encoding::entry_decode(&bytes));
        let purged = log_id(found.purged, "purged index")?;
        let last = last.transpose().map_err(content("last entry"))?;
        let view = View {
            vote: vote.transpose().map_err(content("vote"))?,
            committed: log_id(found.committed, "committed index")?,
            last: last.map(|entry| entry.log_id).or(purged),
            purged,
            ..View::default()
        };
        let db = Arc::new(db);
        Ok(Self {
            shared: Arc::new(Shared {
                writer: Writer::spawn(db.clone()).map_err(OpenLogError::Thread)?,
                db,
                view: Arc::new(Mutex::new(view)),
                open: watch::Sender::new(()),
            }),
        })
    }

    /// Its sender is gone once the last reader has let go of the log and all that was handed to it is on the disk.
    pub(super) fn closed(&self) -> watch::Receiver<()> {
        self.shared.open.subscribe()
    }

    fn view(&self) -> MutexGuard<'_, View> {
        lock(&self.shared.view)
    }

    /// Saves the vote; returns when the disk has it.
    pub(super) async fn vote_save(&self, vote: &Vote) -> Result<(), WriteError> {
        let bytes = encoding::vote_encode(vote).map_err(|e| WriteError(e.to_string()))?;
        let (done, told) = oneshot::channel();
        self.view().vote = Some(*vote);
        let done = move |result| drop(done.send(result));
        let writer = &self.shared.writer;
        writer.write(Write::Vote(bytes), Some(Box::new(done)));
        told.await
            .unwrap_or_else(|_| Err(WriteError("the log is closed".into())))
    }

    /// Appends entries. They can be read when this returns; `done` is told when the disk has them.
    pub(super) fn entries_append(
        &self,
        entries: Vec<Entry>,
        done: impl FnOnce(Result<(), WriteError>) + Send + 'static,
    ) -> Result<(), WriteError> {
        self.shared.writer.check()?;
        let mut encoded = Vec::with_capacity(entries.len());
        for entry in &entries {
            let bytes = encoding::entry_encode(entry).map_err(|e| WriteError(e.to_string()))?;
            encoded.push((entry.log_id.index, bytes));
        }
        // Held until the request is in the queue: appends are numbered in the order they are written.
        let mut view = self.view();
        view.appends += 1;
        let append = view.appends;
        for entry in entries {
            view.last = Some(entry.log_id);
            view.cache
                .insert(entry.log_id.index, Cached { entry, append });
        }
        let its_view = Arc::clone(&self.shared.view);
        let done = move |result: Result<(), WriteError>| {
            if result.is_ok() {
                let mut view = lock(&its_view);
                view.flushed = append;
                view.evict();
            }
            done(result);
        };
        let writer = &self.shared.writer;
        writer.write(Write::Append(encoded), Some(Box::new(done)));
        Ok(())
    }

    /// Entries from this index on are gone.
    pub(super) fn entries_truncate(&self, from: u64) -> Result<(), OpenLogError> {
        let before = match from.checked_sub(1) {
            Some(index) => self.entries_read(index, from)?.pop().map(|e| e.log_id),
            None => None,
        };
        let mut view = self.view();
        view.cache.split_off(&from);
        view.last = before.or(view.purged);
        self.shared.writer.write(Write::Truncate(from), None);
        Ok(())
    }

    /// Entries up to this one are gone.
    pub(super) fn entries_purge(&self, upto: LogId) -> Result<(), WriteError> {
        let bytes = encoding::log_id_encode(&upto).map_err(|e| WriteError(e.to_string()))?;
        let mut view = self.view();
        view.cache = view.cache.split_off(&(upto.index + 1));
        view.purged = Some(upto);
        if view.last.is_none_or(|last| last.index < upto.index) {
            view.last = Some(upto);
        }
        self.shared
            .writer
            .write(Write::Purge(upto.index, bytes), None);
        Ok(())
    }

    /// The entries of a range that are there: the newest from the cache, older ones from the disk.
    pub(super) fn entries_read(&self, from: u64, until: u64) -> Result<Vec<Entry>, OpenLogError> {
        let (from, split, newer) = {
            let view = self.view();
            let from = from.max(view.first_index());
            let until = until.min(view.end_index());
            if from >= until {
                return Ok(Vec::new());
            }
            let newer: Vec<Entry> = view
                .cache
                .range(from..until)
                .map(|(_, cached)| cached.entry.clone())
                .collect();
            let split = newer.first().map_or(until, |entry| entry.log_id.index);
            (from, split, newer)
        };
        let mut entries = Vec::new();
        if from < split {
            for bytes in writer::read(&self.shared.db, from, split)? {
                let entry = encoding::entry_decode(&bytes);
                entries.push(entry.map_err(|error| OpenLogError::Content {
                    what: "entry",
                    why: error.to_string(),
                })?);
            }
        }
        entries.extend(newer);
        Ok(entries)
    }

    /// The vote, as it was saved last.
    pub(super) fn vote(&self) -> Option<Vote> {
        self.view().vote
    }

    /// The last entry that was purged.
    #[cfg(test)]
    pub(super) fn purged(&self) -> Option<LogId> {
        self.view().purged
    }

    /// The last entry.
    pub(super) fn last(&self) -> Option<LogId> {
        self.view().last
    }
}

fn database(path: &Path) -> Result<Database, redb::Error> {
    let database = redb::Builder::new()
        .set_cache_size(CACHE_BYTES)
        .create(path);
    database.map_err(redb::Error::from)
}

/// A database whose making was cut short does not open: it gets its name only once it is whole.
fn make(dir: &Path, path: &Path) -> Result<(), OpenLogError> {
    let half = dir.join("log.redb.new");
    match std::fs::remove_file(&half) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(OpenLogError::Directory(error));
        }
        _ => {}
    }
    let fresh = database(&half)?;
    writer::prepare(&fresh)?;
    drop(fresh);
    let name = || -> io::Result<()> {
        std::fs::File::open(&half)?.sync_all()?;
        std::fs::rename(&half, path)?;
        std::fs::File::open(dir)?.sync_all()
    };
    name().map_err(OpenLogError::Directory)
}

fn lock(view: &Mutex<View>) -> MutexGuard<'_, View> {
    view.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RaftLogReader<TypeConfig> for Log {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry>, StorageError> {
        let from = match range.start_bound() {
            Bound::Included(from) => *from,
            Bound::Excluded(before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let until = match range.end_bound() {
            Bound::Included(last) => last.saturating_add(1),
            Bound::Excluded(until) => *until,
            Bound::Unbounded => u64::MAX,
        };
        let read = self.entries_read(from, until);
        read.map_err(|error| StorageIoError::read_logs(&error).into())
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, StorageError> {
        let end = end.min(start.saturating_add(READ_MAX));
        self.try_get_log_entries(start..end).await
    }
}

impl RaftLogStorage<TypeConfig> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let view = self.view();
        Ok(LogState {
            last_purged_log_id: view.purged,
            last_log_id: view.last,
        })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let saved = self.vote_save(vote).await;
        saved.map_err(|error| StorageIoError::write_vote(&error).into())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        Ok(self.vote())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        self.view().committed = committed;
        if let Some(id) = committed {
            let bytes = encoding::log_id_encode(&id);
            let bytes = bytes.map_err(|error| StorageIoError::write_logs(&error))?;
            self.shared.writer.write(Write::Committed(bytes), None);
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(self.view().committed)
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<TypeConfig>,
    ) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let flushed =
            |result: Result<(), WriteError>| callback.log_io_completed(result.map_err(Into::into));
        let appended = self.entries_append(entries, flushed);
        appended.map_err(|error| StorageIoError::write_logs(&error).into())
    }

    async fn truncate(&mut self, id: LogId) -> Result<(), StorageError> {
        let truncated = self.entries_truncate(id.index);
        truncated.map_err(|error| StorageIoError::write_logs(&error).into())
    }

    async fn purge(&mut self, id: LogId) -> Result<(), StorageError> {
        let purged = self.entries_purge(id);
        purged.map_err(|error| StorageIoError::write_logs(&error).into())
    }
}
