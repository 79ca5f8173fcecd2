//! From bytes to a typed, authenticated call, and back.
//!
//! A connection comes in at `server`, a request goes through `dispatch` (who, may they, is it well formed), a handler
//! in `routes` turns it into a question to the state or a command, and the reply goes out. No meaning of its own lives
//! here: what may be done is decided in `hostd-state`, who may do it in `auth`, and nothing here touches the machine
//! but through `hands`.

pub mod server;
pub mod tls;

pub mod call;
pub mod context;
mod dispatch;
pub mod error;
pub mod hands;
mod noun;
mod routes;

mod events;
mod serial;

pub use context::Context;
pub use hands::{ImageStore, InstallerApi, SystemApi, Upload, VmProcesses};
pub use server::{Limits, ServerConfig, serve};
pub use tls::{HostNames, TlsIdentity};
