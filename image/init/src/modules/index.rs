//! depmod's text lists: which file a module is, what it needs, which devices it serves.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use super::glob;

/// `kvm-amd` and `kvm_amd` are the same module; the kernel says it with underscores.
pub(crate) fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    canonical(file.split(".ko").next().unwrap_or(file))
}

#[derive(Debug, Default, Clone)]
struct Module {
    path: PathBuf,
    /// Nearest first, as depmod lists them: loaded in reverse.
    needs: Vec<String>,
}

#[derive(Debug, Default, Clone)]
struct Soft {
    before: Vec<String>,
    after: Vec<String>,
}

/// The lists of one kernel.
#[derive(Debug, Default)]
pub(crate) struct Index {
    modules: BTreeMap<String, Module>,
    /// By what comes before the first `:`, so that a PCI device is not held against USB patterns.
    aliases: BTreeMap<String, Vec<(String, String)>>,
    soft: BTreeMap<String, Soft>,
    built_in: BTreeSet<String>,
}

impl Index {
    /// Reads the lists in `/lib/modules/VERSION`.
    pub(crate) fn read(dir: &Path) -> io::Result<Self> {
        let dep = std::fs::read_to_string(dir.join("modules.dep"))?;
        let other = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap_or_default();
        Ok(Self::parse(
            dir,
            &dep,
            &other("modules.alias"),
            &other("modules.softdep"),
            &other("modules.builtin"),
        ))
    }

    fn parse(dir: &Path, dep: &str, alias: &str, softdep: &str, builtin: &str) -> Self {
        let mut index = Self {
            built_in: builtin.lines().map(name_of).collect(),
            ..Self::default()
        };
        for (path, needs) in dep.lines().filter_map(|line| line.split_once(':')) {
            let needs = needs.split_whitespace().map(name_of).collect();
            index.modules.insert(
                name_of(path),
                Module {
                    path: dir.join(path),
                    needs,
                },
            );
        }
        for line in alias.lines() {
            let mut words = line.split_whitespace();
            if let (Some("alias"), Some(pattern), Some(module)) =
                (words.next(), words.next(), words.next())
            {
                index
                    .aliases
                    .entry(group(pattern))
                    .or_default()
                    .push((pattern.to_owned(), canonical(module)));
            }
        }
        for line in softdep.lines() {
            let mut words = line.split_whitespace();
            let (Some("softdep"), Some(module)) = (words.next(), words.next()) else {
                continue;
            };
            let soft = index.soft.entry(canonical(module)).or_default();
            let mut after = false;
            for word in words {
                match word {
                    "pre:" => after = false,
                    "post:" => after = true,
                    name if after => soft.after.push(name.to_owned()),
                    name => soft.before.push(name.to_owned()),
                }
            }
        }
        index
    }

    /// Whether the kernel has it without a module.
    pub(crate) fn is_built_in(&self, name: &str) -> bool {
        self.built_in.contains(&canonical(name))
    }

    /// The modules a name or a device's alias stands for.
    pub(crate) fn resolve(&self, alias: &str) -> Vec<String> {
        let name = canonical(alias);
        if self.modules.contains_key(&name) {
            return vec![name];
        }
        // Patterns like `acpi*:X:*` have a star before the colon and stand in a group of their own.
        let groups = [group(alias), String::from("*")];
        let mut found = Vec::new();
        for (pattern, module) in groups
            .iter()
            .filter_map(|key| self.aliases.get(key))
            .flatten()
        {
            if !found.contains(module)
                && (glob::matches(pattern, alias) || glob::matches(&canonical(pattern), &name))
            {
                found.push(module.clone());
            }
        }
        found
    }

    /// What to load, in order, for this module to work: with its file each.
    pub(crate) fn load_order(&self, module: &str) -> Vec<(String, PathBuf)> {
        let (mut order, mut visited) = (Vec::new(), BTreeSet::new());
        self.visit(module, &mut order, &mut visited);
        order
    }

    fn visit(
        &self,
        module: &str,
        order: &mut Vec<(String, PathBuf)>,
        visited: &mut BTreeSet<String>,
    ) {
        let Some(entry) = self.modules.get(module) else {
            return;
        };
        if !visited.insert(module.to_owned()) {
            return;
        }
        let soft = self.soft.get(module);
        for name in soft
            .iter()
            .flat_map(|soft| &soft.before)
            .flat_map(|alias| self.resolve(alias))
        {
            self.visit(&name, order, visited);
        }
        for name in entry.needs.iter().rev() {
            self.visit(name, order, visited);
        }
        order.push((module.to_owned(), entry.path.clone()));
        for name in soft
            .iter()
            .flat_map(|soft| &soft.after)
            .flat_map(|alias| self.resolve(alias))
        {
            self.visit(&name, order, visited);
        }
    }
}

/// The part of an alias before its first colon; names without one are a group, and so are patterns with a wildcard there.
fn group(alias: &str) -> String {
    match alias.split_once(':') {
        Some((group, _)) if group.contains(['*', '?', '[']) => "*".to_owned(),
        Some((group, _)) => group.to_owned(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index() -> Index {
        Index::parse(
            Path::new("/m"),
            "kernel/a/kvm-amd.ko: kernel/a/kvm.ko kernel/a/irqbypass.ko kernel/a/ccp.ko\nkernel/a/kvm.ko: kernel/a/irqbypass.ko\nkernel/a/irqbypass.ko:\nkernel/a/ccp.ko:\n\
             kernel/f/ext4.ko: kernel/f/jbd2.ko\nkernel/f/jbd2.ko:\nkernel/c/crc32c_generic.ko:\nkernel/c/crc32c-intel.ko:\nkernel/n/e1000e.ko:\nkernel/b/button.ko:\n\
             kernel/x/one.ko:\nkernel/x/two.ko:\n",
            "# Aliases\nalias pci:v00008086d000010D3sv*sd*bc*sc*i* e1000e\nalias fs-ext4 ext4\nalias crypto-crc32c crc32c_intel\nalias crypto-crc32c crc32c_generic\nalias acpi*:PNP0C0C:* button\n",
            "softdep ext4 pre: crypto-crc32c\nsoftdep one post: two\nsoftdep two post: one\n",
            "kernel/drivers/tty/serial/8250/8250.ko\n",
        )
    }

    fn names(order: &[(String, PathBuf)]) -> Vec<&str> {
        order.iter().map(|(name, _)| name.as_str()).collect()
    }

    #[test]
    fn what_a_module_needs_comes_before_it() {
        let order = index().load_order("kvm_amd");
        assert_eq!(names(&order), ["ccp", "irqbypass", "kvm", "kvm_amd"]);
        assert_eq!(order[3].1, Path::new("/m/kernel/a/kvm-amd.ko"));
    }

    #[test]
    fn soft_dependencies_are_looked_up_as_aliases() {
        assert_eq!(
            names(&index().load_order("ext4")),
            ["crc32c_intel", "crc32c_generic", "jbd2", "ext4"]
        );
    }

    #[test]
    fn circles_end() {
        assert_eq!(names(&index().load_order("one")), ["one", "two"]);
    }

    #[test]
    fn names_and_aliases_resolve() {
        let index = index();
        assert_eq!(index.resolve("kvm-amd"), ["kvm_amd"]);
        assert_eq!(
            index.resolve("pci:v00008086d000010D3sv00008086sd00000000bc02sc00i00"),
            ["e1000e"]
        );
        assert_eq!(index.resolve("acpi:PNP0C0C:"), ["button"]);
        assert_eq!(index.resolve("fs-ext4"), ["ext4"]);
        assert!(index.resolve("usb:v1234").is_empty());
        assert!(index.is_built_in("8250"));
    }

    #[test]
    fn damaged_lists_bring_fewer_modules_and_no_panic() {
        let index = Index::parse(
            Path::new("/m"),
            "no colon\n:\n",
            "alias x\nalias\n",
            "softdep\n",
            "",
        );
        assert!(index.resolve("x").is_empty());
    }
}
