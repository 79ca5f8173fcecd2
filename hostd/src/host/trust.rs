//! What this machine can prove about itself. Shown, never required.

use super::{Roots, efivars};

/// The machine's posture.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Trust {
    /// Firmware started us with Secure Boot on.
    pub secure_boot: bool,
    /// A TPM 2.0 is there.
    pub tpm: bool,
}

impl Trust {
    /// As the kernel shows it.
    pub fn of_machine(roots: &Roots) -> Self {
        let secure = efivars::read(roots, "SecureBoot", efivars::GLOBAL);
        let major = super::text(roots.sys.join("class/tpm/tpm0/tpm_version_major"));
        Self {
            secure_boot: secure.as_deref() == Some(&[1]),
            tpm: major == "2",
        }
    }
}
