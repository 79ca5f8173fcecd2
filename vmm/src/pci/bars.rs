//! Base address registers.
