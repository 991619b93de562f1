//! Sessions as they are kept: loaded for a job, and replaced by what it left.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use protocol::id::{EnvironmentId, ResourceId, SandboxId, SessionId, WorkspaceId};
use protocol::session::Status;
use protocol::time::Timestamp;
use session::{Record, State};

use crate::fair::LANE_MAX;
use crate::hub::Hub;
use crate::lease::View;
use crate::log::Order;
use crate::rules::head::{EventRow, Head, Inbox, LeaseState, News, Pending, QueuedRow};
use crate::rules::jobs::{Job, Moment};
use crate::sessions::{Cursor, Holding, SealedToken, Seen, SessionQuery};

/// All sessions.
#[derive(Default)]
pub(super) struct Sessions {
    by_id: BTreeMap<SessionId, Kept>,
    /// The number of the session that was made last.
    last_number: i64,
}

/// One session.
pub(super) struct Kept {
    pub(super) face: Face,
    /// What it was before the last change.
    before: Option<Face>,
    pub(super) events: Vec<EventRow>,
    /// Sealed.
    tokens: BTreeMap<ResourceId, String>,
}

/// All of a session but its log.
#[derive(Clone)]
pub(super) struct Face {
    pub(super) number: i64,
    version: u64,
    pub(super) workspace: WorkspaceId,
    pub(super) record: Arc<Record>,
    pub(super) state: State,
    lease: LeaseState,
    pub(super) inbox_last: u64,
    pub(super) inbox: Vec<QueuedRow>,
}

impl Face {
    fn head(&self) -> Head {
        let mut inbox = Inbox::default();
        for row in &self.inbox {
            inbox.push(serde_json::from_slice(&row.json).expect("written here"), row.clone());
        }
        Head {
            number: self.number,
            version: self.version,
            workspace: self.workspace.clone(),
            record: self.record.clone(),
            state: self.state.clone(),
            lease: self.lease.clone(),
            inbox_last: self.inbox_last,
            inbox: Some(inbox),
            pending: Pending::default(),
        }
    }

    /// Whether a brain is wanted and nobody is it.
    fn is_wanting(&self, now: Timestamp) -> bool {
        self.state.wants_brain() && !self.is_held(now)
    }

    fn is_held(&self, now: Timestamp) -> bool {
        self.lease.until.is_some_and(|until| until > now)
    }

    fn seen(&self) -> Seen {
        let waiting = self.lease.shown_waiting();
        Seen { record: (*self.record).clone(), state: self.state.clone(), waiting }
    }

    fn cursor(&self) -> (Timestamp, &str) {
        (self.record.created_at, self.record.id.as_str())
    }
}

impl Sessions {
    pub(super) fn get(&self, id: &SessionId) -> Option<&Kept> {
        self.by_id.get(id)
    }

    /// Runs a job on its session and keeps what it left.
    pub(super) fn run(&mut self, job: &mut dyn Job, now: Timestamp, hub: &Hub) -> News {
        let id = job.session().clone();
        let mut head = self.by_id.get(&id).map(|kept| kept.face.head());
        job.run(&mut head, &Moment { now, hub });
        self.keep(id, head, now)
    }

    /// Runs a job on what its session was before the last change, and forgets what it left: as an engine does that
    /// learns only when it writes that the database has gone on.
    pub(super) fn rehearse(&self, job: &mut dyn Job, now: Timestamp, hub: &Hub) {
        if let Some(before) = self.by_id.get(job.session()).and_then(|kept| kept.before.as_ref()) {
            job.run(&mut Some(before.head()), &Moment { now, hub });
        }
    }

    /// Changes a session and keeps it; `None` if there is no such session.
    pub(super) fn with<T>(
        &mut self,
        id: &SessionId,
        now: Timestamp,
        change: impl FnOnce(&mut Head) -> T,
    ) -> Option<(T, News)> {
        let mut head = self.by_id.get(id)?.face.head();
        let changed = change(&mut head);
        let news = self.keep(id.clone(), Some(head), now);
        Some((changed, news))
    }

    fn keep(&mut self, id: SessionId, head: Option<Head>, now: Timestamp) -> News {
        let mut news = News::default();
        let Some(mut head) = head else { return news };
        head.note_wanting(now);
        if !head.pending.is_dirty {
            return news;
        }
        if head.is_gone() {
            self.by_id.remove(&id);
            head.settle(now, &mut news);
            news.freed.push(id);
            return news;
        }
        if head.number == 0 {
            self.last_number += 1;
            head.number = self.last_number;
        }
        let events = std::mem::take(&mut head.pending.events);
        let queued = std::mem::take(&mut head.pending.queued);
        let taken = std::mem::take(&mut head.pending.taken);
        let new_tokens = std::mem::take(&mut head.pending.tokens);
        let purges_tokens = head.pending.purges_tokens;
        let kept = self.by_id.remove(&id);
        let mut inbox = kept.as_ref().map_or_else(Vec::new, |kept| kept.face.inbox.clone());
        inbox.extend(queued);
        inbox.retain(|row| !taken.contains(&row.sequence));
        if kept.as_ref().is_some_and(|kept| kept.face.lease.until.is_some()) && head.lease.until.is_none() {
            news.freed.push(id.clone());
        }
        head.settle(now, &mut news);
        let face = Face {
            number: head.number,
            version: head.version + 1,
            workspace: head.workspace,
            record: head.record,
            state: head.state,
            lease: head.lease,
            inbox_last: head.inbox_last,
            inbox,
        };
        let (before, mut log, mut tokens) = match kept {
            Some(Kept { face, before: _, events, tokens }) => (Some(face), events, tokens),
            None => (None, Vec::new(), BTreeMap::new()),
        };
        log.extend(events);
        if purges_tokens {
            tokens.clear();
        }
        tokens.extend(new_tokens.into_iter().map(|SealedToken { resource, sealed }| (resource, sealed)));
        self.by_id.insert(id, Kept { face, before, events: log, tokens });
        news
    }

    /// Sessions that want a brain and that nobody holds: the first of each workspace, then the second of each, and
    /// so on.
    pub(super) fn wanting(&self, now: Timestamp) -> Vec<(SessionId, WorkspaceId)> {
        let mut faces: Vec<&Face> = self.faces().filter(|face| face.is_wanting(now)).collect();
        faces.sort_by_key(|face| face.number);
        let mut places: BTreeMap<&WorkspaceId, usize> = BTreeMap::new();
        let mut placed: Vec<(usize, &Face)> = Vec::with_capacity(faces.len());
        for face in faces {
            let place = places.entry(&face.workspace).or_default();
            *place += 1;
            placed.push((*place, face));
        }
        placed.retain(|(place, _)| *place <= LANE_MAX + 1);
        placed.sort_by_key(|(place, face)| (*place, face.number));
        placed.into_iter().map(|(_, face)| owned(face)).collect()
    }

    /// Sessions that somebody holds.
    pub(super) fn held(&self, now: Timestamp) -> Vec<(SessionId, WorkspaceId)> {
        self.faces().filter(|face| face.is_held(now)).map(owned).collect()
    }

    pub(super) fn look(&self, id: &SessionId) -> Option<View> {
        Some(self.by_id.get(id)?.face.head().view())
    }

    pub(super) fn seen(&self, workspace: &WorkspaceId, id: &SessionId) -> Option<Seen> {
        let face = &self.by_id.get(id)?.face;
        (face.workspace == *workspace).then(|| face.seen())
    }

    pub(super) fn token(
        &self,
        workspace: &WorkspaceId,
        id: &SessionId,
        resource: &ResourceId,
    ) -> Option<String> {
        let kept = self.by_id.get(id).filter(|kept| kept.face.workspace == *workspace)?;
        kept.tokens.get(resource).cloned()
    }

    pub(super) fn list(&self, workspace: &WorkspaceId, query: &SessionQuery) -> Vec<Seen> {
        let SessionQuery {
            agent_id,
            agent_version,
            statuses,
            include_archived,
            created,
            order,
            after,
            before,
            limit,
        } = query;
        // How a session stands to a place in the list, in the order of the list.
        let compare = |face: &Face, cursor: &Cursor| {
            let ordering = face.cursor().cmp(&(cursor.created_at, cursor.id.as_str()));
            match order {
                Order::Asc => ordering,
                Order::Desc => ordering.reverse(),
            }
        };
        let is_shown = |face: &&Face| {
            let agent = &face.record.agent;
            face.workspace == *workspace
                && agent_id.as_ref().is_none_or(|id| {
                    agent.id == *id && agent_version.is_none_or(|version| agent.version == version)
                })
                && (statuses.is_empty() || statuses.contains(&face.state.shown_status()))
                && (*include_archived || face.record.archived_at.is_none())
                && created.contain(face.record.created_at)
                && after.as_ref().is_none_or(|cursor| compare(face, cursor).is_gt())
                && before.as_ref().is_none_or(|cursor| compare(face, cursor).is_lt())
        };
        let mut page: Vec<&Face> = self.faces().filter(is_shown).collect();
        match order {
            Order::Asc => page.sort_by(|one, other| one.cursor().cmp(&other.cursor())),
            Order::Desc => page.sort_by(|one, other| other.cursor().cmp(&one.cursor())),
        }
        // The rows just before a place are the last of those before it.
        let is_backwards = before.is_some() && after.is_none();
        let skipped = if is_backwards { page.len().saturating_sub(*limit) } else { 0 };
        page.into_iter().skip(skipped).take(*limit).map(Face::seen).collect()
    }

    /// In the order of their ids.
    pub(super) fn after(&self, after: Option<&SessionId>, limit: usize) -> Vec<SessionId> {
        let ids = self.by_id.keys().filter(|id| after.is_none_or(|after| *id > after));
        ids.take(limit).cloned().collect()
    }

    pub(super) fn sandboxes(&self) -> HashSet<SandboxId> {
        let living = self.faces().filter(|face| face.state.shown_status() != Status::Terminated);
        living.filter_map(|face| face.state.sandbox.clone()).collect()
    }

    pub(super) fn holdings(&self) -> Vec<Holding> {
        let living = self.faces().filter(|face| face.state.shown_status() != Status::Terminated);
        living.filter_map(|face| Holding::of(face.record.id.clone(), &face.state)).collect()
    }

    pub(super) fn uses(&self, environment: &EnvironmentId) -> bool {
        self.faces().any(|face| face.record.environment_id == *environment)
    }

    fn faces(&self) -> impl Iterator<Item = &Face> {
        self.by_id.values().map(|kept| &kept.face)
    }
}

fn owned(face: &Face) -> (SessionId, WorkspaceId) {
    (face.record.id.clone(), face.workspace.clone())
}

/// Newest first, then those after the cursor, then the first `limit`.
pub(super) fn newest<T>(
    rows: impl Iterator<Item = T>,
    cursor_of: impl Fn(&T) -> (Timestamp, String),
    after: Option<&Cursor>,
    limit: usize,
) -> Vec<T> {
    let is_after = |row: &T| after.is_none_or(|after| cursor_of(row) < (after.created_at, after.id.clone()));
    let mut page: Vec<T> = rows.filter(is_after).collect();
    page.sort_by_key(|row| Reverse(cursor_of(row)));
    page.truncate(limit);
    page
}
