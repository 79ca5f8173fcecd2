//! This host itself: version, power, addresses, logs.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::condition::Condition;
use crate::ids::HostId;
use crate::names::Name;
use crate::units::{Mib, Millis};

/// How the daemon was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// From a medium: it installs.
    Install,
    /// From its own disk: it serves.
    Run,
}

/// `GET /health`: public, and so without anything about what runs here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// Installing or serving.
    pub mode: Mode,
    /// Our version.
    pub version: String,
    /// Writes are agreed: there is a leader. Always true while installing.
    pub ready: bool,
}

/// `GET /system`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct System {
    /// Our version.
    pub version: String,
    /// Installing or serving.
    pub mode: Mode,
    /// This host.
    pub host: Option<HostId>,
    /// Its name.
    pub hostname: Option<Name>,
    /// Kernel release.
    pub kernel: String,
    /// Seconds since the kernel started.
    pub uptime_seconds: u64,
    /// SHA-256 of the TLS certificate, hexadecimal.
    pub fingerprint: Option<String>,
    /// Where the API answers, for instance `https://192.0.2.7`.
    pub addresses: Vec<String>,
    /// The revision this host has seen.
    pub revision: u64,
    /// Guest memory promised, and all there is.
    pub memory_promised: Mib,
    /// Memory of the host.
    pub memory_total: Mib,
    /// Secure Boot is on.
    pub secure_boot: bool,
    /// A TPM is there.
    pub tpm: bool,
    /// What is not well.
    pub conditions: Vec<Condition>,
}

/// `POST /system/power`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PowerAction {
    /// Restart.
    Reboot,
    /// Switch off.
    PowerOff,
}

/// `POST /system/power`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PowerRequest {
    /// What to do.
    pub action: PowerAction,
}

/// The management address.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum AddressMode {
    /// By DHCP.
    #[default]
    Dhcp,
    /// Fixed.
    Static {
        /// IPv4 with prefix length, for instance `192.0.2.7/24`.
        address: String,
        /// Default gateway.
        #[serde(default)]
        gateway: Option<String>,
    },
}

/// `GET` and `PUT /system/network`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkSettings {
    /// The NIC; the first with a link when absent.
    #[serde(default)]
    pub nic: Option<String>,
    /// How it gets its address.
    #[serde(default)]
    pub address: AddressMode,
    /// Name servers.
    #[serde(default)]
    pub dns: Vec<String>,
}

/// A line of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogLine {
    /// Counts up; gaps mean that lines were dropped.
    pub seq: u64,
    /// When.
    pub at: Millis,
    /// `error`, `warn`, `info`, `debug`.
    pub level: String,
    /// The sentence and its fields.
    pub message: String,
}
