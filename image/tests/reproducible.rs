//! Two builds from the same inputs, into two folders at two times: one hash.

use std::fs;
use std::path::Path;

use image::archive::Compression;
use image::base::Base;
use image::paths::Paths;
use image::rootfs::{self, Recipe};
use image::{digest, iso, uki};

/// Builds UKI and ISO into `dist`; any static program serves as `hostd` and `init`.
fn build(paths: &Paths, dist: &Path) -> anyhow::Result<[String; 2]> {
    let paths = Paths {
        dist: dist.to_owned(),
        ..paths.clone()
    };
    let recipe = Recipe {
        version: "1.2.3".into(),
        compression: Compression::Lz4,
    };
    let base = Base::Debian.prepare(&paths)?;
    let rootfs = rootfs::build(&paths, &base, &recipe)?;
    let uki = uki::build(&paths, &base, &rootfs, &recipe)?;
    let osrel = String::from_utf8(uki::section(&fs::read(&uki)?, ".osrel")?)?;
    assert!(
        osrel.contains("ID=limiquantix\n") && osrel.contains("VERSION_ID=1.2.3\n"),
        "{osrel}"
    );
    let iso = iso::build(&paths, &uki)?;
    Ok([digest::of_file(&uki)?, digest::of_file(&iso)?])
}

#[test]
fn the_same_inputs_give_the_same_uki_and_iso() {
    let repo = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let work = tempfile::tempdir().unwrap();
    let binaries = work.path().join("binaries");
    fs::create_dir(&binaries).unwrap();
    for name in ["hostd", "init"] {
        fs::copy(std::env::current_exe().unwrap(), binaries.join(name)).unwrap();
    }
    let paths = Paths {
        binaries,
        ..Paths::new(repo)
    };
    if let Err(reason) = Base::Debian.prepare(&paths) {
        println!("skipped: the Debian base cannot be had here: {reason:#}");
        return;
    }
    let one = build(&paths, &work.path().join("one")).unwrap();
    // Times inside file systems and archives have a resolution of up to two seconds.
    std::thread::sleep(std::time::Duration::from_millis(2100));
    let two = build(&paths, &work.path().join("two")).unwrap();
    assert_eq!(one, two);
}
