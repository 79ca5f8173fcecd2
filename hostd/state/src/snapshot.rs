//! The state as bytes, versioned.
