//! What a name may look like, and references by name or id.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// Longest name, in bytes: a DNS label (RFC 1035 §2.3.4), so that a VM's name can be its host name.
pub const NAME_LEN_MAX: usize = 63;

/// A name: 1 to 63 of `a-z`, `0-9`, `-`, `_`, `.`, beginning and ending with a letter or digit.
/// Never looks like a UUID, so a reference is never ambiguous.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, pattern = "^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$")]
pub struct Name(String);

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Empty or longer than [`NAME_LEN_MAX`].
    #[error("a name has 1 to {NAME_LEN_MAX} characters, this one has {0}")]
    Length(usize),
    /// A character that is not allowed, or not allowed at the edge.
    #[error("a name has a-z, 0-9 and inner `-`, `_`, `.`; `{0}` does not fit")]
    Character(char),
    /// Looks like an id.
    #[error("a name may not look like an id")]
    LooksLikeId,
}

impl Name {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() || text.len() > NAME_LEN_MAX {
            return Err(NameError::Length(text.chars().count()));
        }
        let last = text.chars().count() - 1;
        for (at, c) in text.chars().enumerate() {
            let alnum = c.is_ascii_lowercase() || c.is_ascii_digit();
            let inner = matches!(c, '-' | '_' | '.') && at != 0 && at != last;
            if !alnum && !inner {
                return Err(NameError::Character(c));
            }
        }
        if Uuid::parse_str(text).is_ok() {
            return Err(NameError::LooksLikeId);
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A reference to an object by its id or its name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Ref {
    /// By id.
    Id(Uuid),
    /// By name.
    Name(Name),
}

impl utoipa::PartialSchema for Ref {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        String::schema()
    }
}

impl ToSchema for Ref {}

impl FromStr for Ref {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        match Uuid::parse_str(text) {
            Ok(id) => Ok(Self::Id(id)),
            Err(_) => text.parse().map(Self::Name),
        }
    }
}

impl TryFrom<String> for Ref {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<Ref> for String {
    fn from(reference: Ref) -> Self {
        reference.to_string()
    }
}

impl fmt::Display for Ref {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_dns_label_with_dots() {
        for good in ["a", "web", "web-1", "debian-12.img", "0"] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "-a",
            "a-",
            "A",
            "a b",
            "../x",
            "ä",
            "0190a0b2-0000-7000-8000-000000000000",
        ] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
        assert!("a".repeat(64).parse::<Name>().is_err());
    }
}
