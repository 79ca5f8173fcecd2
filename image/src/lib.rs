//! From sources to signed media: makes limiquantix's images out of a base system and our programs.
//!
//! Read in the order the data travels: a [`base`] is fetched and checked, becomes a [`tree`], is written as an [`archive`] ([`rootfs`]), joins the kernel in
//! the [`uki`], and that goes onto media: [`iso`], [`disk`], [`pxe`].
//! Nothing here knows what `hostd` does; nothing here runs anything of what it unpacks.

pub mod archive;
pub mod base;
pub mod digest;
pub mod disk;
pub mod fat;
pub mod guest;
pub mod iso;
pub mod kernel;
pub mod layout;
pub mod libraries;
pub mod manifest;
pub mod modules;
pub mod paths;
pub mod pxe;
pub mod rootfs;
pub mod tool;
pub mod tree;
pub mod uki;
