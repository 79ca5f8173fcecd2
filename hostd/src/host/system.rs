//! This machine as the API sees it: `GET /system`, power, addresses, log.

use std::path::PathBuf;
use std::time::Duration;

use api::ApiError;
use api::condition::Condition;
use api::error::ErrorCode;
use api::names::Name;
use api::system::{LogLine, Mode, NetworkSettings, PowerAction, System};
use api::units::{Mib, Millis};
use futures_util::future::BoxFuture;

use super::logs::Ring;
use super::power::Power;
use super::trust::Trust;
use super::{Roots, inventory, text, time};
use crate::config::HostConfig;
use crate::http::SystemApi;
use crate::network::address::{self, Management, Phase};
use crate::report::chain;

/// How long a reply may take to get out before the machine goes down.
const REPLY_TIME: Duration = Duration::from_millis(500);
/// Lines given at once when all are asked for; the ring's capacity bounds it first.
const LINES_MAX: usize = 100_000;

/// Implements [`SystemApi`] on the real machine.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Where the kernel shows itself.
    pub roots: Roots,
    /// The version that runs.
    pub version: String,
    /// Install or run.
    pub mode: Mode,
    /// The host's name, when it has one.
    pub hostname: Option<Name>,
    /// Where `host.toml` lies; `None` in install mode, where settings live until the restart.
    pub state: Option<PathBuf>,
    /// The management address; `None` where nobody manages one (tests, development).
    pub management: Option<Management>,
    /// The log.
    pub logs: Ring,
    /// The power switch.
    pub power: Power,
}

impl Machine {
    fn look(&self) -> System {
        let trust = Trust::of_machine(&self.roots);
        let state = self.management.as_ref().map(Management::state);
        let mut conditions = Vec::new();
        if let Some(Phase::Failed(cause)) = state.as_ref().map(|s| &s.phase) {
            conditions.push(Condition {
                code: "no_management_address".to_owned(),
                cause: cause.clone(),
                since: Millis::now(),
                next: "it is tried again; a fixed address can be set on the console".to_owned(),
            });
        }
        System {
            version: self.version.clone(),
            mode: self.mode,
            host: None,
            hostname: self.hostname.clone(),
            kernel: text(self.roots.proc.join("sys/kernel/osrelease")),
            uptime_seconds: time::uptime_seconds(&self.roots),
            fingerprint: None,
            addresses: state.and_then(|s| s.url()).into_iter().collect(),
            revision: 0,
            memory_promised: Mib(0),
            memory_total: inventory::memory(&self.roots),
            secure_boot: trust.secure_boot,
            tpm: trust.tpm,
            conditions,
        }
    }

    fn keep(&self, settings: &NetworkSettings) -> Result<(), ApiError> {
        let Some(folder) = &self.state else {
            return Ok(());
        };
        let failed = |error: &dyn std::error::Error| {
            ApiError::new(
                ErrorCode::Internal,
                format!("the settings were not kept: {}", chain(error)),
                "nothing was changed; see the log",
            )
        };
        let mut config = HostConfig::read(folder).map_err(|e| failed(&e))?;
        config.network = settings.clone();
        config.write(folder).map_err(|e| failed(&e))
    }
}

impl SystemApi for Machine {
    fn system(&self) -> BoxFuture<'_, Result<System, ApiError>> {
        Box::pin(async { Ok(self.look()) })
    }

    fn power(&self, action: PowerAction) -> BoxFuture<'_, Result<(), ApiError>> {
        Box::pin(async move {
            let power = self.power;
            tokio::spawn(async move {
                tokio::time::sleep(REPLY_TIME).await;
                if let Err(error) = power.ask(action) {
                    tracing::error!(error = chain(&error), "could not go down");
                }
            });
            Ok(())
        })
    }

    fn network_get(&self) -> BoxFuture<'_, Result<NetworkSettings, ApiError>> {
        Box::pin(async {
            let settings = self.management.as_ref().map(Management::settings);
            Ok(settings.unwrap_or_default())
        })
    }

    fn network_set(
        &self,
        settings: NetworkSettings,
    ) -> BoxFuture<'_, Result<NetworkSettings, ApiError>> {
        Box::pin(async move {
            address::validate(&settings)?;
            self.keep(&settings)?;
            if let Some(management) = &self.management {
                management.set(settings.clone())?;
            }
            Ok(settings)
        })
    }

    fn logs(&self, since: Option<u64>) -> Vec<LogLine> {
        self.logs.since(since.unwrap_or(0), LINES_MAX)
    }
}

#[cfg(test)]
mod tests {
    use api::ids::HostId;
    use uuid::Uuid;

    use super::*;

    #[tokio::test]
    async fn network_settings_are_checked_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let config = HostConfig {
            install: Uuid::from_u128(1),
            host: HostId(Uuid::from_u128(2)),
            name: "lqx-1".parse().unwrap(),
            network: NetworkSettings::default(),
        };
        config.write(folder.path()).unwrap();
        let machine = Machine {
            roots: Roots::default(),
            version: "1".into(),
            mode: Mode::Run,
            hostname: None,
            state: Some(folder.path().to_owned()),
            management: None,
            logs: Ring::new(10),
            power: Power::Pretend,
        };
        let mut settings = NetworkSettings {
            nic: Some("no/such".into()),
            ..NetworkSettings::default()
        };
        assert!(machine.network_set(settings.clone()).await.is_err());
        assert_eq!(HostConfig::read(folder.path()).unwrap(), config);
        settings.nic = Some("enp1s0".into());
        machine.network_set(settings.clone()).await.unwrap();
        assert_eq!(HostConfig::read(folder.path()).unwrap().network, settings);
        assert!(machine.system().await.unwrap().memory_total > Mib(0));
    }
}
