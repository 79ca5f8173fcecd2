//! The clock of this machine. Setting it (NTP) is not built yet; the hardware clock's time is used.

use super::Roots;

/// Seconds since the kernel started.
pub fn uptime_seconds(roots: &Roots) -> u64 {
    super::text(roots.proc.join("uptime"))
        .split(['.', ' '])
        .next()
        .and_then(|whole| whole.parse().ok())
        .unwrap_or(0)
}

/// This boot's id: another one after each start of the kernel.
pub fn boot_id(roots: &Roots) -> String {
    super::text(roots.proc.join("sys/kernel/random/boot_id"))
}
