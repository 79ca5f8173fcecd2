//! Images against a model, against `qemu-img`, and through losses of power.
//!
//! Each sector that is written gets a number of its own, so what is found after a loss of power can be told apart.
//! `LQX_QCOW2_ROUNDS` says how many random sequences there are for each kind of image.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::crash::{Dice, Medium, empty_image};
use super::image::{Image, Source};
use super::pieces::Pieces;
use super::storage::FileStorage;
use super::*;

const SECTOR: u64 = 512;
/// Of the disk. Not a multiple of any large cluster.
const SIZE: u64 = (1 << 20) + 3 * SECTOR;
const SECTORS: u64 = SIZE / SECTOR;

fn rounds(default: u64) -> u64 {
    let asked = std::env::var("LQX_QCOW2_ROUNDS").ok();
    asked.and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// `qemu-img`, or nothing and the reason to skip.
fn qemu_img(args: &[&str]) -> Option<Output> {
    match Command::new("qemu-img").args(args).output() {
        Ok(output) => Some(output),
        Err(error) => {
            println!("skipped: qemu-img does not run: {error}");
            None
        }
    }
}

fn qemu_img_does(args: &[&str]) -> Option<()> {
    let output = qemu_img(args)?;
    assert!(output.status.success(), "{args:?}: {output:?}");
    Some(())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn put(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// Panics if there is corruption, or space is lost where it must not be.
    fn check(&self, content: &[u8], leaks: bool, what: &str) {
        let path = self.put("check.qcow2", content);
        let Some(output) = qemu_img(&["check", "-f", "qcow2", text(&path)]) else {
            return;
        };
        let code = output.status.code();
        let good = code == Some(0) || leaks && code == Some(3);
        assert!(good, "{what}: {output:?}");
    }
}

/// What a sector holds that was written as number `id`; 0 is zeroes.
fn sector(id: u32) -> [u8; 512] {
    let mut bytes = [0; 512];
    for word in bytes.as_chunks_mut::<4>().0 {
        *word = id.to_le_bytes();
    }
    bytes
}

fn id_of(bytes: &[u8]) -> u32 {
    let id = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    assert_eq!(bytes, sector(id), "a torn sector");
    id
}

fn read(image: &mut Image, at: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0xee; len as usize];
    Pieces::over(&mut bytes, |pieces| image.read(at, pieces)).unwrap();
    bytes
}

/// What a disk holds, and what it may hold after a loss of power.
#[derive(Clone)]
struct Model {
    now: Vec<u32>,
    possible: Vec<Vec<u32>>,
    next: u32,
}

impl Model {
    fn new(now: Vec<u32>) -> Self {
        Self {
            possible: now.iter().map(|id| vec![*id]).collect(),
            now,
            next: 1,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        self.now.iter().flat_map(|id| sector(*id)).collect()
    }

    fn flushed(&mut self) {
        self.possible = self.now.iter().map(|id| vec![*id]).collect();
    }

    fn set(&mut self, at: u64, id: u32) {
        self.now[at as usize] = id;
        self.possible[at as usize].push(id);
    }
}

/// One random request, to both. False once the image refuses, which it may only when the power is gone.
fn step(image: &mut Image, model: &mut Model, dice: &mut Dice) -> bool {
    let at = dice.roll(SECTORS);
    let longest = [8, 8, 40, 400][dice.roll(4) as usize];
    let count = (1 + dice.roll(longest)).min(SECTORS - at);
    let (offset, len) = (at * SECTOR, count * SECTOR);
    match dice.roll(16) {
        0..=6 => {
            let first = model.next;
            model.next += count as u32;
            let ids = first..model.next;
            let mut bytes: Vec<u8> = ids.clone().flat_map(sector).collect();
            let written = image.write_own(offset, &mut bytes).is_ok();
            for (at, id) in (at..).zip(ids) {
                model.set(at, id);
            }
            written
        }
        7..=9 => {
            let expected: Vec<u8> = (at..at + count)
                .flat_map(|at| sector(model.now[at as usize]))
                .collect();
            assert_eq!(
                read(image, offset, len),
                expected,
                "{count} sectors at {at}"
            );
            true
        }
        10..=11 => {
            let done = image.commit().is_ok();
            if done {
                model.flushed();
            }
            done
        }
        12..=13 => {
            let done = image.discard(offset, len).is_ok();
            let mut found = vec![0; len as usize];
            Pieces::over(&mut found, |pieces| image.read(offset, pieces)).unwrap();
            for (at, found) in (at..).zip(found.chunks(512)) {
                let id = id_of(found);
                assert!(id == 0 || id == model.now[at as usize], "sector {at}: {id}");
                model.set(at, 0);
                model.now[at as usize] = id;
            }
            done
        }
        _ => {
            let done = image.write_zeroes(offset, len, dice.roll(2) == 0).is_ok();
            for at in at..at + count {
                if done {
                    model.set(at, 0);
                } else {
                    model.possible[at as usize].push(0);
                }
            }
            done
        }
    }
}

/// A kind of image: options for `qemu-img create`, and whether it lies over another one.
struct Kind {
    options: &'static str,
    over: bool,
}

const KINDS: [Kind; 7] = [
    Kind {
        options: "compat=1.1,cluster_size=65536",
        over: false,
    },
    Kind {
        options: "compat=1.1,cluster_size=512,refcount_bits=1",
        over: false,
    },
    Kind {
        options: "compat=1.1,cluster_size=4096,refcount_bits=64",
        over: true,
    },
    Kind {
        options: "compat=0.10,cluster_size=4096",
        over: true,
    },
    Kind {
        options: "compat=0.10,cluster_size=1024",
        over: false,
    },
    Kind {
        options: "compat=1.1,cluster_size=2M,lazy_refcounts=off",
        over: true,
    },
    Kind {
        options: "compat=1.1,cluster_size=8192,refcount_bits=2,preallocation=metadata",
        over: false,
    },
];

/// A base shorter than the overlay: beyond it is zero.
const BASE_SECTORS: u64 = SECTORS - 300;

fn base_ids() -> Vec<u32> {
    let mut ids: Vec<u32> = (0..BASE_SECTORS as u32)
        .map(|at| 0x1000_0000 + at)
        .collect();
    ids.resize(SECTORS as usize, 0);
    ids
}

/// The image's content, its model, and what is below.
struct Made {
    content: Vec<u8>,
    model: Model,
    base: Option<PathBuf>,
}

impl Made {
    fn new(folder: &Folder, kind: &Kind) -> Option<Self> {
        let path = folder.path("new.qcow2");
        let size = SIZE.to_string();
        let mut args = vec!["create", "-f", "qcow2", "-o", kind.options];
        let ids = base_ids();
        let base_bytes: Vec<u8> = ids[..BASE_SECTORS as usize]
            .iter()
            .flat_map(|id| sector(*id))
            .collect();
        let base = kind.over.then(|| folder.put("base.raw", &base_bytes));
        if let Some(base) = &base {
            args.extend(["-b", text(base), "-F", "raw"]);
        }
        args.extend([text(&path), &size]);
        qemu_img_does(&args)?;
        let content = std::fs::read(&path).unwrap();
        let model = Model::new(if kind.over {
            ids
        } else {
            vec![0; SECTORS as usize]
        });
        Some(Self {
            content,
            model,
            base,
        })
    }

    fn open(&self, medium: &Medium) -> Image {
        let below = self.base.as_ref().map(|base| {
            let file = RawFile::new(File::open(base).unwrap().into(), Access::ReadOnly).unwrap();
            Box::new(FileStorage::new(file)) as Box<dyn Source>
        });
        Image::open(Box::new(medium.clone()), Access::ReadWrite, below, 0).unwrap()
    }
}

#[test]
fn random_requests_leave_an_image_that_qemu_img_finds_good_and_equal() {
    for (number, kind) in KINDS.iter().enumerate() {
        for seed in 0..rounds(3) {
            let folder = Folder::new();
            let Some(Made {
                content,
                mut model,
                base,
            }) = Made::new(&folder, kind)
            else {
                return;
            };
            let made = Made {
                content: vec![],
                model: model.clone(),
                base,
            };
            let medium = Medium::new(content);
            let mut dice = Dice::new(seed * 16 + number as u64);
            let mut image = made.open(&medium);
            for _ in 0..150 {
                assert!(
                    step(&mut image, &mut model, &mut dice),
                    "{} seed {seed}",
                    kind.options
                );
            }
            image.commit().unwrap();
            // What was freed last is lost only until the next flush.
            image.commit().unwrap();
            assert_eq!(read(&mut image, 0, SIZE), model.bytes(), "{}", kind.options);
            drop(image);
            let content = medium.content();
            folder.check(&content, false, kind.options);
            let path = folder.put("done.qcow2", &content);
            let raw = folder.put("model.raw", &model.bytes());
            qemu_img_does(&[
                "compare",
                "-f",
                "qcow2",
                "-F",
                "raw",
                text(&path),
                text(&raw),
            ]);
            assert_eq!(
                read(&mut made.open(&Medium::new(content)), 0, SIZE),
                model.bytes()
            );
        }
    }
}

#[test]
fn whatever_power_takes_the_image_is_consistent_and_holds_what_was_flushed() {
    for (number, kind) in KINDS.iter().enumerate() {
        for seed in 0..rounds(8) {
            let folder = Folder::new();
            let Some(made) = Made::new(&folder, kind) else {
                return;
            };
            let what = format!("{} seed {seed}", kind.options);
            let mut dice = Dice::new(0x1_0000 + seed * 16 + number as u64);
            let mut content = made.content.clone();
            let mut model = made.model.clone();
            // Losing power several times: the image is used on as it was found.
            for life in 0..3 {
                let medium = Medium::new(content);
                let mut image = made.open(&medium);
                medium.fail_after(dice.roll(300));
                for _ in 0..60 {
                    if !step(&mut image, &mut model, &mut dice) {
                        break;
                    }
                }
                content = medium.after_power_loss(&mut dice);
                // The end of `image` must not write: the power is gone.
                medium.fail_after(0);
                drop(image);
                folder.check(&content, true, &format!("{what} life {life}"));
                let found = read(&mut made.open(&Medium::new(content.clone())), 0, SIZE);
                for (at, found) in found.chunks(512).enumerate() {
                    let id = id_of(found);
                    let possible = &model.possible[at];
                    assert!(
                        possible.contains(&id),
                        "{what} life {life}: sector {at} is {id}, not of {possible:?}"
                    );
                    model.now[at] = id;
                }
                model.flushed();
            }
        }
    }
}

/// A model that never notices is none: the same test has to fail for a medium that lies about flushes.
#[test]
fn a_flush_that_does_nothing_is_found_out() {
    let medium = Medium::new(empty_image(12, SIZE, 4));
    let mut image = Image::open(Box::new(medium.clone()), Access::ReadWrite, None, 0).unwrap();
    image.write_own(0, &mut sector(7)).unwrap();
    let calls = medium.calls();
    let mut dice = Dice::new(1);
    let before = medium.after_power_loss(&mut dice);
    let mut found = Image::open(Box::new(Medium::new(before)), Access::ReadOnly, None, 0).unwrap();
    assert_eq!(
        id_of(&read(&mut found, 0, SECTOR)),
        0,
        "not flushed, not there"
    );
    image.commit().unwrap();
    assert!(medium.calls() > calls);
    let after = medium.after_power_loss(&mut dice);
    let mut found = Image::open(Box::new(Medium::new(after)), Access::ReadOnly, None, 0).unwrap();
    assert_eq!(id_of(&read(&mut found, 0, SECTOR)), 7);
}

#[test]
fn a_refcount_table_that_is_full_is_replaced() {
    // 512-byte clusters with 64-bit counts: a block counts 64 clusters, a table of one cluster 2 MiB.
    for order in [6, 4] {
        let size = 24 << 20;
        let folder = Folder::new();
        let medium = Medium::new(empty_image(9, size, order));
        let mut image = Image::open(Box::new(medium.clone()), Access::ReadWrite, None, 0).unwrap();
        for round in 0..12_u64 {
            image
                .write_own(round << 21, &mut vec![round as u8 + 1; 1 << 20])
                .unwrap();
        }
        image.commit().unwrap();
        for round in 0..12_u64 {
            let there = read(&mut image, round << 21, (1 << 20) + 1);
            assert!(there[..1 << 20].iter().all(|byte| *byte == round as u8 + 1));
            assert_eq!(there[1 << 20], 0);
        }
        drop(image);
        folder.check(&medium.content(), false, "grown");
    }
}

#[test]
fn images_of_every_kind_that_qemu_img_makes_are_read_right() {
    let folder = Folder::new();
    let mut dice = Dice::new(5);
    // Runs of zeroes, of repetition and of noise, so that all kinds of compressed blocks appear.
    let mut bytes = Vec::new();
    while bytes.len() < SIZE as usize {
        let run = 512 * (1 + dice.roll(200)) as usize;
        match dice.roll(3) {
            0 => bytes.extend(vec![0; run]),
            1 => bytes.extend((0..run).map(|at| (at / 7) as u8)),
            _ => bytes.extend((0..run).map(|_| dice.roll(256) as u8)),
        }
    }
    bytes.truncate(SIZE as usize);
    let raw = folder.put("source.raw", &bytes);
    for (compress, options) in [
        (false, "compat=1.1"),
        (false, "compat=0.10,cluster_size=512"),
        (
            false,
            "compat=1.1,refcount_bits=8,cluster_size=1M,lazy_refcounts=on",
        ),
        (true, "compat=1.1"),
        (true, "compat=0.10,cluster_size=4096"),
        (true, "compat=1.1,cluster_size=512"),
        (true, "compat=1.1,cluster_size=2M"),
    ] {
        let path = folder.path("made.qcow2");
        let mut args = vec!["convert", "-f", "raw", "-O", "qcow2", "-o", options];
        args.extend(compress.then_some("-c"));
        args.extend([text(&raw), text(&path)]);
        if qemu_img_does(&args).is_none() {
            return;
        }
        let medium = Medium::new(std::fs::read(&path).unwrap());
        let mut image = Image::open(Box::new(medium.clone()), Access::ReadWrite, None, 0).unwrap();
        assert!(read(&mut image, 0, SIZE) == bytes, "{options}");
        // Writing over compressed clusters unpacks them, and frees what they took.
        let mut now = bytes.clone();
        for _ in 0..40 {
            let at = dice.roll(SIZE - 9000) as usize / 512 * 512;
            let len = 512 * (1 + dice.roll(16)) as usize;
            now[at..at + len].fill(0x5a);
            image.write_own(at as u64, &mut vec![0x5a; len]).unwrap();
        }
        assert!(read(&mut image, 0, SIZE) == now, "{options}");
        image.commit().unwrap();
        image.commit().unwrap();
        drop(image);
        folder.check(&medium.content(), false, options);
    }
}

#[test]
fn snapshots_inside_an_image_keep_what_they_hold() {
    let folder = Folder::new();
    let path = folder.path("snap.qcow2");
    let size = SIZE.to_string();
    let create = [
        "create",
        "-f",
        "qcow2",
        "-o",
        "cluster_size=4096",
        text(&path),
        &size,
    ];
    if qemu_img_does(&create).is_none() {
        return;
    }
    let open = |medium: &Medium| {
        Image::open(Box::new(medium.clone()), Access::ReadWrite, None, 0).unwrap()
    };
    let mut dice = Dice::new(77);
    let mut model = Model::new(vec![0; SECTORS as usize]);
    let mut life = |content: Vec<u8>, model: &mut Model| {
        let medium = Medium::new(content);
        let mut image = open(&medium);
        for _ in 0..80 {
            assert!(step(&mut image, model, &mut dice));
        }
        image.commit().unwrap();
        image.commit().unwrap();
        drop(image);
        medium.content()
    };
    let content = life(std::fs::read(&path).unwrap(), &mut model);
    std::fs::write(&path, content).unwrap();
    qemu_img_does(&["snapshot", "-c", "one", text(&path)]);
    let then = model.bytes();
    let content = life(std::fs::read(&path).unwrap(), &mut model);
    folder.check(&content, false, "with a snapshot");
    std::fs::write(&path, content).unwrap();
    let back = folder.path("one.raw");
    qemu_img_does(&[
        "convert",
        "-l",
        "one",
        "-O",
        "raw",
        text(&path),
        text(&back),
    ]);
    assert!(
        std::fs::read(&back).unwrap() == then,
        "the snapshot changed"
    );
    let raw = folder.put("now.raw", &model.bytes());
    qemu_img_does(&[
        "compare",
        "-f",
        "qcow2",
        "-F",
        "raw",
        text(&path),
        text(&raw),
    ]);
}

#[test]
fn a_chain_is_what_was_given_and_never_what_a_header_names() {
    let folder = Folder::new();
    let (base, middle, top) = (
        folder.path("base.raw"),
        folder.path("middle.qcow2"),
        folder.path("top.qcow2"),
    );
    std::fs::write(&base, vec![0xb5; 1 << 20]).unwrap();
    let over = |below: &Path, format: &str, path: &Path| {
        qemu_img_does(&[
            "create",
            "-f",
            "qcow2",
            "-b",
            text(below),
            "-F",
            format,
            text(path),
        ])
    };
    if over(&base, "raw", &middle).is_none() {
        return;
    }
    over(&middle, "qcow2", &top);
    let fd =
        |path: &Path| OwnedFd::from(File::options().read(true).write(true).open(path).unwrap());
    let open = |below: Vec<(OwnedFd, Format)>| open(fd(&top), Access::ReadWrite, below).map(drop);
    let refused = |below| open(below).unwrap_err().to_string();
    open(vec![(fd(&middle), Format::Qcow2), (fd(&base), Format::Raw)]).unwrap();
    assert!(refused(vec![]).contains("image 0 of the chain has a backing file"));
    assert!(
        refused(vec![(fd(&middle), Format::Qcow2)])
            .contains("image 1 of the chain has a backing file")
    );
    let looped = vec![(fd(&middle), Format::Qcow2), (fd(&top), Format::Qcow2)];
    assert!(refused(looped).contains("twice"));
    let long = (0..CHAIN_MAX).map(|_| (fd(&base), Format::Raw)).collect();
    assert!(refused(long).contains("17 images"));
    let under_raw = vec![(fd(&base), Format::Raw), (fd(&middle), Format::Qcow2)];
    assert!(refused(under_raw).contains("image 2 of the chain has a backing file"));
    let raw_as_image = vec![(fd(&middle), Format::Qcow2), (fd(&base), Format::Qcow2)];
    assert!(refused(raw_as_image).contains("does not hold a qcow2 image"));
    // Nothing is read through a name: the file that the header names is gone.
    std::fs::rename(&base, folder.path("elsewhere")).unwrap();
    let elsewhere = folder.path("elsewhere");
    open(vec![
        (fd(&middle), Format::Qcow2),
        (fd(&elsewhere), Format::Raw),
    ])
    .unwrap();
}

#[test]
fn an_image_that_contradicts_itself_is_marked_and_not_written_to_any_more() {
    let medium = Medium::new(empty_image(12, SIZE, 4));
    let open = |medium: &Medium, access| Image::open(Box::new(medium.clone()), access, None, 0);
    let mut image = open(&medium, Access::ReadWrite).unwrap();
    image.write_own(0, &mut sector(1)).unwrap();
    image.commit().unwrap();
    let l1 = image.header.l1_offset as usize;
    drop(image);
    let mut content = medium.content();
    let mut word = [0; 8];
    word.copy_from_slice(&content[l1..l1 + 8]);
    let l2 = (u64::from_be_bytes(word) & !(1 << 63)) as usize;
    // The second cluster of the disk is said to be where the L1 table is.
    content[l2 + 8..l2 + 16].copy_from_slice(&(l1 as u64 | 1 << 63).to_be_bytes());
    let medium = Medium::new(content);
    let mut image = open(&medium, Access::ReadWrite).unwrap();
    let refused = image.write_own(4096, &mut sector(2)).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "the image is corrupt: a table is mapped as data"
    );
    let refused = image.write_own(8192, &mut sector(2)).unwrap_err();
    assert!(refused.to_string().contains("not written to any more"));
    assert_eq!(
        id_of(&read(&mut image, 0, SECTOR)),
        1,
        "what can be read still is"
    );
    drop(image);
    assert!(matches!(
        open(&medium, Access::ReadWrite),
        Err(OpenQcow2Error::Corrupt)
    ));
    open(&medium, Access::ReadOnly).map(drop).unwrap();
}

#[test]
fn an_image_is_made_larger_as_far_as_its_first_table_goes() {
    let folder = Folder::new();
    let medium = Medium::new(empty_image(9, 1 << 20, 4));
    let mut image = Image::open(Box::new(medium.clone()), Access::ReadWrite, None, 0).unwrap();
    image.write_own(0, &mut sector(1)).unwrap();
    // An L1 table of 32 entries, in a cluster that holds 64; each is for 32 KiB.
    assert!(image.grow((2 << 20) + 1).is_err());
    assert!(image.grow(1 << 19).is_err(), "never smaller");
    image.grow(2 << 20).unwrap();
    image.write_own((2 << 20) - 512, &mut sector(2)).unwrap();
    image.commit().unwrap();
    drop(image);
    folder.check(&medium.content(), false, "larger");
    let mut image = Image::open(Box::new(medium.clone()), Access::ReadOnly, None, 0).unwrap();
    assert_eq!(image.header.size, 2 << 20);
    assert_eq!(id_of(&read(&mut image, 0, 512)), 1);
    assert_eq!(id_of(&read(&mut image, (2 << 20) - 512, 512)), 2);
}
