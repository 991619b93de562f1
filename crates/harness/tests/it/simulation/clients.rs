//! Those who send to sessions, and those who read them.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use protocol::content::Content;
use protocol::event::{Body, Verdict};
use protocol::id::{SessionId, ThreadId, WorkspaceId};
use protocol::parse::Patch;
use protocol::position::Position;
use protocol::session::Status;
use serde_json::Value;
use session::record::{Record, Update};
use session::state::{CallKind, State};
use store::{ChangeError, From, Item, NewSession, Slice, Stored};

use super::World;
use super::dice::Dice;

/// How long somebody waits who was refused.
const PAUSE: Duration = Duration::from_millis(700);

/// Sends to one session.
pub(super) struct Client {
    world: Arc<World>,
    workspace: WorkspaceId,
    session: SessionId,
    dice: Dice,
    acknowledged: Vec<Value>,
    /// What it read of the log at some moments.
    pages: Vec<Vec<Stored>>,
}

/// What a client was told.
pub(super) struct Acknowledged {
    pub(super) session: SessionId,
    pub(super) events: Vec<Value>,
    pub(super) pages: Vec<Vec<Stored>>,
}

impl Client {
    pub(super) fn new(world: Arc<World>, workspace: WorkspaceId, session: SessionId, number: u64) -> Self {
        let dice = world.dice(&format!("client {number}"));
        Self { world, workspace, session, dice, acknowledged: Vec::new(), pages: Vec::new() }
    }

    /// Makes the session, then does this and that.
    pub(super) async fn work(mut self, record: Record) -> Self {
        self.create(record).await;
        for _ in 0..self.dice.between(2, 9) {
            tokio::time::sleep(self.dice.millis(9_000)).await;
            let Some(state) = self.state().await else { continue };
            let bodies = self.choose(&state);
            match self.dice.between(0, 9) {
                0 => self.rename().await,
                1 => self.read_page().await,
                _ => self.send(bodies).await,
            }
        }
        self
    }

    /// Answers what the session waits for until it waits for nothing more.
    pub(super) async fn come_to_rest(mut self) -> Acknowledged {
        let is_archived = self.dice.one_in(6);
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let Some(state) = self.state().await else { continue };
            let answers: Vec<Body> = self.answers(&state);
            match state.status {
                _ if state.wants_brain() => {}
                Status::Idle if !answers.is_empty() => self.send(answers).await,
                Status::Idle if is_archived => {
                    // Refused if it runs again meanwhile.
                    let _ = self.world.store.archive_session(&self.workspace, &self.session).await;
                }
                Status::Idle | Status::Terminated => break,
                Status::Running | Status::Rescheduling => {}
            }
        }
        Acknowledged { session: self.session, events: self.acknowledged, pages: self.pages }
    }

    async fn create(&mut self, record: Record) {
        let initial = if self.dice.one_in(2) { vec![self.message()] } else { Vec::new() };
        let thread_id: ThreadId = self.world.store.ids().make();
        loop {
            let (workspace, record, initial) = (self.workspace.clone(), record.clone(), initial.clone());
            let new = NewSession { workspace, record, thread_id: thread_id.clone(), initial };
            match self.world.store.create_session(new).await {
                // Made, or made by an attempt that was not heard of.
                Ok(_) | Err(ChangeError::Exists) => return,
                Err(ChangeError::Store(_) | ChangeError::QueueFull) => tokio::time::sleep(PAUSE).await,
                Err(other) => panic!("a session cannot be made: {other}"),
            }
        }
    }

    async fn state(&self) -> Option<State> {
        match self.world.store.get_session(&self.workspace, &self.session).await {
            Ok(seen) => Some(seen.expect("it was made and is never deleted").state),
            Err(_) => None,
        }
    }

    fn choose(&self, state: &State) -> Vec<Body> {
        let mut answers = self.answers(state);
        if !answers.is_empty() && !self.dice.one_in(5) {
            // Perhaps not all at once.
            answers.truncate(usize::try_from(self.dice.between(1, 4)).expect("small"));
            return answers;
        }
        let interrupt = Body::UserInterrupt { session_thread_id: None };
        match self.dice.between(0, 9) {
            0..=5 => vec![self.message()],
            6 | 7 => vec![interrupt],
            8 => vec![interrupt, self.message()],
            _ => vec![self.message(), self.message()],
        }
    }

    /// What the session waits for, as its client sees it.
    fn answers(&self, state: &State) -> Vec<Body> {
        let answer = |call: &session::state::Call| match &call.kind {
            CallKind::Custom => Body::UserCustomToolResult {
                custom_tool_use_id: call.id.clone(),
                content: vec![Content::text("sunny")],
                is_error: None,
            },
            CallKind::Builtin { .. } | CallKind::Mcp { .. } => Body::UserToolConfirmation {
                tool_use_id: call.id.clone(),
                result: if self.dice.one_in(4) { Verdict::Deny } else { Verdict::Allow },
                deny_message: None,
            },
        };
        state.blocked().map(answer).collect()
    }

    fn message(&self) -> Body {
        Body::UserMessage { content: vec![Content::text(format!("message {}", self.dice.between(0, 9_999)))] }
    }

    async fn send(&mut self, bodies: Vec<Body>) {
        loop {
            match self.world.store.send_events(&self.workspace, &self.session, bodies.clone()).await {
                Ok(echoes) => {
                    let events = echoes.iter().map(|echo| serde_json::from_slice(&echo.json).expect("JSON"));
                    self.acknowledged.extend(events);
                    return;
                }
                Err(ChangeError::QueueFull) => tokio::time::sleep(PAUSE).await,
                Err(ChangeError::Store(error)) if error.may_try_again() => tokio::time::sleep(PAUSE).await,
                // It may have happened, or it came too late.
                Err(ChangeError::Store(_) | ChangeError::Refused(_)) => return,
                Err(other) => panic!("{bodies:?} is not taken: {other}"),
            }
        }
    }

    async fn rename(&self) {
        let update =
            Update { title: Patch::Set(format!("title {}", self.dice.between(0, 9))), ..Update::default() };
        // As likely to fail as anything.
        let _ = self.world.store.update_session(&self.workspace, &self.session, update).await;
    }

    async fn read_page(&mut self) {
        let slice = Slice { private: true, ..Slice::default() };
        self.pages.extend(self.world.store.get_events(&self.session, slice).await);
    }
}

/// What a reader was shown.
pub(super) struct Read {
    pub(super) session: SessionId,
    pub(super) events: Vec<(Position, bytes::Bytes)>,
}

/// Follows a session from its beginning. Most are cut off now and then, and resume behind the last event that they saw;
/// some are never cut off, and nobody but the store tells them that there is something new.
pub(super) async fn read(world: Arc<World>, session: SessionId, name: String) -> Read {
    let dice = world.dice(&name);
    let is_steadfast = dice.one_in(3);
    let mut read = Read { session, events: Vec::new() };
    loop {
        tokio::time::sleep(dice.millis(3_000)).await;
        if world.over.is_cancelled() && read.last() == last_public(&world, &read.session).await {
            return read;
        }
        let from = From::After(read.last());
        let Ok(Some(mut follower)) = world.store.follow(&read.session, from).await else {
            // It is not made yet, or the store is away.
            continue;
        };
        let mut view = View::default();
        let cut_off = tokio::time::sleep(if is_steadfast { Duration::MAX } else { dice.millis(20_000) });
        let mut cut_off = pin!(cut_off);
        let was_over = world.over.is_cancelled();
        loop {
            let item = tokio::select! {
                biased;
                item = follower.next() => item,
                () = &mut cut_off => break,
                () = seen_all(&world) => {
                    let last = last_public(&world, &read.session).await;
                    assert!(was_over || read.last() == last, "nobody woke the reader of {}", read.session);
                    break;
                }
            };
            // The store could not be read, and the follower gave up.
            let Some(item) = item else { break };
            read.events.extend(view.take_in(item));
        }
    }
}

/// Returns when whoever follows has had the time to see everything.
async fn seen_all(world: &World) {
    world.over.cancelled().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
}

impl Read {
    fn last(&self) -> Position {
        self.events.last().map_or(Position::START, |(position, _)| *position)
    }
}

async fn last_public(world: &World, session: &SessionId) -> Position {
    let slice = Slice { order: store::Order::Desc, limit: 1, ..Slice::default() };
    let last = world.store.get_events(session, slice).await.unwrap_or_default().pop();
    last.and_then(|event| event.position).unwrap_or(Position::START)
}

/// What one connection showed besides events of the log.
#[derive(Default)]
struct View {
    /// The ids of what was shown as waiting, and whether it was shown as done since.
    waiting: HashMap<String, bool>,
    /// Whether the model is being asked, as far as this connection has shown.
    is_asking: Option<bool>,
    /// The texts of previews, by event.
    previews: HashMap<String, String>,
}

impl View {
    fn take_in(&mut self, item: Item) -> Option<(Position, bytes::Bytes)> {
        let text_of = |value: &Value| value.as_str().expect("a text").to_owned();
        match item {
            Item::Queued { kind: _, json } => {
                let event: Value = serde_json::from_slice(&json).expect("JSON");
                let earlier = self.waiting.insert(text_of(&event["id"]), false);
                assert_eq!(earlier, None, "shown as waiting twice, or after it was done: {event}");
                None
            }
            Item::Event { position, kind, json } => {
                let event: Value = serde_json::from_slice(&json).expect("JSON");
                let is_done = self.waiting.insert(text_of(&event["id"]), true);
                assert_ne!(is_done, Some(true), "shown twice: {event}");
                match &*kind {
                    "span.model_request_start" => self.is_asking = Some(true),
                    "span.model_request_end" => self.is_asking = Some(false),
                    _ => {}
                }
                if &*kind == "agent.message"
                    && let Some(previewed) = self.previews.get(&text_of(&event["id"]))
                {
                    let blocks = event["content"].as_array().expect("blocks");
                    let said: String = blocks.iter().map(|block| text_of(&block["text"])).collect();
                    assert!(said.starts_with(previewed), "{previewed:?} is no beginning of {said:?}");
                }
                Some((position, json))
            }
            Item::Preview { kind: _, json } => {
                let preview: Value = serde_json::from_slice(&json).expect("JSON");
                assert_ne!(self.is_asking, Some(false), "nobody is asked, and yet: {preview}");
                if preview["type"] == "event_delta" {
                    let (id, text) =
                        (text_of(&preview["event_id"]), text_of(&preview["delta"]["content"]["text"]));
                    assert_ne!(self.waiting.get(&id), Some(&true), "previewed after it was there");
                    self.previews.entry(id).or_default().push_str(&text);
                }
                None
            }
            Item::Deleted { json } => panic!("nothing is deleted here: {json:?}"),
        }
    }
}
