//! The slot we run from. So far: telling the boot loader that it is good.
//!
//! systemd-boot counts in the file name (`name+LEFT-DONE.efi`): each start takes one from LEFT, at zero it takes the
//! older slot. A healthy daemon renames its own file to `name.efi` and the counting ends ("Automatic Boot
//! Assessment" of the boot loader specification).

use std::path::{Path, PathBuf};

use rustix::mount::MountFlags;

use super::discover::Install;
use super::filesystems::{FilesystemError, Mounted};
use super::{Roots, efivars};

/// Where PID 1 looks.
const TOLD_INIT: (&str, &str) = ("/run/limiquantix", "blessed");

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blessed {
    /// The boot loader does not count this boot (already good, or no boot loader).
    NotCounted,
    /// Renamed to this.
    Now(String),
    /// Somebody had renamed it already.
    Already(String),
}

/// The slot could not be marked as good.
#[derive(Debug, thiserror::Error)]
pub enum BlessError {
    /// The variable does not look like the path of a counted file.
    #[error("LoaderBootCountPath is `{0}`, which is not the path of a counted UKI")]
    Path(String),
    /// Neither the counted nor the plain file is there.
    #[error("neither `{0}` nor its uncounted name is on the ESP")]
    Missing(String),
    /// The ESP could not be mounted.
    #[error(transparent)]
    Mount(#[from] FilesystemError),
    /// Renaming failed.
    #[error("could not rename `{0}`")]
    Rename(String, #[source] std::io::Error),
}

/// Marks the slot we run from as good. Call it once the daemon is healthy; safe to repeat.
pub fn bless(roots: &Roots, install: &Install) -> Result<Blessed, BlessError> {
    let Some(path) = efivars::read_text(roots, "LoaderBootCountPath", efivars::LOADER) else {
        return Ok(Blessed::NotCounted);
    };
    let on = Path::new("/run/lqx/esp");
    let esp = Mounted::new(&install.esp, on, "vfat", MountFlags::empty())?;
    let blessed = bless_in(esp.path(), &path)?;
    // PID 1 restarts a machine on trial whose daemon keeps dying; from now on it is not on trial.
    let told = std::fs::create_dir_all(TOLD_INIT.0)
        .and_then(|()| std::fs::write(Path::new(TOLD_INIT.0).join(TOLD_INIT.1), ""));
    if let Err(error) = told {
        tracing::warn!(%error, "could not tell init that this slot is good");
    }
    Ok(blessed)
}

/// The part that needs no mount.
fn bless_in(esp: &Path, counted: &str) -> Result<Blessed, BlessError> {
    let relative = counted.trim_start_matches('\\').replace('\\', "/");
    let file = PathBuf::from(&relative);
    let plain = file
        .file_name()
        .and_then(|name| uncounted(name.to_str()?))
        .filter(|_| {
            file.components()
                .all(|c| matches!(c, std::path::Component::Normal(_)))
        })
        .ok_or_else(|| BlessError::Path(counted.to_owned()))?;
    let folder = esp.join(file.parent().unwrap_or(Path::new("")));
    let to = folder.join(&plain);
    // The variable still holds the name this boot began with; a second call finds the rename done.
    let from = esp.join(&file);
    if !from.exists() {
        return match to.exists() {
            true => Ok(Blessed::Already(plain)),
            false => Err(BlessError::Missing(relative)),
        };
    }
    let failed = |source| BlessError::Rename(relative.clone(), source);
    std::fs::rename(&from, &to).map_err(failed)?;
    // vfat's rename is not atomic against power cuts: make the window as short as it can be.
    let folder = std::fs::File::open(&folder).map_err(failed)?;
    rustix::fs::syncfs(&folder).map_err(|errno| failed(errno.into()))?;
    Ok(Blessed::Now(plain))
}

/// `x+2-1.efi` → `x.efi`; `None` when it is not a counted name.
fn uncounted(name: &str) -> Option<String> {
    let stem = name.strip_suffix(".efi")?;
    let (base, count) = stem.rsplit_once('+')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let good = match count.split_once('-') {
        Some((left, done)) => digits(left) && digits(done),
        None => digits(count),
    };
    (good && !base.is_empty()).then(|| format!("{base}.efi"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_counted_name_loses_its_count() {
        assert_eq!(
            uncounted("limiquantix_0.1.0+2-1.efi").as_deref(),
            Some("limiquantix_0.1.0.efi")
        );
        assert_eq!(
            uncounted("limiquantix_0.1.0+3.efi").as_deref(),
            Some("limiquantix_0.1.0.efi")
        );
        for other in [
            "limiquantix_0.1.0.efi",
            "a+b.efi",
            "a+2-.efi",
            "+3.efi",
            "a+3",
        ] {
            assert_eq!(uncounted(other), None, "{other}");
        }
    }

    #[test]
    fn a_healthy_boot_is_blessed_once() {
        let esp = tempfile::tempdir().unwrap();
        let linux = esp.path().join("EFI/Linux");
        std::fs::create_dir_all(&linux).unwrap();
        std::fs::write(linux.join("l_1+2-1.efi"), "uki").unwrap();
        let path = "\\EFI\\Linux\\l_1+2-1.efi";
        assert_eq!(
            bless_in(esp.path(), path).unwrap(),
            Blessed::Now("l_1.efi".into())
        );
        assert_eq!(
            bless_in(esp.path(), path).unwrap(),
            Blessed::Already("l_1.efi".into())
        );
        std::fs::remove_file(linux.join("l_1.efi")).unwrap();
        assert!(matches!(
            bless_in(esp.path(), path),
            Err(BlessError::Missing(_))
        ));
        assert!(matches!(
            bless_in(esp.path(), "\\..\\x+1.efi"),
            Err(BlessError::Path(_))
        ));
    }
}
