//! Tasks.

use std::time::Duration;

use api::ApiError;
use api::endpoints::{List, WAIT_SECONDS_MAX};
use api::ids::TaskId;
use api::tasks::{Task, TaskPhase};

use super::users::limit;
use crate::http::call::{Call, Reply};
use crate::http::error::not_found;

pub(super) async fn task_list(call: Call) -> Result<Reply, ApiError> {
    let limit = limit(&call)?;
    let (items, revision) =
        call.look(|state| state.tasks().rev().take(limit).cloned().collect())?;
    Reply::json(&List::<Task> { items, revision }, revision)
}

pub(super) async fn task_get(call: Call) -> Result<Reply, ApiError> {
    let id: TaskId = call.id("task")?;
    if let Some(seconds) = call.query("wait") {
        let ended = wait(&call, id);
        // Too early is no error: the answer says where the task is.
        tokio::select! {
            ended = tokio::time::timeout(Duration::from_secs(seconds.min(WAIT_SECONDS_MAX)), ended) => {
                if let Ok(Err(error)) = ended {
                    return Err(error);
                }
            }
            () = call.shutdown.cancelled() => {}
        }
    }
    let (found, revision) = call.look(|state| state.task(id).cloned())?;
    Reply::json(&found.ok_or_else(|| not_found("task", id))?, revision)
}

/// Until it has ended, or is not there.
async fn wait(call: &Call, id: TaskId) -> Result<(), ApiError> {
    let mut told = call.context.cluster()?.watch();
    loop {
        told.borrow_and_update();
        let (running, _) = call.look(|state| {
            state
                .task(id)
                .is_some_and(|task| task.phase == TaskPhase::Running)
        })?;
        if !running || told.changed().await.is_err() {
            return Ok(());
        }
    }
}
