//! What the cluster agrees on: one pure state machine.
//!
//! [`State::apply`] takes a [`Command`] and either changes the tables or refuses. All judging happens here, where all
//! facts are: names, limits, what is in use, memory admission, generations. Nothing here reads a clock, draws a random
//! number, does I/O or iterates an unordered map, so the same log gives the same bytes on every host and after every
//! restart. Ids, times and dice are minted by the caller and travel inside the command.
//!
//! To add a noun: its record and its commands in a file of its own, its table in [`state`], its variants in
//! [`command`], its line in [`apply`], its view in [`query`], what must always hold in [`invariants`], and a new
//! format in [`snapshot`] if old snapshots would not load any more.
#![forbid(unsafe_code)]

pub mod apply;
pub mod change;
pub mod command;
pub mod refused;

pub mod state;
pub mod table;
pub mod usage;

pub mod hosts;
pub mod images;
pub mod networks;
pub mod tasks;
pub mod users;
pub mod vms;
pub mod volumes;

pub mod can;
pub mod placement;

pub mod invariants;
pub mod query;
pub mod snapshot;

pub use apply::{Applied, Outcome};
pub use change::Change;
pub use command::{Command, Fault, Idempotency, Meta, Report, VmReport};
pub use refused::Refused;
pub use state::State;
pub use vms::{StopMode, VmRecord, Want};
