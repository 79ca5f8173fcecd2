//! Typed identifiers: ids of different nouns do not mix.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

macro_rules! typed_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// Mints a fresh, time-ordered id (UUID version 7). Never called inside `apply`.
            pub fn mint() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map(Self)
            }
        }
    };
}

typed_id!(/// A machine of the cluster.
    HostId);
typed_id!(/// A virtual machine.
    VmId);
typed_id!(/// A volume: what a pool holds and a guest sees as a disk.
    VolumeId);
typed_id!(/// A network that NICs are attached to.
    NetworkId);
typed_id!(/// An uploaded image: kernel, initrd or raw disk.
    ImageId);
typed_id!(/// A person or program that may ask for things.
    UserId);
typed_id!(/// A bearer token (a session or an API token).
    TokenId);
typed_id!(/// An operation longer than a request.
    TaskId);
typed_id!(/// An audit record.
    AuditId);
typed_id!(/// A request; also the idempotency key's identity.
    RequestId);
