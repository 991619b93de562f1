//! The seam below the store: what an engine must do. SQLite and PostgreSQL implement it, and one in memory for
//! simulations.
//!
//! What a change means is decided in [`rules`](crate::rules), the same for all; an engine loads, writes and reads.
//! `tests/it/conformance` is the contract in full, and every engine runs it.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
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

use crate::error::{ChangeError, Error};
use crate::hub::Frame;
use crate::keys::{ApiKey, KeyHash};
use crate::lease::{Lease, Token, View};
use crate::log::{Slice, Stored};
use crate::resources::{AgentQuery, Change, EnvironmentQuery};
use crate::rules::catch_up::{Caught, Progress, Start};
use crate::rules::jobs::Job;
use crate::sessions::{Holding, Seen, SessionQuery};
use crate::vaults::{Added, CredentialQuery, KeptCredential, VaultKey, VaultQuery, Wanted};

/// Between three and five quarters of `period`, so that many processes do not look at the same moment.
pub(crate) fn jittered(period: Duration) -> Duration {
    // Every such state is seeded anew: enough randomness to spread a poll.
    let spread = RandomState::new().hash_one(()) % 512;
    period.mul_f64(0.75 + spread as f64 / 1024.0)
}

/// Where sessions last. What concerns other processes need not be given by an engine that has none beside it. All calls may be made at once; a future may be dropped at any point, and then what it asked
/// for has happened or not.
#[async_trait]
pub(crate) trait Engine: Send + Sync {
    /// Runs the job on its session and answers it once what it left is durable, all or nothing; then publishes what it
    /// means to the hub and to whoever claims. Jobs on one session run one after the other. Returns when the job is
    /// accepted, which is the back-pressure on callers, or answered because it cannot be.
    async fn submit(&self, job: Box<dyn Job>);

    /// Waits until some session wants a brain; leases up to `max` of them, fairly between workspaces.
    async fn claim(&self, holder: &str, max: usize) -> Result<Vec<Lease>, Error>;

    /// Leases this session, whether it wants a brain or not; `None` if somebody holds it or it does not exist.
    async fn try_claim(&self, id: &SessionId, holder: &str) -> Result<Option<Lease>, Error>;

    /// Makes the lease last its full length again; gives whether it was still this one.
    async fn renew(&self, token: &Token) -> Result<bool, Error>;

    /// Whether a session of this workspace that begins to wait for a brain now would be one too many.
    async fn is_full(&self, workspace: &WorkspaceId) -> Result<bool, Error>;

    /// How many processes claim sessions of this database now; at least 1.
    fn live_brains(&self) -> u32 {
        1
    }

    /// Whether the session is followed in another process by somebody who wants previews.
    fn is_watched_elsewhere(&self, _session: &SessionId) -> bool {
        false
    }

    /// Passes a preview on to followers in other processes. May lose it.
    fn announce(&self, _session: &SessionId, _frame: &Frame) {}

    /// Somebody here follows this session and wants previews.
    async fn want_previews(&self, _session: &SessionId) {}

    /// Tells the other processes something that is not the store's own business. May lose it.
    async fn tell(&self, _word: &str) {}

    async fn look(&self, id: &SessionId) -> Result<Option<View>, Error>;
    async fn session(&self, workspace: &WorkspaceId, id: &SessionId) -> Result<Option<Seen>, Error>;
    async fn session_token(
        &self,
        workspace: &WorkspaceId,
        id: &SessionId,
        resource: &ResourceId,
    ) -> Result<Option<String>, Error>;
    async fn sessions(&self, workspace: &WorkspaceId, query: SessionQuery) -> Result<Vec<Seen>, Error>;
    async fn sessions_after(&self, after: Option<SessionId>, limit: usize) -> Result<Vec<SessionId>, Error>;
    async fn sandboxes(&self) -> Result<HashSet<SandboxId>, Error>;
    async fn holdings(&self) -> Result<Vec<Holding>, Error>;
    async fn events(&self, id: &SessionId, slice: Slice) -> Result<Vec<Stored>, Error>;
    async fn inbox(&self, id: &SessionId) -> Result<Vec<Stored>, Error>;
    /// Both, of one moment.
    async fn history(&self, id: &SessionId, slice: Slice) -> Result<(Vec<Stored>, Vec<Stored>), Error>;
    async fn rebuild(&self, id: &SessionId) -> Result<Option<State>, Error>;
    /// Where a session stands now; `None` if there is no such session.
    async fn start(&self, id: &SessionId) -> Result<Option<Start>, Error>;
    /// What comes next for a follower of this session.
    async fn catch_up(&self, id: &SessionId, progress: Progress) -> Result<Caught, Error>;

    /// False if its id is taken.
    async fn create_agent(&self, workspace: &WorkspaceId, agent: &Agent) -> Result<bool, Error>;
    async fn agent(
        &self,
        workspace: &WorkspaceId,
        id: &AgentId,
        version: Option<i64>,
    ) -> Result<Option<Agent>, Error>;
    async fn agents(&self, workspace: &WorkspaceId, query: AgentQuery) -> Result<Vec<Agent>, Error>;
    async fn agent_versions(
        &self,
        workspace: &WorkspaceId,
        id: &AgentId,
        before: Option<i64>,
        limit: usize,
    ) -> Result<Option<Vec<Agent>>, Error>;
    async fn change_agent(
        &self,
        workspace: &WorkspaceId,
        id: &AgentId,
        change: Change<Agent>,
    ) -> Result<Agent, ChangeError>;

    async fn create_environment(
        &self,
        workspace: &WorkspaceId,
        environment: &Environment,
    ) -> Result<(), ChangeError>;
    async fn environment(
        &self,
        workspace: &WorkspaceId,
        id: &EnvironmentId,
    ) -> Result<Option<Environment>, Error>;
    async fn environments(
        &self,
        workspace: &WorkspaceId,
        query: EnvironmentQuery,
    ) -> Result<Vec<Environment>, Error>;
    /// Environments of all workspaces that are not archived and whose kept text holds this one, which may be empty; by id, so
    /// that the oldest come first.
    async fn environments_with(
        &self,
        text: &'static str,
        after: Option<EnvironmentId>,
        limit: usize,
    ) -> Result<Vec<Environment>, Error>;
    async fn change_environment(
        &self,
        workspace: &WorkspaceId,
        id: &EnvironmentId,
        change: Change<Environment>,
    ) -> Result<Environment, ChangeError>;
    async fn delete_environment(
        &self,
        workspace: &WorkspaceId,
        id: &EnvironmentId,
    ) -> Result<(), ChangeError>;

    /// False if its id is taken.
    async fn create_vault(&self, workspace: &WorkspaceId, vault: &Vault) -> Result<bool, Error>;
    async fn vault(&self, workspace: &WorkspaceId, id: &VaultId) -> Result<Option<Vault>, Error>;
    async fn vaults(&self, workspace: &WorkspaceId, query: VaultQuery) -> Result<Vec<Vault>, Error>;
    async fn change_vault(
        &self,
        workspace: &WorkspaceId,
        id: &VaultId,
        change: Change<Vault>,
    ) -> Result<Vault, ChangeError>;
    /// With its credentials, whose secrets go.
    async fn archive_vault(
        &self,
        workspace: &WorkspaceId,
        id: &VaultId,
        now: Timestamp,
    ) -> Result<Option<Vault>, Error>;
    /// With its credentials; false if there is no such vault.
    async fn delete_vault(&self, workspace: &WorkspaceId, id: &VaultId) -> Result<bool, Error>;
    async fn create_credential(
        &self,
        workspace: &WorkspaceId,
        kept: &KeptCredential,
    ) -> Result<(), ChangeError>;
    async fn credential(
        &self,
        workspace: &WorkspaceId,
        vault: &VaultId,
        id: &CredentialId,
    ) -> Result<Option<KeptCredential>, Error>;
    /// `None` if there is no such vault.
    async fn credentials(
        &self,
        workspace: &WorkspaceId,
        vault: &VaultId,
        query: CredentialQuery,
    ) -> Result<Option<Vec<Credential>>, Error>;
    async fn change_credential(
        &self,
        workspace: &WorkspaceId,
        vault: &VaultId,
        id: &CredentialId,
        change: Change<KeptCredential>,
    ) -> Result<KeptCredential, ChangeError>;
    /// False if there is no such credential.
    async fn delete_credential(
        &self,
        workspace: &WorkspaceId,
        vault: &VaultId,
        id: &CredentialId,
    ) -> Result<bool, Error>;
    /// In any order.
    async fn spendable(
        &self,
        workspace: &WorkspaceId,
        vaults: Vec<VaultId>,
        wanted: Wanted,
    ) -> Result<Vec<KeptCredential>, Error>;
    async fn claim_refresh(&self, id: &CredentialId, holder: &str, time: Duration) -> Result<bool, Error>;
    async fn release_refresh(&self, id: &CredentialId, holder: &str) -> Result<(), Error>;

    async fn vault_master(&self) -> Result<Option<String>, Error>;
    async fn set_vault_master(&self, master: &str) -> Result<(), Error>;
    async fn vault_key(&self, workspace: &WorkspaceId) -> Result<Option<VaultKey>, Error>;
    async fn vault_keys(&self) -> Result<Vec<VaultKey>, Error>;
    async fn add_vault_key(&self, key: &VaultKey, now: Timestamp) -> Result<Added, Error>;
    async fn rewrap_vault_key(&self, before: &VaultKey, after: &VaultKey) -> Result<bool, Error>;

    /// The first workspace; `made` if there is none yet.
    async fn ensure_workspace(&self, made: WorkspaceId, now: Timestamp) -> Result<WorkspaceId, Error>;
    async fn create_workspace(&self, made: &WorkspaceId, now: Timestamp) -> Result<(), Error>;
    /// Oldest first.
    async fn workspaces(&self) -> Result<Vec<WorkspaceId>, Error>;
    /// False if the same key is kept already.
    async fn create_key(&self, key: &ApiKey, hash: KeyHash) -> Result<bool, Error>;
    async fn keys(&self, workspace: &WorkspaceId) -> Result<Vec<ApiKey>, Error>;
    async fn revoke_key(
        &self,
        workspace: &WorkspaceId,
        id: &ApiKeyId,
        now: Timestamp,
    ) -> Result<Option<ApiKey>, Error>;
    async fn find_key(&self, hash: KeyHash) -> Result<Option<ApiKey>, Error>;

    /// Whether the database answers. Bounded in time.
    async fn ping(&self) -> Result<(), Error>;
    /// Whether changes made by other processes are heard of at once.
    fn is_listening(&self) -> bool {
        true
    }
    /// Finishes what has been accepted, then refuses everything; waiting claims end with [`Error::Closed`].
    async fn close(&self);
}
