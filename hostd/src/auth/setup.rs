//! The one-time token that enrols the first administrator: shown on the machine's console, read by who stands there.

use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use api::users::Secret;
use sha2::{Digest, Sha256};

use super::token::random;
use crate::http::tls::write_private;

/// Nothing that looks like something else: typed from a screen.
const ALPHABET: &[u8; 32] = b"23456789abcdefghjkmnpqrstuvwxyz0";
/// 80 bits in groups of four; attempts are throttled.
const LENGTH: usize = 16;

/// The token, until it was used.
#[derive(Debug)]
pub struct SetupToken {
    file: Option<PathBuf>,
    token: Mutex<Option<Secret>>,
}

impl SetupToken {
    /// Reads it from its file or makes it, so that it stays the same over a restart.
    pub fn open(file: Option<PathBuf>) -> io::Result<Self> {
        let kept = file
            .as_ref()
            .and_then(|file| std::fs::read_to_string(file).ok());
        let token = match kept
            .map(|text| text.trim().to_owned())
            .filter(|text| text.len() >= LENGTH)
        {
            Some(kept) => kept,
            None => {
                let fresh = fresh()?;
                if let Some(file) = &file {
                    write_private(file, fresh.as_bytes())?;
                }
                fresh
            }
        };
        Ok(Self {
            file,
            token: Mutex::new(Some(Secret(token))),
        })
    }

    /// For the console's screen. The caller knows whether setup was done.
    pub fn show(&self) -> Option<String> {
        self.lock().as_ref().map(|token| token.0.clone())
    }

    /// Whether this is it, in constant time; spaces and dashes do not matter.
    pub fn matches(&self, given: &Secret) -> bool {
        let Some(token) = self.lock().clone() else {
            return false;
        };
        let (one, two) = (digest(&token.0), digest(&given.0));
        one.iter()
            .zip(two)
            .fold(0, |differs, (a, b)| differs | (a ^ b))
            == 0
    }

    /// It was used, or an administrator exists: it is never valid again.
    pub fn spend(&self) {
        *self.lock() = None;
        if let Some(file) = &self.file
            && let Err(error) = std::fs::remove_file(file)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "the used setup token's file could not be removed");
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Secret>> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn fresh() -> io::Result<String> {
    let letters = random::<LENGTH>()?;
    let mut text = String::new();
    for (at, byte) in letters.iter().enumerate() {
        if at > 0 && at % 4 == 0 {
            text.push('-');
        }
        text.push(char::from(ALPHABET[usize::from(byte % 32)]));
    }
    Ok(text)
}

/// Both sides are hashed before they are compared, so that neither content nor length shows in the time.
fn digest(text: &str) -> [u8; 32] {
    let typed: String = text.chars().filter(|c| !matches!(c, '-' | ' ')).collect();
    Sha256::digest(typed.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_outlives_a_restart_but_not_its_use() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("setup-token");
        let first = SetupToken::open(Some(file.clone())).unwrap();
        let shown = first.show().unwrap();
        let again = SetupToken::open(Some(file.clone())).unwrap();
        assert_eq!(again.show(), Some(shown.clone()));
        assert!(again.matches(&Secret(shown.replace('-', " "))));
        assert!(!again.matches(&Secret(shown[1..].to_owned())));
        assert!(!again.matches(&Secret(String::new())));
        again.spend();
        assert!(!again.matches(&Secret(shown)) && !file.exists());
    }

    #[test]
    fn nobody_else_reads_its_file() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("setup-token");
        SetupToken::open(Some(file.clone())).unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
}
