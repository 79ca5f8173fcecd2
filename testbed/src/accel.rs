//! Hardware or emulation: what a QEMU here can use so that its guest has a `/dev/kvm`.

use std::fmt;
use std::path::Path;

use anyhow::{Result, bail};

/// How the machines of the testbed run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// Hardware virtualization, with nested virtualization switched on.
    Kvm,
    /// Emulation of an AMD CPU with SVM. Slow, and the same everywhere.
    Tcg,
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "KVM with nested virtualization",
            Self::Tcg => "TCG (emulated AMD-V)",
        })
    }
}

impl Accelerator {
    /// `LQX_ACCEL=kvm|tcg`, else KVM where the loaded module says that it nests and `/dev/kvm` may be opened.
    ///
    /// A `/dev/kvm` alone proves nothing: there are hosts whose KVM runs small guests only and cannot nest. Those have no
    /// `nested` parameter, which is why the parameter is what counts.
    pub fn detect() -> Result<Self> {
        match std::env::var("LQX_ACCEL").as_deref() {
            Ok("kvm") => return Ok(Self::Kvm),
            Ok("tcg") => return Ok(Self::Tcg),
            Ok(other) => bail!("LQX_ACCEL is kvm or tcg, not `{other}`"),
            Err(_) => {}
        }
        let nests = ["kvm_amd", "kvm_intel"].iter().any(|module| {
            std::fs::read_to_string(format!("/sys/module/{module}/parameters/nested"))
                .is_ok_and(|value| matches!(value.trim(), "1" | "Y"))
        });
        let opens = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(Path::new("/dev/kvm"))
            .is_ok();
        Ok(if nests && opens { Self::Kvm } else { Self::Tcg })
    }

    /// QEMU's arguments. The emulated CPU is the plainest one with SVM and nested paging: richer ones boot slower.
    pub fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Self::Tcg => ["-accel", "tcg,thread=multi", "-cpu", "qemu64,+svm,+npt"],
        }
    }
}

/// Kernel arguments that a busy or emulated host needs: the timer check fails when the host is starved, the clock is the TSC, a
/// panic ends the machine, and output on the serial line costs exits.
pub const KERNEL_ARGUMENTS: &str = "no_timer_check tsc=reliable panic=-1 quiet";
