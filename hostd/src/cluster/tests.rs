//! The log under openraft's own suite, under power cuts at every write, and a cluster of one that restarts.

mod cuts;
mod restarts;
mod suite;
