//! A base somebody else prepared: a folder with `vmlinuz`, `root/`, `os-release` and the two boot pieces. This is where Buildroot's output
//! comes in: `output/images/bzImage` as `vmlinuz`, the unpacked `rootfs.cpio` as `root/`.

use std::fs;
use std::path::Path;

use anyhow::{Result, bail};

use super::needs::Needs;
use super::{BaseSystem, PackageRecord};
use crate::digest::{self, Inputs};
use crate::kernel;
use crate::modules::Modules;
use crate::tree::{Node, Tree};

/// Reads the folder and checks it.
pub fn prepare(dir: &Path, needs: &Needs) -> Result<BaseSystem> {
    let part = |name: &str| {
        let path = dir.join(name);
        if path.exists() {
            Ok(path)
        } else {
            bail!("the base folder {} has no `{name}`", dir.display())
        }
    };
    let (vmlinuz, root, stub, boot_loader) = (
        part("vmlinuz")?,
        part("root")?,
        part("linuxx64.efi.stub")?,
        part("systemd-bootx64.efi")?,
    );
    let os_release = fs::read_to_string(part("os-release")?)?;
    let kernel_version = kernel::version(&fs::read(&vmlinuz)?)?;

    let mut tree = Tree::default();
    tree.folder(&root)?;
    if tree
        .get("usr/lib/limiquantix/systemd-bootx64.efi")
        .is_none()
    {
        tree.file(
            "usr/lib/limiquantix/systemd-bootx64.efi",
            0o644,
            &boot_loader,
        )?;
    }
    let modules = Modules::read(&root, &kernel_version)?;
    let config = fs::read_to_string(dir.join("config")).ok();
    needs.check(&tree, &modules, config.as_deref())?;

    let mut inputs = Inputs::default()
        .file("vmlinuz", &vmlinuz)?
        .file("stub", &stub)?
        .file("boot loader", &boot_loader)?
        .value("os-release", &os_release);
    for (path, node) in tree.iter() {
        inputs = match node {
            Node::Dir(mode) => inputs.value(path, mode.to_string()),
            Node::File(_, content) => inputs.value(path, digest::of_bytes(&content.read()?)),
            Node::Link(target) => inputs.value(path, target),
        };
    }
    let digest = inputs.finish();
    let packages = vec![PackageRecord {
        name: "directory".into(),
        version: "given".into(),
        sha256: digest.clone(),
    }];
    Ok(BaseSystem {
        kind: "directory",
        vmlinuz,
        kernel_version,
        stub,
        boot_loader,
        tree,
        os_release,
        packages,
        digest,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::Paths;

    #[test]
    fn a_folder_without_a_kernel_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let repo = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let needs = Needs::read(&Paths::new(repo)).unwrap();
        let refused = prepare(dir.path(), &needs).unwrap_err();
        assert!(
            refused.to_string().ends_with("has no `vmlinuz`"),
            "{refused}"
        );
    }
}
