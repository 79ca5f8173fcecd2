//! The daemon: from a request's bytes to a running guest.
//!
//! Modules stand in the order a request travels.

pub mod cluster;
pub mod watch;
