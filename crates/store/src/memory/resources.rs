//! Agents, environments, workspaces and keys.

use std::collections::BTreeMap;

use protocol::agent::Agent;
use protocol::environment::Environment;
use protocol::id::{AgentId, ApiKeyId, EnvironmentId, WorkspaceId};
use protocol::time::Timestamp;

use crate::error::ChangeError;
use crate::keys::{ApiKey, KeyHash};
use crate::memory::sessions::newest;
use crate::resources::{AgentQuery, EnvironmentQuery, may_follow};

#[derive(Default)]
pub(super) struct Resources {
    agents: BTreeMap<AgentId, (WorkspaceId, Vec<Agent>)>,
    environments: BTreeMap<EnvironmentId, (WorkspaceId, Environment)>,
    workspaces: Vec<(Timestamp, WorkspaceId)>,
    keys: Vec<(KeyHash, ApiKey)>,
}

impl Resources {
    /// False if its id is taken.
    pub(super) fn create_agent(&mut self, workspace: &WorkspaceId, agent: &Agent) -> bool {
        let is_new = !self.agents.contains_key(&agent.id);
        if is_new {
            self.agents.insert(agent.id.clone(), (workspace.clone(), vec![agent.clone()]));
        }
        is_new
    }

    pub(super) fn agent(
        &self,
        workspace: &WorkspaceId,
        id: &AgentId,
        version: Option<i64>,
    ) -> Option<&Agent> {
        let versions = self.versions(workspace, id)?;
        match version {
            Some(version) => versions.iter().find(|agent| agent.version == version),
            None => versions.last(),
        }
    }

    /// Oldest first.
    fn versions(&self, workspace: &WorkspaceId, id: &AgentId) -> Option<&[Agent]> {
        let (owner, versions) = self.agents.get(id)?;
        (owner == workspace).then_some(versions)
    }

    pub(super) fn agents(&self, workspace: &WorkspaceId, query: &AgentQuery) -> Vec<Agent> {
        let AgentQuery { include_archived, created, after, limit } = query;
        let owned = self.agents.values().filter(|(owner, _)| owner == workspace);
        let latest = owned.map(|(_, versions)| versions.last().expect("made with one"));
        let shown = latest.filter(|agent| {
            (*include_archived || agent.archived_at.is_none()) && created.contain(agent.created_at)
        });
        let cursor = |agent: &&Agent| (agent.created_at, agent.id.to_string());
        newest(shown, cursor, after.as_ref(), *limit).into_iter().cloned().collect()
    }

    pub(super) fn agent_versions(
        &self,
        workspace: &WorkspaceId,
        id: &AgentId,
        before: Option<i64>,
        limit: usize,
    ) -> Option<Vec<Agent>> {
        let versions = self.versions(workspace, id)?.iter().rev();
        let earlier = versions.filter(|agent| before.is_none_or(|before| agent.version < before));
        Some(earlier.take(limit).cloned().collect())
    }

    /// Puts a changed agent in the place of `before`.
    pub(super) fn replace_agent(&mut self, before: &Agent, after: &Agent) -> Result<(), ChangeError> {
        may_follow(before, after)?;
        let (_, versions) = self.agents.get_mut(&before.id).expect("just seen");
        versions.retain(|agent| agent.version != after.version);
        versions.push(after.clone());
        Ok(())
    }

    /// Keeps an environment, new or changed, unless another has its name.
    pub(super) fn put_environment(
        &mut self,
        workspace: &WorkspaceId,
        environment: &Environment,
    ) -> Result<(), ChangeError> {
        let is_namesake = |(owner, other): &(WorkspaceId, Environment)| {
            owner == workspace
                && other.name == environment.name
                && other.archived_at.is_none()
                && other.id != environment.id
        };
        if environment.archived_at.is_none() && self.environments.values().any(is_namesake) {
            return Err(ChangeError::Exists);
        }
        self.environments.insert(environment.id.clone(), (workspace.clone(), environment.clone()));
        Ok(())
    }

    pub(super) fn environment(&self, workspace: &WorkspaceId, id: &EnvironmentId) -> Option<&Environment> {
        let (owner, environment) = self.environments.get(id)?;
        (owner == workspace).then_some(environment)
    }

    pub(super) fn environments(&self, workspace: &WorkspaceId, query: &EnvironmentQuery) -> Vec<Environment> {
        let EnvironmentQuery { include_archived, after, limit } = query;
        let owned = self.environments.values().filter(|(owner, _)| owner == workspace);
        let shown = owned
            .map(|(_, environment)| environment)
            .filter(|environment| *include_archived || environment.archived_at.is_none());
        let cursor = |environment: &&Environment| (environment.created_at, environment.id.to_string());
        newest(shown, cursor, after.as_ref(), *limit).into_iter().cloned().collect()
    }

    pub(super) fn environments_with(
        &self,
        text: &str,
        after: Option<&EnvironmentId>,
        limit: usize,
    ) -> Vec<Environment> {
        let all = self.environments.values().map(|(_, environment)| environment);
        let is_wanted = |environment: &&Environment| {
            let kept = || serde_json::to_string(environment).unwrap_or_default();
            environment.archived_at.is_none()
                && after.is_none_or(|after| environment.id.as_str() > after.as_str())
                && kept().contains(text)
        };
        let mut found: Vec<Environment> = all.filter(is_wanted).cloned().collect();
        found.sort_by(|one, other| one.id.as_str().cmp(other.id.as_str()));
        found.truncate(limit);
        found
    }

    pub(super) fn delete_environment(&mut self, id: &EnvironmentId) {
        self.environments.remove(id);
    }

    pub(super) fn create_workspace(&mut self, made: &WorkspaceId, now: Timestamp) {
        self.workspaces.push((now, made.clone()));
        self.workspaces.sort();
    }

    /// Oldest first.
    pub(super) fn workspaces(&self) -> Vec<WorkspaceId> {
        self.workspaces.iter().map(|(_, id)| id.clone()).collect()
    }

    /// False if the same key is kept already.
    pub(super) fn create_key(&mut self, key: &ApiKey, hash: KeyHash) -> bool {
        let is_new = self.keys.iter().all(|(other, kept)| *other != hash && kept.id != key.id);
        if is_new {
            self.keys.push((hash, key.clone()));
            self.keys.sort_by_key(|(_, key)| (key.created_at, key.id.to_string()));
        }
        is_new
    }

    /// Oldest first.
    pub(super) fn keys(&self, workspace: &WorkspaceId) -> Vec<ApiKey> {
        let owned = self.keys.iter().filter(|(_, key)| key.workspace == *workspace);
        owned.map(|(_, key)| key.clone()).collect()
    }

    pub(super) fn revoke_key(
        &mut self,
        workspace: &WorkspaceId,
        id: &ApiKeyId,
        now: Timestamp,
    ) -> Option<ApiKey> {
        let is_it = |(_, key): &&mut (KeyHash, ApiKey)| key.workspace == *workspace && key.id == *id;
        let (_, key) = self.keys.iter_mut().find(is_it)?;
        key.revoked_at.get_or_insert(now);
        Some(key.clone())
    }

    pub(super) fn find_key(&self, hash: KeyHash) -> Option<ApiKey> {
        let is_it = |(other, key): &&(KeyHash, ApiKey)| *other == hash && key.revoked_at.is_none();
        self.keys.iter().find(is_it).map(|(_, key)| key.clone())
    }
}
