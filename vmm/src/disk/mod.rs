//! What a disk's bytes rest on.
