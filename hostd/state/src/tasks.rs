//! Tasks: operations longer than a request, bounded in number.
//!
//! A running task is owned by exactly one object, whose observation ends it. An ended task is kept for a while, so
//! that who asked can learn how it went.

use api::ApiError;
use api::ErrorCode;
use api::events::{ChangeOp, Noun};
use api::ids::TaskId;
use api::tasks::{Task, TaskKind, TaskPhase};
use api::units::{Millis, Percent};
use uuid::Uuid;

use crate::apply::Step;
use crate::command::Fault;
use crate::refused::{Refused, code_named};

/// Most tasks that may be under way.
pub const RUNNING_MAX: usize = 1000;
/// Most ended tasks that are kept.
pub const ENDED_MAX: usize = 1000;
/// How long an ended task is kept at least, unless there are more than [`ENDED_MAX`].
pub const ENDED_KEEP: Millis = Millis(7 * 24 * 3600 * 1000);

impl Step<'_> {
    /// Begins a task. The last thing in a command that may refuse.
    pub(crate) fn task_begin(
        &mut self,
        id: TaskId,
        kind: TaskKind,
        object: Uuid,
    ) -> Result<(), Refused> {
        if self.state.tasks.contains_key(&id) {
            return Err(Refused::exists("task", id));
        }
        let running = |task: &&Task| task.phase == TaskPhase::Running;
        if self.state.tasks.values().filter(running).count() >= RUNNING_MAX {
            return Err(Refused::exhausted(
                format!("{RUNNING_MAX} tasks are under way already"),
                "wait until some of them have ended",
            ));
        }
        self.task_put(Task {
            id,
            kind,
            object,
            by: self.by,
            phase: TaskPhase::Running,
            progress: Percent(0),
            created_at: self.at,
            ended_at: None,
            revision: self.revision,
        });
        self.tasks_sweep();
        Ok(())
    }

    /// How far it is; never backwards.
    pub(crate) fn task_progress(&mut self, id: TaskId, progress: Percent) {
        let progress = Percent(progress.0.min(99));
        if let Some(task) = self.state.tasks.get(&id)
            && task.phase == TaskPhase::Running
            && task.progress < progress
        {
            let task = Task {
                progress,
                ..task.clone()
            };
            self.task_put(task);
        }
    }

    /// It is done.
    pub(crate) fn task_succeeded(&mut self, id: TaskId) {
        self.task_end(id, TaskPhase::Succeeded);
    }

    /// It will not be done.
    pub(crate) fn task_failed(&mut self, id: TaskId, error: ApiError) {
        self.task_end(id, TaskPhase::Failed { error });
    }

    fn task_end(&mut self, id: TaskId, phase: TaskPhase) {
        let Some(task) = self.state.tasks.get(&id) else {
            return;
        };
        if task.phase != TaskPhase::Running {
            return;
        }
        let progress = match phase {
            TaskPhase::Succeeded => Percent(100),
            TaskPhase::Running | TaskPhase::Failed { .. } => task.progress,
        };
        let task = Task {
            phase,
            progress,
            ended_at: Some(self.at),
            ..task.clone()
        };
        self.task_put(task);
        self.tasks_sweep();
    }

    fn task_put(&mut self, mut task: Task) {
        task.revision = self.revision;
        self.changed(Noun::Task, task.id.0, ChangeOp::Put);
        self.state.tasks.insert(task.id, task);
    }

    /// Forgets ended tasks that are old or too many, those that ended first first.
    fn tasks_sweep(&mut self) {
        let now = self.at.0;
        let old = |ended_at: Millis| now.saturating_sub(ended_at.0) > ENDED_KEEP.0;
        loop {
            let tasks = self.state.tasks.values();
            let ended = tasks.filter_map(|task| Some((task.ended_at?, task.id)));
            let (count, first) = ended.fold((0, None), |(count, first), next| {
                (count + 1, Some(first.map_or(next, |first| next.min(first))))
            });
            let Some((ended_at, id)) = first else { return };
            if count <= ENDED_MAX && !old(ended_at) {
                return;
            }
            self.state.tasks.remove(&id);
            self.changed(Noun::Task, id.0, ChangeOp::Deleted);
        }
    }
}

impl Fault {
    /// As the error of a task.
    pub(crate) fn error(&self) -> ApiError {
        let code = code_named(&self.code).unwrap_or(ErrorCode::Internal);
        ApiError::new(code, self.cause.clone(), self.next.clone())
    }

    /// As the condition of an object.
    pub(crate) fn condition(&self, since: Millis) -> api::condition::Condition {
        api::condition::Condition {
            code: self.code.clone(),
            cause: self.cause.clone(),
            since,
            next: self.next.clone(),
        }
    }
}
