//! Bad weather between a caller and the engine in memory: calls that are slow, that never arrive, whose reply is late
//! or lost, and changes that are decided twice. For simulations.
//!
//! What befalls a call is decided by somebody else, who makes it the same every time: a [`Weather`]. Here is only
//! what follows from it, and it is what every real engine may do to its callers: nothing here breaks the contract of
//! [`Engine`](crate::engine::Engine). Agents, environments and keys have fair weather always.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use protocol::agent::Agent;
use protocol::credential::Credential;
use protocol::environment::Environment;
use protocol::id::{
    AgentId, ApiKeyId, CredentialId, EnvironmentId, ResourceId, SandboxId, SessionId, VaultId, WorkspaceId,
};
use protocol::time::Timestamp;
use protocol::vault::Vault;
use session::State;
use tokio::task::JoinSet;

use crate::engine::Engine;
use crate::error::{ChangeError, Error};
use crate::hub::Frame;
use crate::keys::{ApiKey, KeyHash};
use crate::lease::{Lease, Token, View};
use crate::log::{Slice, Stored};
use crate::memory::engine::Memory;
use crate::resources::{AgentQuery, Change, EnvironmentQuery};
use crate::rules::catch_up::{Caught, Progress, Start};
use crate::rules::jobs::Job;
use crate::sessions::{Holding, Seen, SessionQuery};
use crate::vaults::{Added, CredentialQuery, KeptCredential, VaultKey, VaultQuery, Wanted};

/// Decides what befalls each call of a store. The same decisions in the same order make the same history.
pub trait Weather: Send + Sync {
    /// What befalls the next call.
    fn next(&self, asked: Asked) -> Fate;
}

/// What a call asks of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// To read.
    Read,
    /// To change a session.
    Write,
    /// To give leases.
    Claim,
    /// To make a lease last longer.
    Renew,
}

/// What befalls a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fate {
    /// How long it takes to arrive. What is under way to change something arrives even if its sender has died.
    pub way_there: Duration,
    /// What becomes of it.
    pub luck: Luck,
    /// How long the reply takes.
    pub way_back: Duration,
    /// A change is first decided on what its session was before, in vain.
    pub is_decided_twice: bool,
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Luck {
    /// It is answered.
    #[default]
    Fair,
    /// It never arrives, and the caller learns that: [`Error::Unreachable`].
    Refused,
    /// It is done, and nobody ever learns of it: [`Error::Unknown`].
    Unheard,
}

/// The engine in memory, in such weather.
pub(super) struct Weathered {
    memory: Arc<Memory>,
    weather: Arc<dyn Weather>,
    /// Changes that are under way. At most as many as callers have made at once, those included that have died.
    under_way: Mutex<JoinSet<()>>,
}

impl Weathered {
    pub(super) fn new(memory: Memory, weather: Arc<dyn Weather>) -> Self {
        Self { memory: Arc::new(memory), weather, under_way: Mutex::default() }
    }

    /// A call that ends with its caller.
    async fn call<T>(&self, asked: Asked, act: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let Fate { way_there, luck, way_back, is_decided_twice: _ } = self.weather.next(asked);
        pass(way_there).await;
        match luck {
            Luck::Fair => {
                let result = act.await;
                pass(way_back).await;
                result
            }
            Luck::Refused => Err(refused()),
            Luck::Unheard => {
                let _ = act.await;
                pass(way_back).await;
                // What was only to be read did not happen either.
                Err(if asked == Asked::Read { refused() } else { unheard() })
            }
        }
    }
}

fn refused() -> Error {
    Error::Unreachable("the weather".into())
}

fn unheard() -> Error {
    Error::Unknown("the weather".into())
}

async fn pass(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}

async fn change(memory: Arc<Memory>, mut job: Box<dyn Job>, fate: Fate) {
    let Fate { way_there, luck, way_back, is_decided_twice } = fate;
    pass(way_there).await;
    if luck == Luck::Refused {
        return job.answer(Err(refused()));
    }
    if is_decided_twice {
        memory.rehearse(&mut *job);
    }
    let outcome = memory.run(&mut *job);
    pass(way_back).await;
    job.answer(if luck == Luck::Unheard { Err(unheard()) } else { outcome });
}

#[async_trait]
impl Engine for Weathered {
    async fn submit(&self, job: Box<dyn Job>) {
        let fate = self.weather.next(Asked::Write);
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        while under_way.try_join_next().is_some() {}
        under_way.spawn(change(self.memory.clone(), job, fate));
    }

    async fn claim(&self, holder: &str, max: usize) -> Result<Vec<Lease>, Error> {
        self.call(Asked::Claim, self.memory.claim(holder, max)).await
    }

    async fn try_claim(&self, id: &SessionId, holder: &str) -> Result<Option<Lease>, Error> {
        self.call(Asked::Claim, self.memory.try_claim(id, holder)).await
    }

    async fn renew(&self, token: &Token) -> Result<bool, Error> {
        self.call(Asked::Renew, self.memory.renew(token)).await
    }

    async fn is_full(&self, workspace: &WorkspaceId) -> Result<bool, Error> {
        self.call(Asked::Read, self.memory.is_full(workspace)).await
    }

    fn live_brains(&self) -> u32 {
        self.memory.live_brains()
    }

    fn is_watched_elsewhere(&self, session: &SessionId) -> bool {
        self.memory.is_watched_elsewhere(session)
    }

    fn announce(&self, session: &SessionId, frame: &Frame) {
        self.memory.announce(session, frame);
    }

    async fn want_previews(&self, session: &SessionId) {
        self.memory.want_previews(session).await;
    }

    async fn tell(&self, word: &str) {
        self.memory.tell(word).await;
    }

    async fn look(&self, id: &SessionId) -> Result<Option<View>, Error> {
        self.call(Asked::Read, self.memory.look(id)).await
    }

    async fn session(&self, workspace: &WorkspaceId, id: &SessionId) -> Result<Option<Seen>, Error> {
        self.call(Asked::Read, self.memory.session(workspace, id)).await
    }

    async fn session_token(
        &self,
        workspace: &WorkspaceId,
        id: &SessionId,
        resource: &ResourceId,
    ) -> Result<Option<String>, Error> {
        self.call(Asked::Read, self.memory.session_token(workspace, id, resource)).await
    }

    async fn sessions(&self, workspace: &WorkspaceId, query: SessionQuery) -> Result<Vec<Seen>, Error> {
        self.call(Asked::Read, self.memory.sessions(workspace, query)).await
    }

    async fn sessions_after(&self, after: Option<SessionId>, limit: usize) -> Result<Vec<SessionId>, Error> {
        self.call(Asked::Read, self.memory.sessions_after(after, limit)).await
    }

    async fn sandboxes(&self) -> Result<HashSet<SandboxId>, Error> {
        self.call(Asked::Read, self.memory.sandboxes()).await
    }

    async fn holdings(&self) -> Result<Vec<Holding>, Error> {
        self.call(Asked::Read, self.memory.holdings()).await
    }

    async fn events(&self, id: &SessionId, slice: Slice) -> Result<Vec<Stored>, Error> {
        self.call(Asked::Read, self.memory.events(id, slice)).await
    }

    async fn inbox(&self, id: &SessionId) -> Result<Vec<Stored>, Error> {
        self.call(Asked::Read, self.memory.inbox(id)).await
    }

    async fn history(&self, id: &SessionId, slice: Slice) -> Result<(Vec<Stored>, Vec<Stored>), Error> {
        self.call(Asked::Read, self.memory.history(id, slice)).await
    }

    async fn rebuild(&self, id: &SessionId) -> Result<Option<State>, Error> {
        self.call(Asked::Read, self.memory.rebuild(id)).await
    }

    async fn start(&self, id: &SessionId) -> Result<Option<Start>, Error> {
        self.call(Asked::Read, self.memory.start(id)).await
    }

    async fn catch_up(&self, id: &SessionId, progress: Progress) -> Result<Caught, Error> {
        self.call(Asked::Read, self.memory.catch_up(id, progress)).await
    }

    async fn create_agent(&self, workspace: &WorkspaceId, agent: &Agent) -> Result<bool, Error> {
        self.memory.create_agent(workspace, agent).await
    }

    async fn agent(
        &self,
        workspace: &WorkspaceId,
        id: &AgentId,
        version: Option<i64>,
    ) -> Result<Option<Agent>, Error> {
        self.memory.agent(workspace, id, version).await
    }

    async fn agents(&self, workspace: &WorkspaceId, query: AgentQuery) -> Result<Vec<Agent>, Error> {
        self.memory.agents(workspace, query).await
    }

    async fn agent_versions(
        &self,
        workspace: &WorkspaceId,
        id: &AgentId,
        before: Option<i64>,
        limit: usize,
    ) -> Result<Option<Vec<Agent>>, Error> {
        self.memory.agent_versions(workspace, id, before, limit).await
    }

    async fn change_agent(
        &self,
        workspace: &WorkspaceId,
        id: &AgentId,
        change: Change<Agent>,
    ) -> Result<Agent, ChangeError> {
        self.memory.change_agent(workspace, id, change).await
    }

    async fn create_environment(
        &self,
        workspace: &WorkspaceId,
        environment: &Environment,
    ) -> Result<(), ChangeError> {
        self.memory.create_environment(workspace, environment).await
    }

    async fn environment(
        &self,
        workspace: &WorkspaceId,
        id: &EnvironmentId,
    ) -> Result<Option<Environment>, Error> {
        self.memory.environment(workspace, id).await
    }

    async fn environments(
        &self,
        workspace: &WorkspaceId,
        query: EnvironmentQuery,
    ) -> Result<Vec<Environment>, Error> {
        self.memory.environments(workspace, query).await
    }

    async fn environments_with(
        &self,
        text: &'static str,
        after: Option<EnvironmentId>,
        limit: usize,
    ) -> Result<Vec<Environment>, Error> {
        self.memory.environments_with(text, after, limit).await
    }

    async fn change_environment(
        &self,
        workspace: &WorkspaceId,
        id: &EnvironmentId,
        change: Change<Environment>,
    ) -> Result<Environment, ChangeError> {
        self.memory.change_environment(workspace, id, change).await
    }

    async fn delete_environment(
        &self,
        workspace: &WorkspaceId,
        id: &EnvironmentId,
    ) -> Result<(), ChangeError> {
        self.memory.delete_environment(workspace, id).await
    }

    async fn create_vault(&self, workspace: &WorkspaceId, vault: &Vault) -> Result<bool, Error> {
        self.memory.create_vault(workspace, vault).await
    }

    async fn vault(&self, workspace: &WorkspaceId, id: &VaultId) -> Result<Option<Vault>, Error> {
        self.memory.vault(workspace, id).await
    }

    async fn vaults(&self, workspace: &WorkspaceId, query: VaultQuery) -> Result<Vec<Vault>, Error> {
        self.memory.vaults(workspace, query).await
    }

    async fn change_vault(
        &self,
        workspace: &WorkspaceId,
        id: &VaultId,
        change: Change<Vault>,
    ) -> Result<Vault, ChangeError> {
        self.memory.change_vault(workspace, id, change).await
    }

    async fn archive_vault(
        &self,
        workspace: &WorkspaceId,
        id: &VaultId,
        now: Timestamp,
    ) -> Result<Option<Vault>, Error> {
        self.memory.archive_vault(workspace, id, now).await
    }

    async fn delete_vault(&self, workspace: &WorkspaceId, id: &VaultId) -> Result<bool, Error> {
        self.memory.delete_vault(workspace, id).await
    }

    async fn create_credential(
        &self,
        workspace: &WorkspaceId,
        kept: &KeptCredential,
    ) -> Result<(), ChangeError> {
        self.memory.create_credential(workspace, kept).await
    }

    async fn credential(
        &self,
        workspace: &WorkspaceId,
        vault: &VaultId,
        id: &CredentialId,
    ) -> Result<Option<KeptCredential>, Error> {
        self.memory.credential(workspace, vault, id).await
    }

    async fn credentials(
        &self,
        workspace: &WorkspaceId,
        vault: &VaultId,
        query: CredentialQuery,
    ) -> Result<Option<Vec<Credential>>, Error> {
        self.memory.credentials(workspace, vault, query).await
    }

    async fn change_credential(
        &self,
        workspace: &WorkspaceId,
        vault: &VaultId,
        id: &CredentialId,
        change: Change<KeptCredential>,
    ) -> Result<KeptCredential, ChangeError> {
        self.memory.change_credential(workspace, vault, id, change).await
    }

    async fn delete_credential(
        &self,
        workspace: &WorkspaceId,
        vault: &VaultId,
        id: &CredentialId,
    ) -> Result<bool, Error> {
        self.memory.delete_credential(workspace, vault, id).await
    }

    async fn spendable(
        &self,
        workspace: &WorkspaceId,
        vaults: Vec<VaultId>,
        wanted: Wanted,
    ) -> Result<Vec<KeptCredential>, Error> {
        self.memory.spendable(workspace, vaults, wanted).await
    }

    async fn claim_refresh(&self, id: &CredentialId, holder: &str, time: Duration) -> Result<bool, Error> {
        self.memory.claim_refresh(id, holder, time).await
    }

    async fn release_refresh(&self, id: &CredentialId, holder: &str) -> Result<(), Error> {
        self.memory.release_refresh(id, holder).await
    }

    async fn vault_master(&self) -> Result<Option<String>, Error> {
        self.memory.vault_master().await
    }

    async fn set_vault_master(&self, master: &str) -> Result<(), Error> {
        self.memory.set_vault_master(master).await
    }

    async fn vault_key(&self, workspace: &WorkspaceId) -> Result<Option<VaultKey>, Error> {
        self.memory.vault_key(workspace).await
    }

    async fn vault_keys(&self) -> Result<Vec<VaultKey>, Error> {
        self.memory.vault_keys().await
    }

    async fn add_vault_key(&self, key: &VaultKey, now: Timestamp) -> Result<Added, Error> {
        self.memory.add_vault_key(key, now).await
    }

    async fn rewrap_vault_key(&self, before: &VaultKey, after: &VaultKey) -> Result<bool, Error> {
        self.memory.rewrap_vault_key(before, after).await
    }

    async fn ensure_workspace(&self, made: WorkspaceId, now: Timestamp) -> Result<WorkspaceId, Error> {
        self.memory.ensure_workspace(made, now).await
    }

    async fn create_workspace(&self, made: &WorkspaceId, now: Timestamp) -> Result<(), Error> {
        self.memory.create_workspace(made, now).await
    }

    async fn workspaces(&self) -> Result<Vec<WorkspaceId>, Error> {
        self.memory.workspaces().await
    }

    async fn create_key(&self, key: &ApiKey, hash: KeyHash) -> Result<bool, Error> {
        self.memory.create_key(key, hash).await
    }

    async fn keys(&self, workspace: &WorkspaceId) -> Result<Vec<ApiKey>, Error> {
        self.memory.keys(workspace).await
    }

    async fn revoke_key(
        &self,
        workspace: &WorkspaceId,
        id: &ApiKeyId,
        now: Timestamp,
    ) -> Result<Option<ApiKey>, Error> {
        self.memory.revoke_key(workspace, id, now).await
    }

    async fn find_key(&self, hash: KeyHash) -> Result<Option<ApiKey>, Error> {
        self.memory.find_key(hash).await
    }

    async fn ping(&self) -> Result<(), Error> {
        self.call(Asked::Read, self.memory.ping()).await
    }

    fn is_listening(&self) -> bool {
        self.memory.is_listening()
    }

    async fn close(&self) {
        self.memory.close().await;
    }
}
