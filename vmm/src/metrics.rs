//! Counters the parts hold, read by control.
