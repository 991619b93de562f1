//! The engine, from its parts.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use protocol::agent::Agent;
use protocol::credential::Credential;
use protocol::environment::Environment;
use protocol::id::{
    AgentId, ApiKeyId, CredentialId, EnvironmentId, EventId, ResourceId, SandboxId, SessionId, VaultId,
    WorkspaceId,
};
use protocol::time::Timestamp;
use protocol::vault::Vault;
use session::State;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Options;
use crate::engine::{Engine, jittered};
use crate::error::{ChangeError, Error, OpenError};
use crate::hub::{Frame, Hub};
use crate::keys::{ApiKey, KeyHash};
use crate::lease::{Lease, Token, View};
use crate::log::{Slice, Stored};
use crate::postgres::claims::{self, Renewal};
use crate::postgres::connect::{Address, Db, read};
use crate::postgres::fault::Fault;
use crate::postgres::lanes::Lanes;
use crate::postgres::previews::{Elsewhere, Outbox};
use crate::postgres::{
    credentials, listen, migrate, previews, resources, sessions, slices, vault_keys, vaults,
};
use crate::resources::{AgentQuery, Change, EnvironmentQuery};
use crate::rules::catch_up::{Caught, Progress, Start};
use crate::rules::head::News;
use crate::rules::jobs::{Job, job};
use crate::rules::leases;
use crate::sessions::{Holding, Seen, SessionQuery};
use crate::vaults::{Added, CredentialQuery, KeptCredential, VaultKey, VaultQuery, Wanted};

/// Renewals that may wait.
const RENEWALS_WAITING: usize = 4_096;
/// How often a process that claims says so.
const BEAT: Duration = Duration::from_secs(5);
/// How long it is believed that a workspace's queue is far from full.
const NOT_FULL: Duration = Duration::from_millis(250);
/// Workspaces of which that is remembered.
const REMEMBERED_MAX: usize = 4_096;
/// How long closing waits for what is under way.
const CLOSE_MAX: Duration = Duration::from_secs(10);

/// What the parts of the engine share.
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) db: Db,
    pub(crate) hub: Arc<Hub>,
    /// Some session may want a brain.
    pub(crate) ready: Notify,
    /// Names this process in notifications.
    pub(crate) node: String,
    pub(crate) elsewhere: Elsewhere,
    pub(crate) tasks: TaskTracker,
    pub(crate) closed: CancellationToken,
    lanes: OnceLock<Lanes>,
    is_listening: AtomicBool,
    write_ids: AtomicI64,
    live_brains: AtomicU32,
    /// When this process last said that it claims.
    beaten: Mutex<Option<Instant>>,
    /// Workspaces whose queue was not full a moment ago.
    not_full: Mutex<HashMap<WorkspaceId, Instant>>,
}

/// The store of one database.
pub(crate) struct Postgres {
    shared: Arc<Shared>,
    renewals: mpsc::Sender<Renewal>,
    outbox: Outbox,
}

impl Shared {
    /// The time for statements: the database's own, unless a test has another.
    pub(crate) fn manual_now(&self) -> Option<Timestamp> {
        self.options.clock.is_manual().then(|| self.options.clock.now())
    }

    /// A name for a write, never used before.
    pub(crate) fn new_write_id(&self) -> i64 {
        self.write_ids.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// Whether there are limits on running sessions.
    pub(crate) fn is_limited(&self) -> bool {
        let limits = &self.options.limits;
        limits.running_max.is_some() || limits.running_per_workspace_max.is_some()
    }

    /// Gives whether that is news.
    pub(crate) fn set_listening(&self, is_listening: bool) -> bool {
        self.is_listening.swap(is_listening, Ordering::Relaxed) != is_listening
    }

    /// After a commit: what it means for others.
    pub(crate) fn publish(&self, news: News) {
        if !news.wanting.is_empty() || self.is_limited() {
            self.ready.notify_one();
        }
        news.publish(&self.hub);
    }

    /// A session may have changed.
    pub(crate) fn wake(&self, id: &SessionId) {
        self.hub.changed(vec![(id.clone(), None)]);
    }

    /// What is kept of this session may be old.
    pub(crate) fn mark(&self, id: &SessionId) {
        if let Some(lanes) = self.lanes.get() {
            lanes.mark(id);
        }
    }

    /// Anything may have changed.
    pub(crate) fn look_everywhere(&self) {
        if let Some(lanes) = self.lanes.get() {
            lanes.mark_all();
        }
        self.hub.changed(self.hub.watched().into_iter().map(|id| (id, None)).collect());
        self.ready.notify_one();
    }

    /// Another process said something that is not the store's.
    pub(crate) fn hear_word(&self, word: &str) {
        self.hub.say(word);
    }
}

impl Postgres {
    /// Brings the database to the current format and starts the lanes.
    pub(crate) async fn connect(
        url: &str,
        listen_url: Option<&str>,
        options: Options,
        hub: &Arc<Hub>,
    ) -> Result<Self, OpenError> {
        let address = Address::parse(url)?;
        let listen_address = listen_url.map(Address::parse).transpose()?.unwrap_or_else(|| address.clone());
        let db = Db::new(&address);
        migrate::migrate(&db).await?;
        let node: EventId = options.ids.make();
        // Ids of a seeded maker are the same in several processes of a test; two names must never be.
        let salt = RandomState::new().hash_one(node.as_str());
        let shared = Arc::new(Shared {
            db,
            hub: hub.clone(),
            ready: Notify::new(),
            node: format!("{}.{salt:x}", node.as_str()),
            elsewhere: Elsewhere::default(),
            tasks: TaskTracker::new(),
            closed: CancellationToken::new(),
            lanes: OnceLock::new(),
            is_listening: AtomicBool::new(false),
            write_ids: AtomicI64::new((salt >> 1) as i64 & !0xFFFF_FFFF),
            live_brains: AtomicU32::new(1),
            beaten: Mutex::new(None),
            not_full: Mutex::default(),
            options,
        });
        let lanes = Lanes::start(&shared);
        assert!(shared.lanes.set(lanes).is_ok(), "the lanes are started once");
        let (renewals, waiting) = mpsc::channel(RENEWALS_WAITING);
        let of = shared.clone();
        shared.tasks.spawn(claims::renew_all(shared.db.clone(), waiting, move || of.manual_now()));
        let (outbox, pieces) = Outbox::new();
        shared.tasks.spawn(previews::tell(shared.clone(), pieces));
        shared.tasks.spawn(listen::listen(shared.clone(), listen_address));
        shared.tasks.spawn(listen::poll(shared.clone()));
        Ok(Self { shared, renewals, outbox })
    }

    fn db(&self) -> &Db {
        &self.shared.db
    }

    fn lanes(&self) -> &Lanes {
        self.shared.lanes.get().expect("started with the engine")
    }

    /// Claims in a task of its own: if the caller is gone when the leases come, they go back.
    async fn claim_now(&self, holder: &str, max: usize) -> Result<Vec<Lease>, Error> {
        let (shared, holder) = (self.shared.clone(), holder.to_owned());
        let (answer, answered) = oneshot::channel();
        self.shared.tasks.spawn(async move {
            let now = shared.manual_now();
            let claimed = claims::claim(&shared.db, &holder, max, &shared.options.limits, now).await;
            for lease in claimed.iter().flatten() {
                shared.mark(&lease.token.session);
            }
            if let Err(Ok(leases)) = answer.send(claimed) {
                give_back(&shared, leases).await;
            }
        });
        let claimed = answered.await.map_err(|_| Error::Closed)?;
        // A claim whose answer was lost lapses by itself.
        claimed.map_err(|fault| fault.into())
    }

    /// Says now and then that this process claims.
    async fn beat(&self) {
        {
            let mut beaten = self.shared.beaten.lock().unwrap_or_else(PoisonError::into_inner);
            if beaten.is_some_and(|beaten| beaten.elapsed() < BEAT) {
                return;
            }
            *beaten = Some(Instant::now());
        }
        match claims::beat(self.db(), &self.shared.node, self.shared.manual_now()).await {
            Ok(live) => self.shared.live_brains.store(live.max(1), Ordering::Relaxed),
            Err(fault) => tracing::debug!(error = ?fault, "the brains could not be counted"),
        }
    }
}

async fn give_back(shared: &Shared, leases: Vec<Lease>) {
    let Some(lanes) = shared.lanes.get() else { return };
    for Lease { token, .. } in leases {
        let session = token.session.clone();
        let (job, released) = job(session, 0, move |head, _| {
            if let Some(head) = head {
                leases::release(head, &token);
            }
        });
        lanes.submit(job).await;
        // A job that nobody waits for does not run. If it fails the lease lapses by itself.
        let _ = released.await;
    }
}

#[async_trait]
impl Engine for Postgres {
    async fn submit(&self, job: Box<dyn Job>) {
        if self.shared.is_closed() {
            return job.answer(Err(Error::Closed));
        }
        self.lanes().submit(job).await;
    }

    async fn claim(&self, holder: &str, max: usize) -> Result<Vec<Lease>, Error> {
        loop {
            if self.shared.is_closed() {
                return Err(Error::Closed);
            }
            // Registered before the look, so that no wake-up falls between the look and the wait.
            let woken = self.shared.ready.notified();
            self.beat().await;
            let leases = self.claim_now(holder, max).await?;
            if !leases.is_empty() {
                // There may be more for another claim of this process.
                self.shared.ready.notify_one();
                return Ok(leases);
            }
            let poll = jittered(self.shared.options.lapsed_poll);
            tokio::select! {
                biased;
                () = self.shared.closed.cancelled() => {}
                _ = timeout(poll, woken) => {}
            }
        }
    }

    async fn try_claim(&self, id: &SessionId, holder: &str) -> Result<Option<Lease>, Error> {
        let (shared, id, holder) = (self.shared.clone(), id.clone(), holder.to_owned());
        let (answer, answered) = oneshot::channel();
        self.shared.tasks.spawn(async move {
            let claimed = claims::try_claim(&shared.db, &id, &holder, shared.manual_now()).await;
            shared.mark(&id);
            if let Err(Ok(Some(lease))) = answer.send(claimed) {
                give_back(&shared, vec![lease]).await;
            }
        });
        Ok(answered.await.map_err(|_| Error::Closed)?.map_err(|fault| fault.of_write())?)
    }

    async fn renew(&self, token: &Token) -> Result<bool, Error> {
        let (answer, answered) = oneshot::channel();
        // A brain that is full claims nothing, but counts all the same.
        self.beat().await;
        let renewal = Renewal { token: token.clone(), answer };
        self.renewals.send(renewal).await.map_err(|_| Error::Closed)?;
        answered.await.map_err(|_| Error::Closed)?
    }

    async fn is_full(&self, workspace: &WorkspaceId) -> Result<bool, Error> {
        let Some(max) = self.shared.options.limits.waiting_per_workspace_max else { return Ok(false) };
        {
            let not_full = self.shared.not_full.lock().unwrap_or_else(PoisonError::into_inner);
            if not_full.get(workspace).is_some_and(|seen| seen.elapsed() < NOT_FULL) {
                return Ok(false);
            }
        }
        let waiting = claims::waiting(self.db(), workspace, max).await?;
        // Near the limit it is counted each time.
        if waiting < max / 2 {
            let mut not_full = self.shared.not_full.lock().unwrap_or_else(PoisonError::into_inner);
            if not_full.len() >= REMEMBERED_MAX {
                not_full.clear();
            }
            not_full.insert(workspace.clone(), Instant::now());
        }
        Ok(waiting >= max)
    }

    fn live_brains(&self) -> u32 {
        self.shared.live_brains.load(Ordering::Relaxed)
    }

    fn is_watched_elsewhere(&self, session: &SessionId) -> bool {
        self.shared.elsewhere.is_followed(session)
    }

    fn announce(&self, session: &SessionId, frame: &Frame) {
        self.outbox.put(&self.shared.elsewhere, session, frame);
    }

    async fn want_previews(&self, session: &SessionId) {
        previews::say_watched(&self.shared, std::slice::from_ref(session)).await;
    }

    async fn tell(&self, word: &str) {
        previews::notify(&self.shared, format!("t|{}|{word}", self.shared.node)).await;
    }

    async fn look(&self, id: &SessionId) -> Result<Option<View>, Error> {
        Ok(read(|| sessions::look(self.db(), id)).await?)
    }

    async fn session(&self, workspace: &WorkspaceId, id: &SessionId) -> Result<Option<Seen>, Error> {
        Ok(read(|| sessions::get(self.db(), workspace, id)).await?)
    }

    async fn session_token(
        &self,
        workspace: &WorkspaceId,
        id: &SessionId,
        resource: &ResourceId,
    ) -> Result<Option<String>, Error> {
        Ok(read(|| sessions::token(self.db(), workspace, id, resource)).await?)
    }

    async fn sessions(&self, workspace: &WorkspaceId, query: SessionQuery) -> Result<Vec<Seen>, Error> {
        Ok(read(|| sessions::list(self.db(), workspace, &query)).await?)
    }

    async fn sessions_after(&self, after: Option<SessionId>, limit: usize) -> Result<Vec<SessionId>, Error> {
        Ok(sessions::after(self.db(), after.as_ref(), limit).await?)
    }

    async fn sandboxes(&self) -> Result<HashSet<SandboxId>, Error> {
        Ok(sessions::sandboxes(self.db()).await?)
    }

    async fn holdings(&self) -> Result<Vec<Holding>, Error> {
        Ok(sessions::holdings(self.db()).await?)
    }

    async fn events(&self, id: &SessionId, slice: Slice) -> Result<Vec<Stored>, Error> {
        Ok(read(|| slices::events(self.db(), id, &slice)).await?)
    }

    async fn inbox(&self, id: &SessionId) -> Result<Vec<Stored>, Error> {
        Ok(read(|| slices::inbox(self.db(), id)).await?)
    }

    async fn history(&self, id: &SessionId, slice: Slice) -> Result<(Vec<Stored>, Vec<Stored>), Error> {
        Ok(read(|| slices::history(self.db(), id, &slice)).await?)
    }

    async fn rebuild(&self, id: &SessionId) -> Result<Option<State>, Error> {
        Ok(slices::rebuild(self.db(), id).await?)
    }

    async fn start(&self, id: &SessionId) -> Result<Option<Start>, Error> {
        Ok(read(|| slices::start(self.db(), id)).await?)
    }

    async fn catch_up(&self, id: &SessionId, progress: Progress) -> Result<Caught, Error> {
        Ok(read(|| slices::catch_up(self.db(), id, progress)).await?)
    }

    async fn create_agent(&self, workspace: &WorkspaceId, agent: &Agent) -> Result<bool, Error> {
        resources::create_agent(self.db(), workspace, agent).await.map_err(|fault| fault.of_write())
    }

    async fn agent(
        &self,
        workspace: &WorkspaceId,
        id: &AgentId,
        version: Option<i64>,
    ) -> Result<Option<Agent>, Error> {
        Ok(resources::agent(self.db(), workspace, id, version).await?)
    }

    async fn agents(&self, workspace: &WorkspaceId, query: AgentQuery) -> Result<Vec<Agent>, Error> {
        Ok(resources::agents(self.db(), workspace, &query).await?)
    }

    async fn agent_versions(
        &self,
        workspace: &WorkspaceId,
        id: &AgentId,
        before: Option<i64>,
        limit: usize,
    ) -> Result<Option<Vec<Agent>>, Error> {
        Ok(resources::agent_versions(self.db(), workspace, id, before, limit).await?)
    }

    async fn change_agent(
        &self,
        workspace: &WorkspaceId,
        id: &AgentId,
        change: Change<Agent>,
    ) -> Result<Agent, ChangeError> {
        resources::change_agent(self.db(), workspace, id, change).await.map_err(of_change)?
    }

    async fn create_environment(
        &self,
        workspace: &WorkspaceId,
        environment: &Environment,
    ) -> Result<(), ChangeError> {
        resources::create_environment(self.db(), workspace, environment).await.map_err(of_change)?
    }

    async fn environment(
        &self,
        workspace: &WorkspaceId,
        id: &EnvironmentId,
    ) -> Result<Option<Environment>, Error> {
        Ok(read(|| resources::environment(self.db(), workspace, id)).await?)
    }

    async fn environments(
        &self,
        workspace: &WorkspaceId,
        query: EnvironmentQuery,
    ) -> Result<Vec<Environment>, Error> {
        Ok(resources::environments(self.db(), workspace, &query).await?)
    }

    async fn environments_with(
        &self,
        text: &'static str,
        after: Option<EnvironmentId>,
        limit: usize,
    ) -> Result<Vec<Environment>, Error> {
        Ok(resources::environments_with(self.db(), text, after.as_ref(), limit).await?)
    }

    async fn change_environment(
        &self,
        workspace: &WorkspaceId,
        id: &EnvironmentId,
        change: Change<Environment>,
    ) -> Result<Environment, ChangeError> {
        resources::change_environment(self.db(), workspace, id, change).await.map_err(of_change)?
    }

    async fn delete_environment(
        &self,
        workspace: &WorkspaceId,
        id: &EnvironmentId,
    ) -> Result<(), ChangeError> {
        resources::delete_environment(self.db(), workspace, id).await.map_err(of_change)?
    }

    async fn create_vault(&self, workspace: &WorkspaceId, vault: &Vault) -> Result<bool, Error> {
        vaults::create(self.db(), workspace, vault).await.map_err(|fault| fault.of_write())
    }

    async fn vault(&self, workspace: &WorkspaceId, id: &VaultId) -> Result<Option<Vault>, Error> {
        Ok(read(|| vaults::get(self.db(), workspace, id)).await?)
    }

    async fn vaults(&self, workspace: &WorkspaceId, query: VaultQuery) -> Result<Vec<Vault>, Error> {
        Ok(vaults::list(self.db(), workspace, &query).await?)
    }

    async fn change_vault(
        &self,
        workspace: &WorkspaceId,
        id: &VaultId,
        change: Change<Vault>,
    ) -> Result<Vault, ChangeError> {
        vaults::change(self.db(), workspace, id, change).await.map_err(of_change)?
    }

    async fn archive_vault(
        &self,
        workspace: &WorkspaceId,
        id: &VaultId,
        now: Timestamp,
    ) -> Result<Option<Vault>, Error> {
        vaults::archive(self.db(), workspace, id, now).await.map_err(|fault| fault.of_write())
    }

    async fn delete_vault(&self, workspace: &WorkspaceId, id: &VaultId) -> Result<bool, Error> {
        vaults::delete(self.db(), workspace, id).await.map_err(|fault| fault.of_write())
    }

    async fn create_credential(
        &self,
        workspace: &WorkspaceId,
        kept: &KeptCredential,
    ) -> Result<(), ChangeError> {
        credentials::create(self.db(), workspace, kept).await.map_err(of_change)?
    }

    async fn credential(
        &self,
        workspace: &WorkspaceId,
        vault: &VaultId,
        id: &CredentialId,
    ) -> Result<Option<KeptCredential>, Error> {
        Ok(read(|| credentials::get(self.db(), workspace, vault, id)).await?)
    }

    async fn credentials(
        &self,
        workspace: &WorkspaceId,
        vault: &VaultId,
        query: CredentialQuery,
    ) -> Result<Option<Vec<Credential>>, Error> {
        Ok(credentials::list(self.db(), workspace, vault, &query).await?)
    }

    async fn change_credential(
        &self,
        workspace: &WorkspaceId,
        vault: &VaultId,
        id: &CredentialId,
        change: Change<KeptCredential>,
    ) -> Result<KeptCredential, ChangeError> {
        credentials::change(self.db(), workspace, vault, id, change).await.map_err(of_change)?
    }

    async fn delete_credential(
        &self,
        workspace: &WorkspaceId,
        vault: &VaultId,
        id: &CredentialId,
    ) -> Result<bool, Error> {
        credentials::delete(self.db(), workspace, vault, id).await.map_err(|fault| fault.of_write())
    }

    async fn spendable(
        &self,
        workspace: &WorkspaceId,
        vaults: Vec<VaultId>,
        wanted: Wanted,
    ) -> Result<Vec<KeptCredential>, Error> {
        Ok(read(|| credentials::spendable(self.db(), workspace, &vaults, &wanted)).await?)
    }

    async fn claim_refresh(&self, id: &CredentialId, holder: &str, time: Duration) -> Result<bool, Error> {
        let now = self.shared.manual_now();
        let claimed = credentials::claim_refresh(self.db(), id, holder, leases::micros(time), now).await;
        claimed.map_err(|fault| fault.of_write())
    }

    async fn release_refresh(&self, id: &CredentialId, holder: &str) -> Result<(), Error> {
        credentials::release_refresh(self.db(), id, holder).await.map_err(|fault| fault.of_write())
    }

    async fn vault_master(&self) -> Result<Option<String>, Error> {
        Ok(read(|| vault_keys::master(self.db())).await?)
    }

    async fn set_vault_master(&self, master: &str) -> Result<(), Error> {
        vault_keys::set_master(self.db(), master).await.map_err(|fault| fault.of_write())
    }

    async fn vault_key(&self, workspace: &WorkspaceId) -> Result<Option<VaultKey>, Error> {
        Ok(read(|| vault_keys::get(self.db(), workspace)).await?)
    }

    async fn vault_keys(&self) -> Result<Vec<VaultKey>, Error> {
        Ok(vault_keys::all(self.db()).await?)
    }

    async fn add_vault_key(&self, key: &VaultKey, now: Timestamp) -> Result<Added, Error> {
        vault_keys::add(self.db(), key, now).await.map_err(|fault| fault.of_write())
    }

    async fn rewrap_vault_key(&self, before: &VaultKey, after: &VaultKey) -> Result<bool, Error> {
        vault_keys::rewrap(self.db(), before, after).await.map_err(|fault| fault.of_write())
    }

    async fn ensure_workspace(&self, made: WorkspaceId, now: Timestamp) -> Result<WorkspaceId, Error> {
        resources::ensure_workspace(self.db(), &made, now).await.map_err(|fault| fault.of_write())
    }

    async fn create_workspace(&self, made: &WorkspaceId, now: Timestamp) -> Result<(), Error> {
        resources::create_workspace(self.db(), made, now).await.map_err(|fault| fault.of_write())
    }

    async fn workspaces(&self) -> Result<Vec<WorkspaceId>, Error> {
        Ok(resources::workspaces(self.db()).await?)
    }

    async fn create_key(&self, key: &ApiKey, hash: KeyHash) -> Result<bool, Error> {
        resources::create_key(self.db(), key, &hash).await.map_err(|fault| fault.of_write())
    }

    async fn keys(&self, workspace: &WorkspaceId) -> Result<Vec<ApiKey>, Error> {
        Ok(resources::keys(self.db(), workspace).await?)
    }

    async fn revoke_key(
        &self,
        workspace: &WorkspaceId,
        id: &ApiKeyId,
        now: Timestamp,
    ) -> Result<Option<ApiKey>, Error> {
        resources::revoke_key(self.db(), workspace, id, now).await.map_err(|fault| fault.of_write())
    }

    async fn find_key(&self, hash: KeyHash) -> Result<Option<ApiKey>, Error> {
        Ok(read(|| resources::find_key(self.db(), &hash)).await?)
    }

    async fn ping(&self) -> Result<(), Error> {
        if self.shared.is_closed() {
            return Err(Error::Closed);
        }
        self.db().query("SELECT 1", &[]).await?;
        Ok(())
    }

    fn is_listening(&self) -> bool {
        self.shared.is_listening.load(Ordering::Relaxed)
    }

    async fn close(&self) {
        self.shared.closed.cancel();
        self.shared.tasks.close();
        let leave = async {
            if let Err(fault) = claims::leave(self.db(), &self.shared.node).await {
                tracing::debug!(error = ?fault, "this brain could not take its leave");
            }
        };
        // What was accepted is finished; what the database holds up beyond this is answered by nobody.
        let _ = timeout(CLOSE_MAX, async {
            leave.await;
            self.lanes().ended().await;
        })
        .await;
        self.shared.db.close();
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.shared.closed.cancel();
    }
}

fn of_change(fault: Fault) -> ChangeError {
    ChangeError::Store(fault.of_write())
}
