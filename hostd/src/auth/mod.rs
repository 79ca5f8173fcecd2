//! Who asks, however it was proved, and whether they may.
//!
//! A caller is proved by a bearer token (`token`), which signing in (`password`, `throttle`) or an administrator made,
//! or by the credentials of the local console's socket (`peer`). The first administrator is proved by the setup token
//! (`setup`). What a caller may do is decided in one place: `policy`. What they did is kept: `audit`.

pub mod audit;
pub mod password;
pub mod peer;
pub mod policy;
pub mod setup;
pub mod throttle;
pub mod token;

use std::path::PathBuf;
use std::time::Duration;

use api::ids::{TokenId, UserId};
use api::names::Name;
use api::users::Role;

pub use password::{HashCost, Passwords};
pub use peer::From;
pub use setup::SetupToken;
pub use throttle::Throttle;

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Nothing was proved.
    Nobody,
    /// Somebody at the machine's own console: administrator.
    Console,
    /// A user, by a token.
    User {
        /// The user.
        id: UserId,
        /// Their name.
        name: Name,
        /// What they may do: the lower one of user's and token's.
        role: Role,
        /// The token they came with.
        token: TokenId,
    },
}

impl Caller {
    /// What they may do.
    pub fn role(&self) -> Option<Role> {
        match self {
            Self::Nobody => None,
            Self::Console => Some(Role::Admin),
            Self::User { role, .. } => Some(*role),
        }
    }

    /// The user, if it is one.
    pub fn user(&self) -> Option<UserId> {
        match self {
            Self::Nobody | Self::Console => None,
            Self::User { id, .. } => Some(*id),
        }
    }

    /// For records and logs.
    pub fn who(&self) -> &str {
        match self {
            Self::Nobody => "nobody",
            Self::Console => "console",
            Self::User { name, .. } => name.as_str(),
        }
    }
}

/// The settings of this folder.
#[derive(Debug, Clone)]
pub struct AuthConfig {
    /// What a password hash costs.
    pub hash_cost: HashCost,
    /// Where the one-time setup token lies; in memory only when `None`.
    pub setup_token: Option<PathBuf>,
    /// Failed attempts until an address and name must wait.
    pub attempts_max: u32,
    /// How long they wait, and how long a failure is remembered.
    pub attempts_window: Duration,
    /// How long a session lasts.
    pub session_lasts: Duration,
}

impl Default for AuthConfig {
    fn default() -> Self {
        Self {
            hash_cost: HashCost::default(),
            setup_token: None,
            attempts_max: 5,
            attempts_window: Duration::from_secs(300),
            session_lasts: Duration::from_secs(12 * 3600),
        }
    }
}

/// Everything that proves callers.
#[derive(Debug)]
pub struct Auth {
    /// Hashing.
    pub passwords: Passwords,
    /// Failed attempts.
    pub throttle: Throttle,
    /// The first administrator's proof.
    pub setup_token: SetupToken,
    /// How long a session lasts.
    pub session_lasts: Duration,
}

impl Auth {
    /// Reads or makes the setup token.
    pub fn open(config: AuthConfig) -> std::io::Result<Self> {
        Ok(Self {
            passwords: Passwords::new(config.hash_cost),
            throttle: Throttle::new(config.attempts_max, config.attempts_window),
            setup_token: SetupToken::open(config.setup_token)?,
            session_lasts: config.session_lasts,
        })
    }
}
