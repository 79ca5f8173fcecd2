//! From sources to signed media: makes limiquantix's images out of a base system and our programs.
//!
//! Read in the order the data travels: a [`base`] is fetched and checked, becomes a [`tree`], is written as an [`archive`] ([`rootfs`]).
//! Nothing here knows what `hostd` does; nothing here runs anything of what it unpacks.

pub mod archive;
pub mod base;
pub mod digest;
pub mod guest;
pub mod kernel;
pub mod libraries;
pub mod modules;
pub mod paths;
pub mod rootfs;
pub mod tool;
pub mod tree;
