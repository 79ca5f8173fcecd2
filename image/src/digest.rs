//! SHA-256 of files and bytes, and the stamps by which an up-to-date artifact is recognized.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The SHA-256 of `bytes`, in hexadecimal.
pub fn of_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The SHA-256 of a file, in hexadecimal.
pub fn of_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hex(&hash.finalize())),
            Ok(n) => hash.update(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e).with_context(|| format!("reading {}", path.display())),
        }
    }
}

/// The inputs of one artifact, folded into one digest.
#[derive(Default)]
pub struct Inputs(Sha256);

impl Inputs {
    /// Folds in a named value; the name keeps two neighbouring values from running into each other.
    #[must_use]
    pub fn value(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        self.0.update(format!("{name}\0{}\0", value.len()));
        self.0.update(value);
        self
    }

    /// Folds in the content of a file.
    pub fn file(self, name: &str, path: &Path) -> Result<Self> {
        let digest = of_file(path)?;
        Ok(self.value(name, digest))
    }

    /// The digest of everything folded in.
    pub fn finish(self) -> String {
        hex(&self.0.finalize())
    }
}

/// Remembers from which inputs an artifact was made, beside it in `.stamps/`.
pub struct Stamp {
    file: PathBuf,
    inputs: String,
}

impl Stamp {
    /// The stamp of the artifact `name` in `dist`.
    pub fn new(dist: &Path, name: &str, inputs: String) -> Self {
        Self {
            file: dist.join(".stamps").join(name),
            inputs,
        }
    }

    /// Whether `outputs` exist and were made from the same inputs.
    pub fn is_fresh(&self, outputs: &[&Path]) -> bool {
        outputs.iter().all(|path| path.exists())
            && fs::read_to_string(&self.file).is_ok_and(|was| was == self.inputs)
    }

    /// Says that the outputs are now made from these inputs.
    pub fn write(&self) -> Result<()> {
        let dir = self.file.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        fs::write(&self.file, &self.inputs)
            .with_context(|| format!("writing {}", self.file.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_values_do_not_run_into_each_other() {
        let one = Inputs::default().value("a", "bc").value("d", "").finish();
        let two = Inputs::default().value("a", "b").value("cd", "").finish();
        assert_ne!(one, two);
    }

    #[test]
    fn an_artifact_is_fresh_only_for_its_inputs_and_only_if_it_exists() {
        let dir = tempfile::tempdir().unwrap();
        let made = dir.path().join("made");
        let stamp = Stamp::new(dir.path(), "made", "1".into());
        stamp.write().unwrap();
        assert!(!stamp.is_fresh(&[&made]));
        fs::write(&made, "x").unwrap();
        assert!(stamp.is_fresh(&[&made]));
        assert!(!Stamp::new(dir.path(), "made", "2".into()).is_fresh(&[&made]));
    }
}
