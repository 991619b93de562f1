//! Agents and environments.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use protocol::agent::Agent;
use protocol::environment::Environment;
use protocol::id::{AgentId, EnvironmentId, WorkspaceId};

use crate::Store;
use crate::error::{ChangeError, Error};
use crate::log::TimeBounds;
use crate::sessions::Cursor;
use crate::sqlite::fault::Fault;
use crate::sqlite::writer::Flush;
use crate::sqlite::{agents, environments};

/// Which agents to list, newest first.
#[derive(Clone, Debug)]
pub struct AgentQuery {
    /// Archived ones, too.
    pub include_archived: bool,
    /// Only those made within these bounds.
    pub created: TimeBounds,
    /// Only rows after this one.
    pub after: Option<Cursor>,
    /// At most so many.
    pub limit: usize,
}

impl Default for AgentQuery {
    fn default() -> Self {
        Self { include_archived: false, created: TimeBounds::default(), after: None, limit: 20 }
    }
}

/// Which environments to list, newest first.
#[derive(Clone, Debug)]
pub struct EnvironmentQuery {
    /// Archived ones, too.
    pub include_archived: bool,
    /// Only rows after this one.
    pub after: Option<Cursor>,
    /// At most so many.
    pub limit: usize,
}

impl Default for EnvironmentQuery {
    fn default() -> Self {
        Self { include_archived: false, after: None, limit: 20 }
    }
}

/// How a resource changes: from what it is to what it becomes, or `None` to leave it as it is. Runs inside the
/// writer's transaction, so it must be quick and must not block.
pub type Change<T> = Box<dyn FnOnce(&T) -> Result<Option<T>, ChangeError> + Send>;

impl Store {
    /// Keeps a new agent, at the version it carries (1). [`Error::Exists`] if its id is taken.
    pub async fn create_agent(&self, workspace: &WorkspaceId, agent: Agent) -> Result<Agent, Error> {
        let workspace = workspace.clone();
        let job = move |flush: &mut Flush<'_>| Ok((agents::create(flush.conn, &workspace, &agent)?, agent));
        let (is_new, agent) = self.0.writer.run(0, job).await?;
        if is_new { Ok(agent) } else { Err(Error::Exists(agent.id.to_string())) }
    }

    /// An agent at one version, or at its latest.
    pub async fn get_agent(
        &self,
        workspace: &WorkspaceId,
        id: &AgentId,
        version: Option<i64>,
    ) -> Result<Option<Agent>, Error> {
        let (workspace, id) = (workspace.clone(), id.clone());
        self.0.readers.read(move |conn| agents::get(conn, &workspace, &id, version)).await
    }

    /// Agents at their latest versions, newest first.
    pub async fn list_agents(&self, workspace: &WorkspaceId, query: AgentQuery) -> Result<Vec<Agent>, Error> {
        let workspace = workspace.clone();
        self.0.readers.read(move |conn| agents::list(conn, &workspace, &query)).await
    }

    /// An agent's versions, newest first; those before `before` if it is given. `None` if there is no such agent.
    pub async fn list_agent_versions(
        &self,
        workspace: &WorkspaceId,
        id: &AgentId,
        before: Option<i64>,
        limit: usize,
    ) -> Result<Option<Vec<Agent>>, Error> {
        let (workspace, id) = (workspace.clone(), id.clone());
        self.0.readers.read(move |conn| agents::versions(conn, &workspace, &id, before, limit)).await
    }

    /// Changes an agent. If the changed agent has the next version number it becomes a new version; if it has the
    /// same, this version is changed (archiving does that).
    pub async fn change_agent(
        &self,
        workspace: &WorkspaceId,
        id: &AgentId,
        change: Change<Agent>,
    ) -> Result<Agent, ChangeError> {
        let (workspace, id) = (workspace.clone(), id.clone());
        let job = move |flush: &mut Flush<'_>| {
            let Some(before) = agents::get(flush.conn, &workspace, &id, None)? else {
                return Ok(Ok(Err(ChangeError::NotFound)));
            };
            change_in_place(before, change, |before, after| agents::replace(flush.conn, before, after))
        };
        unwound(self.0.writer.run(0, job).await?)
    }

    /// Keeps a new environment. [`ChangeError::Exists`] if one that is not archived has its name.
    pub async fn create_environment(
        &self,
        workspace: &WorkspaceId,
        environment: Environment,
    ) -> Result<Environment, ChangeError> {
        let workspace = workspace.clone();
        let job = move |flush: &mut Flush<'_>| {
            Ok(environments::put(flush.conn, &workspace, &environment)?.map(|()| environment))
        };
        self.0.writer.run(0, job).await?
    }

    /// An environment.
    pub async fn get_environment(
        &self,
        workspace: &WorkspaceId,
        id: &EnvironmentId,
    ) -> Result<Option<Environment>, Error> {
        let (workspace, id) = (workspace.clone(), id.clone());
        self.0.readers.read(move |conn| environments::get(conn, &workspace, &id)).await
    }

    /// Environments, newest first.
    pub async fn list_environments(
        &self,
        workspace: &WorkspaceId,
        query: EnvironmentQuery,
    ) -> Result<Vec<Environment>, Error> {
        let workspace = workspace.clone();
        self.0.readers.read(move |conn| environments::list(conn, &workspace, &query)).await
    }

    /// Changes an environment. [`ChangeError::Exists`] if its new name is taken.
    pub async fn change_environment(
        &self,
        workspace: &WorkspaceId,
        id: &EnvironmentId,
        change: Change<Environment>,
    ) -> Result<Environment, ChangeError> {
        let (workspace, id) = (workspace.clone(), id.clone());
        let job = move |flush: &mut Flush<'_>| {
            let Some(before) = environments::get(flush.conn, &workspace, &id)? else {
                return Ok(Ok(Err(ChangeError::NotFound)));
            };
            change_in_place(before, change, |_, after| environments::put(flush.conn, &workspace, after))
        };
        unwound(self.0.writer.run(0, job).await?)
    }

    /// Deletes an environment. [`ChangeError::InUse`] while any session, archived ones included, was made in it.
    pub async fn delete_environment(
        &self,
        workspace: &WorkspaceId,
        id: &EnvironmentId,
    ) -> Result<(), ChangeError> {
        let (workspace, id) = (workspace.clone(), id.clone());
        self.0.writer.run(0, move |flush| environments::delete(flush.conn, &workspace, &id)).await?
    }
}

/// What a caller's function came to: a panic is brought back to the caller, because it must not end the writer.
type Ran<T> = std::thread::Result<Result<T, ChangeError>>;

fn change_in_place<T>(
    before: T,
    change: Change<T>,
    put: impl FnOnce(&T, &T) -> Result<Result<(), ChangeError>, Fault>,
) -> Result<Ran<T>, Fault> {
    // It gets a reference to a value of ours and hands back a new one: there is nothing it could leave half changed.
    let changed = match catch_unwind(AssertUnwindSafe(|| change(&before))) {
        Ok(changed) => changed,
        Err(panic) => return Ok(Err(panic)),
    };
    match changed {
        Ok(Some(after)) => Ok(Ok(put(&before, &after)?.map(|()| after))),
        Ok(None) => Ok(Ok(Ok(before))),
        Err(refused) => Ok(Ok(Err(refused))),
    }
}

fn unwound<T>(ran: Ran<T>) -> Result<T, ChangeError> {
    ran.unwrap_or_else(|panic| resume_unwind(panic))
}
