//! Every format that was ever released still loads. A fixture is never edited: a new format gets a new one.
// A test that cannot go on says so by panicking.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use api::users::Secret;
use common::*;
use hostd_state::snapshot::{self, SnapshotError};
use hostd_state::{Command, State, VmReport, invariants};

/// A state that has something in every table.
fn full() -> State {
    let mut world = World::furnished();
    world.volume(ROOT, "root");
    world.ok(create(
        WEB,
        api::vms::VmCreate {
            disks: vec![disk("root")],
            nics: vec![nic("lan")],
            ..vm_spec("web", 256)
        },
    ));
    world.ok(Command::TokenCreate {
        token: api::ids::TokenId(uuid::Uuid::from_u128(77)),
        kind: api::users::TokenKind::Api,
        name: name("ci"),
        user: ANNA,
        role: api::users::Role::Operator,
        hash: Secret("5e".repeat(32)),
        expires_at: api::units::Millis(u64::MAX),
    });
    let start = world.start(WEB);
    let meta = hostd_state::Meta {
        by: Some(ANNA),
        request: Some(hostd_state::Idempotency {
            key: "key".into(),
            digest: "digest".into(),
        }),
        audit: Some(api::users::AuditRecord {
            id: api::ids::AuditId(uuid::Uuid::from_u128(78)),
            at: world.at,
            who: "anna".into(),
            from: "192.0.2.1".into(),
            action: "vm_start".into(),
            object: "web".into(),
            outcome: String::new(),
            request_id: "r1".into(),
        }),
        ..hostd_state::Meta::host(world.at)
    };
    world.apply_with(meta, start).unwrap();
    world.ok(observed(WEB, 1, VmReport::Running));
    let reboot = world.reboot(WEB);
    world.ok(reboot);
    world.state
}

#[test]
fn format_1_loads_and_is_what_it_was() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/snapshots/format-1.snapshot"
    );
    if std::env::var_os("WRITE_FIXTURE").is_some() {
        std::fs::write(path, snapshot::encode(&full()).unwrap()).unwrap();
    }
    let state = snapshot::decode(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(state, full());
    assert!(invariants::violations(&state).is_empty());
}

/// Entries as they were written before images had a format.
#[test]
fn entries_of_an_older_log_still_mean_the_same() {
    let id = "00000000-0000-0000-0000-000000000001";
    let spec = format!(
        r#"{{"name":"a","kind":"disk","size_bytes":1,"sha256":"{}"}}"#,
        "0f".repeat(32)
    );
    let create = format!(
        r#"{{"command":"image_create","image":"{id}","task":"{id}","host":"{id}","spec":{spec}}}"#
    );
    let Command::ImageCreate { spec, .. } = serde_json::from_str(&create).unwrap() else {
        panic!("another command");
    };
    assert_eq!(spec.format, api::images::ImageFormat::Raw);
    let observed = format!(r#"{{"command":"image_observed","image":"{id}","report":"ready"}}"#);
    let read: Command = serde_json::from_str(&observed).unwrap();
    assert_eq!(serde_json::to_string(&read).unwrap(), observed);
}

/// A field that came within the format: its absence is in the fixture, its presence comes back.
#[test]
fn limits_come_back() {
    let mut world = World::furnished();
    world.volume(ROOT, "root");
    let limits = api::limits::RateLimits {
        bytes_per_second: Some(api::limits::LIMIT_MAX),
        ..Default::default()
    };
    let mut root = disk("root");
    root.limits = limits;
    let mut lan = nic("lan");
    lan.limits.receive = limits;
    let mut spec = vm_spec("web", 256);
    (spec.disks, spec.nics) = (vec![root], vec![lan]);
    world.ok(create(WEB, spec));
    let bytes = snapshot::encode(&world.state).unwrap();
    assert!(snapshot::decode(&bytes).unwrap() == world.state);
    let vm = world.vm(WEB);
    assert_eq!(vm.disks[0].limits, limits);
    assert_eq!(vm.nics[0].limits.receive, limits);
}

#[test]
fn a_damaged_snapshot_is_refused() {
    let good = snapshot::encode(&full()).unwrap();
    // A flipped bit anywhere is noticed.
    for at in (0..good.len()).step_by(97) {
        let mut bad = good.clone();
        bad[at] ^= 1;
        assert!(snapshot::decode(&bad).is_err(), "byte {at}");
    }
    for len in [0, 1, 20, 100, good.len() - 1] {
        assert!(snapshot::decode(&good[..len]).is_err(), "{len} bytes");
    }
    let newer = [b"limiquantix-state 2 00\n{}".as_slice()].concat();
    assert!(matches!(
        snapshot::decode(&newer),
        Err(SnapshotError::TooNew(2))
    ));
}
