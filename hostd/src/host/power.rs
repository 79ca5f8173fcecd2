//! Switching off and restarting: PID 1 does it, in order; we ask.
//!
//! ```text
//! power(action) ─ stop the VMs (the caller) ─► signal to PID 1 ─► init ends us, unmounts, reboots or powers off
//!                                              SIGTERM: power off      SIGINT: restart
//! ```
//! What init itself is asked (the power button) it passes on to us first: SIGUSR1 to power off, SIGUSR2 to restart.

use api::system::PowerAction;
use rustix::process::{Pid, Signal};

/// The power switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// Signals PID 1 of this machine.
    Init,
    /// Only says what it would do: tests and development hosts, where PID 1 is not ours.
    Pretend,
}

/// Init could not be asked.
#[derive(Debug, thiserror::Error)]
#[error("could not ask init to {action}")]
pub struct PowerError {
    action: &'static str,
    source: rustix::io::Errno,
}

impl Power {
    /// [`Power::Init`] when PID 1 is the appliance's init, else [`Power::Pretend`]: a daemon that somebody runs on a
    /// workstation must not switch that off.
    pub fn of_machine() -> Self {
        match super::is_appliance() {
            true => Self::Init,
            false => Self::Pretend,
        }
    }

    /// Asks init. Returns at once; SIGTERM reaches us a moment later.
    pub fn ask(self, action: PowerAction) -> Result<(), PowerError> {
        let (signal, verb) = match action {
            PowerAction::PowerOff => (Signal::TERM, "power off"),
            PowerAction::Reboot => (Signal::INT, "restart"),
        };
        match self {
            Self::Init => {
                tracing::info!(action = verb, "asking init");
                rustix::process::kill_process(Pid::INIT, signal).map_err(|source| PowerError {
                    action: verb,
                    source,
                })
            }
            Self::Pretend => {
                tracing::warn!(action = verb, "not an appliance, so this is not done");
                Ok(())
            }
        }
    }
}
