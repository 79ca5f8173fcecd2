//! The API over real connections: TLS and the console's socket, a real cluster of one in a temporary folder, real
//! image files, and fake hands for everything that needs root or KVM.

// Clippy knows tests by their attribute only; what they share may fail loudly too.
#![allow(clippy::unwrap_used, clippy::panic)]

mod lab;
mod raw;

mod images;
mod journey;
mod refusals;
mod signing_in;
mod streams;
mod transport;
mod walk;
