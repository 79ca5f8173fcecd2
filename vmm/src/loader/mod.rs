//! Putting the first program into guest memory.

pub mod firmware;
pub mod kernel;
