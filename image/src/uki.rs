//! The UKI: one PE file holding kernel, initramfs, command line and os-release, by appending sections to systemd's EFI stub.
//!
//! ```text
//! stub: headers │ .text .data … .sbat │ .osrel .cmdline .uname .linux .initrd      (Unified Kernel Image, UAPI.5)
//!               └─ the section table has room for ours; nothing of the stub moves
//! ```
//! Done here rather than by objcopy so that the bytes depend on nothing but the inputs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use object::pe::{IMAGE_NT_OPTIONAL_HDR64_MAGIC, ImageNtHeaders64, ImageSectionHeader};
use object::read::pe::{ImageNtHeaders, ImageOptionalHeader, PeFile64};
use object::{LittleEndian as LE, pe};

use crate::base::BaseSystem;
use crate::digest::{Inputs, Stamp};
use crate::paths::Paths;
use crate::rootfs::{self, Recipe, Rootfs};

/// What the kernel is told. Why: both consoles; no chatter on a serial line; a panic restarts, so that boot counting goes on; emulated machines
/// under load fail the timer check; the security modules the jails use.
pub const COMMAND_LINE: &str = "console=tty0 console=ttyS0,115200 loglevel=3 panic=10 no_timer_check lsm=landlock,lockdown,yama";

/// Our sections begin on pages, as the stub's do.
const PAGE: usize = 4096;
const SECTION_HEADER: usize = size_of::<ImageSectionHeader>();
const READ_ONLY_DATA: u32 = pe::IMAGE_SCN_CNT_INITIALIZED_DATA | pe::IMAGE_SCN_MEM_READ;

/// Makes `dist/limiquantix.efi`.
pub fn build(
    paths: &Paths,
    base: &BaseSystem,
    rootfs: &Rootfs,
    recipe: &Recipe,
) -> Result<PathBuf> {
    let out = paths.dist.join("limiquantix.efi");
    let inputs = Inputs::default()
        .value("rootfs", &rootfs.digest)
        .value("command line", COMMAND_LINE)
        .value("version", &recipe.version)
        .file("stub", &base.stub)?
        .file("initrd", &rootfs.initrd)?;
    let stamp = Stamp::new(&paths.dist, "uki", inputs.finish());
    if stamp.is_fresh(&[&out]) {
        println!("uki: up to date");
        return Ok(out);
    }
    let read = |path: &Path| fs::read(path).with_context(|| format!("reading {}", path.display()));
    let sections = [
        (".osrel", rootfs::os_release(&recipe.version).into_bytes()),
        (".cmdline", COMMAND_LINE.as_bytes().to_vec()),
        (".uname", base.kernel_version.clone().into_bytes()),
        (".linux", read(&rootfs.vmlinuz)?),
        (".initrd", read(&rootfs.initrd)?),
    ];
    let uki = assemble(&read(&base.stub)?, &sections)
        .with_context(|| format!("adding sections to {}", base.stub.display()))?;
    fs::write(&out, &uki).with_context(|| format!("writing {}", out.display()))?;
    stamp.write()?;
    println!("uki: {} ({:.1} MB)", out.display(), uki.len() as f64 / 1e6);
    Ok(out)
}

/// Appends `sections` to the PE file `stub`.
pub fn assemble(stub: &[u8], sections: &[(&str, Vec<u8>)]) -> Result<Vec<u8>> {
    let file = PeFile64::parse(stub).context("reading the stub")?;
    let optional = file.nt_headers().optional_header();
    let (file_align, section_align) = (
        optional.file_alignment() as usize,
        optional.section_alignment() as usize,
    );
    if optional.magic() != IMAGE_NT_OPTIONAL_HDR64_MAGIC
        || !file_align.is_power_of_two()
        || !section_align.is_power_of_two()
    {
        bail!("it is not a 64-bit EFI program with usual alignments");
    }
    // The table of sections follows the optional header; what it may grow to is given by the headers' size.
    let nt = u32_at(stub, 0x3c)? as usize;
    let optional_at = nt + 24;
    let table = optional_at
        + usize::from(
            file.nt_headers()
                .file_header()
                .size_of_optional_header
                .get(LE),
        );
    let existing = file.section_table();
    let count = existing.len() + sections.len();
    if table + count * SECTION_HEADER > optional.size_of_headers() as usize {
        bail!(
            "there is no room for {} more sections in its headers",
            sections.len()
        );
    }

    let mut end_of_data = optional.size_of_headers() as usize;
    let mut end_of_image = 0;
    for section in existing.iter() {
        if sections
            .iter()
            .any(|(name, _)| section.raw_name() == name.as_bytes())
        {
            bail!(
                "it already has a section `{}`",
                String::from_utf8_lossy(section.raw_name())
            );
        }
        end_of_data = end_of_data
            .max((section.pointer_to_raw_data.get(LE) + section.size_of_raw_data.get(LE)) as usize);
        end_of_image = end_of_image
            .max((section.virtual_address.get(LE) + section.virtual_size.get(LE)) as usize);
    }

    // What follows the last section is the stub's symbol table, which nobody reads.
    let mut out = stub
        .get(..end_of_data)
        .context("it ends before its last section does")?
        .to_vec();
    for (number, (name, content)) in sections.iter().enumerate() {
        out.resize(out.len().next_multiple_of(file_align), 0);
        let address = end_of_image.next_multiple_of(PAGE.max(section_align));
        let raw_size = content.len().next_multiple_of(file_align);
        let header = SectionHeader {
            name,
            virtual_size: content.len(),
            address,
            raw_size,
            offset: out.len(),
        };
        let at = table + (existing.len() + number) * SECTION_HEADER;
        out[at..at + SECTION_HEADER].copy_from_slice(&header.bytes()?);
        out.extend_from_slice(content);
        end_of_image = address + content.len();
    }
    out.resize(out.len().next_multiple_of(file_align), 0);

    let mut put = |at: usize, value: usize| -> Result<()> {
        out[at..at + 4].copy_from_slice(
            &u32::try_from(value)
                .context("the image is larger than a PE file can be")?
                .to_le_bytes(),
        );
        Ok(())
    };
    put(nt + 12, 0)?; // symbol table: gone
    put(nt + 16, 0)?;
    put(
        optional_at + 56,
        end_of_image.next_multiple_of(section_align),
    )?; // SizeOfImage
    put(optional_at + 64, 0)?; // CheckSum: optional, and no firmware looks
    out[nt + 6..nt + 8].copy_from_slice(&u16::try_from(count)?.to_le_bytes());
    Ok(out)
}

struct SectionHeader<'a> {
    name: &'a str,
    virtual_size: usize,
    address: usize,
    raw_size: usize,
    offset: usize,
}

impl SectionHeader<'_> {
    /// PE format specification, "Section Table".
    fn bytes(&self) -> Result<[u8; SECTION_HEADER]> {
        let mut header = [0; SECTION_HEADER];
        header
            .get_mut(..8)
            .and_then(|field| field.get_mut(..self.name.len()))
            .context("a section's name has 8 letters at most")?
            .copy_from_slice(self.name.as_bytes());
        for (at, value) in [
            (8, self.virtual_size),
            (12, self.address),
            (16, self.raw_size),
            (20, self.offset),
        ] {
            header[at..at + 4].copy_from_slice(
                &u32::try_from(value)
                    .context("the image is larger than a PE file can be")?
                    .to_le_bytes(),
            );
        }
        header[36..40].copy_from_slice(&READ_ONLY_DATA.to_le_bytes());
        Ok(header)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    let field = bytes.get(at..at + 4).context("the file ends too early")?;
    Ok(u32::from_le_bytes(field.try_into()?))
}

/// The content of a section of a UKI, exactly as long as it was put in.
pub fn section(uki: &[u8], name: &str) -> Result<Vec<u8>> {
    let headers = pe::ImageDosHeader::parse(uki)?;
    let mut offset = headers.nt_headers_offset().into();
    let (nt, _) = ImageNtHeaders64::parse(uki, &mut offset)?;
    let sections = nt.sections(uki, offset)?;
    let found = sections
        .iter()
        .find(|section| section.raw_name() == name.as_bytes())
        .with_context(|| format!("there is no section `{name}`"))?;
    let start = found.pointer_to_raw_data.get(LE) as usize;
    Ok(uki
        .get(start..start + found.virtual_size.get(LE) as usize)
        .context("the section lies outside the file")?
        .to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The smallest EFI program with room for more sections: headers up to 0x400, one section of code.
    fn stub() -> Vec<u8> {
        let mut stub = vec![0; 0x600];
        let mut put = |at: usize, bytes: &[u8]| stub[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"MZ");
        put(0x3c, &0x80u32.to_le_bytes());
        put(0x80, b"PE\0\0");
        put(0x84, &pe::IMAGE_FILE_MACHINE_AMD64.to_le_bytes());
        put(0x86, &1u16.to_le_bytes());
        put(0x94, &240u16.to_le_bytes());
        let optional = 0x98;
        put(optional, &IMAGE_NT_OPTIONAL_HDR64_MAGIC.to_le_bytes());
        for (at, value) in [
            (32, 0x200u32),
            (36, 0x200),
            (56, 0x2000),
            (60, 0x400),
            (108, 16),
        ] {
            put(optional + at, &value.to_le_bytes());
        }
        let text = SectionHeader {
            name: ".text",
            virtual_size: 0x20,
            address: 0x1000,
            raw_size: 0x200,
            offset: 0x400,
        };
        put(optional + 240, &text.bytes().unwrap());
        stub
    }

    #[test]
    fn sections_come_back_as_they_were_and_do_not_overlap() {
        let sections = [
            (".osrel", b"ID=limiquantix\n".to_vec()),
            (".linux", vec![7; 10_000]),
            (".initrd", vec![9; 5]),
        ];
        let stub = stub();
        let uki = assemble(&stub, &sections).unwrap();
        for (name, content) in &sections {
            assert_eq!(&section(&uki, name).unwrap(), content, "{name}");
        }
        let file = PeFile64::parse(&*uki).unwrap();
        let mut end = 0;
        for section in file.section_table().iter() {
            assert!(
                section.virtual_address.get(LE) >= end,
                "{section:?} overlaps what is before it"
            );
            end = section.virtual_address.get(LE) + section.virtual_size.get(LE);
        }
        assert!(file.nt_headers().optional_header().size_of_image() >= end);
        assert_eq!(
            uki,
            assemble(&stub, &sections).unwrap(),
            "the same inputs give the same bytes"
        );
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        let stub = stub();
        let twice = assemble(
            &assemble(&stub, &[(".osrel", vec![1])]).unwrap(),
            &[(".osrel", vec![2])],
        );
        assert_eq!(
            twice.unwrap_err().to_string(),
            "it already has a section `.osrel`"
        );
        let many: Vec<_> = (0..200).map(|_| (".x", vec![1])).collect();
        assert!(
            assemble(&stub, &many)
                .unwrap_err()
                .to_string()
                .starts_with("there is no room")
        );
        assert!(assemble(b"MZ", &[]).is_err());
        assert!(assemble(&stub, &[(".toolongname", vec![])]).is_err());
    }
}
