//! Where a connection comes from: an address, or the local console's socket with the kernel's word for who it is.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

/// The other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// Over TLS.
    Address(IpAddr),
    /// Over the unix socket, by SO_PEERCRED.
    Local {
        /// Its user id.
        uid: u32,
    },
}

impl From {
    /// uid 0 on this machine could do anything without us: the console is administrator.
    pub fn is_console(self) -> bool {
        self == Self::Local { uid: 0 }
    }

    /// What attempts are counted against.
    pub fn address(self) -> IpAddr {
        match self {
            Self::Address(address) => address.to_canonical(),
            Self::Local { .. } => IpAddr::V4(Ipv4Addr::LOCALHOST),
        }
    }
}

impl fmt::Display for From {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.to_canonical().fmt(f),
            Self::Local { uid: 0 } => f.write_str("console"),
            Self::Local { uid } => write!(f, "uid {uid}"),
        }
    }
}
