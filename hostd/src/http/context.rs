//! What all handlers share: the cluster, this machine's hands, and what proves callers.

use std::sync::Arc;

use api::ids::HostId;
use api::system::Mode;
use api::{ApiError, ErrorCode};

use super::hands::{ImageStore, InstallerApi, SystemApi, VmProcesses};
use super::tls::TlsIdentity;
use crate::auth::Auth;
use crate::cluster::Cluster;
use crate::metrics::Metrics;

/// Shared by all handlers.
pub struct Context {
    /// Installing or serving.
    pub mode: Mode,
    /// Our version.
    pub version: String,
    /// This host; none while installing.
    pub host: Option<HostId>,
    /// Agreed state; none while installing.
    pub cluster: Option<Cluster>,
    /// What proves callers.
    pub auth: Auth,
    /// This machine.
    pub system: Arc<dyn SystemApi>,
    /// The installer; only while installing.
    pub installer: Option<Arc<dyn InstallerApi>>,
    /// VM processes.
    pub vms: Arc<dyn VmProcesses>,
    /// Images' bytes.
    pub images: Arc<dyn ImageStore>,
    /// For its fingerprint.
    pub tls: Option<TlsIdentity>,
    /// Counters.
    pub metrics: Metrics,
}

impl Context {
    /// The cluster, where there is one.
    pub fn cluster(&self) -> Result<&Cluster, ApiError> {
        self.cluster.as_ref().ok_or_else(not_installed)
    }

    /// This host, where it has an identity.
    pub fn host(&self) -> Result<HostId, ApiError> {
        self.host.ok_or_else(not_installed)
    }

    /// An administrator exists.
    pub fn setup_done(&self) -> bool {
        self.cluster
            .as_ref()
            .is_some_and(|cluster| cluster.read(|state| state.setup_done()))
    }
}

/// The machine runs the installer.
pub(super) fn not_installed() -> ApiError {
    ApiError::new(
        ErrorCode::NotInstalled,
        "this machine was booted from a medium and is not installed yet",
        "install it: on its console, or from a seed",
    )
}
