//! The nouns and verbs on the wire: what a client says to limiquantix and what it hears back.
//!
//! No behaviour lives here. `hostd-state`, `hostd`, `cli`, the console and `testbed` all speak in these types.
//! Read `endpoints` for the table of everything that can be asked, then the nouns.
//!
//! What we promise about versions: everything under `/api/v1` only grows. Requests refuse unknown fields;
//! replies may gain fields, so clients ignore what they do not know.
#![forbid(unsafe_code)]

pub mod error;
pub mod ids;
pub mod names;
pub mod units;

pub mod condition;
pub mod events;
pub mod hosts;
pub mod images;
pub mod install;
pub mod limits;
pub mod networks;
pub mod system;
pub mod tasks;
pub mod users;
pub mod vms;
pub mod volumes;

pub mod endpoints;
pub mod openapi;

pub mod client;

pub use error::{ApiError, ErrorCode};
