//! The state as bytes: what a host writes to its disk and sends to one that is far behind.
//!
//! One line of header, then JSON:
//!
//! ```text
//! limiquantix-state 1 <SHA-256 of the JSON, hexadecimal>\n{"revision":4711,"hosts":[…],…}
//! ```
//!
//! The same state gives the same bytes. A record may gain fields with `#[serde(default)]` within a format; anything
//! else is a new format, with a reader for each one before it and a file of it in `tests/snapshots/`.

use sha2::{Digest, Sha256};

use crate::state::State;
use crate::usage::Usage;

/// The format that is written.
pub const FORMAT: u32 = 1;
const MAGIC: &str = "limiquantix-state";
/// Longest header that is looked for.
const HEADER_LEN_MAX: usize = 128;

/// Why bytes are not a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Something else.
    #[error("these bytes are not a snapshot")]
    NotASnapshot,
    /// Written by a later version.
    #[error("snapshot format {0} is newer than this version understands ({FORMAT})")]
    TooNew(u32),
    /// Not what was written.
    #[error("the snapshot is damaged: its checksum does not fit")]
    Damaged,
    /// The checksum fits and yet it does not parse.
    #[error("the snapshot's content does not parse")]
    Content(#[source] serde_json::Error),
}

/// The state as bytes.
pub fn encode(state: &State) -> Result<Vec<u8>, SnapshotError> {
    let json = serde_json::to_vec(state).map_err(SnapshotError::Content)?;
    let mut bytes = format!("{MAGIC} {FORMAT} {}\n", checksum(&json)).into_bytes();
    bytes.extend_from_slice(&json);
    Ok(bytes)
}

/// The state those bytes are.
pub fn decode(bytes: &[u8]) -> Result<State, SnapshotError> {
    let head = bytes
        .get(..bytes.len().min(HEADER_LEN_MAX))
        .unwrap_or_default();
    let end = head
        .iter()
        .position(|b| *b == b'\n')
        .ok_or(SnapshotError::NotASnapshot)?;
    let (head, json) = bytes.split_at(end);
    let json = json.get(1..).unwrap_or_default();
    let head = std::str::from_utf8(head).map_err(|_| SnapshotError::NotASnapshot)?;
    let mut words = head.split(' ');
    if words.next() != Some(MAGIC) {
        return Err(SnapshotError::NotASnapshot);
    }
    let format: u32 = words
        .next()
        .and_then(|word| word.parse().ok())
        .ok_or(SnapshotError::NotASnapshot)?;
    if format > FORMAT {
        return Err(SnapshotError::TooNew(format));
    }
    if words.next() != Some(checksum(json).as_str()) {
        return Err(SnapshotError::Damaged);
    }
    match format {
        1 => {
            let mut state: State = serde_json::from_slice(json).map_err(SnapshotError::Content)?;
            state.derive();
            Ok(state)
        }
        _ => Err(SnapshotError::NotASnapshot),
    }
}

fn checksum(json: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(64);
    for byte in Sha256::digest(json) {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

impl State {
    /// Makes the indexes that are not saved.
    pub(crate) fn derive(&mut self) {
        self.usage = Usage::of(self);
        let hashes = self.tokens.values();
        self.token_hashes = hashes.map(|t| (t.hash.0.clone(), t.id)).collect();
        let requests = self.requests.iter();
        self.request_keys = requests
            .map(|(revision, r)| ((r.by, r.key.clone()), *revision))
            .collect();
    }
}
