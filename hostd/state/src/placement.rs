//! Whether a host can take a VM, and if not why.
