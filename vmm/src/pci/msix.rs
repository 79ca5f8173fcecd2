//! MSI-X vectors.
