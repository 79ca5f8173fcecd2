//! `hostd`: the one daemon of a limiquantix host. The modules stand in the order a request travels.
//!
//! The same binary is, by its first argument, the daemon, the sandboxed VM process (`vmm`), the one that
//! reads a stranger's disk image (`convert`) and the TUI (`console`).
//! Start at `daemon`, which builds every part, or follow a request from `http` down.

pub mod daemon;

pub mod auth;
pub mod http;
pub mod metrics;

pub mod cluster;
pub mod watch;

pub mod reconcile;

pub mod network;
pub mod storage;
pub mod vms;

pub mod convert_child;
pub mod vmm_child;

pub mod config;
pub mod host;
pub mod install;

pub mod console;

pub mod report;

pub mod fake;
