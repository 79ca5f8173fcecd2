//! Bearer tokens: 256 random bits, of which only the SHA-256 is kept.

use std::fmt::Write;

use api::units::Millis;
use api::users::Secret;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hostd_state::State;
use sha2::{Digest, Sha256};

use super::Caller;

/// What our tokens begin with, so that scanners for leaked secrets find them.
const PREFIX: &str = "lqx_";
/// Prefix and 32 bytes in base64 without padding.
const SECRET_LEN: usize = PREFIX.len() + 43;

/// A fresh secret.
pub fn mint() -> std::io::Result<Secret> {
    let bytes = random::<32>()?;
    Ok(Secret(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))))
}

/// What the state keeps of it. A fast hash is enough: nobody guesses 256 random bits.
pub fn hash(secret: &Secret) -> Secret {
    Secret(hex(&Sha256::digest(secret.0.as_bytes())))
}

/// The caller whose token this is, if it lives. Found by its hash: comparing takes no time that tells anything.
pub fn caller(state: &State, secret: &Secret, now: Millis) -> Option<Caller> {
    if secret.0.len() != SECRET_LEN || !secret.0.starts_with(PREFIX) {
        return None;
    }
    let (token, user) = state.token_by_hash(&hash(secret).0, now)?;
    Some(Caller::User {
        id: user.id,
        name: user.name.clone(),
        role: token.role.min(user.role),
        token: token.id,
    })
}

/// From the kernel, which waits until it has gathered entropy once.
pub(crate) fn random<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        filled +=
            rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(bytes)
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_long_and_never_the_same() {
        let (one, two) = (mint().unwrap(), mint().unwrap());
        assert_eq!((one.0.len(), two.0.len()), (SECRET_LEN, SECRET_LEN));
        assert_ne!(one, two);
        assert_ne!(hash(&one), hash(&two));
        assert_eq!(hash(&one).0.len(), 64);
    }

    #[test]
    fn an_unknown_token_is_nobody() {
        let state = State::default();
        for text in ["", "lqx_", &mint().unwrap().0, &"x".repeat(SECRET_LEN)] {
            assert_eq!(caller(&state, &Secret(text.to_owned()), Millis(0)), None);
        }
    }
}
