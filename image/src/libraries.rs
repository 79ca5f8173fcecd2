//! The shared libraries that programs in the image need, found by reading the programs: no `ldd`, which would run them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use object::elf::{DT_NEEDED, DT_STRSZ, DT_STRTAB, FileHeader64};
use object::read::elf::{Dyn, FileHeader, ProgramHeader};
use object::{Endianness, StringTable};

use crate::tree::{Content, Node, Tree};

/// Where the dynamic loader of Debian's libc looks.
const IMAGE_DIRS: [&str; 4] = [
    "lib/x86_64-linux-gnu",
    "usr/lib/x86_64-linux-gnu",
    "lib",
    "usr/lib",
];

/// What a program says it needs to start.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Linkage {
    /// The dynamic loader's path, for programs.
    pub interpreter: Option<String>,
    /// Sonames.
    pub needed: Vec<String>,
}

/// Reads the dynamic section of an ELF file. Anything that is not ELF, and static programs, need nothing.
pub fn linkage(bytes: &[u8]) -> Result<Linkage> {
    if !bytes.starts_with(b"\x7fELF") {
        return Ok(Linkage::default());
    }
    let header = FileHeader64::<Endianness>::parse(bytes)?;
    let endian = header.endian()?;
    let segments = header.program_headers(endian, bytes)?;
    let mut linkage = Linkage::default();
    for segment in segments {
        if let Some(interpreter) = segment.interpreter(endian, bytes)? {
            linkage.interpreter = Some(String::from_utf8(interpreter.to_vec())?);
        }
        let Some(dynamic) = segment.dynamic(endian, bytes)? else {
            continue;
        };
        let value = |tag: i64| {
            dynamic
                .iter()
                .find(|d| d.tag32(endian).map(i64::from) == Some(tag))
                .map(|d| d.d_val(endian))
        };
        // DT_STRTAB is an address: the segment it lies in says where it is in the file.
        let (Some(address), Some(size)) = (value(DT_STRTAB), value(DT_STRSZ)) else {
            continue;
        };
        let table = segments
            .iter()
            .find_map(|s| s.data_range(endian, bytes, address, size).ok().flatten())
            .context("the string table is in no segment")?;
        let strings = StringTable::new(table, 0, table.len() as u64);
        for entry in dynamic
            .iter()
            .filter(|d| d.tag32(endian).map(i64::from) == Some(DT_NEEDED))
        {
            let offset = u32::try_from(entry.d_val(endian))?;
            let name = strings.get(offset).map_err(|()| {
                anyhow::anyhow!("a needed library's name lies outside the string table")
            })?;
            linkage.needed.push(String::from_utf8(name.to_vec())?);
        }
    }
    Ok(linkage)
}

/// Adds the libraries of all programs in `tree` from an unpacked `root`, until nothing is missing or found any more.
pub fn add(tree: &mut Tree, root: &Path) -> Result<()> {
    let mut todo: Vec<Content> = Vec::new();
    for (path, node) in tree.iter() {
        if let Node::File(mode, content) = node
            && mode & 0o111 != 0
            && !path.starts_with("lib/modules")
        {
            todo.push(content.clone());
        }
    }
    while let Some(content) = todo.pop() {
        let Linkage {
            interpreter,
            needed,
        } = linkage(&content.read()?)?;
        let interpreter = interpreter.map(|path| path.trim_start_matches('/').to_owned());
        let wanted = interpreter.into_iter().chain(
            needed
                .into_iter()
                .map(|soname| format!("{}/{soname}", IMAGE_DIRS[0])),
        );
        for path in wanted {
            if tree.get(&path).is_some() {
                continue;
            }
            // What the packages lack is named by the check against needs.toml, with the program that needs it.
            if let Some(file) = find(root, &path) {
                tree.file(&path, 0o755, &file)?;
                todo.push(Content::Host(file));
            }
        }
    }
    Ok(())
}

fn find(root: &Path, path: &str) -> Option<PathBuf> {
    let name = path.rsplit('/').next()?;
    let mut dirs = IMAGE_DIRS.to_vec();
    dirs.push("lib64");
    // A package's link may be absolute; resolving it by hand inside `root` is not worth it, as libraries link to their neighbours.
    dirs.iter()
        .map(|dir| root.join(dir).join(name))
        .find(|file| file.is_file())
        .and_then(|file| file.canonicalize().ok())
}

/// The libraries `program` and its libraries need that `tree` does not have.
pub fn unmet(tree: &Tree, program: &str) -> Result<Vec<String>> {
    let (mut unmet, mut seen) = (Vec::new(), BTreeSet::new());
    let mut todo = vec![program.to_owned()];
    while let Some(path) = todo.pop() {
        let Some(Node::File(_, content)) = tree.get(&path) else {
            continue;
        };
        let Linkage {
            interpreter,
            needed,
        } = linkage(&content.read()?).with_context(|| format!("reading /{path}"))?;
        for wanted in interpreter.into_iter().chain(needed) {
            if !seen.insert(wanted.clone()) {
                continue;
            }
            let places: Vec<String> = if wanted.starts_with('/') {
                vec![wanted.clone()]
            } else {
                IMAGE_DIRS
                    .iter()
                    .map(|dir| format!("{dir}/{wanted}"))
                    .collect()
            };
            match places.into_iter().find(|place| tree.get(place).is_some()) {
                Some(place) => todo.push(place),
                None => unmet.push(wanted),
            }
        }
    }
    Ok(unmet)
}
