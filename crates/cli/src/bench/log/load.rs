//! Sessions under lease, and the events that are appended to them.

use protocol::content::Content;
use protocol::event::{Answer, Body, Event, Finish, ModelUsage, StopReason};
use protocol::id::{EventId, FromBits as _, SessionId, WorkspaceId};
use protocol::position::Position;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use session::Draft;
use store::{Ids, Lease, Store};
use tokio::task::JoinSet;

use crate::bench::history;

/// The stored text of an event.
pub(super) const EVENT_BYTES: usize = 1024;

/// What one append carries.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shape {
    /// One event.
    Single,
    /// What a model's answer without a tool comes to: the private copy, the message, the end of the span, the idle
    /// event. The first two are of a kilobyte.
    Answer,
}

impl Shape {
    pub(super) fn describe(self) -> &'static str {
        match self {
            Self::Single => "1 event of 1 KiB",
            Self::Answer => "an answer, 4 events",
        }
    }

    pub(super) fn events(self) -> usize {
        match self {
            Self::Single => 1,
            Self::Answer => 4,
        }
    }
}

/// Makes events.
#[derive(Clone)]
pub(super) struct Words {
    ids: Ids,
    /// As long as makes a message an event of [`EVENT_BYTES`].
    text: String,
}

impl Words {
    pub(super) fn new(ids: &Ids, seed: u64) -> Self {
        let empty = Event {
            body: message(String::new()),
            id: EventId::from_bits(seed.into()),
            processed_at: Some(protocol::time::Timestamp::from_micros(1_795_000_000_123_456)),
        };
        let frame_bytes = serde_json::to_vec(&empty).expect("events are JSON").len();
        let mut random = SmallRng::seed_from_u64(seed);
        let text = (frame_bytes..EVENT_BYTES).map(|_| char::from(random.random_range(b'a'..=b'z'))).collect();
        Self { ids: ids.clone(), text }
    }

    pub(super) fn drafts(&self, shape: Shape) -> Vec<Draft> {
        match shape {
            Shape::Single => vec![self.single()],
            Shape::Answer => {
                let request: EventId = self.ids.make();
                let answer = Answer {
                    model_request_start_id: request.clone(),
                    blocks: vec![format!(r#"{{"type":"text","text":"{}"}}"#, self.text)],
                    finish: Finish::Complete,
                    calls: Vec::new(),
                };
                let model_usage =
                    ModelUsage { input_tokens: 1_000, output_tokens: 250, ..ModelUsage::default() };
                let end =
                    Body::ModelRequestEnd { model_request_start_id: request, is_error: false, model_usage };
                let idle = Body::StatusIdle { stop_reason: StopReason::EndTurn {}, stop_details: None };
                vec![self.draft(Body::Answer(answer)), self.single(), self.draft(end), self.draft(idle)]
            }
        }
    }

    fn single(&self) -> Draft {
        self.draft(message(self.text.clone()))
    }

    fn draft(&self, body: Body) -> Draft {
        Draft::New { id: self.ids.make(), body }
    }
}

fn message(text: String) -> Body {
    Body::AgentMessage { content: vec![Content::Text { text }] }
}

/// A session and the right to append to it.
pub(super) struct Held {
    pub(super) lease: Lease,
    /// The place of its last event.
    pub(super) head: Position,
    pub(super) words: Words,
}

impl Held {
    /// Appends, and moves on.
    pub(super) async fn append(&mut self, store: &Store, drafts: Vec<Draft>) -> anyhow::Result<()> {
        let view = store.append(&self.lease.token, self.head, drafts).await?;
        self.head = view.state.head;
        Ok(())
    }
}

/// Sessions that are appended to at the same time.
pub(super) struct Load {
    pub(super) sessions: Vec<Held>,
}

impl Load {
    /// Makes the sessions, all at once, and claims each.
    pub(super) async fn make(store: &Store, count: usize, seed: u64) -> anyhow::Result<Self> {
        let workspace = store.ensure_workspace().await?;
        let words = Words::new(store.ids(), seed);
        let mut making = JoinSet::new();
        for _ in 0..count {
            let (store, workspace, words) = (store.clone(), workspace.clone(), words.clone());
            making.spawn(async move {
                let id = make_session(&store, &workspace).await?;
                hold(&store, &id, words).await
            });
        }
        let mut sessions = Vec::with_capacity(count);
        while let Some(made) = making.join_next().await {
            sessions.push(made??);
        }
        Ok(Self { sessions })
    }

    pub(super) async fn release(self, store: &Store) -> anyhow::Result<()> {
        for held in self.sessions {
            store.release(held.lease).await?;
        }
        Ok(())
    }
}

/// Claims a session of ours.
pub(super) async fn hold(store: &Store, id: &SessionId, words: Words) -> anyhow::Result<Held> {
    let lease = store.try_claim(id, "bench").await?;
    let lease = lease.ok_or_else(|| anyhow::anyhow!("somebody else holds {id}"))?;
    let view = store.look(id).await?.ok_or_else(|| anyhow::anyhow!("{id} is gone"))?;
    Ok(Held { lease, head: view.state.head, words })
}

/// An empty session.
pub(super) async fn make_session(store: &Store, workspace: &WorkspaceId) -> anyhow::Result<SessionId> {
    history::make_session(store, workspace, history::agent("bench")).await
}
