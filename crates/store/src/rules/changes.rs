//! What clients do to sessions: make, send, update, archive, delete.

use std::sync::Arc;

use bytes::Bytes;
use protocol::event::{Body, Event};
use protocol::id::{EventId, SandboxId, ThreadId, WorkspaceId};
use protocol::time::Timestamp;
use session::record::{Update, may_delete, want_snapshot as want};
use session::step::run_events;
use session::{Admitted, Record, Refusal, State, admit};

use crate::clock::Ids;
use crate::error::ChangeError;
use crate::follow::Item;
use crate::log::Stored;
use crate::rules::append::{Append, Written, end_of};
use crate::rules::head::{Head, QueuedRow, kind_name};
use crate::rules::jobs::Moment;
use crate::sessions::{SealedToken, Seen};

/// Events that may wait in one session's inbox. A brain takes them all up at once, so they are all in memory then.
pub(crate) const INBOX_MAX: u32 = 1_000;

/// A session that is to be made.
pub(crate) struct Making {
    pub(crate) workspace: WorkspaceId,
    pub(crate) record: Arc<Record>,
    pub(crate) thread_id: ThreadId,
    /// The sealed tokens of its resources.
    pub(crate) tokens: Vec<SealedToken>,
    /// The event that says what its workspace begins with.
    pub(crate) saved: Option<Written>,
    /// What it starts with.
    pub(crate) initial: Vec<Written>,
}

/// Makes a session; `None` if its id is taken.
pub(crate) fn create(
    slot: &mut Option<Head>,
    making: &Making,
    ids: &Ids,
    moment: &Moment<'_>,
) -> Option<Seen> {
    if slot.is_some() {
        return None;
    }
    let Making { workspace, record, thread_id, tokens, saved, initial } = making;
    let state = State::new(thread_id.clone(), record.agent.spec.name.clone(), record.created_at);
    let mut head = Head::new(workspace.clone(), record.clone(), state);
    head.pending.tokens.clone_from(tokens);
    if let Some(saved) = saved {
        Append { hub: moment.hub, now: moment.now, end: end_of(&head, 1) }.write(&mut head, saved);
    }
    if !initial.is_empty() {
        let run = run_events(&head.state);
        let append = Append { hub: moment.hub, now: moment.now, end: end_of(&head, run.len()) };
        write_all(&append, &mut head, run.into(), ids);
        for written in initial {
            queue(&append, &mut head, written);
        }
    }
    head.note_wanting(moment.now);
    let shown = seen(&head);
    *slot = Some(head);
    Some(shown)
}

/// Takes in what a client sends: all of it or nothing. `is_full`: no further session may begin to wait for a brain.
pub(crate) fn send(
    head: Option<&mut Head>,
    workspace: &WorkspaceId,
    sent: &[Written],
    is_full: bool,
    moment: &Moment<'_>,
) -> Result<Vec<Arc<Stored>>, ChangeError> {
    let head = of(head, workspace)?;
    if is_full && !head.state.wants_brain() {
        return Err(ChangeError::QueueFull);
    }
    let bodies = sent.iter().map(|written| written.body.clone()).collect();
    let state = head.state.clone();
    let admitted = admit(&state, &head.inbox().events, bodies)?;
    let queued = admitted.iter().filter(|admitted| matches!(admitted, Admitted::Queue(_))).count();
    if queued > 0 && state.queued.all as usize + queued > INBOX_MAX as usize {
        return Err(ChangeError::QueueFull);
    }
    let append = Append { hub: moment.hub, now: moment.now, end: end_of(head, admitted.len() - queued) };
    let mut echoes = Vec::with_capacity(admitted.len());
    for (admitted, Written { id, body: _, json }) in admitted.into_iter().zip(sent) {
        let (id, json) = (id.clone(), json.clone());
        let echo = match admitted {
            Admitted::Queue(body) => queue(&append, head, &Written { id, body, json }),
            Admitted::Log(body) => {
                let kind = kind_name(body.kind());
                let placed = append.write(head, &Written { id, body, json });
                Stored {
                    position: Some(placed.position),
                    kind,
                    processed_at: Some(placed.at),
                    json: placed.json,
                }
            }
        };
        echoes.push(Arc::new(echo));
    }
    Ok(echoes)
}

/// Puts an event at the end of the inbox.
fn queue(append: &Append<'_>, head: &mut Head, written: &Written) -> Stored {
    let Written { id, body, json } = written;
    let row = QueuedRow { sequence: head.inbox_last + 1, kind: kind_name(body.kind()), json: json.clone() };
    head.begin_news(append.hub);
    head.add_news(|| Item::Queued { kind: row.kind.clone(), json: json.clone() });
    head.state.queued.add(body);
    head.inbox_last = row.sequence;
    head.pending.queued.push(row.clone());
    let stored = Stored { position: None, kind: row.kind.clone(), processed_at: None, json: json.clone() };
    head.inbox().push(Event { body: body.clone(), id: id.clone(), processed_at: None }, row);
    stored
}

/// Changes a session's own facts, and says so in its log.
pub(crate) fn update(
    head: Option<&mut Head>,
    workspace: &WorkspaceId,
    update: &Update,
    ids: &Ids,
    moment: &Moment<'_>,
) -> Result<Seen, ChangeError> {
    change(of(head, workspace)?, ids, moment, |record, state| {
        let said = record.update(state, update.clone())?;
        if said.is_some() {
            record.updated_at = moment.now;
        }
        Ok(said.into_iter().collect())
    })
}

/// Ends a session for good.
pub(crate) fn archive(
    head: Option<&mut Head>,
    workspace: &WorkspaceId,
    ids: &Ids,
    moment: &Moment<'_>,
) -> Result<Seen, ChangeError> {
    let head = of(head, workspace)?;
    let seen = change(head, ids, moment, |record, state| record.archive(state, moment.now))?;
    // Nothing is fetched for it any more.
    head.pending.tokens.clear();
    head.pending.purges_tokens = true;
    head.pending.is_dirty = true;
    Ok(seen)
}

/// Keeps another token of a resource.
pub(crate) fn rotate(
    head: Option<&mut Head>,
    workspace: &WorkspaceId,
    token: &SealedToken,
    ids: &Ids,
    moment: &Moment<'_>,
) -> Result<Seen, ChangeError> {
    let head = of(head, workspace)?;
    let mut is_there = false;
    let seen = change(head, ids, moment, |record, state| {
        is_there = record.rotate(state, &token.resource, moment.now)?;
        Ok(Vec::new())
    })?;
    if !is_there {
        return Err(ChangeError::NotFound);
    }
    head.pending.tokens.retain(|other| other.resource != token.resource);
    head.pending.tokens.push(token.clone());
    head.pending.is_dirty = true;
    Ok(seen)
}

/// Records that a client wants the workspace saved, if that is to be done at all.
pub(crate) fn want_snapshot(
    head: Option<&mut Head>,
    workspace: &WorkspaceId,
    ids: &Ids,
    moment: &Moment<'_>,
) -> Result<Seen, ChangeError> {
    let wanted = |_: &mut Record, state: &State| Ok(want(state)?.into_iter().collect());
    change(of(head, workspace)?, ids, moment, wanted)
}

fn change(
    head: &mut Head,
    ids: &Ids,
    moment: &Moment<'_>,
    change: impl FnOnce(&mut Record, &State) -> Result<Vec<Body>, Refusal>,
) -> Result<Seen, ChangeError> {
    let mut record = (*head.record).clone();
    let said = change(&mut record, &head.state)?;
    if record != *head.record {
        head.record = Arc::new(record);
        head.pending.has_new_record = true;
        head.pending.is_dirty = true;
    }
    let append = Append { hub: moment.hub, now: moment.now, end: end_of(head, said.len()) };
    write_all(&append, head, said, ids);
    Ok(seen(head))
}

/// Removes a session. Gives the sandbox that it had.
pub(crate) fn delete(
    head: Option<&mut Head>,
    workspace: &WorkspaceId,
    event: &EventId,
    now: Timestamp,
) -> Result<Option<SandboxId>, ChangeError> {
    let head = of(head, workspace)?;
    may_delete(&head.state)?;
    let at = head.state.next_time(now);
    let said = Event { body: Body::Deleted {}, id: event.clone(), processed_at: Some(at) };
    let json = serde_json::to_vec(&said).expect("an event without content");
    head.pending.deleted = Some(Bytes::from(json));
    head.pending.is_dirty = true;
    Ok(head.state.sandbox.clone())
}

fn seen(head: &Head) -> Seen {
    Seen { record: (*head.record).clone(), state: head.state.clone(), waiting: head.lease.shown_waiting() }
}

/// A session of this workspace.
fn of<'a>(head: Option<&'a mut Head>, workspace: &WorkspaceId) -> Result<&'a mut Head, ChangeError> {
    head.filter(|head| head.workspace == *workspace).ok_or(ChangeError::NotFound)
}

fn write_all(append: &Append<'_>, head: &mut Head, bodies: Vec<Body>, ids: &Ids) {
    for body in bodies {
        append.write(head, &Written::new(ids.make(), body));
    }
}
