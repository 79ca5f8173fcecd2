//! One virtual machine on KVM.
//!
//! [`run`] takes a [`config::VmmConfig`] and inherited descriptors, builds the machine, runs it until it ends and says
//! why it ended. It opens no path, knows no cluster, no HTTP and no async runtime; the jail around it (uid, namespaces,
//! cgroup, Landlock) is its caller's. The one conversation it has while running is [`control`].
//!
//! Read in the order a machine comes to life: what was asked ([`config`]), checked and laid out ([`machine`]), put
//! together ([`builder`]), alive ([`vm`], [`vcpu`], [`event_loop`]), with its buses and devices below.

pub mod config;
pub mod machine;

pub mod builder;
pub mod control;
pub mod vm;

pub mod event_loop;
pub mod vcpu;

pub mod bus;
pub mod interrupt;
pub mod memory;

pub mod arch;
pub mod loader;

pub mod devices;
pub mod pci;

pub mod disk;
pub mod net;

pub mod fds;
pub mod metrics;
pub mod rate_limit;
pub mod seccomp;

#[cfg(test)]
mod fuzz;

pub use vm::run;
