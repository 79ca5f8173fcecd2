//! The console: what an administrator sees on tty1 and on the serial line, 80×25.
//!
//! One channel of events, one state, one `draw`. It knows nothing that the API does not tell it: it speaks to the
//! daemon over the local socket with the same calls as any other client, and has no privilege of its own beyond
//! the socket's. Read `event`, `state`, then the screens.

pub mod action;
pub mod event;
pub mod keeper;
pub mod keys;
pub mod screens;
pub mod state;
pub mod terminal;

pub use terminal::run;
