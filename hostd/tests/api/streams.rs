//! Events and serial consoles: what goes on after the reply has begun.

use std::time::Duration;

use api::ErrorCode;
use api::client::Client;
use api::events::{ChangeOp, Event, Noun};
use tokio::time::timeout;

use super::journey::{image, vm_spec};
use super::lab::{Lab, SCROLLBACK};
use super::raw::Raw;

async fn volume(admin: &Client, name: &str) -> u64 {
    let spec = serde_json::from_value(serde_json::json!({"name": name, "size": 1})).unwrap();
    admin.volume_create(&spec).await.unwrap().revision
}

async fn until(events: &mut api::client::Events, wanted: impl Fn(&Event) -> bool) -> Event {
    let found = async {
        loop {
            let event = events.next().await.unwrap();
            if wanted(&event) {
                return event;
            }
        }
    };
    timeout(Duration::from_secs(5), found).await.unwrap()
}

#[tokio::test]
async fn a_change_arrives_and_a_new_connection_resumes_after_it() {
    let lab = Lab::new().await;
    let admin = lab.admin().await;
    let start = admin.vm_list().await.unwrap().revision;
    let mut events = admin.events(Some(start));
    let made = volume(&admin, "one").await;
    let seen = until(&mut events, |e| {
        e.revision == made && e.noun == Noun::Volume
    })
    .await;
    assert_eq!(seen.op, ChangeOp::Put);

    // Cut off, while more happens; a new stream from where this one was misses none of it.
    let since = events.since();
    drop(events);
    let later = volume(&admin, "two").await;
    let mut resumed = admin.events(since);
    until(&mut resumed, |e| {
        e.revision == later && e.noun == Noun::Volume
    })
    .await;

    // All of a revision comes again when it was not seen to its end.
    let mut all = admin.events(Some(made - 1));
    let nouns = async {
        let mut nouns = Vec::new();
        loop {
            let event = all.next().await.unwrap();
            if event.revision > made {
                return nouns;
            }
            nouns.push(event.noun);
        }
    };
    let mut nouns = timeout(Duration::from_secs(5), nouns).await.unwrap();
    nouns.sort_unstable();
    assert_eq!(nouns, [Noun::Volume, Noun::Task, Noun::Audit]);
}

#[tokio::test]
async fn an_event_id_that_is_none_is_refused() {
    let lab = Lab::new().await;
    lab.admin().await;
    let mut raw = Raw::with_token(&lab, lab.secret("admin").await);
    let header = [("last-event-id", "yesterday")];
    let answer = raw.send_with("GET", "/api/v1/events", &header, None).await;
    answer.is_refusal(ErrorCode::BadRequest, "no revision");
}

#[tokio::test]
async fn streams_end_with_the_daemon() {
    let lab = Lab::new().await;
    let admin = lab.admin().await;
    let mut events = admin.events(None);
    let end = tokio::spawn(async move { events.next().await });
    // The stream is open once its connection is counted.
    let open = async {
        while !admin
            .metrics_get()
            .await
            .unwrap()
            .contains("lqx_http_connections 2")
        {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(5), open).await.unwrap();
    lab.shutdown().await;
    let end = timeout(Duration::from_secs(5), end).await.unwrap().unwrap();
    assert!(end.is_err(), "{end:?}");
}

#[tokio::test]
async fn a_serial_console_shows_what_was_and_answers_what_is_typed() {
    let lab = Lab::new().await;
    let admin = lab.admin().await;
    image(&admin, "kernel", b"vmlinuz").await;
    admin.vm_create(&vm_spec()).await.unwrap();
    let mut serial = admin.vm_serial("web").await.unwrap();
    let mut screen = Vec::new();
    let work = async {
        while screen.len() < SCROLLBACK.len() {
            screen.extend(serial.receive().await.unwrap().unwrap());
        }
        assert_eq!(screen, SCROLLBACK);
        serial.send(b"root\n").await.unwrap();
        let mut echo = Vec::new();
        while echo.len() < 5 {
            echo.extend(serial.receive().await.unwrap().unwrap());
        }
        assert_eq!(echo, b"ROOT\n");
        let (mut sender, mut receiver) = serial.split();
        sender.close().await.unwrap();
        assert_eq!(receiver.receive().await.unwrap(), None);
    };
    timeout(Duration::from_secs(5), work).await.unwrap();

    let nowhere = admin.vm_serial("nothing").await.map(drop).unwrap_err();
    assert_eq!(nowhere.code(), Some(ErrorCode::NotFound));
    let stranger = lab.stranger().vm_serial("web").await.map(drop).unwrap_err();
    assert_eq!(stranger.code(), Some(ErrorCode::Unauthenticated));
    let mut raw = Raw::with_token(&lab, lab.secret("admin").await);
    raw.send("GET", "/api/v1/vms/web/serial", None)
        .await
        .is_refusal(ErrorCode::BadRequest, "no WebSocket");
    let audit = admin.audit_list(None).await.unwrap();
    assert!(
        audit
            .items
            .iter()
            .any(|r| r.action == "vm_serial" && r.object == "web")
    );
}
