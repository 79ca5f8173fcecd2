//! `api/openapi.json` is what the table says. `UPDATE_EXPECT=1` renews it.

use std::collections::BTreeSet;

use serde_json::Value;

#[test]
fn the_committed_document_is_fresh() {
    expect_test::expect_file!["../openapi.json"].assert_eq(&api::openapi::text());
}

#[test]
fn every_reference_leads_somewhere() {
    let document = api::openapi::document();
    let mut references = BTreeSet::new();
    collect(&document, &mut references);
    assert!(references.len() > 20);
    for reference in references {
        let pointer = reference.strip_prefix('#').expect("only local references");
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
}

fn collect(value: &Value, references: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get("$ref") {
                references.insert(reference.clone());
            }
            map.values().for_each(|v| collect(v, references));
        }
        Value::Array(items) => items.iter().for_each(|v| collect(v, references)),
        _ => {}
    }
}
