//! Agents and environments.

use protocol::agent::Agent;
use protocol::environment::Environment;
use protocol::id::{AgentId, EnvironmentId, WorkspaceId};

use crate::Store;
use crate::error::{ChangeError, Error};
use crate::log::TimeBounds;
use crate::sessions::Cursor;

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
    /// Keeps a new agent, at the version it carries (1).
    pub async fn create_agent(&self, workspace: &WorkspaceId, agent: Agent) -> Result<Agent, Error> {
        let _ = (workspace, agent);
        Err(Error::Closed)
    }

    /// An agent at one version, or at its latest.
    pub async fn get_agent(
        &self,
        workspace: &WorkspaceId,
        id: &AgentId,
        version: Option<i64>,
    ) -> Result<Option<Agent>, Error> {
        let _ = (workspace, id, version);
        Err(Error::Closed)
    }

    /// Agents at their latest versions, newest first.
    pub async fn list_agents(&self, workspace: &WorkspaceId, query: AgentQuery) -> Result<Vec<Agent>, Error> {
        let _ = (workspace, query);
        Err(Error::Closed)
    }

    /// An agent's versions, newest first; those before `before` if it is given. `None` if there is no such agent.
    pub async fn list_agent_versions(
        &self,
        workspace: &WorkspaceId,
        id: &AgentId,
        before: Option<i64>,
        limit: usize,
    ) -> Result<Option<Vec<Agent>>, Error> {
        let _ = (workspace, id, before, limit);
        Err(Error::Closed)
    }

    /// Changes an agent. If the changed agent has the next version number it becomes a new version; if it has the
    /// same, this version is changed (archiving does that).
    pub async fn change_agent(
        &self,
        workspace: &WorkspaceId,
        id: &AgentId,
        change: Change<Agent>,
    ) -> Result<Agent, ChangeError> {
        let _ = (workspace, id, change);
        Err(ChangeError::NotFound)
    }

    /// Keeps a new environment. [`ChangeError::Exists`] if one that is not archived has its name.
    pub async fn create_environment(
        &self,
        workspace: &WorkspaceId,
        environment: Environment,
    ) -> Result<Environment, ChangeError> {
        let _ = (workspace, environment);
        Err(ChangeError::NotFound)
    }

    /// An environment.
    pub async fn get_environment(
        &self,
        workspace: &WorkspaceId,
        id: &EnvironmentId,
    ) -> Result<Option<Environment>, Error> {
        let _ = (workspace, id);
        Err(Error::Closed)
    }

    /// Environments, newest first.
    pub async fn list_environments(
        &self,
        workspace: &WorkspaceId,
        query: EnvironmentQuery,
    ) -> Result<Vec<Environment>, Error> {
        let _ = (workspace, query);
        Err(Error::Closed)
    }

    /// Changes an environment. [`ChangeError::Exists`] if its new name is taken.
    pub async fn change_environment(
        &self,
        workspace: &WorkspaceId,
        id: &EnvironmentId,
        change: Change<Environment>,
    ) -> Result<Environment, ChangeError> {
        let _ = (workspace, id, change);
        Err(ChangeError::NotFound)
    }

    /// Deletes an environment. [`ChangeError::InUse`] while any session, archived ones included, was made in it.
    pub async fn delete_environment(&self, workspace: &WorkspaceId, id: &EnvironmentId) -> Result<(), ChangeError> {
        let _ = (workspace, id);
        Err(ChangeError::NotFound)
    }
}
