//! Sessions as clients see them: made, listed, changed, sent to, deleted.

use std::collections::HashSet;
use std::sync::Arc;

use protocol::event::{Body, Snapshot};
use protocol::id::{AgentId, ResourceId, SandboxId, SessionId, ThreadId, WorkspaceId};
use protocol::session::Status;
use protocol::time::Timestamp;
use session::record::Update;
use session::state::Wish;
use session::{Record, State};

use crate::Store;
use crate::error::{ChangeError, Error};
use crate::lease::Waiting;
use crate::log::{Order, Stored, TimeBounds};
use crate::rules::append::Written;
use crate::rules::changes::{self, Making};
use crate::rules::head::Head;
use crate::rules::jobs::{Moment, job};

/// A session to be made.
#[derive(Clone, Debug)]
pub struct NewSession {
    /// Whose it is.
    pub workspace: WorkspaceId,
    /// Its own facts.
    pub record: Record,
    /// The id of its primary thread.
    pub thread_id: ThreadId,
    /// What it starts with. If there is anything, the session is running as soon as it exists.
    pub initial: Vec<Body>,
}

/// What a new session has besides.
#[derive(Clone, Debug, Default)]
pub struct Brought {
    /// What was saved of another session's workspace: its own begins with that.
    pub snapshot: Option<Snapshot>,
    /// The tokens of its resources.
    pub tokens: Vec<SealedToken>,
}

/// The token of a session's resource, as only crate `vault` can read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedToken {
    /// Whose.
    pub resource: ResourceId,
    /// Sealed.
    pub sealed: String,
}

/// Which sessions to list.
#[derive(Clone, Debug)]
pub struct SessionQuery {
    /// Only those made from this agent.
    pub agent_id: Option<AgentId>,
    /// Only those made from this version of it. Without effect unless `agent_id` is given.
    pub agent_version: Option<i64>,
    /// Only those shown with one of these statuses; empty for all.
    pub statuses: Vec<Status>,
    /// Archived ones, too.
    pub include_archived: bool,
    /// Only those made within these bounds.
    pub created: TimeBounds,
    /// By time of making.
    pub order: Order,
    /// Only rows after this one, in that order.
    pub after: Option<Cursor>,
    /// The rows just before this one, in that order.
    pub before: Option<Cursor>,
    /// At most so many.
    pub limit: usize,
}

impl Default for SessionQuery {
    fn default() -> Self {
        Self {
            agent_id: None,
            agent_version: None,
            statuses: Vec::new(),
            include_archived: false,
            created: TimeBounds::default(),
            order: Order::Desc,
            after: None,
            before: None,
            limit: 20,
        }
    }
}

/// A place in a list that is sorted by time of making, then by id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// When the row was made.
    pub created_at: Timestamp,
    /// Its id.
    pub id: String,
}

impl Cursor {
    /// The place of that row.
    pub fn new(created_at: Timestamp, id: impl Into<String>) -> Self {
        Self { created_at, id: id.into() }
    }

    /// The place of that session.
    pub fn of_session(record: &Record) -> Self {
        let id: &SessionId = &record.id;
        Self::new(record.created_at, id.as_str())
    }
}

/// A session as clients see it.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// Its own facts.
    pub record: Record,
    /// What its log says.
    pub state: State,
    /// What it waits for, if it waits for its turn.
    pub waiting: Option<Waiting>,
}

/// Where a session's workspace is.
#[derive(Clone, Debug, PartialEq)]
pub struct Holding {
    /// Whose.
    pub session: SessionId,
    /// The sandbox that it is in.
    pub sandbox: Option<SandboxId>,
    /// What was saved of it last.
    pub snapshot: Option<Snapshot>,
    /// When it was begun.
    pub begun_at: Option<Timestamp>,
    /// Since when a client wants it to be saved.
    pub wanted_since: Option<Timestamp>,
}

/// Before a session's id: a client wants its workspace to be saved.
const SNAPSHOT_WANTED: &str = "snapshot_wanted ";
/// Before a sandbox's id: its session is archived or deleted.
const SANDBOX_OVER: &str = "sandbox_over ";

impl Holding {
    /// What a session's state says of it; `None` if it has neither.
    pub(crate) fn of(session: SessionId, state: &State) -> Option<Self> {
        let State { sandbox, snapshot, workspace_begun_at: begun_at, wish, .. } = state.clone();
        let wanted_since = match wish {
            Some(Wish::Pending { since }) => Some(since),
            Some(Wish::Failed { .. }) | None => None,
        };
        let holding = Self { session, sandbox, snapshot, begun_at, wanted_since };
        (holding.sandbox.is_some() || holding.snapshot.is_some()).then_some(holding)
    }
}

impl Store {
    /// Makes a session, and with its initial events sets it running, in one transaction. [`ChangeError::Exists`] if
    /// its id is taken, [`ChangeError::QueueFull`] if it would have to wait where too many wait already.
    pub async fn create_session(&self, new: NewSession) -> Result<Seen, ChangeError> {
        self.create_session_with(new, Brought::default()).await
    }

    /// The same, with what it brings.
    pub async fn create_session_with(&self, new: NewSession, brought: Brought) -> Result<Seen, ChangeError> {
        let Brought { snapshot, tokens } = brought;
        let NewSession { workspace, record, thread_id, initial } = new;
        if !initial.is_empty() && self.0.engine.is_full(&workspace).await? {
            return Err(ChangeError::QueueFull);
        }
        let (initial, ids, id) = (self.written(initial), self.ids().clone(), record.id.clone());
        let size_bytes = size_bytes(&initial);
        let saved = snapshot.map(|snapshot| Body::Snapshot { snapshot, put_away: true });
        let saved = self.written(saved.into_iter().collect()).pop();
        let making = Making { workspace, record: Arc::new(record), thread_id, tokens, saved, initial };
        let made = self
            .change(&id, size_bytes, move |slot, moment| changes::create(slot, &making, &ids, moment))
            .await?;
        made.ok_or(ChangeError::Exists)
    }

    /// A session; `None` if this workspace has none with that id.
    pub async fn get_session(&self, workspace: &WorkspaceId, id: &SessionId) -> Result<Option<Seen>, Error> {
        self.0.engine.session(workspace, id).await
    }

    /// A page of the workspace's sessions.
    pub async fn list_sessions(
        &self,
        workspace: &WorkspaceId,
        query: SessionQuery,
    ) -> Result<Vec<Seen>, Error> {
        self.0.engine.sessions(workspace, query).await
    }

    /// Sessions of all workspaces in the order of their ids, after this one. For the operator's tools.
    pub async fn sessions_after(
        &self,
        after: Option<SessionId>,
        limit: usize,
    ) -> Result<Vec<SessionId>, Error> {
        self.0.engine.sessions_after(after, limit).await
    }

    /// The sandboxes that sessions which are not over have on record, in whatever workspace. Reads every head: for
    /// a sweep now and then.
    pub async fn sandboxes_in_use(&self) -> Result<HashSet<SandboxId>, Error> {
        self.0.engine.sandboxes().await
    }

    /// What sessions that are not over have on record of their workspaces: where each is now, and where it is saved. Reads every
    /// head: for a sweep now and then.
    pub async fn holdings(&self) -> Result<Vec<Holding>, Error> {
        self.0.engine.holdings().await
    }

    /// Changes a session's own facts, and says so in its log if anything really changed.
    pub async fn update_session(
        &self,
        workspace: &WorkspaceId,
        id: &SessionId,
        update: Update,
    ) -> Result<Seen, ChangeError> {
        let (workspace, ids) = (workspace.clone(), self.ids().clone());
        self.change(id, 0, move |head, moment| {
            changes::update(head.as_mut(), &workspace, &update, &ids, moment)
        })
        .await?
    }

    /// Ends a session for good; its history stays. Archiving it again changes nothing. Whoever ends sandboxes is told.
    pub async fn archive_session(
        &self,
        workspace: &WorkspaceId,
        id: &SessionId,
    ) -> Result<Seen, ChangeError> {
        let (workspace, ids) = (workspace.clone(), self.ids().clone());
        let archiving = move |head: &mut Option<Head>, moment: &Moment<'_>| {
            changes::archive(head.as_mut(), &workspace, &ids, moment)
        };
        let seen = self.change(id, 0, archiving).await??;
        self.tell_over(seen.state.sandbox.as_ref()).await;
        Ok(seen)
    }

    /// Records that a client wants the session's workspace saved now, and tells whoever saves; nothing is recorded if that has
    /// been said, or if what is saved is all there is. The word may be lost, the record not: [`Holding::wanted_since`].
    pub async fn want_snapshot(&self, workspace: &WorkspaceId, id: &SessionId) -> Result<Seen, ChangeError> {
        let (workspace, ids) = (workspace.clone(), self.ids().clone());
        let wanting = move |head: &mut Option<Head>, moment: &Moment<'_>| {
            changes::want_snapshot(head.as_mut(), &workspace, &ids, moment)
        };
        let seen = self.change(id, 0, wanting).await??;
        if seen.state.wants_snapshot() {
            self.tell_all(&format!("{SNAPSHOT_WANTED}{id}")).await;
        }
        Ok(seen)
    }

    /// The session that a word of [`Store::words`] says a snapshot is wanted of.
    pub fn snapshot_wanted(word: &str) -> Option<SessionId> {
        word.strip_prefix(SNAPSHOT_WANTED).map(SessionId::from_text)
    }

    /// The sandbox that a word of [`Store::words`] says has outlived its session.
    pub fn sandbox_over(word: &str) -> Option<SandboxId> {
        word.strip_prefix(SANDBOX_OVER).map(SandboxId::from_text)
    }

    /// Removes a session and all it holds. Its followers are told, and whoever ends sandboxes.
    pub async fn delete_session(&self, workspace: &WorkspaceId, id: &SessionId) -> Result<(), ChangeError> {
        let (workspace, event) = (workspace.clone(), self.ids().make());
        let deleting = move |head: &mut Option<Head>, moment: &Moment<'_>| {
            changes::delete(head.as_mut(), &workspace, &event, moment.now)
        };
        let sandbox = self.change(id, 0, deleting).await??;
        self.tell_over(sandbox.as_ref()).await;
        Ok(())
    }

    /// Tells that a sandbox has no session any more. The word may be lost: then it is found to be nobody's, a little later.
    async fn tell_over(&self, sandbox: Option<&SandboxId>) {
        if let Some(sandbox) = sandbox {
            self.tell_all(&format!("{SANDBOX_OVER}{sandbox}")).await;
        }
    }

    /// Tells every process, this one included.
    async fn tell_all(&self, word: &str) {
        self.0.hub.say(word);
        self.tell(word).await;
    }

    /// The sealed token of a session's resource; `None` if there is none, or none any more.
    pub async fn session_token(
        &self,
        workspace: &WorkspaceId,
        id: &SessionId,
        resource: &ResourceId,
    ) -> Result<Option<String>, Error> {
        self.0.engine.session_token(workspace, id, resource).await
    }

    /// Keeps another token of a session's resource. [`ChangeError::NotFound`] if the session has no such resource.
    pub async fn rotate_session_token(
        &self,
        workspace: &WorkspaceId,
        id: &SessionId,
        token: SealedToken,
    ) -> Result<Seen, ChangeError> {
        let (workspace, ids) = (workspace.clone(), self.ids().clone());
        self.change(id, token.sealed.len(), move |head, moment| {
            changes::rotate(head.as_mut(), &workspace, &token, &ids, moment)
        })
        .await?
    }

    /// Takes in what a client sends, all of it or nothing: into the inbox, or into the log at once for what is
    /// processed on receipt. Gives the events as they now stand, in the order in which they were sent.
    /// [`ChangeError::QueueFull`] if the session's inbox is full, or if it would have to wait for a brain where too
    /// many wait already.
    pub async fn send_events(
        &self,
        workspace: &WorkspaceId,
        id: &SessionId,
        sent: Vec<Body>,
    ) -> Result<Vec<Arc<Stored>>, ChangeError> {
        let is_full = self.0.engine.is_full(workspace).await?;
        let (workspace, sent) = (workspace.clone(), self.written(sent));
        let size_bytes = size_bytes(&sent);
        self.change(id, size_bytes, move |head, moment| {
            changes::send(head.as_mut(), &workspace, &sent, is_full, moment)
        })
        .await?
    }

    /// Runs a job on a session; see [`Job`](crate::rules::jobs::Job).
    pub(crate) async fn change<T, Decide>(
        &self,
        id: &SessionId,
        size_bytes: usize,
        decide: Decide,
    ) -> Result<T, Error>
    where
        T: Send + 'static,
        Decide: FnMut(&mut Option<Head>, &Moment<'_>) -> T + Send + 'static,
    {
        let (job, answered) = job(id.clone(), size_bytes, decide);
        self.0.engine.submit(job).await;
        answered.await.unwrap_or_else(|_| Err(Error::Unknown("the engine is gone".into())))
    }

    /// Gives each an id, and makes its text ready before an engine sees it.
    fn written(&self, bodies: Vec<Body>) -> Vec<Written> {
        bodies.into_iter().map(|body| Written::new(self.ids().make(), body)).collect()
    }
}

fn size_bytes(written: &[Written]) -> usize {
    written.iter().map(|written| written.json.len()).sum()
}
