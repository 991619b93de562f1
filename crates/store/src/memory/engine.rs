//! The engine, from its parts.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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

use crate::Options;
use crate::engine::Engine;
use crate::error::{ChangeError, Error};
use crate::hub::Hub;
use crate::keys::{ApiKey, KeyHash};
use crate::lease::{Lease, Token, View};
use crate::log::{Slice, Stored};
use crate::memory::logs;
use crate::memory::resources::Resources;
use crate::memory::sessions::Sessions;
use crate::memory::vaults::Vaults;
use crate::ready::Ready;
use crate::resources::{AgentQuery, Change, EnvironmentQuery, Ran, ran, unwound};
use crate::rules::catch_up::{Caught, Progress, Start, chunk};
use crate::rules::head::News;
use crate::rules::jobs::Job;
use crate::rules::leases;
use crate::sessions::{Holding, Seen, SessionQuery};
use crate::vaults::{Added, CredentialQuery, KeptCredential, VaultKey, VaultQuery, Wanted};

/// A store that is in memory alone.
pub(super) struct Memory {
    options: Options,
    hub: Arc<Hub>,
    ready: Ready,
    books: Mutex<Books>,
}

/// All that is kept.
#[derive(Default)]
struct Books {
    sessions: Sessions,
    resources: Resources,
    vaults: Vaults,
    is_closed: bool,
}

/// What became of an attempt to claim.
enum Try {
    Claimed(Lease),
    Held,
    Vain,
}

impl Memory {
    pub(super) fn new(options: Options, hub: Arc<Hub>) -> Self {
        let ready = Ready::new(options.limits);
        Self { options, hub, ready, books: Mutex::default() }
    }

    /// Runs a job and publishes what it means; whoever asked is not answered yet.
    pub(super) fn run(&self, job: &mut dyn Job) -> Result<(), Error> {
        let mut books = self.open()?;
        let news = books.sessions.run(job, self.now(), &self.hub);
        self.publish(news);
        Ok(())
    }

    /// Runs a job in vain, on what its session was before the last change.
    pub(super) fn rehearse(&self, job: &mut dyn Job) {
        if let Ok(books) = self.open() {
            books.sessions.rehearse(job, self.now(), &self.hub);
        }
    }

    fn now(&self) -> Timestamp {
        self.options.clock.now()
    }

    /// The books, unless they are closed. Held while what was changed is published, so that the order of the news is
    /// that of the changes.
    fn open(&self) -> Result<MutexGuard<'_, Books>, Error> {
        // What a panic leaves is consistent: each change is kept in one go.
        let books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        if books.is_closed { Err(Error::Closed) } else { Ok(books) }
    }

    fn publish(&self, news: News) {
        for id in &news.freed {
            self.ready.ended(id);
        }
        self.ready.push(&news.wanting);
        news.publish(&self.hub);
    }

    /// Nothing tells that a lease has lapsed; so now and then somebody looks.
    fn look_for_lapsed(&self) -> Result<(), Error> {
        let (books, now) = (self.open()?, self.now());
        self.ready.set_running(books.sessions.held(now));
        self.ready.push(&books.sessions.wanting(now));
        Ok(())
    }

    fn claim_ready(&self, holder: &str, max: usize) -> Result<Vec<Lease>, Error> {
        let (mut books, now) = (self.open()?, self.now());
        let mut claimed = Vec::new();
        while claimed.len() < max
            && let Some(id) = self.ready.pop()
        {
            match self.claim_if(&mut books, &id, holder, true, now) {
                Try::Claimed(lease) => claimed.push(lease),
                // Somebody holds it: it runs indeed.
                Try::Held => {}
                // It was deleted or satisfied since it was queued.
                Try::Vain => self.ready.ended(&id),
            }
        }
        if claimed.len() < max && self.ready.begin_refill() {
            self.ready.refill(&books.sessions.wanting(now));
        }
        Ok(claimed)
    }

    fn claim_if(
        &self,
        books: &mut Books,
        id: &SessionId,
        holder: &str,
        if_wanted: bool,
        now: Timestamp,
    ) -> Try {
        let tried = books.sessions.with(id, now, |head| {
            if head.is_leased(now) {
                return (Try::Held, None);
            }
            if if_wanted && !head.state.wants_brain() {
                return (Try::Vain, None);
            }
            let lease = leases::claim(head, holder, now).expect("nobody holds it");
            (Try::Claimed(lease), Some(head.workspace.clone()))
        });
        let Some(((tried, workspace), news)) = tried else { return Try::Vain };
        self.publish(news);
        if let Some(workspace) = workspace {
            self.ready.began(id, &workspace);
        }
        tried
    }
}

#[async_trait]
impl Engine for Memory {
    async fn submit(&self, mut job: Box<dyn Job>) {
        let outcome = self.run(&mut *job);
        job.answer(outcome);
    }

    async fn claim(&self, holder: &str, max: usize) -> Result<Vec<Lease>, Error> {
        let ready = &self.ready;
        loop {
            // Look, then sleep: a wake-up between the two is kept by the queue.
            if ready.is_closed() {
                ready.pass_on();
                return Err(Error::Closed);
            }
            if ready.is_look_due(self.options.lapsed_poll) {
                self.look_for_lapsed()?;
            }
            if ready.is_worth_a_claim() {
                let leases = self.claim_ready(holder, max)?;
                if !leases.is_empty() {
                    ready.pass_on();
                    return Ok(leases);
                }
                continue;
            }
            // A wake-up or the time: either way there may be something to see.
            let _ = tokio::time::timeout(self.options.lapsed_poll, ready.woken()).await;
        }
    }

    async fn try_claim(&self, id: &SessionId, holder: &str) -> Result<Option<Lease>, Error> {
        let mut books = self.open()?;
        Ok(match self.claim_if(&mut books, id, holder, false, self.now()) {
            Try::Claimed(lease) => Some(lease),
            Try::Held | Try::Vain => None,
        })
    }

    async fn renew(&self, token: &Token) -> Result<bool, Error> {
        let (mut books, now) = (self.open()?, self.now());
        let renewed = books.sessions.with(&token.session, now, |head| leases::renew(head, token, now));
        Ok(renewed.is_some_and(|(is_held, news)| {
            self.publish(news);
            is_held
        }))
    }

    async fn is_full(&self, workspace: &WorkspaceId) -> Result<bool, Error> {
        Ok(self.ready.is_full(workspace))
    }

    /// There is no other process.
    async fn look(&self, id: &SessionId) -> Result<Option<View>, Error> {
        Ok(self.open()?.sessions.look(id))
    }

    async fn session(&self, workspace: &WorkspaceId, id: &SessionId) -> Result<Option<Seen>, Error> {
        Ok(self.open()?.sessions.seen(workspace, id))
    }

    async fn session_token(
        &self,
        workspace: &WorkspaceId,
        id: &SessionId,
        resource: &ResourceId,
    ) -> Result<Option<String>, Error> {
        Ok(self.open()?.sessions.token(workspace, id, resource))
    }

    async fn sessions(&self, workspace: &WorkspaceId, query: SessionQuery) -> Result<Vec<Seen>, Error> {
        Ok(self.open()?.sessions.list(workspace, &query))
    }

    async fn sessions_after(&self, after: Option<SessionId>, limit: usize) -> Result<Vec<SessionId>, Error> {
        Ok(self.open()?.sessions.after(after.as_ref(), limit))
    }

    async fn sandboxes(&self) -> Result<HashSet<SandboxId>, Error> {
        Ok(self.open()?.sessions.sandboxes())
    }

    async fn holdings(&self) -> Result<Vec<Holding>, Error> {
        Ok(self.open()?.sessions.holdings())
    }

    async fn events(&self, id: &SessionId, slice: Slice) -> Result<Vec<Stored>, Error> {
        Ok(self.open()?.sessions.get(id).map(|kept| logs::events(kept, &slice)).unwrap_or_default())
    }

    async fn inbox(&self, id: &SessionId) -> Result<Vec<Stored>, Error> {
        Ok(self.open()?.sessions.get(id).map(logs::inbox).unwrap_or_default())
    }

    async fn history(&self, id: &SessionId, slice: Slice) -> Result<(Vec<Stored>, Vec<Stored>), Error> {
        let books = self.open()?;
        let kept = books.sessions.get(id);
        Ok(kept.map(|kept| (logs::events(kept, &slice), logs::inbox(kept))).unwrap_or_default())
    }

    async fn rebuild(&self, id: &SessionId) -> Result<Option<State>, Error> {
        Ok(self.open()?.sessions.get(id).map(logs::rebuild))
    }

    async fn start(&self, id: &SessionId) -> Result<Option<Start>, Error> {
        Ok(self.open()?.sessions.get(id).map(logs::start))
    }

    async fn catch_up(&self, id: &SessionId, progress: Progress) -> Result<Caught, Error> {
        let books = self.open()?;
        // Who is told of a deletion is told with it, in this process.
        let found = books.sessions.get(id).map(|kept| logs::find(kept, progress));
        Ok(found.map_or(Caught::Gone(None), |found| Caught::Up(chunk(progress, found))))
    }

    async fn create_agent(&self, workspace: &WorkspaceId, agent: &Agent) -> Result<bool, Error> {
        Ok(self.open()?.resources.create_agent(workspace, agent))
    }

    async fn agent(
        &self,
        workspace: &WorkspaceId,
        id: &AgentId,
        version: Option<i64>,
    ) -> Result<Option<Agent>, Error> {
        Ok(self.open()?.resources.agent(workspace, id, version).cloned())
    }

    async fn agents(&self, workspace: &WorkspaceId, query: AgentQuery) -> Result<Vec<Agent>, Error> {
        Ok(self.open()?.resources.agents(workspace, &query))
    }

    async fn agent_versions(
        &self,
        workspace: &WorkspaceId,
        id: &AgentId,
        before: Option<i64>,
        limit: usize,
    ) -> Result<Option<Vec<Agent>>, Error> {
        Ok(self.open()?.resources.agent_versions(workspace, id, before, limit))
    }

    async fn change_agent(
        &self,
        workspace: &WorkspaceId,
        id: &AgentId,
        change: Change<Agent>,
    ) -> Result<Agent, ChangeError> {
        let changed = {
            let mut books = self.open()?;
            let before = books.resources.agent(workspace, id, None).cloned().ok_or(ChangeError::NotFound)?;
            change_in_place(before, change, |before, after| books.resources.replace_agent(before, after))
        };
        unwound(changed)
    }

    async fn create_environment(
        &self,
        workspace: &WorkspaceId,
        environment: &Environment,
    ) -> Result<(), ChangeError> {
        self.open()?.resources.put_environment(workspace, environment)
    }

    async fn environment(
        &self,
        workspace: &WorkspaceId,
        id: &EnvironmentId,
    ) -> Result<Option<Environment>, Error> {
        Ok(self.open()?.resources.environment(workspace, id).cloned())
    }

    async fn environments(
        &self,
        workspace: &WorkspaceId,
        query: EnvironmentQuery,
    ) -> Result<Vec<Environment>, Error> {
        Ok(self.open()?.resources.environments(workspace, &query))
    }

    async fn environments_with(
        &self,
        text: &'static str,
        after: Option<EnvironmentId>,
        limit: usize,
    ) -> Result<Vec<Environment>, Error> {
        Ok(self.open()?.resources.environments_with(text, after.as_ref(), limit))
    }

    async fn change_environment(
        &self,
        workspace: &WorkspaceId,
        id: &EnvironmentId,
        change: Change<Environment>,
    ) -> Result<Environment, ChangeError> {
        let changed = {
            let mut books = self.open()?;
            let before = books.resources.environment(workspace, id).cloned().ok_or(ChangeError::NotFound)?;
            change_in_place(before, change, |_, after| books.resources.put_environment(workspace, after))
        };
        unwound(changed)
    }

    async fn delete_environment(
        &self,
        workspace: &WorkspaceId,
        id: &EnvironmentId,
    ) -> Result<(), ChangeError> {
        let mut books = self.open()?;
        books.resources.environment(workspace, id).ok_or(ChangeError::NotFound)?;
        if books.sessions.uses(id) {
            return Err(ChangeError::InUse);
        }
        books.resources.delete_environment(id);
        Ok(())
    }

    async fn create_vault(&self, workspace: &WorkspaceId, vault: &Vault) -> Result<bool, Error> {
        Ok(self.open()?.vaults.create(workspace, vault))
    }

    async fn vault(&self, workspace: &WorkspaceId, id: &VaultId) -> Result<Option<Vault>, Error> {
        Ok(self.open()?.vaults.get(workspace, id).cloned())
    }

    async fn vaults(&self, workspace: &WorkspaceId, query: VaultQuery) -> Result<Vec<Vault>, Error> {
        Ok(self.open()?.vaults.list(workspace, &query))
    }

    async fn change_vault(
        &self,
        workspace: &WorkspaceId,
        id: &VaultId,
        change: Change<Vault>,
    ) -> Result<Vault, ChangeError> {
        let changed = {
            let mut books = self.open()?;
            let before = books.vaults.get(workspace, id).cloned().ok_or(ChangeError::NotFound)?;
            change_in_place(before, change, |_, after| {
                books.vaults.replace(after);
                Ok(())
            })
        };
        unwound(changed)
    }

    async fn archive_vault(
        &self,
        workspace: &WorkspaceId,
        id: &VaultId,
        now: Timestamp,
    ) -> Result<Option<Vault>, Error> {
        Ok(self.open()?.vaults.archive(workspace, id, now))
    }

    async fn delete_vault(&self, workspace: &WorkspaceId, id: &VaultId) -> Result<bool, Error> {
        Ok(self.open()?.vaults.delete(workspace, id))
    }

    async fn create_credential(
        &self,
        workspace: &WorkspaceId,
        kept: &KeptCredential,
    ) -> Result<(), ChangeError> {
        self.open()?.vaults.create_credential(workspace, kept)
    }

    async fn credential(
        &self,
        workspace: &WorkspaceId,
        vault: &VaultId,
        id: &CredentialId,
    ) -> Result<Option<KeptCredential>, Error> {
        Ok(self.open()?.vaults.credential(workspace, vault, id).cloned())
    }

    async fn credentials(
        &self,
        workspace: &WorkspaceId,
        vault: &VaultId,
        query: CredentialQuery,
    ) -> Result<Option<Vec<Credential>>, Error> {
        Ok(self.open()?.vaults.credentials(workspace, vault, &query))
    }

    async fn change_credential(
        &self,
        workspace: &WorkspaceId,
        vault: &VaultId,
        id: &CredentialId,
        change: Change<KeptCredential>,
    ) -> Result<KeptCredential, ChangeError> {
        let changed = {
            let mut books = self.open()?;
            let before =
                books.vaults.credential(workspace, vault, id).cloned().ok_or(ChangeError::NotFound)?;
            change_in_place(before, change, |_, after| {
                books.vaults.replace_credential(after);
                Ok(())
            })
        };
        unwound(changed)
    }

    async fn delete_credential(
        &self,
        workspace: &WorkspaceId,
        vault: &VaultId,
        id: &CredentialId,
    ) -> Result<bool, Error> {
        Ok(self.open()?.vaults.delete_credential(workspace, vault, id))
    }

    async fn spendable(
        &self,
        workspace: &WorkspaceId,
        vaults: Vec<VaultId>,
        wanted: Wanted,
    ) -> Result<Vec<KeptCredential>, Error> {
        Ok(self.open()?.vaults.spendable(workspace, &vaults, &wanted))
    }

    async fn claim_refresh(&self, id: &CredentialId, holder: &str, time: Duration) -> Result<bool, Error> {
        Ok(self.open()?.vaults.claim_refresh(id, holder, self.now(), time))
    }

    async fn release_refresh(&self, id: &CredentialId, holder: &str) -> Result<(), Error> {
        self.open()?.vaults.release_refresh(id, holder);
        Ok(())
    }

    async fn vault_master(&self) -> Result<Option<String>, Error> {
        Ok(self.open()?.vaults.master())
    }

    async fn set_vault_master(&self, master: &str) -> Result<(), Error> {
        self.open()?.vaults.set_master(master);
        Ok(())
    }

    async fn vault_key(&self, workspace: &WorkspaceId) -> Result<Option<VaultKey>, Error> {
        Ok(self.open()?.vaults.key(workspace))
    }

    async fn vault_keys(&self) -> Result<Vec<VaultKey>, Error> {
        Ok(self.open()?.vaults.keys())
    }

    async fn add_vault_key(&self, key: &VaultKey, _: Timestamp) -> Result<Added, Error> {
        Ok(self.open()?.vaults.add_key(key))
    }

    async fn rewrap_vault_key(&self, before: &VaultKey, after: &VaultKey) -> Result<bool, Error> {
        Ok(self.open()?.vaults.rewrap_key(before, after))
    }

    async fn ensure_workspace(&self, made: WorkspaceId, now: Timestamp) -> Result<WorkspaceId, Error> {
        let mut books = self.open()?;
        if let Some(first) = books.resources.workspaces().into_iter().next() {
            return Ok(first);
        }
        books.resources.create_workspace(&made, now);
        Ok(made)
    }

    async fn create_workspace(&self, made: &WorkspaceId, now: Timestamp) -> Result<(), Error> {
        self.open()?.resources.create_workspace(made, now);
        Ok(())
    }

    async fn workspaces(&self) -> Result<Vec<WorkspaceId>, Error> {
        Ok(self.open()?.resources.workspaces())
    }

    async fn create_key(&self, key: &ApiKey, hash: KeyHash) -> Result<bool, Error> {
        Ok(self.open()?.resources.create_key(key, hash))
    }

    async fn keys(&self, workspace: &WorkspaceId) -> Result<Vec<ApiKey>, Error> {
        Ok(self.open()?.resources.keys(workspace))
    }

    async fn revoke_key(
        &self,
        workspace: &WorkspaceId,
        id: &ApiKeyId,
        now: Timestamp,
    ) -> Result<Option<ApiKey>, Error> {
        Ok(self.open()?.resources.revoke_key(workspace, id, now))
    }

    async fn find_key(&self, hash: KeyHash) -> Result<Option<ApiKey>, Error> {
        Ok(self.open()?.resources.find_key(hash))
    }

    async fn ping(&self) -> Result<(), Error> {
        self.open().map(|_| ())
    }

    async fn close(&self) {
        self.books.lock().unwrap_or_else(PoisonError::into_inner).is_closed = true;
        self.ready.close();
    }
}

fn change_in_place<T>(
    before: T,
    change: Change<T>,
    put: impl FnOnce(&T, &T) -> Result<(), ChangeError>,
) -> Ran<T> {
    match ran(change, &before) {
        Ok(Ok(Some(after))) => Ok(put(&before, &after).map(|()| after)),
        Ok(Ok(None)) => Ok(Ok(before)),
        Ok(Err(refused)) => Ok(Err(refused)),
        Err(panic) => Err(panic),
    }
}
