//! The checked and laid-out machine.
