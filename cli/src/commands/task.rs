//! `lqx task` and `lqx events`.

use api::ErrorCode;
use api::client::{Client, ClientError};
use api::tasks::TaskPhase;

use crate::failure::Failure;
use crate::options::{Events, Format, Task};
use crate::output::{Output, say, word};
use crate::waiting;

pub(super) async fn run(client: &Client, command: Task, output: Output) -> Result<(), Failure> {
    match command {
        Task::Ls => {
            let tasks = client.task_list(None).await?.items;
            output.list(
                &tasks,
                &["id", "what", "phase", "progress", "why"],
                |task| {
                    let why = match &task.phase {
                        TaskPhase::Failed { error } => error.message.clone(),
                        TaskPhase::Running | TaskPhase::Succeeded => String::new(),
                    };
                    vec![
                        task.id.to_string(),
                        word(&task.kind),
                        word(&task.phase),
                        format!("{} %", task.progress.0),
                        why,
                    ]
                },
            )
        }
        Task::Wait { task, timeout } => {
            let ended = waiting::task(client, task, timeout, "waiting").await?;
            output.object(&ended, format!("task {task} {}", word(&ended.phase)))
        }
    }
}

/// Prints changes: one line each, JSON lines for programs. A broken connection is taken up again where it broke.
pub(super) async fn events(
    client: &Client,
    options: &Events,
    output: Output,
) -> Result<(), Failure> {
    let mut events = client.events(options.since);
    let mut printed = 0;
    while options.count.is_none_or(|count| printed < count) {
        let event = match events.next().await {
            Ok(event) => event,
            // Before the first event a broken connection is an appliance that is not there.
            Err(ClientError::Broken(_)) if events.since().is_some() => continue,
            Err(error) if error.code() == Some(ErrorCode::Gone) => {
                return Err(Failure::Usage(
                    "those events are gone: list again and use a newer --since".to_owned(),
                ));
            }
            Err(error) => return Err(error.into()),
        };
        match output.0 {
            Format::Json => say(&serde_json::to_string(&event).unwrap_or_default())?,
            Format::Table => say(&format!(
                "{:>6}  {:8} {:8} {}",
                event.revision,
                word(&event.noun),
                word(&event.op),
                event.id
            ))?,
        }
        printed += 1;
    }
    Ok(())
}
