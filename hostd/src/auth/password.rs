//! Passwords: Argon2id on blocking threads, never many at once.

use std::sync::Arc;
use std::time::Duration;

use api::users::{PASSWORD_LEN_MAX, PASSWORD_LEN_MIN, Secret};
use api::{ApiError, ErrorCode};
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};
use tokio::sync::Semaphore;

/// Hashes at once: memory is `HASHES_MAX` × `memory_kib`.
const HASHES_MAX: usize = 2;
/// Longest wait for a turn; then the daemon is flooded and says so.
const TURN_WITHIN: Duration = Duration::from_secs(10);

/// What a hash costs. The default is OWASP's first choice for Argon2id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashCost {
    /// Memory.
    pub memory_kib: u32,
    /// Passes over it.
    pub passes: u32,
}

impl Default for HashCost {
    fn default() -> Self {
        Self {
            memory_kib: 19 * 1024,
            passes: 2,
        }
    }
}

impl HashCost {
    /// As cheap as can be. For tests only.
    pub const CHEAPEST: Self = Self {
        memory_kib: 8,
        passes: 1,
    };

    fn hasher(self) -> Result<Argon2<'static>, argon2::Error> {
        let params = Params::new(self.memory_kib, self.passes, 1, None)?;
        Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
    }
}

/// Hashes and compares passwords.
#[derive(Debug)]
pub struct Passwords {
    cost: HashCost,
    turns: Arc<Semaphore>,
}

impl Passwords {
    /// With new hashes of this cost; old ones keep theirs.
    pub fn new(cost: HashCost) -> Self {
        Self {
            cost,
            turns: Arc::new(Semaphore::new(HASHES_MAX)),
        }
    }

    /// The PHC string of a new password, if it is long enough.
    pub async fn hash(&self, password: Secret) -> Result<Secret, ApiError> {
        let length = password.0.chars().count();
        if length < PASSWORD_LEN_MIN || password.0.len() > PASSWORD_LEN_MAX {
            return Err(ApiError::new(
                ErrorCode::Invalid,
                format!(
                    "a password has {PASSWORD_LEN_MIN} characters or more, and at most {PASSWORD_LEN_MAX} bytes"
                ),
                "choose another password; a sentence is fine",
            ));
        }
        let cost = self.cost;
        self.in_turn(move || {
            let hash = cost.hasher().map_err(|e| internal(&e))?;
            let phc = hash
                .hash_password(password.0.as_bytes())
                .map_err(|e| internal(&e))?;
            Ok(Secret(phc.to_string()))
        })
        .await?
    }

    /// Whether this is the password. Without a hash (no such user) the same work is done, so that time tells nothing.
    pub async fn matches(&self, password: Secret, phc: Option<Secret>) -> Result<bool, ApiError> {
        if password.0.len() > PASSWORD_LEN_MAX {
            return Ok(false);
        }
        let cost = self.cost;
        self.in_turn(move || {
            let hasher = cost.hasher().map_err(|e| internal(&e))?;
            let Some(phc) = phc else {
                let _ = hasher.hash_password(password.0.as_bytes());
                return Ok(false);
            };
            let parsed = PasswordHash::new(&phc.0).map_err(|e| internal(&e))?;
            Ok(hasher
                .verify_password(password.0.as_bytes(), &parsed)
                .is_ok())
        })
        .await?
    }

    async fn in_turn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let turn = tokio::time::timeout(TURN_WITHIN, self.turns.clone().acquire_owned()).await;
        let Ok(Ok(turn)) = turn else {
            return Err(ApiError::new(
                ErrorCode::Unavailable,
                "too many passwords are being checked",
                "try again in a minute",
            ));
        };
        let done = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work()
        });
        done.await.map_err(|e| internal(&e))
    }
}

fn internal(error: &dyn std::fmt::Display) -> ApiError {
    tracing::error!(%error, "hashing a password failed");
    ApiError::new(
        ErrorCode::Internal,
        "the password could not be checked",
        "look at the host's log",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Secret {
        Secret(text.to_owned())
    }

    #[tokio::test]
    async fn a_password_matches_its_own_hash_only() {
        let passwords = Passwords::new(HashCost::CHEAPEST);
        let phc = passwords.hash(secret("correct horse")).await.unwrap();
        assert!(phc.0.starts_with("$argon2id$v=19$m=8,t=1,p=1$"));
        assert!(
            passwords
                .matches(secret("correct horse"), Some(phc.clone()))
                .await
                .unwrap()
        );
        assert!(
            !passwords
                .matches(secret("correct horsf"), Some(phc))
                .await
                .unwrap()
        );
        assert!(
            !passwords
                .matches(secret("correct horse"), None)
                .await
                .unwrap()
        );
    }

    #[tokio::test]
    async fn a_short_or_endless_password_is_refused() {
        let passwords = Passwords::new(HashCost::CHEAPEST);
        assert!(passwords.hash(secret("ninechars")).await.is_err());
        assert!(
            passwords
                .hash(secret(&"x".repeat(PASSWORD_LEN_MAX + 1)))
                .await
                .is_err()
        );
        assert!(passwords.hash(secret("pässwörter")).await.is_ok());
    }

    #[tokio::test]
    async fn a_hash_of_another_cost_still_matches() {
        let old = Passwords::new(HashCost::CHEAPEST)
            .hash(secret("correct horse"))
            .await
            .unwrap();
        let dearer = HashCost {
            memory_kib: 64,
            passes: 2,
        };
        assert!(
            Passwords::new(dearer)
                .matches(secret("correct horse"), Some(old))
                .await
                .unwrap()
        );
    }
}
