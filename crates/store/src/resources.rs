//! Agents and environments.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use protocol::agent::Agent;
use protocol::environment::Environment;
use protocol::hands::{HandsSettings, Policy};
use protocol::id::{AgentId, EnvironmentId, WorkspaceId};

use crate::Store;
use crate::error::{ChangeError, Error};
use crate::log::TimeBounds;
use crate::sessions::Cursor;

/// Environments whose pools are looked for.
const POOLS_MAX: usize = 256;

/// What is looked for in the text of an environment that asks for a pool.
pub(crate) const POOLED: &str = "\"posthouse.policy\":\"pool\"";

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
        let is_new = self.0.engine.create_agent(workspace, &agent).await?;
        if is_new { Ok(agent) } else { Err(Error::Exists(agent.id.to_string())) }
    }

    /// An agent at one version, or at its latest.
    pub async fn get_agent(
        &self,
        workspace: &WorkspaceId,
        id: &AgentId,
        version: Option<i64>,
    ) -> Result<Option<Agent>, Error> {
        self.0.engine.agent(workspace, id, version).await
    }

    /// Agents at their latest versions, newest first.
    pub async fn list_agents(&self, workspace: &WorkspaceId, query: AgentQuery) -> Result<Vec<Agent>, Error> {
        self.0.engine.agents(workspace, query).await
    }

    /// An agent's versions, newest first; those before `before` if it is given. `None` if there is no such agent.
    pub async fn list_agent_versions(
        &self,
        workspace: &WorkspaceId,
        id: &AgentId,
        before: Option<i64>,
        limit: usize,
    ) -> Result<Option<Vec<Agent>>, Error> {
        self.0.engine.agent_versions(workspace, id, before, limit).await
    }

    /// Changes an agent. If the changed agent has the next version number it becomes a new version; if it has the
    /// same, this version is changed (archiving does that).
    pub async fn change_agent(
        &self,
        workspace: &WorkspaceId,
        id: &AgentId,
        change: Change<Agent>,
    ) -> Result<Agent, ChangeError> {
        self.0.engine.change_agent(workspace, id, change).await
    }

    /// Keeps a new environment. [`ChangeError::Exists`] if one that is not archived has its name.
    pub async fn create_environment(
        &self,
        workspace: &WorkspaceId,
        environment: Environment,
    ) -> Result<Environment, ChangeError> {
        self.0.engine.create_environment(workspace, &environment).await?;
        Ok(environment)
    }

    /// An environment.
    pub async fn get_environment(
        &self,
        workspace: &WorkspaceId,
        id: &EnvironmentId,
    ) -> Result<Option<Environment>, Error> {
        self.0.engine.environment(workspace, id).await
    }

    /// Environments, newest first.
    pub async fn list_environments(
        &self,
        workspace: &WorkspaceId,
        query: EnvironmentQuery,
    ) -> Result<Vec<Environment>, Error> {
        self.0.engine.environments(workspace, query).await
    }

    /// Environments that ask for a pool of sandboxes, in whatever workspace, the oldest first; archived ones do not. Reads
    /// every environment: for a look now and then. At most 256, because nobody keeps more pools on one machine.
    pub async fn pooled_environments(&self) -> Result<Vec<(Environment, HandsSettings)>, Error> {
        let candidates = self.0.engine.environments_with(POOLED, None, POOLS_MAX).await?;
        let asking = candidates.into_iter().filter_map(|environment| {
            let settings = HandsSettings::of(&environment.metadata, "metadata").ok()?;
            matches!(settings.policy, Policy::Pool { .. }).then_some((environment, settings))
        });
        Ok(asking.collect())
    }

    /// Environments of all workspaces that are not archived, by id, at most `limit` after that one. For what the background
    /// does about each.
    pub async fn environments_after(
        &self,
        after: Option<EnvironmentId>,
        limit: usize,
    ) -> Result<Vec<Environment>, Error> {
        self.0.engine.environments_with("", after, limit).await
    }

    /// Changes an environment. [`ChangeError::Exists`] if its new name is taken.
    pub async fn change_environment(
        &self,
        workspace: &WorkspaceId,
        id: &EnvironmentId,
        change: Change<Environment>,
    ) -> Result<Environment, ChangeError> {
        self.0.engine.change_environment(workspace, id, change).await
    }

    /// Deletes an environment. [`ChangeError::InUse`] while any session, archived ones included, was made in it.
    pub async fn delete_environment(
        &self,
        workspace: &WorkspaceId,
        id: &EnvironmentId,
    ) -> Result<(), ChangeError> {
        self.0.engine.delete_environment(workspace, id).await
    }
}

/// What a caller's function came to: a panic is brought back to the caller, because it must not end an engine.
pub(crate) type Ran<T> = std::thread::Result<Result<T, ChangeError>>;

/// Runs a caller's function.
pub(crate) fn ran<T>(change: Change<T>, before: &T) -> Ran<Option<T>> {
    // It gets a reference to a value of ours and hands back a new one: there is nothing it could leave half changed.
    catch_unwind(AssertUnwindSafe(|| change(before)))
}

/// A panic goes on where it belongs.
pub(crate) fn unwound<T>(ran: Ran<T>) -> Result<T, ChangeError> {
    ran.unwrap_or_else(|panic| resume_unwind(panic))
}

/// Whether an agent may take the place of this one.
pub(crate) fn may_follow(before: &Agent, after: &Agent) -> Result<(), ChangeError> {
    let is_next = after.version == before.version || after.version == before.version + 1;
    if after.id == before.id && is_next {
        return Ok(());
    }
    let message = format!("version {} cannot follow version {}", after.version, before.version);
    Err(ChangeError::Conflict(message))
}
