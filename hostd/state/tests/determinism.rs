//! Same log, same bytes: two replays agree, also through the log's own encoding.
// A test that cannot go on says so by panicking.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "common/any.rs"]
mod any;
mod common;

use hostd_state::{Command, Meta, State, snapshot};
use proptest::prelude::*;

fn replay(log: &[(Meta, Command)]) -> Vec<u8> {
    let mut state = State::default();
    for (at, (meta, command)) in log.iter().enumerate() {
        let command = any::at(&state, command.clone());
        let _ = state.apply(at as u64 + 1, meta, &command);
    }
    snapshot::encode(&state).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn two_replays_give_the_same_bytes(log in any::sequence()) {
        prop_assert_eq!(replay(&log), replay(&log));
    }

    #[test]
    fn a_command_read_back_from_the_log_does_the_same(log in any::sequence()) {
        let json = serde_json::to_vec(&log).unwrap();
        let read: Vec<(Meta, Command)> = serde_json::from_slice(&json).unwrap();
        prop_assert_eq!(&read, &log);
        prop_assert_eq!(replay(&read), replay(&log));
    }
}
