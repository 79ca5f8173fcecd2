//! From bytes to a typed, authenticated call, and back.
//!
//! No meaning of its own lives here: what may be done is decided in `hostd-state`, who may do it in `auth`.

pub mod hands;

pub use hands::{Consoles, ImageStore, InstallerApi, SystemApi, Upload};
