//! Sessions as clients see them: made, listed, changed, sent to, deleted.

use std::collections::HashSet;
use std::sync::Arc;

use protocol::event::Body;
use protocol::id::{AgentId, SandboxId, SessionId, ThreadId, WorkspaceId};
use protocol::session::Status;
use protocol::time::Timestamp;
use session::record::Update;
use session::{Record, State};

use crate::Store;
use crate::error::{ChangeError, Error};
use crate::log::{Order, Stored, TimeBounds};
use crate::sqlite::appends::Written;
use crate::sqlite::writer::Flush;
use crate::sqlite::{changes, listing};

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

impl Store {
    /// Makes a session, and with its initial events sets it running, in one transaction. [`Error::Exists`] if its id
    /// is taken.
    pub async fn create_session(&self, mut new: NewSession) -> Result<(Record, State), Error> {
        let initial = self.written(std::mem::take(&mut new.initial));
        let (size_bytes, ids) = (size_bytes(&initial), self.ids().clone());
        let id = new.record.id.clone();
        let job = move |flush: &mut Flush<'_>| changes::create(flush, new, initial, &ids);
        self.0.writer.run(size_bytes, job).await?.ok_or_else(|| Error::Exists(id.to_string()))
    }

    /// A session; `None` if this workspace has none with that id.
    pub async fn get_session(
        &self,
        workspace: &WorkspaceId,
        id: &SessionId,
    ) -> Result<Option<(Record, State)>, Error> {
        let (workspace, id) = (workspace.clone(), id.clone());
        self.0.readers.read(move |conn| listing::get(conn, &workspace, &id)).await
    }

    /// A page of the workspace's sessions.
    pub async fn list_sessions(
        &self,
        workspace: &WorkspaceId,
        query: SessionQuery,
    ) -> Result<Vec<(Record, State)>, Error> {
        let workspace = workspace.clone();
        self.0.readers.read(move |conn| listing::list(conn, &workspace, &query)).await
    }

    /// The sandboxes that sessions which are not over have on record, in whatever workspace. Reads every head: for
    /// a sweep now and then.
    pub async fn sandboxes_in_use(&self) -> Result<HashSet<SandboxId>, Error> {
        self.0.readers.read(listing::sandboxes).await
    }

    /// Changes a session's own facts, and says so in its log if anything really changed.
    pub async fn update_session(
        &self,
        workspace: &WorkspaceId,
        id: &SessionId,
        update: Update,
    ) -> Result<(Record, State), ChangeError> {
        let (workspace, id, ids) = (workspace.clone(), id.clone(), self.ids().clone());
        self.0.writer.run(0, move |flush| changes::update(flush, &workspace, &id, update, &ids)).await?
    }

    /// Ends a session for good; its history stays. Archiving it again changes nothing.
    pub async fn archive_session(
        &self,
        workspace: &WorkspaceId,
        id: &SessionId,
    ) -> Result<(Record, State), ChangeError> {
        let (workspace, id, ids) = (workspace.clone(), id.clone(), self.ids().clone());
        self.0.writer.run(0, move |flush| changes::archive(flush, &workspace, &id, &ids)).await?
    }

    /// Removes a session and all it holds. Its followers are told.
    pub async fn delete_session(&self, workspace: &WorkspaceId, id: &SessionId) -> Result<(), ChangeError> {
        let (workspace, id, event) = (workspace.clone(), id.clone(), self.ids().make());
        self.0.writer.run(0, move |flush| changes::delete(flush, &workspace, &id, event)).await?
    }

    /// Takes in what a client sends, all of it or nothing: into the inbox, or into the log at once for what is
    /// processed on receipt. Gives the events as they now stand, in the order in which they were sent.
    pub async fn send_events(
        &self,
        workspace: &WorkspaceId,
        id: &SessionId,
        sent: Vec<Body>,
    ) -> Result<Vec<Arc<Stored>>, ChangeError> {
        let (workspace, id, sent) = (workspace.clone(), id.clone(), self.written(sent));
        let size_bytes = size_bytes(&sent);
        let job = move |flush: &mut Flush<'_>| changes::send(flush, &workspace, &id, sent);
        self.0.writer.run(size_bytes, job).await?
    }

    /// Gives each an id, and makes its text ready before the writer sees it.
    fn written(&self, bodies: Vec<Body>) -> Vec<Written> {
        bodies.into_iter().map(|body| Written::new(self.ids().make(), body)).collect()
    }
}

fn size_bytes(written: &[Written]) -> usize {
    written.iter().map(|written| written.json.len()).sum()
}
