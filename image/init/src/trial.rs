//! Whether this version is still on trial: started by a loader that counts tries, and not yet found healthy.

use std::path::Path;
use std::time::Duration;

/// Set by systemd-boot for an entry whose file name carries a counter (the Boot Loader Interface's vendor UUID).
const COUNTED: &str =
    "/sys/firmware/efi/efivars/LoaderBootCountPath-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
/// Created by `hostd` once it has taken the counter off.
const BLESSED: &str = "/run/limiquantix/blessed";

/// A version that is not healthy after this time never will be: `hostd` lives, but hangs.
pub(crate) const LENGTH: Duration = Duration::from_secs(600);

/// Restarting leads somewhere only then: the counter goes down each time.
pub(crate) fn on_trial() -> bool {
    Path::new(COUNTED).exists() && !Path::new(BLESSED).exists()
}
