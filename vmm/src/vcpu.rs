//! A vCPU's thread and its exits.
