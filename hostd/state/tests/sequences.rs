//! Any sequence of commands keeps the invariants; a refused command changes nothing; changes tell all that changed.

#[path = "common/any.rs"]
mod any;
mod common;

use std::collections::{BTreeMap, BTreeSet};

use api::events::{ChangeOp, Noun};
use hostd_state::{State, snapshot};
use proptest::prelude::*;
use uuid::Uuid;

use common::World;

/// Every object as the API shows it.
fn views(state: &State) -> BTreeMap<(Noun, Uuid), String> {
    let mut all = BTreeMap::new();
    let mut put = |noun, id, view: String| all.insert((noun, id), view);
    for r in state.vms() {
        // What may be done also depends on what else there is; it is asked for, not announced.
        let mut view = state.vm_view(r);
        view.can.clear();
        put(Noun::Vm, r.id.0, format!("{view:?}"));
    }
    for r in state.volumes() {
        put(Noun::Volume, r.id.0, format!("{:?}", state.volume_view(r)));
    }
    for r in state.networks() {
        put(
            Noun::Network,
            r.id.0,
            format!("{:?}", state.network_view(r)),
        );
    }
    for r in state.images() {
        put(Noun::Image, r.id.0, format!("{:?}", state.image_view(r)));
    }
    for r in state.hosts() {
        put(Noun::Host, r.id.0, format!("{:?}", state.host_view(r)));
    }
    for r in state.users() {
        put(Noun::User, r.id.0, format!("{r:?}"));
    }
    for r in state.tokens() {
        put(Noun::Token, r.id.0, format!("{r:?}"));
    }
    for r in state.tasks() {
        put(Noun::Task, r.id.0, format!("{r:?}"));
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_keeps_the_invariants(sequence in any::sequence()) {
        let mut world = World::default();
        for (meta, command) in sequence {
            let before = views(&world.state);
            let command = any::at(&world.state, command);
            // Checks the invariants, and that a refusal changes nothing.
            let applied = world.apply_with(meta, command.clone());
            let after = views(&world.state);
            let Ok(applied) = applied else { continue };
            let mut different = BTreeSet::new();
            for key in before.keys().chain(after.keys()) {
                if before.get(key) != after.get(key) {
                    different.insert(*key);
                }
            }
            let mut told = BTreeSet::new();
            for change in &applied.changes {
                prop_assert_eq!(change.revision, world.state.revision());
                let there = after.contains_key(&(change.noun, change.id));
                if change.noun != Noun::Audit {
                    prop_assert_eq!(there, change.op == ChangeOp::Put, "{:?}", change);
                }
                prop_assert!(told.insert((change.noun, change.id)), "told twice: {:?}", change);
            }
            let silent: Vec<_> = different.difference(&told).collect();
            prop_assert!(silent.is_empty(), "{:?} changed {:?} silently", command, silent);
        }
    }

    #[test]
    fn a_snapshot_read_back_is_the_state_and_goes_on_as_it_would_have(
        sequence in any::sequence(),
        cut in 0usize..120,
    ) {
        let mut straight = State::default();
        let mut restored = State::default();
        for (at, (meta, command)) in sequence.into_iter().enumerate() {
            if at == cut {
                let bytes = snapshot::encode(&restored).unwrap();
                restored = snapshot::decode(&bytes).unwrap();
                prop_assert_eq!(&restored, &straight);
            }
            let revision = straight.revision() + 1;
            let command = any::at(&straight, command);
            let one = straight.apply(revision, &meta, &command);
            let other = restored.apply(revision, &meta, &command);
            prop_assert_eq!(one, other);
        }
        prop_assert_eq!(snapshot::encode(&restored).unwrap(), snapshot::encode(&straight).unwrap());
    }
}

/// A property that is only ever tried on refusals says nothing.
#[test]
fn the_sequences_reach_every_phase() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut reached: BTreeMap<String, u32> = BTreeMap::new();
    let (mut carried_out, mut refused) = (0u32, 0u32);
    for _ in 0..200 {
        let sequence = any::sequence().new_tree(&mut runner).unwrap().current();
        let mut state = State::default();
        for (meta, command) in sequence {
            let command = any::at(&state, command);
            match state.apply(state.revision() + 1, &meta, &command) {
                Ok(_) => carried_out += 1,
                Err(_) => refused += 1,
            }
            for vm in state.vms() {
                *reached.entry(format!("vm {:?}", vm.phase)).or_default() += 1;
                if vm.restart_after_stop {
                    *reached.entry("vm reboots".into()).or_default() += 1;
                }
                if vm.generation > 1 {
                    *reached.entry("vm was up before".into()).or_default() += 1;
                }
            }
            for volume in state.volumes() {
                let used = state.volume_view(volume).attached_to.is_some();
                let key = format!("volume {:?}, attached {used}", volume.phase);
                *reached.entry(key).or_default() += 1;
            }
        }
    }
    for key in [
        "vm Stopped",
        "vm Starting",
        "vm Running",
        "vm Paused",
        "vm Stopping",
        "vm Failed",
        "vm Deleting",
        "vm reboots",
        "vm was up before",
        "volume Ready, attached true",
        "volume Deleting, attached false",
    ] {
        assert!(
            reached.contains_key(key),
            "never reached: {key} of {reached:?}"
        );
    }
    assert!(
        carried_out > refused / 4,
        "{carried_out} carried out, {refused} refused"
    );
}
