//! `image`: the command line of the image builder.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use image::archive::Compression;
use image::base::Base;
use image::base::update::{self, Sources};
use image::paths::Paths;
use image::rootfs::{self, Recipe};
use image::{disk, guest, iso, manifest, pxe, uki};

/// Builds limiquantix's images into dist/.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    how: How,
}

#[derive(Args)]
struct How {
    /// The version the image carries; the boot loader orders slots by it.
    #[arg(long, global = true, env = "LQX_VERSION", default_value = env!("CARGO_PKG_VERSION"))]
    image_version: String,
    /// Use a prepared folder {vmlinuz, root/, os-release, linuxx64.efi.stub, systemd-bootx64.efi} instead of Debian's packages.
    #[arg(long, global = true, value_name = "DIR")]
    base: Option<PathBuf>,
    /// How the initramfs is compressed.
    #[arg(long, global = true, value_enum, default_value = "lz4")]
    compression: Compression,
    /// The folder with `hostd` and `init`, if not cargo's release folder.
    #[arg(long, global = true, value_name = "DIR")]
    binaries: Option<PathBuf>,
    /// Where to put what is built, if not dist/.
    #[arg(long, global = true, value_name = "DIR")]
    dist: Option<PathBuf>,
}

#[derive(Subcommand)]
enum What {
    /// The kernel and initramfs for direct boots.
    Rootfs,
    /// The UKI: the whole operating system in one file.
    Uki,
    /// The installer medium.
    Iso,
    /// An installed disk.
    Disk,
    /// The files for network boot.
    Pxe,
    /// The demonstration guest.
    Guest,
    /// Everything.
    All,
    /// Look up current package versions and rewrite image/base/debian.lock.
    BaseUpdate {
        /// Also take versions from the security and updates archives; they leave the mirrors sooner.
        #[arg(long)]
        with_security: bool,
    },
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let mut paths = Paths::find()?;
    if let Some(dir) = cli.how.binaries {
        paths.binaries = std::path::absolute(dir)?;
    }
    if let Some(dir) = cli.how.dist {
        paths.dist = std::path::absolute(dir)?;
    }
    let recipe = Recipe {
        version: cli.how.image_version,
        compression: cli.how.compression,
    };
    let base = cli.how.base.map_or(Base::Debian, Base::Directory);
    match cli.what {
        What::Guest => guest::build(&paths),
        What::BaseUpdate { with_security } => {
            let sources = if with_security {
                Sources::WithSecurity
            } else {
                Sources::PointReleases
            };
            let lock = update::update(&paths, sources)?;
            for package in &lock.packages {
                println!("{} {}", package.name, package.version);
            }
            Ok(())
        }
        What::Rootfs | What::Uki | What::Iso | What::Disk | What::Pxe | What::All => {
            media(&cli.what, &paths, &base, &recipe)
        }
    }
}

/// The chain from base to media, as far as asked for; the manifest tells about all there is in the end.
fn media(what: &What, paths: &Paths, base: &Base, recipe: &Recipe) -> Result<()> {
    let all = matches!(what, What::All);
    let base = base.prepare(paths)?;
    let rootfs = rootfs::build(paths, &base, recipe)?;
    if !matches!(what, What::Rootfs) {
        let uki = uki::build(paths, &base, &rootfs, recipe)?;
        if all || matches!(what, What::Iso) {
            iso::build(paths, &uki)?;
        }
        if all || matches!(what, What::Disk) {
            disk::build(paths, &base, &uki, &recipe.version)?;
        }
        if all || matches!(what, What::Pxe) {
            pxe::build(paths, &rootfs, &uki, recipe)?;
        }
    }
    if all {
        guest::build(paths)?;
    }
    manifest::write(paths, &base, recipe)
}
