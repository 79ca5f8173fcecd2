//! The initramfs: a tree as a `newc` cpio archive, compressed in a form the kernel unpacks.
//!
//! The same tree gives the same bytes: entries in byte order, inode numbers counted, no owner, no time of day.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use clap::ValueEnum;
use cpio::newc::{Builder, ModeFileType, trailer};

use crate::tool::{run, tool};
use crate::tree::{Node, Tree};

/// How the initramfs is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Compression {
    /// Quick to make and quickest to unpack: for development and CI.
    Lz4,
    /// A third smaller, and slower on both ends: for releases.
    Zstd,
}

/// Writes the uncompressed archive.
pub fn write_cpio(tree: &Tree, mut out: impl Write) -> Result<()> {
    for (number, (path, node)) in tree.iter().enumerate() {
        let entry = Builder::new(path).ino(u32::try_from(number + 1)?).mtime(0);
        let (entry, bytes) = match node {
            Node::Dir(mode) => (
                entry
                    .mode(*mode)
                    .set_mode_file_type(ModeFileType::Directory)
                    .nlink(2),
                Vec::new(),
            ),
            Node::File(mode, content) => (
                entry
                    .mode(*mode)
                    .set_mode_file_type(ModeFileType::Regular)
                    .nlink(1),
                content.read()?,
            ),
            Node::Link(target) => (
                entry
                    .mode(0o777)
                    .set_mode_file_type(ModeFileType::Symlink)
                    .nlink(1),
                target.clone().into_bytes(),
            ),
        };
        let size = u32::try_from(bytes.len())
            .with_context(|| format!("/{path} is larger than a cpio archive can hold"))?;
        let mut writer = entry.write(&mut out, size);
        writer.write_all(&bytes)?;
        writer.finish()?;
    }
    trailer(&mut out)?;
    Ok(())
}

/// Writes the compressed archive to `path`, whole or not at all.
pub fn write(tree: &Tree, compression: Compression, path: &Path) -> Result<()> {
    let dir = path.parent().context("an archive is a file in a folder")?;
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    let work = tempfile::Builder::new()
        .prefix(".archive-")
        .tempdir_in(dir)?;
    let (plain, packed) = (work.path().join("plain"), work.path().join("packed"));
    let mut out = BufWriter::with_capacity(1 << 20, File::create(&plain)?);
    write_cpio(tree, &mut out).context("writing the cpio archive")?;
    out.flush()?;
    drop(out);
    match compression {
        // `-l`: the kernel reads lz4's legacy frames only.
        Compression::Lz4 => run(tool("lz4")
            .args(["-l", "-9", "-q"])
            .arg(&plain)
            .arg(&packed))?,
        Compression::Zstd => run(tool("zstd")
            .args(["-q", "-T1", "-15"])
            .arg(&plain)
            .arg("-o")
            .arg(&packed))?,
    };
    fs::rename(&packed, path).with_context(|| format!("putting {} in place", path.display()))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn the_archive_holds_the_tree_and_is_always_the_same() {
        let mut tree = Tree::default();
        tree.bytes("init", 0o755, "#!").unwrap();
        tree.link("sbin", "usr/sbin").unwrap();
        tree.dir("tmp", 0o1777).unwrap();
        let (mut one, mut two) = (Vec::new(), Vec::new());
        write_cpio(&tree, &mut one).unwrap();
        write_cpio(&tree, &mut two).unwrap();
        assert_eq!(one, two);

        let mut seen = Vec::new();
        let mut input = one.as_slice();
        loop {
            let mut reader = cpio::newc::Reader::new(input).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).unwrap();
            seen.push(format!(
                "{} {:o} {}",
                reader.entry().name(),
                reader.entry().mode(),
                String::from_utf8(bytes).unwrap()
            ));
            input = reader.finish().unwrap();
        }
        assert_eq!(
            seen,
            ["init 100755 #!", "sbin 120777 usr/sbin", "tmp 41777 "]
        );
    }
}
