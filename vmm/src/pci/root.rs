//! Host bridge and slots.
