//! Hands that move nothing: for tests and for running the daemon on a workstation without root and KVM. Never used by
//! the appliance.
//!
//! They keep in memory what the real ones keep in the kernel and on disk, follow the same contracts, and can be told to
//! fail.

use std::sync::{Mutex, MutexGuard, PoisonError};

mod convert;
mod launcher;
mod links;
mod storage;

pub use convert::{OpenConverter, qcow2_image};
pub use launcher::FakeLauncher;
pub use links::{FakeLinks, NoHostAddress};
pub use storage::{FakeImages, FakeVolumes};

use crate::reconcile::Hands;

/// The hands of one fake host.
pub type FakeHands = Hands<FakeLauncher, FakeVolumes, FakeImages, FakeLinks>;

/// A fake host that has nothing yet.
pub fn hands() -> FakeHands {
    Hands {
        launcher: FakeLauncher::default(),
        volumes: FakeVolumes::default(),
        images: FakeImages::default(),
        links: FakeLinks::default(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A file of no content that belongs to nobody.
fn empty_file() -> Result<std::fs::File, hostd_state::Fault> {
    let file = rustix::fs::memfd_create(c"fake", rustix::fs::MemfdFlags::CLOEXEC);
    file.map(std::fs::File::from)
        .map_err(|errno| crate::vms::fault("fake", errno.to_string(), "free some descriptors"))
}
