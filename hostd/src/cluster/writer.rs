//! The one thread that writes the log: everything in one order, as much as has gathered in one transaction, and nobody
//! told before the disk has it.
//!
//! After the first failed write nothing is acknowledged any more: a retried fsync may report success for pages that
//! the kernel has dropped. The daemon ends, and finds at its next start what the disk really has.

use std::fmt;
use std::io;
use std::sync::mpsc;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};

/// Entries by index.
pub(super) const LOG: TableDefinition<'static, u64, &'static [u8]> = TableDefinition::new("log");
/// Vote, purged and committed log id.
pub(super) const META: TableDefinition<'static, &'static str, &'static [u8]> =
    TableDefinition::new("meta");
/// In [`META`].
pub(super) const VOTE: &str = "vote";
/// In [`META`]: the last entry that was purged.
pub(super) const PURGED: &str = "purged";
/// In [`META`]: the last entry known to be committed.
pub(super) const COMMITTED: &str = "committed";

/// Most requests in one transaction: a bound on how long the first of them waits.
const GROUP_MAX: usize = 512;

/// Told once the disk has it, or will not.
pub(super) type Done = Box<dyn FnOnce(Result<(), WriteError>) + Send>;

/// The log could not be written, now or earlier.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the log could not be written: {0}")]
pub(super) struct WriteError(pub(super) String);

impl From<WriteError> for io::Error {
    fn from(error: WriteError) -> Self {
        io::Error::other(error)
    }
}

/// One thing to write.
pub(super) enum Write {
    /// The vote.
    Vote(Vec<u8>),
    /// Entries, consecutive.
    Append(Vec<(u64, Vec<u8>)>),
    /// All entries from this index on go.
    Truncate(u64),
    /// All entries up to this index go; the log id of the last of them.
    Purge(u64, Vec<u8>),
    /// Kept until something else is written: it needs no fsync of its own.
    Committed(Vec<u8>),
}

struct Request {
    write: Write,
    done: Option<Done>,
}

/// The handle on the thread.
pub(super) struct Writer {
    requests: mpsc::Sender<Request>,
    failed: Arc<OnceLock<WriteError>>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer")
            .field("failed", &self.failed.get())
            .finish()
    }
}

impl Writer {
    /// Starts the thread.
    pub(super) fn spawn(db: Arc<Database>) -> io::Result<Self> {
        let (requests, gathered) = mpsc::channel();
        let failed = Arc::new(OnceLock::new());
        let its_failed = failed.clone();
        let thread = std::thread::Builder::new()
            .name("raft-log".to_owned())
            .spawn(move || run(&db, &gathered, &its_failed))?;
        Ok(Self {
            requests,
            failed,
            thread: Some(thread),
        })
    }

    /// Hands something over; `done` is told in the order of these calls.
    pub(super) fn write(&self, write: Write, done: Option<Done>) {
        if let Err(mpsc::SendError(request)) = self.requests.send(Request { write, done })
            && let Some(done) = request.done
        {
            done(Err(self.reason()));
        }
    }

    /// Whether a write has failed.
    pub(super) fn check(&self) -> Result<(), WriteError> {
        self.failed.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    fn reason(&self) -> WriteError {
        let stopped = || WriteError("the log is closed".to_owned());
        self.failed.get().cloned().unwrap_or_else(stopped)
    }
}

impl Drop for Writer {
    /// Waits until everything handed over is on the disk.
    fn drop(&mut self) {
        let (nobody, _) = mpsc::channel();
        drop(std::mem::replace(&mut self.requests, nobody));
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the log's thread panicked");
        }
    }
}

fn run(db: &Database, requests: &mpsc::Receiver<Request>, failed: &OnceLock<WriteError>) {
    let mut committed: Option<Vec<u8>> = None;
    loop {
        let Ok(first) = requests.recv() else { break };
        let mut group = vec![first];
        while group.len() < GROUP_MAX
            && let Ok(next) = requests.try_recv()
        {
            group.push(next);
        }
        let mut writes = Vec::with_capacity(group.len());
        let mut waiting = Vec::with_capacity(group.len());
        for Request { write, done } in group {
            match write {
                Write::Committed(id) => committed = Some(id),
                write => writes.push(write),
            }
            waiting.extend(done);
        }
        let result = match failed.get() {
            Some(error) => Err(error.clone()),
            None if writes.is_empty() => Ok(()),
            None => commit(db, &writes, committed.as_deref()).map_err(|error| {
                let error = WriteError(error.to_string());
                tracing::error!(%error, "this host can decide nothing any more");
                failed.get_or_init(|| error.clone());
                error
            }),
        };
        if !writes.is_empty() {
            committed = None;
        }
        for done in waiting {
            done(result.clone());
        }
    }
    if let Some(id) = committed
        && failed.get().is_none()
        && let Err(error) = commit(db, &[], Some(&id))
    {
        tracing::warn!(%error, "the last committed index was not saved; it will be found again");
    }
}

/// One transaction, durable when it returns.
fn commit(db: &Database, writes: &[Write], committed: Option<&[u8]>) -> Result<(), redb::Error> {
    let mut transaction = db.begin_write()?;
    // One fsync: redb finds a commit that a power cut left half done by its checksums, and goes back to the one before. The
    // price is that after a cut the whole file is read once at the next start; it holds some thousand entries. Quick repair
    // would save that, and cost a second fsync and a copy of the allocator's state in each commit.
    transaction.set_durability(Durability::Immediate)?;
    {
        let mut log = transaction.open_table(LOG)?;
        let mut meta = transaction.open_table(META)?;
        for write in writes {
            match write {
                Write::Vote(vote) => {
                    meta.insert(VOTE, vote.as_slice())?;
                }
                Write::Append(entries) => {
                    for (index, entry) in entries {
                        log.insert(index, entry.as_slice())?;
                    }
                }
                Write::Truncate(from) => log.retain_in(*from.., |_, _| false)?,
                Write::Purge(upto, id) => {
                    meta.insert(PURGED, id.as_slice())?;
                    log.retain_in(..=*upto, |_, _| false)?;
                }
                Write::Committed(id) => {
                    meta.insert(COMMITTED, id.as_slice())?;
                }
            }
        }
        if let Some(id) = committed {
            meta.insert(COMMITTED, id)?;
        }
    }
    transaction.commit()?;
    Ok(())
}

/// What is in the database.
pub(super) struct Found {
    pub(super) vote: Option<Vec<u8>>,
    pub(super) purged: Option<Vec<u8>>,
    pub(super) committed: Option<Vec<u8>>,
    pub(super) last: Option<Vec<u8>>,
}

/// Makes the tables if need be, and reads what there is beside the entries.
pub(super) fn prepare(db: &Database) -> Result<Found, redb::Error> {
    commit(db, &[], None)?;
    let transaction = db.begin_read()?;
    let meta = transaction.open_table(META)?;
    let log = transaction.open_table(LOG)?;
    let get = |key| {
        meta.get(key)
            .map(|value| value.map(|value| value.value().to_vec()))
    };
    Ok(Found {
        vote: get(VOTE)?,
        purged: get(PURGED)?,
        committed: get(COMMITTED)?,
        last: log.last()?.map(|(_, entry)| entry.value().to_vec()),
    })
}

/// The entries of a range, in order.
pub(super) fn read(db: &Database, from: u64, until: u64) -> Result<Vec<Vec<u8>>, redb::Error> {
    let transaction = db.begin_read()?;
    let log = transaction.open_table(LOG)?;
    let mut entries = Vec::new();
    for entry in log.range(from..until)? {
        entries.push(entry?.1.value().to_vec());
    }
    Ok(entries)
}
