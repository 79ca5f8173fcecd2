//! Putting the first program into guest memory.
