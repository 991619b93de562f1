//! A brain played by the test: claims the session, lets the pure core decide, answers for the model.

use protocol::content::Content;
use protocol::event::{Answer, Body, Finish, ModelUsage};
use protocol::id::{EventId, SessionId};
use serde_json::Map;
use session::step::Ready;
use session::{Act, Draft, next_step};
use store::{Lease, Store, View};

/// A brain that drives one session.
pub(crate) struct Brain<'a> {
    store: &'a Store,
    lease: Lease,
    view: View,
}

impl<'a> Brain<'a> {
    pub(crate) async fn wake(store: &'a Store, session: &SessionId) -> Self {
        let lease =
            store.try_claim(session, "test").await.expect("the store answers").expect("nobody drives it");
        let view = store.look(session).await.expect("the store answers").expect("it exists");
        Self { store, lease, view }
    }

    /// Takes one step with these facts; gives what is to be done.
    pub(crate) async fn step(&mut self, facts: Vec<Body>) -> Act {
        let new_id = || self.store.ids().make::<EventId>();
        let facts = facts.into_iter().map(|body| Draft::New { id: new_id(), body }).collect();
        let step = next_step(&self.view.state, &self.view.inbox, facts, Ready::Wait, new_id);
        let expected = self.view.state.head;
        self.view = self.store.append(&self.lease.token, expected, step.drafts).await.expect("nothing moved");
        step.act
    }

    pub(crate) async fn rest(self) {
        self.store.release(self.lease).await.expect("the store answers");
    }
}

/// The facts of a model that says one thing.
pub(crate) fn says(request: &EventId, text: &str) -> Vec<Body> {
    let answer = Answer {
        model_request_start_id: request.clone(),
        blocks: Vec::new(),
        finish: Finish::Complete,
        calls: Vec::new(),
    };
    vec![
        Body::AgentMessage { content: vec![Content::text(text)] },
        Body::Answer(answer),
        Body::ModelRequestEnd {
            model_request_start_id: request.clone(),
            is_error: false,
            model_usage: ModelUsage { input_tokens: 10, output_tokens: 5, ..ModelUsage::default() },
        },
    ]
}

/// The facts of a model that calls the agent's custom tool.
pub(crate) fn calls(request: &EventId) -> Vec<Body> {
    let mut facts = says(request, "let me see");
    facts.insert(1, Body::AgentCustomToolUse { name: "weather".to_owned(), input: Map::new() });
    facts
}

/// Runs the session until it rests; the model answers `text` each time.
pub(crate) async fn run(store: &Store, session: &SessionId, text: &str) {
    let mut brain = Brain::wake(store, session).await;
    let mut facts = Vec::new();
    while let Act::CallModel { request } = brain.step(std::mem::take(&mut facts)).await {
        facts = says(&request, text);
    }
    brain.rest().await;
}

/// Runs the session until it waits for the result of a custom tool.
pub(crate) async fn run_into_a_call(store: &Store, session: &SessionId) {
    let mut brain = Brain::wake(store, session).await;
    let Act::CallModel { request } = brain.step(Vec::new()).await else {
        panic!("there is something to say")
    };
    assert_eq!(brain.step(calls(&request)).await, Act::Rest);
    brain.rest().await;
}
