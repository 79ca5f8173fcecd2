//! What handlers ask of this machine itself: small traits, so that the API is tested without one.
//!
//! Agreed state is not here: that is asked of the cluster. Each trait has its real implementation where the work is
//! done (`host`, `install`, `vms`, `storage`) and a fake in the tests.

use std::collections::BTreeMap;
use std::io;

use api::ApiError;
use api::ids::{ImageId, VmId};
use api::images::ImageFormat;
use api::install::{InstallRequest, InstallStatus};
use api::system::{LogLine, NetworkSettings, PowerAction, System};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use hostd_state::Fault;
use tokio::net::UnixStream;

/// This machine's own affairs.
pub trait SystemApi: Send + Sync {
    /// What is known of this machine. The caller fills in mode, version, host id, fingerprint, revision and promised memory.
    fn system(&self) -> BoxFuture<'_, Result<System, ApiError>>;

    /// Begins to go down, in order, shortly after this returns: the reply must get out first.
    fn power(&self, action: PowerAction) -> BoxFuture<'_, Result<(), ApiError>>;

    /// How the management address is got.
    fn network_get(&self) -> BoxFuture<'_, Result<NetworkSettings, ApiError>>;

    /// Checks, keeps and applies. The connection this came over may break.
    fn network_set(
        &self,
        settings: NetworkSettings,
    ) -> BoxFuture<'_, Result<NetworkSettings, ApiError>>;

    /// Log lines with a `seq` after this one, oldest first; all that are kept when `None`.
    fn logs(&self, since: Option<u64>) -> Vec<LogLine>;
}

/// The installer; only on a machine that was booted from a medium.
pub trait InstallerApi: Send + Sync {
    /// The disks and where the installer is.
    fn status(&self) -> BoxFuture<'_, Result<InstallStatus, ApiError>>;

    /// Checks the request, begins, and gives the status right after. Refuses while it is at work already.
    fn start(&self, request: InstallRequest) -> BoxFuture<'_, Result<InstallStatus, ApiError>>;
}

/// The VM processes of this host, as far as handlers look into them.
pub trait VmProcesses: Send + Sync {
    /// Connects to a serial console: first comes what was said since power-on, then what is said; what is written is typed.
    /// `NotFound` or `ConnectionRefused` when the VM has no process here.
    fn connect(&self, vm: VmId) -> BoxFuture<'_, io::Result<UnixStream>>;

    /// The address that DHCP leased to this MAC address, if known.
    fn leased_address(&self, mac: &str) -> Option<String> {
        let _ = mac;
        None
    }

    /// The counters of a VM's devices, by name; empty when it has no process here or that does not answer in time. What
    /// stands in them is the process's word: it is not trusted.
    fn counters(&self, vm: VmId) -> BoxFuture<'_, BTreeMap<String, u64>> {
        let _ = vm;
        Box::pin(std::future::ready(BTreeMap::new()))
    }
}

/// An upload on its way in. An error means that the client is gone.
pub type Upload = BoxStream<'static, io::Result<Bytes>>;

/// What the bytes of an image shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promise {
    /// Their number.
    pub size_bytes: u64,
    /// Their SHA-256, hexadecimal.
    pub sha256: String,
    /// How they are understood.
    pub format: ImageFormat,
}

/// Why there is no image.
#[derive(Debug)]
pub enum NotReceived {
    /// The bytes may be sent again.
    Refused(ApiError),
    /// The promised bytes came and are no image that can be used: it has failed.
    Unusable(Fault),
}

/// Where the bytes of images lie on this host.
pub trait ImageStore: Send + Sync {
    /// Takes the bytes in. When this returns `Ok`, exactly the promised bytes are on disk for good, and their format was
    /// looked into: it gives the size of the disk inside, if that is another than theirs. Otherwise nothing is left of
    /// them, and a refusal is `checksum_mismatch`, `exhausted`, `in_use` (another upload of the same image is under way) or
    /// `internal`. Does not tell the cluster: the handler does.
    fn receive(
        &self,
        image: ImageId,
        promise: Promise,
        bytes: Upload,
    ) -> BoxFuture<'_, Result<Option<u64>, NotReceived>>;
}
