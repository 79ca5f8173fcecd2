//! Waiting for a task, visibly.

use std::time::{Duration, Instant};

use api::client::{Client, ClientError};
use api::ids::TaskId;
use api::tasks::{Task, TaskPhase};
use indicatif::{ProgressBar, ProgressStyle};

use crate::failure::Failure;

/// A bar of `total` bytes; on a terminal only.
pub(crate) fn bytes_bar(total: u64, what: &str) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total)
        .with_style(style.progress_chars("=> "))
        .with_message(what.to_owned())
}

/// Waits until the task has succeeded; its failure is ours.
pub(crate) async fn task(
    client: &Client,
    task: TaskId,
    within: Duration,
    what: &str,
) -> Result<Task, Failure> {
    let style = ProgressStyle::with_template("{spinner} {msg} {pos} %")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(100)
        .with_style(style)
        .with_message(what.to_owned());
    bar.enable_steady_tick(Duration::from_millis(120));
    let until = Instant::now() + within;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let wait = left.clamp(Duration::from_secs(1), Duration::from_secs(2));
        let seen = client.task_get(task, Some(wait)).await?;
        bar.set_position(u64::from(seen.progress.0));
        match seen.phase {
            TaskPhase::Running if left.is_zero() => {
                return Err(Failure::Timeout(format!(
                    "{what}: task {task} still runs after {} s",
                    within.as_secs()
                )));
            }
            TaskPhase::Running => {}
            TaskPhase::Succeeded => {
                bar.finish_and_clear();
                return Ok(seen);
            }
            TaskPhase::Failed { error } => {
                bar.finish_and_clear();
                return Err(ClientError::TaskFailed(error).into());
            }
        }
    }
}
