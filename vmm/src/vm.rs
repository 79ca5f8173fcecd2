//! The live machine.

use crate::config::VmmConfig;
use crate::control::ExitReason;

/// Builds the machine, runs it to its end and says why it ended.
pub fn run(config: VmmConfig) -> ExitReason {
    let _ = config;
    ExitReason::Error { message: "not implemented".into() }
}
