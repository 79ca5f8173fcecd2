//! `needs.toml`: what the product needs from its base, and the check that the base has it.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::libraries;
use crate::modules::Modules;
use crate::paths::Paths;
use crate::tree::Tree;

/// The whole file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Needs {
    /// Kernel modules.
    pub modules: ModuleNeeds,
    /// Kernel configuration.
    pub kernel: KernelNeeds,
    /// Programs by path, with the reason.
    pub programs: BTreeMap<String, String>,
    /// Other files by path, with the reason.
    pub files: BTreeMap<String, String>,
}

/// Modules in groups; the groups' names are for the reader.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModuleNeeds {
    /// Loaded by PID 1 at start.
    pub start: BTreeMap<String, Vec<String>>,
    /// In the image.
    pub present: BTreeMap<String, Vec<String>>,
}

/// Symbols of the kernel's configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelNeeds {
    /// Must be `=y`.
    pub built_in: Vec<String>,
}

impl Needs {
    /// Reads `image/base/needs.toml`.
    pub fn read(paths: &Paths) -> Result<Self> {
        let file = paths.base().join("needs.toml");
        let text =
            fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        toml::from_str(&text).with_context(|| format!("in {}", file.display()))
    }

    /// All modules the image must have, start ones included.
    pub fn all_modules(&self) -> Vec<String> {
        self.modules
            .start
            .values()
            .chain(self.modules.present.values())
            .flatten()
            .cloned()
            .collect()
    }

    /// The modules PID 1 loads before it looks at devices, in order of the file's groups.
    pub fn start_modules(&self) -> Vec<String> {
        self.modules.start.values().flatten().cloned().collect()
    }

    /// Checks the finished tree, and the kernel's configuration where the base has it. Names everything that is missing, not only the first.
    pub fn check(&self, tree: &Tree, modules: &Modules, kernel_config: Option<&str>) -> Result<()> {
        let mut missing = Vec::new();
        missing.extend(
            self.all_modules()
                .iter()
                .filter(|name| !modules.has(name))
                .map(|name| format!("kernel module {name}")),
        );
        if let Some(config) = kernel_config {
            missing.extend(
                self.kernel
                    .built_in
                    .iter()
                    .filter(|symbol| {
                        !config
                            .lines()
                            .any(|line| line == format!("CONFIG_{symbol}=y"))
                    })
                    .map(|symbol| format!("kernel option CONFIG_{symbol}=y")),
            );
        }
        for (path, why) in self.programs.iter().chain(&self.files) {
            if tree.get(path).is_none() {
                missing.push(format!("/{path} ({why})"));
            }
        }
        for path in self.programs.keys() {
            missing.extend(
                libraries::unmet(tree, path)?
                    .into_iter()
                    .map(|library| format!("{library}, a library of /{path}")),
            );
        }
        if !missing.is_empty() {
            bail!(
                "the base lacks what image/base/needs.toml asks for:\n  {}",
                missing.join("\n  ")
            );
        }
        Ok(())
    }
}
