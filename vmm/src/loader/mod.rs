//! Putting the first program into guest memory.

pub mod kernel;
