//! A kernel's modules as `depmod` described them, and the choice of those that go into an image.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::tree::Tree;

/// The modules of one kernel below a root.
#[derive(Clone, Debug)]
pub struct Modules {
    dir: PathBuf,
    version: String,
    /// By name with underscores: the path below `lib/modules/VERSION`, and the paths of what it needs.
    files: BTreeMap<String, (String, Vec<String>)>,
    built_in: BTreeSet<String>,
    /// Modules that should be there before or after another: no symbol ties them.
    soft: BTreeMap<String, Vec<String>>,
}

/// Says which lines of one of depmod's lists stay.
type LineFilter<'a> = dyn Fn(&str) -> bool + 'a;

/// `kvm-amd` and `kvm_amd` are the same module; the kernel says it with underscores.
pub fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    canonical(file.split(".ko").next().unwrap_or(file))
}

impl Modules {
    /// Reads `modules.dep` and its neighbours below `root`. A kernel without modules (all built in) has empty lists.
    pub fn read(root: &Path, version: &str) -> Result<Self> {
        let dir = root.join("lib/modules").join(version);
        let text = |name: &str| {
            let file = dir.join(name);
            if file.exists() || name == "modules.builtin" {
                fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))
            } else {
                Ok(String::new())
            }
        };
        let files = text("modules.dep")?
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(path, needs)| {
                (
                    name_of(path),
                    (
                        path.to_owned(),
                        needs.split_whitespace().map(str::to_owned).collect(),
                    ),
                )
            })
            .collect();
        let built_in = text("modules.builtin")?.lines().map(name_of).collect();
        let mut soft: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for line in text("modules.softdep")?.lines() {
            let mut words = line.split_whitespace();
            if let (Some("softdep"), Some(name)) = (words.next(), words.next()) {
                soft.entry(canonical(name))
                    .or_default()
                    .extend(words.filter(|word| !word.ends_with(':')).map(canonical));
            }
        }
        Ok(Self {
            dir,
            version: version.to_owned(),
            files,
            built_in,
            soft,
        })
    }

    /// Whether the kernel has it, as a module or built in.
    pub fn has(&self, name: &str) -> bool {
        let name = canonical(name);
        self.files.contains_key(&name) || self.built_in.contains(&name)
    }

    /// These modules with everything they need. Names that are built in select nothing; unknown names are an error naming all of them.
    pub fn select(&self, names: &[String]) -> Result<Selection<'_>> {
        let unknown: Vec<_> = names
            .iter()
            .filter(|name| !self.has(name))
            .map(String::as_str)
            .collect();
        if !unknown.is_empty() {
            bail!(
                "the kernel {} has no module {}",
                self.version,
                unknown.join(", ")
            );
        }
        let mut chosen = BTreeSet::new();
        let mut todo: Vec<String> = names.iter().map(|name| canonical(name)).collect();
        while let Some(name) = todo.pop() {
            let Some((path, needs)) = self.files.get(&name) else {
                continue;
            };
            if chosen.insert(path.clone()) {
                todo.extend(needs.iter().map(|path| name_of(path)));
                todo.extend(self.soft.get(&name).into_iter().flatten().cloned());
            }
        }
        Ok(Selection {
            modules: self,
            chosen,
        })
    }
}

/// A set of modules closed under dependence.
#[derive(Clone, Debug)]
pub struct Selection<'a> {
    modules: &'a Modules,
    chosen: BTreeSet<String>,
}

impl Selection<'_> {
    /// How many modules there are.
    pub fn len(&self) -> usize {
        self.chosen.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.chosen.is_empty()
    }

    /// Puts the modules and the lists that describe them (cut down to them) into `tree`, unstripped: their signature lets them load under lockdown.
    pub fn put_into(&self, tree: &mut Tree) -> Result<()> {
        let at = format!("lib/modules/{}", self.modules.version);
        for path in &self.chosen {
            tree.file(&format!("{at}/{path}"), 0o644, &self.modules.dir.join(path))?;
        }
        let names: BTreeSet<String> = self.chosen.iter().map(|path| name_of(path)).collect();
        let in_dep = |line: &str| {
            line.split_once(':')
                .is_some_and(|(path, _)| self.chosen.contains(path))
        };
        let in_alias = |line: &str| {
            line.rsplit(' ')
                .next()
                .is_some_and(|name| names.contains(&canonical(name)))
        };
        let in_softdep = |line: &str| {
            line.split_whitespace()
                .nth(1)
                .is_some_and(|name| names.contains(&canonical(name)))
        };
        let keep: [(&str, &LineFilter<'_>); 4] = [
            ("modules.dep", &in_dep),
            ("modules.alias", &in_alias),
            ("modules.softdep", &in_softdep),
            ("modules.builtin", &|_| true),
        ];
        for (name, wanted) in keep {
            let text = fs::read_to_string(self.modules.dir.join(name)).unwrap_or_default();
            let cut: String = text
                .lines()
                .filter(|line| !line.starts_with('#') && wanted(line))
                .map(|line| format!("{line}\n"))
                .collect();
            tree.bytes(&format!("{at}/{name}"), 0o644, cut)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Node;

    fn some_modules(dir: &Path) -> Modules {
        let at = dir.join("lib/modules/6.1");
        fs::create_dir_all(at.join("kernel")).unwrap();
        fs::write(at.join("modules.dep"), "kernel/kvm-amd.ko: kernel/kvm.ko kernel/irqbypass.ko\nkernel/kvm.ko: kernel/irqbypass.ko\nkernel/irqbypass.ko:\nkernel/ext4.ko:\nkernel/crc32c_generic.ko:\nkernel/other.ko:\n").unwrap();
        fs::write(at.join("modules.builtin"), "kernel/serial/8250.ko\n").unwrap();
        fs::write(
            at.join("modules.softdep"),
            "# c\nsoftdep ext4 pre: crc32c_generic\n",
        )
        .unwrap();
        fs::write(
            at.join("modules.alias"),
            "alias fs-ext4 ext4\nalias fs-other other\n",
        )
        .unwrap();
        for name in [
            "kvm-amd",
            "kvm",
            "irqbypass",
            "ext4",
            "crc32c_generic",
            "other",
        ] {
            fs::write(at.join(format!("kernel/{name}.ko")), name).unwrap();
        }
        Modules::read(dir, "6.1").unwrap()
    }

    #[test]
    fn a_selection_holds_what_its_modules_need_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let modules = some_modules(dir.path());
        let mut tree = Tree::default();
        modules
            .select(&["kvm_amd".into(), "ext4".into(), "8250".into()])
            .unwrap()
            .put_into(&mut tree)
            .unwrap();
        let files: Vec<_> = tree
            .iter()
            .filter(|(path, _)| path.ends_with(".ko"))
            .map(|(path, _)| path.rsplit('/').next().unwrap())
            .collect();
        assert_eq!(
            files,
            [
                "crc32c_generic.ko",
                "ext4.ko",
                "irqbypass.ko",
                "kvm-amd.ko",
                "kvm.ko"
            ]
        );
        let Some(Node::File(_, alias)) = tree.get("lib/modules/6.1/modules.alias") else {
            panic!("no modules.alias")
        };
        assert_eq!(alias.read().unwrap(), b"alias fs-ext4 ext4\n");
    }

    #[test]
    fn all_unknown_modules_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let refused = some_modules(dir.path())
            .select(&["kvm".into(), "nosuch".into(), "none".into()])
            .unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the kernel 6.1 has no module nosuch, none"
        );
    }
}
