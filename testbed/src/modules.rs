//! Kernel modules: which files a list of names needs, in loading order.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The modules of one kernel, as `depmod` described them.
#[derive(Debug)]
pub struct Modules {
    root: PathBuf,
    depends: BTreeMap<String, Vec<String>>,
    paths: BTreeMap<String, String>,
}

/// `kernel/fs/9p/9p.ko.xz` → `9p`; `-` and `_` are one.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

impl Modules {
    /// Reads `modules.dep` of a `lib/modules/<release>` folder.
    pub fn read(root: &Path) -> Result<Self> {
        let text = fs::read_to_string(root.join("modules.dep"))
            .with_context(|| format!("reading {}/modules.dep", root.display()))?;
        Ok(Self::parse(root, &text))
    }

    fn parse(root: &Path, text: &str) -> Self {
        let mut depends = BTreeMap::new();
        let mut paths = BTreeMap::new();
        for line in text.lines() {
            let Some((path, needed)) = line.split_once(':') else {
                continue;
            };
            let needed = needed.split_whitespace().map(name_of).collect();
            paths.insert(name_of(path), path.to_owned());
            depends.insert(name_of(path), needed);
        }
        Self {
            root: root.to_owned(),
            depends,
            paths,
        }
    }

    /// The files of these modules and of all they depend on, dependencies first. What the kernel has built in or does not
    /// have at all is left out.
    pub fn closure(&self, names: &[&str]) -> Vec<PathBuf> {
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        for name in names {
            self.visit(&name.replace('-', "_"), &mut seen, &mut order);
        }
        order
    }

    fn visit(&self, name: &str, seen: &mut BTreeSet<String>, order: &mut Vec<PathBuf>) {
        let Some(path) = self.paths.get(name) else {
            return;
        };
        if !seen.insert(name.to_owned()) {
            return;
        }
        for needed in self.depends.get(name).into_iter().flatten() {
            self.visit(needed, seen, order);
        }
        order.push(self.root.join(path));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_come_first_and_once() {
        let modules = Modules::parse(
            Path::new("/m"),
            "a/virtio-blk.ko: a/virtio_ring.ko a/virtio.ko\na/virtio_ring.ko: a/virtio.ko\na/virtio.ko:\nb/9p.ko.xz: a/virtio.ko\n",
        );
        let files = modules.closure(&["virtio_blk", "9p", "ext4"]);
        let names: Vec<_> = files
            .iter()
            .map(|file| file.display().to_string())
            .collect();
        assert_eq!(
            names,
            [
                "/m/a/virtio.ko",
                "/m/a/virtio_ring.ko",
                "/m/a/virtio-blk.ko",
                "/m/b/9p.ko.xz"
            ]
        );
    }
}
