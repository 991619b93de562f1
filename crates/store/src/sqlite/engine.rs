//! The engine, from its parts.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
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
use rusqlite::Connection;
use session::State;

use crate::Options;
use crate::engine::{Engine, jittered};
use crate::error::{ChangeError, Error, OpenError};
use crate::hub::Hub;
use crate::keys::{ApiKey, KeyHash};
use crate::lease::{Lease, Token, View};
use crate::lock;
use crate::log::{Slice, Stored};
use crate::ready::Ready;
use crate::resources::{AgentQuery, Change, EnvironmentQuery, Ran, ran, unwound};
use crate::rules::catch_up::{Caught, Progress, Start, chunk};
use crate::rules::jobs::Job;
use crate::rules::leases::micros;
use crate::sessions::{Holding, Seen, SessionQuery};
use crate::sqlite::fault::Fault;
use crate::sqlite::kinds::Kinds;
use crate::sqlite::readers::Readers;
use crate::sqlite::writer::{Flush, Shared, Writer};
use crate::sqlite::{
    agents, catch_up, claims, connect, credentials, environments, heads, keys, listing, slices, vault_keys,
    vaults,
};
use crate::vaults::{Added, CredentialQuery, KeptCredential, VaultKey, VaultQuery, Wanted};

/// Lapsed leases that are looked for at once; the next look finds the rest.
const LAPSED_MAX: usize = 1_024;

/// The store of one data directory.
pub(crate) struct Sqlite {
    options: Options,
    ready: Arc<Ready>,
    kinds: Kinds,
    /// Somebody else writes, so there may be new kinds at any time.
    is_beside: bool,
    readers: Readers,
    /// Last, so that when the store is dropped the writer ends after all that it may wake.
    writer: Writer,
}

impl Sqlite {
    /// Takes the directory's lock, brings the database to the current format, voids the leases of whoever had it
    /// before.
    pub(crate) fn open(data_dir: &Path, options: Options, hub: &Arc<Hub>) -> Result<Self, OpenError> {
        lock::make_directory(data_dir)?;
        let lock = lock::take(data_dir)?;
        let path = connect::database(data_dir);
        let mut conn = connect::writer(&path).map_err(Error::from)?;
        connect::migrate(&mut conn)?;
        let (ready, kinds) = (Arc::new(Ready::new(options.limits)), Kinds::default());
        let prepare = || -> Result<(Readers, Writer), Fault> {
            kinds.load(&conn)?;
            let now = options.clock.now();
            claims::void_leases(&conn, now)?;
            claims::refill(&conn, &ready, now)?;
            connect::make_space(&path, options.log_space_bytes);
            let readers = Readers::open(path.clone())?;
            let shared = Shared {
                clock: options.clock.clone(),
                hub: hub.clone(),
                ready: ready.clone(),
                kinds: kinds.clone(),
            };
            Ok((readers, Writer::start(&path, conn, shared, lock)?))
        };
        let (readers, writer) = prepare().map_err(Error::from)?;
        Ok(Self { options, ready, kinds, is_beside: false, readers, writer })
    }

    /// Opens the directory's database to be read only, without its lock, whoever has that.
    pub(crate) fn open_beside(data_dir: &Path, options: Options) -> Result<Self, OpenError> {
        let path = connect::database(data_dir);
        let conn = connect::reader(&path).map_err(Error::from)?;
        connect::check_format(&conn)?;
        let readers = Readers::open(path).map_err(Error::from)?;
        let ready = Arc::new(Ready::new(options.limits));
        Ok(Self { options, ready, kinds: Kinds::default(), is_beside: true, readers, writer: Writer::none() })
    }

    /// Nothing tells that a lease has lapsed; so now and then somebody looks.
    async fn look_for_lapsed(&self) -> Result<(), Error> {
        let now = self.options.clock.now();
        let look = move |conn: &Connection| {
            Ok((claims::wanting(conn, now, LAPSED_MAX)?, claims::satisfied(conn, now, LAPSED_MAX)?))
        };
        let (wanting, satisfied) = self.readers.read(look).await?;
        self.ready.push(&wanting);
        for id in &satisfied {
            self.ready.ended(id);
        }
        Ok(())
    }
}

/// Leases on their way from the writer to whoever asked for them. If they are gone meanwhile the leases go back, so
/// that the sessions do not wait until they lapse.
struct Claimed {
    leases: Vec<Lease>,
    ready: Arc<Ready>,
}

impl Claimed {
    fn into_leases(mut self) -> Vec<Lease> {
        std::mem::take(&mut self.leases)
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        for lease in self.leases.drain(..) {
            self.ready.push_orphan(lease.token);
        }
    }
}

#[async_trait]
impl Engine for Sqlite {
    async fn submit(&self, job: Box<dyn Job>) {
        self.writer.submit(job).await;
    }

    async fn claim(&self, holder: &str, max: usize) -> Result<Vec<Lease>, Error> {
        let ready = &self.ready;
        loop {
            // Look, then sleep: a wake-up between the two is kept by the queue.
            if ready.is_closed() {
                ready.pass_on();
                return Err(Error::Closed);
            }
            // However busy the queue is: what has lapsed is in no queue.
            if ready.is_look_due(self.options.lapsed_poll) {
                self.look_for_lapsed().await?;
            }
            if ready.is_worth_a_claim() {
                let (holder, queue) = (holder.to_owned(), ready.clone());
                let claim = move |flush: &mut Flush<'_>| claims::claim_ready(flush, &holder, max);
                let claimed = |leases: Vec<Lease>| Claimed { leases, ready: queue };
                let leases = self.writer.run_then(0, claim, claimed).await?.into_leases();
                if !leases.is_empty() {
                    ready.pass_on();
                    return Ok(leases);
                }
                continue;
            }
            let poll = jittered(self.options.lapsed_poll);
            // A wake-up or the time: either way there may be something to see.
            let _ = tokio::time::timeout(poll, ready.woken()).await;
        }
    }

    async fn try_claim(&self, id: &SessionId, holder: &str) -> Result<Option<Lease>, Error> {
        let (id, holder, queue) = (id.clone(), holder.to_owned(), self.ready.clone());
        let claim = move |flush: &mut Flush<'_>| claims::claim(flush, &id, &holder);
        let claimed = |lease: Option<Lease>| Claimed { leases: lease.into_iter().collect(), ready: queue };
        Ok(self.writer.run_then(0, claim, claimed).await?.into_leases().pop())
    }

    async fn renew(&self, token: &Token) -> Result<bool, Error> {
        let token = token.clone();
        self.writer.run(0, move |flush| claims::renew(flush, &token)).await
    }

    async fn is_full(&self, workspace: &WorkspaceId) -> Result<bool, Error> {
        Ok(self.ready.is_full(workspace))
    }

    async fn look(&self, id: &SessionId) -> Result<Option<View>, Error> {
        let id = id.clone();
        self.readers.read(move |conn| listing::look(conn, &id)).await
    }

    async fn session(&self, workspace: &WorkspaceId, id: &SessionId) -> Result<Option<Seen>, Error> {
        let (workspace, id) = (workspace.clone(), id.clone());
        self.readers.read(move |conn| listing::get(conn, &workspace, &id)).await
    }

    async fn session_token(
        &self,
        workspace: &WorkspaceId,
        id: &SessionId,
        resource: &ResourceId,
    ) -> Result<Option<String>, Error> {
        let (workspace, id, resource) = (workspace.clone(), id.clone(), resource.clone());
        self.readers.read(move |conn| heads::token(conn, &workspace, &id, &resource)).await
    }

    async fn sessions(&self, workspace: &WorkspaceId, query: SessionQuery) -> Result<Vec<Seen>, Error> {
        let workspace = workspace.clone();
        self.readers.read(move |conn| listing::list(conn, &workspace, &query)).await
    }

    async fn sessions_after(&self, after: Option<SessionId>, limit: usize) -> Result<Vec<SessionId>, Error> {
        self.readers.read(move |conn| listing::after(conn, after.as_ref(), limit)).await
    }

    async fn sandboxes(&self) -> Result<HashSet<SandboxId>, Error> {
        self.readers.read(listing::sandboxes).await
    }

    async fn holdings(&self) -> Result<Vec<Holding>, Error> {
        self.readers.read(listing::holdings).await
    }

    async fn events(&self, id: &SessionId, slice: Slice) -> Result<Vec<Stored>, Error> {
        let (id, kinds, is_beside) = (id.clone(), self.kinds.clone(), self.is_beside);
        let read = move |conn: &rusqlite::Connection| {
            if is_beside {
                kinds.load(conn)?;
            }
            slices::events(conn, &kinds, &id, &slice)
        };
        self.readers.read(read).await
    }

    async fn inbox(&self, id: &SessionId) -> Result<Vec<Stored>, Error> {
        let (id, kinds) = (id.clone(), self.kinds.clone());
        self.readers.read(move |conn| slices::inbox(conn, &kinds, &id)).await
    }

    async fn history(&self, id: &SessionId, slice: Slice) -> Result<(Vec<Stored>, Vec<Stored>), Error> {
        let (id, kinds) = (id.clone(), self.kinds.clone());
        self.readers.read(move |conn| slices::history(conn, &kinds, &id, &slice)).await
    }

    async fn rebuild(&self, id: &SessionId) -> Result<Option<State>, Error> {
        let id = id.clone();
        self.readers.read(move |conn| slices::rebuild(conn, &id)).await
    }

    async fn start(&self, id: &SessionId) -> Result<Option<Start>, Error> {
        let id = id.clone();
        self.readers.read(move |conn| catch_up::start(conn, id.as_str())).await
    }

    async fn catch_up(&self, _: &SessionId, progress: Progress) -> Result<Caught, Error> {
        let kinds = self.kinds.clone();
        let found = self.readers.read(move |conn| catch_up::find(conn, &kinds, progress)).await?;
        // Who is told of a deletion is told by the writer, which is in this process.
        Ok(found.map_or(Caught::Gone(None), |found| Caught::Up(chunk(progress, found))))
    }

    async fn create_agent(&self, workspace: &WorkspaceId, agent: &Agent) -> Result<bool, Error> {
        let (workspace, agent) = (workspace.clone(), agent.clone());
        self.writer.run(0, move |flush| agents::create(flush.conn, &workspace, &agent)).await
    }

    async fn agent(
        &self,
        workspace: &WorkspaceId,
        id: &AgentId,
        version: Option<i64>,
    ) -> Result<Option<Agent>, Error> {
        let (workspace, id) = (workspace.clone(), id.clone());
        self.readers.read(move |conn| agents::get(conn, &workspace, &id, version)).await
    }

    async fn agents(&self, workspace: &WorkspaceId, query: AgentQuery) -> Result<Vec<Agent>, Error> {
        let workspace = workspace.clone();
        self.readers.read(move |conn| agents::list(conn, &workspace, &query)).await
    }

    async fn agent_versions(
        &self,
        workspace: &WorkspaceId,
        id: &AgentId,
        before: Option<i64>,
        limit: usize,
    ) -> Result<Option<Vec<Agent>>, Error> {
        let (workspace, id) = (workspace.clone(), id.clone());
        self.readers.read(move |conn| agents::versions(conn, &workspace, &id, before, limit)).await
    }

    async fn change_agent(
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
        unwound(self.writer.run(0, job).await?)
    }

    async fn create_environment(
        &self,
        workspace: &WorkspaceId,
        environment: &Environment,
    ) -> Result<(), ChangeError> {
        let (workspace, environment) = (workspace.clone(), environment.clone());
        self.writer.run(0, move |flush| environments::put(flush.conn, &workspace, &environment)).await?
    }

    async fn environment(
        &self,
        workspace: &WorkspaceId,
        id: &EnvironmentId,
    ) -> Result<Option<Environment>, Error> {
        let (workspace, id) = (workspace.clone(), id.clone());
        self.readers.read(move |conn| environments::get(conn, &workspace, &id)).await
    }

    async fn environments(
        &self,
        workspace: &WorkspaceId,
        query: EnvironmentQuery,
    ) -> Result<Vec<Environment>, Error> {
        let workspace = workspace.clone();
        self.readers.read(move |conn| environments::list(conn, &workspace, &query)).await
    }

    async fn environments_with(
        &self,
        text: &'static str,
        after: Option<EnvironmentId>,
        limit: usize,
    ) -> Result<Vec<Environment>, Error> {
        self.readers.read(move |conn| environments::with(conn, text, after.as_ref(), limit)).await
    }

    async fn change_environment(
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
        unwound(self.writer.run(0, job).await?)
    }

    async fn delete_environment(
        &self,
        workspace: &WorkspaceId,
        id: &EnvironmentId,
    ) -> Result<(), ChangeError> {
        let (workspace, id) = (workspace.clone(), id.clone());
        self.writer.run(0, move |flush| environments::delete(flush.conn, &workspace, &id)).await?
    }

    async fn create_vault(&self, workspace: &WorkspaceId, vault: &Vault) -> Result<bool, Error> {
        let (workspace, vault) = (workspace.clone(), vault.clone());
        self.writer.run(0, move |flush| vaults::create(flush.conn, &workspace, &vault)).await
    }

    async fn vault(&self, workspace: &WorkspaceId, id: &VaultId) -> Result<Option<Vault>, Error> {
        let (workspace, id) = (workspace.clone(), id.clone());
        self.readers.read(move |conn| vaults::get(conn, &workspace, &id)).await
    }

    async fn vaults(&self, workspace: &WorkspaceId, query: VaultQuery) -> Result<Vec<Vault>, Error> {
        let workspace = workspace.clone();
        self.readers.read(move |conn| vaults::list(conn, &workspace, &query)).await
    }

    async fn change_vault(
        &self,
        workspace: &WorkspaceId,
        id: &VaultId,
        change: Change<Vault>,
    ) -> Result<Vault, ChangeError> {
        let (workspace, id) = (workspace.clone(), id.clone());
        let job = move |flush: &mut Flush<'_>| {
            let Some(before) = vaults::get(flush.conn, &workspace, &id)? else {
                return Ok(Ok(Err(ChangeError::NotFound)));
            };
            change_in_place(before, change, |_, after| Ok(Ok(vaults::replace(flush.conn, after)?)))
        };
        unwound(self.writer.run(0, job).await?)
    }

    async fn archive_vault(
        &self,
        workspace: &WorkspaceId,
        id: &VaultId,
        now: Timestamp,
    ) -> Result<Option<Vault>, Error> {
        let (workspace, id) = (workspace.clone(), id.clone());
        self.writer.run(0, move |flush| vaults::archive(flush.conn, &workspace, &id, now)).await
    }

    async fn delete_vault(&self, workspace: &WorkspaceId, id: &VaultId) -> Result<bool, Error> {
        let (workspace, id) = (workspace.clone(), id.clone());
        self.writer.run(0, move |flush| vaults::delete(flush.conn, &workspace, &id)).await
    }

    async fn create_credential(
        &self,
        workspace: &WorkspaceId,
        kept: &KeptCredential,
    ) -> Result<(), ChangeError> {
        let (workspace, kept) = (workspace.clone(), kept.clone());
        self.writer.run(0, move |flush| credentials::create(flush.conn, &workspace, &kept)).await?
    }

    async fn credential(
        &self,
        workspace: &WorkspaceId,
        vault: &VaultId,
        id: &CredentialId,
    ) -> Result<Option<KeptCredential>, Error> {
        let (workspace, vault, id) = (workspace.clone(), vault.clone(), id.clone());
        self.readers.read(move |conn| credentials::get(conn, &workspace, &vault, &id)).await
    }

    async fn credentials(
        &self,
        workspace: &WorkspaceId,
        vault: &VaultId,
        query: CredentialQuery,
    ) -> Result<Option<Vec<Credential>>, Error> {
        let (workspace, vault) = (workspace.clone(), vault.clone());
        self.readers.read(move |conn| credentials::list(conn, &workspace, &vault, &query)).await
    }

    async fn change_credential(
        &self,
        workspace: &WorkspaceId,
        vault: &VaultId,
        id: &CredentialId,
        change: Change<KeptCredential>,
    ) -> Result<KeptCredential, ChangeError> {
        let (workspace, vault, id) = (workspace.clone(), vault.clone(), id.clone());
        let job = move |flush: &mut Flush<'_>| {
            let Some(before) = credentials::get(flush.conn, &workspace, &vault, &id)? else {
                return Ok(Ok(Err(ChangeError::NotFound)));
            };
            change_in_place(before, change, |_, after| Ok(Ok(credentials::replace(flush.conn, after)?)))
        };
        unwound(self.writer.run(0, job).await?)
    }

    async fn delete_credential(
        &self,
        workspace: &WorkspaceId,
        vault: &VaultId,
        id: &CredentialId,
    ) -> Result<bool, Error> {
        let (workspace, vault, id) = (workspace.clone(), vault.clone(), id.clone());
        self.writer.run(0, move |flush| credentials::delete(flush.conn, &workspace, &vault, &id)).await
    }

    async fn spendable(
        &self,
        workspace: &WorkspaceId,
        vaults: Vec<VaultId>,
        wanted: Wanted,
    ) -> Result<Vec<KeptCredential>, Error> {
        let workspace = workspace.clone();
        self.readers.read(move |conn| credentials::spendable(conn, &workspace, &vaults, &wanted)).await
    }

    async fn claim_refresh(&self, id: &CredentialId, holder: &str, time: Duration) -> Result<bool, Error> {
        let (id, holder) = (id.clone(), holder.to_owned());
        let job = move |flush: &mut Flush<'_>| {
            let now = flush.now();
            let until = Timestamp::from_micros(now.as_micros().saturating_add(micros(time)));
            credentials::claim_refresh(flush.conn, &id, &holder, now, until)
        };
        self.writer.run(0, job).await
    }

    async fn release_refresh(&self, id: &CredentialId, holder: &str) -> Result<(), Error> {
        let (id, holder) = (id.clone(), holder.to_owned());
        self.writer.run(0, move |flush| credentials::release_refresh(flush.conn, &id, &holder)).await
    }

    async fn vault_master(&self) -> Result<Option<String>, Error> {
        self.readers.read(vault_keys::master).await
    }

    async fn set_vault_master(&self, master: &str) -> Result<(), Error> {
        let master = master.to_owned();
        self.writer.run(0, move |flush| vault_keys::set_master(flush.conn, &master)).await
    }

    async fn vault_key(&self, workspace: &WorkspaceId) -> Result<Option<VaultKey>, Error> {
        let workspace = workspace.clone();
        self.readers.read(move |conn| vault_keys::get(conn, &workspace)).await
    }

    async fn vault_keys(&self) -> Result<Vec<VaultKey>, Error> {
        self.readers.read(vault_keys::all).await
    }

    async fn add_vault_key(&self, key: &VaultKey, now: Timestamp) -> Result<Added, Error> {
        let key = key.clone();
        self.writer.run(0, move |flush| vault_keys::add(flush.conn, &key, now)).await
    }

    async fn rewrap_vault_key(&self, before: &VaultKey, after: &VaultKey) -> Result<bool, Error> {
        let (before, after) = (before.clone(), after.clone());
        self.writer.run(0, move |flush| vault_keys::rewrap(flush.conn, &before, &after)).await
    }

    async fn ensure_workspace(&self, made: WorkspaceId, now: Timestamp) -> Result<WorkspaceId, Error> {
        self.writer.run(0, move |flush| keys::ensure_workspace(flush.conn, made, now)).await
    }

    async fn create_workspace(&self, made: &WorkspaceId, now: Timestamp) -> Result<(), Error> {
        let made = made.clone();
        self.writer.run(0, move |flush| keys::create_workspace(flush.conn, &made, now)).await
    }

    async fn workspaces(&self) -> Result<Vec<WorkspaceId>, Error> {
        self.readers.read(keys::workspaces).await
    }

    async fn create_key(&self, key: &ApiKey, hash: KeyHash) -> Result<bool, Error> {
        let key = key.clone();
        self.writer.run(0, move |flush| keys::create(flush.conn, &key, &hash)).await
    }

    async fn keys(&self, workspace: &WorkspaceId) -> Result<Vec<ApiKey>, Error> {
        let workspace = workspace.clone();
        self.readers.read(move |conn| keys::list(conn, &workspace)).await
    }

    async fn revoke_key(
        &self,
        workspace: &WorkspaceId,
        id: &ApiKeyId,
        now: Timestamp,
    ) -> Result<Option<ApiKey>, Error> {
        let (workspace, id) = (workspace.clone(), id.clone());
        self.writer.run(0, move |flush| keys::revoke(flush.conn, &workspace, &id, now)).await
    }

    async fn find_key(&self, hash: KeyHash) -> Result<Option<ApiKey>, Error> {
        self.readers.read(move |conn| keys::find(conn, &hash)).await
    }

    async fn ping(&self) -> Result<(), Error> {
        if self.writer.is_dead() {
            return Err(Error::Unknown("the writer is gone".into()));
        }
        self.readers.read(|_| Ok(())).await
    }

    async fn close(&self) {
        self.writer.close().await;
        self.readers.close();
        self.ready.close();
    }
}

fn change_in_place<T>(
    before: T,
    change: Change<T>,
    put: impl FnOnce(&T, &T) -> Result<Result<(), ChangeError>, Fault>,
) -> Result<Ran<T>, Fault> {
    match ran(change, &before) {
        Ok(Ok(Some(after))) => Ok(Ok(put(&before, &after)?.map(|()| after))),
        Ok(Ok(None)) => Ok(Ok(Ok(before))),
        Ok(Err(refused)) => Ok(Ok(Err(refused))),
        Err(panic) => Ok(Err(panic)),
    }
}
