//! What is always true.
