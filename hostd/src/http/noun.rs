//! What the calls about every noun have in common: list them, show one, make one, have one removed.

use api::ApiError;
use api::endpoints::{Accepted, List, Removal};
use api::ids::TaskId;
use api::names::Ref;
use hostd_state::{Command, State};
use serde::Serialize;
use uuid::Uuid;

use super::call::{Call, Reply, gone_meanwhile, object_of, task_of};
use super::error::not_found;

impl Call {
    /// All of a kind.
    pub(super) fn list<T: Serialize>(
        &self,
        all: impl FnOnce(&State) -> Vec<T>,
    ) -> Result<Reply, ApiError> {
        let (items, revision) = self.look(all)?;
        Reply::json(&List { items, revision }, revision)
    }

    /// The one that the path names.
    pub(super) fn show<T: Serialize>(
        &self,
        noun: &str,
        find: impl FnOnce(&State, &Ref) -> Option<T>,
    ) -> Result<Reply, ApiError> {
        let reference = self.reference(noun)?;
        let (found, revision) = self.look(|state| find(state, &reference))?;
        Reply::json(&found.ok_or_else(|| not_found(noun, &reference))?, revision)
    }

    /// The id of what the path names, and what the caller calls it. An id needs no look-up: the state judges, and answers
    /// a retry even when the object is gone.
    pub(super) fn target(
        &self,
        noun: &str,
        find: impl FnOnce(&State, &Ref) -> Option<Uuid>,
    ) -> Result<(Uuid, String), ApiError> {
        let reference = self.reference(noun)?;
        let id = match &reference {
            Ref::Id(id) => *id,
            Ref::Name(_) => {
                let (found, _) = self.look(|state| find(state, &reference))?;
                found.ok_or_else(|| not_found(noun, &reference))?
            }
        };
        Ok((id, reference.to_string()))
    }

    /// How an object looks now that a command about it was carried out.
    pub(super) fn now<T>(
        &self,
        noun: &str,
        view: impl FnOnce(&State) -> Option<T>,
    ) -> Result<T, ApiError> {
        let (found, _) = self.look(view)?;
        found.ok_or_else(|| gone_meanwhile(noun))
    }

    /// Has a command agreed on that a task goes on with; the reply shows the object and names the task.
    pub(super) async fn accept<T: Serialize>(
        &self,
        noun: &str,
        object: &str,
        command: Command,
        view: impl FnOnce(&State, Uuid) -> Option<T>,
    ) -> Result<Reply, ApiError> {
        let (revision, outcome) = self.propose(object, command).await?;
        let id = object_of(&outcome)?;
        let accepted = Accepted {
            object: self.now(noun, |state| view(state, id))?,
            task: task_of(&outcome)?,
            revision,
        };
        Reply::json(&accepted, revision)
    }

    /// Has the object that the path names removed.
    pub(super) async fn remove(
        &self,
        noun: &str,
        find: impl FnOnce(&State, &Ref) -> Option<Uuid>,
        command: impl FnOnce(Uuid, TaskId) -> Command,
    ) -> Result<Reply, ApiError> {
        let (id, object) = self.target(noun, find)?;
        let (revision, outcome) = self.propose(&object, command(id, TaskId::mint())).await?;
        let removal = Removal {
            id,
            task: task_of(&outcome)?,
            revision,
        };
        Reply::json(&removal, revision)
    }
}
