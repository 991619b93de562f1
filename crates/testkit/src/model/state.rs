//! What the server remembers: queues of replies, requests seen, holds.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use serde::Serialize;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;

use super::reply::Reply;

/// A request that the server saw.
#[derive(Clone, Debug, Serialize)]
pub struct Request {
    /// The path.
    pub path: String,
    /// The headers, names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The body, or null if it was not JSON.
    pub body: Value,
    /// The body as it came.
    pub raw: String,
    /// When, in milliseconds since the server's start.
    pub at_ms: u64,
    /// What was wrong with it, if the server refused it.
    pub violation: Option<String>,
    /// How its answer fared.
    pub outcome: Outcome,
}

/// How an answer fared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Still being sent.
    Open,
    /// Sent to its end, or refused.
    Complete,
    /// Broken off by the script.
    Cut,
    /// Broken off by the client.
    Aborted,
}

/// Shared by all connections of one server.
pub(super) struct State {
    started: Instant,
    inner: Mutex<Inner>,
    improvise: OnceLock<Box<Improvise>>,
    /// Bumped on every change, for those who wait.
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    models: BTreeMap<String, Model>,
    holds: HashMap<String, Hold>,
    connections: usize,
}

/// Answers what no queue has an answer for.
pub(super) type Improvise = dyn Fn(&Value) -> Reply + Send + Sync;

#[derive(Debug, Default)]
struct Model {
    replies: VecDeque<Reply>,
    requests: Vec<Request>,
    /// For each tool call that was answered: the thinking of that answer, which must come back with it.
    thinking_by_call: HashMap<String, Vec<String>>,
}

#[derive(Debug, Default)]
struct Hold {
    released: bool,
    waiting: usize,
}

/// Which request an answer belongs to. Marks it aborted if it is dropped before it said how it fared.
#[derive(Debug)]
pub(super) struct Ticket {
    state: Arc<State>,
    model: String,
    pub(super) index: usize,
}

impl fmt::Debug for State {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("State").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl State {
    pub(super) fn new() -> Self {
        Self {
            started: Instant::now(),
            inner: Mutex::default(),
            improvise: OnceLock::new(),
            changed: watch::Sender::new(0),
        }
    }

    pub(super) fn improvise(&self, answer: Box<Improvise>) {
        assert!(self.improvise.set(answer).is_ok(), "one improviser is enough");
    }

    pub(super) fn script(&self, model: &str, replies: impl IntoIterator<Item = Reply>) {
        self.update(|inner| inner.models.entry(model.to_owned()).or_default().replies.extend(replies));
    }

    pub(super) fn next_reply(&self, model: &str, body: &Value) -> Option<Reply> {
        let queued = self.lock().models.get_mut(model).and_then(|model| model.replies.pop_front());
        queued.or_else(|| Some(self.improvise.get()?(body)))
    }

    pub(super) fn count_connection(&self) {
        self.lock().connections += 1;
    }

    pub(super) fn connections(&self) -> usize {
        self.lock().connections
    }

    pub(super) fn models(&self) -> Vec<String> {
        self.lock().models.keys().cloned().collect()
    }

    pub(super) fn record(
        self: &Arc<Self>,
        model: &str,
        path: &str,
        headers: BTreeMap<String, String>,
        raw: String,
        violation: Option<String>,
    ) -> Ticket {
        // Long rounds would fill the memory with what nobody asks for.
        let (body, raw) = match self.improvise.get() {
            Some(_) => (Value::Null, String::new()),
            None => (serde_json::from_str(&raw).unwrap_or_default(), raw),
        };
        let request = Request {
            path: path.to_owned(),
            headers,
            body,
            raw,
            at_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            violation,
            outcome: Outcome::Open,
        };
        let index = self.update(|inner| {
            let requests = &mut inner.models.entry(model.to_owned()).or_default().requests;
            requests.push(request);
            requests.len() - 1
        });
        Ticket { state: Arc::clone(self), model: model.to_owned(), index }
    }

    pub(super) fn requests(&self, model: Option<&str>) -> Vec<Request> {
        let inner = self.lock();
        let of = |name: &str| model.is_none_or(|model| model == name);
        inner
            .models
            .iter()
            .filter(|(name, _)| of(name))
            .flat_map(|(_, model)| model.requests.clone())
            .collect()
    }

    pub(super) fn replies_left(&self, model: &str) -> usize {
        self.lock().models.get(model).map_or(0, |model| model.replies.len())
    }

    pub(super) fn remember_thinking(&self, model: &str, call: &str, thinking: &[String]) {
        let mut inner = self.lock();
        let known = &mut inner.models.entry(model.to_owned()).or_default().thinking_by_call;
        known.insert(call.to_owned(), thinking.to_vec());
    }

    /// The thinking that came with a tool call this server answered.
    pub(super) fn thinking_of(&self, model: &str, call: &str) -> Vec<String> {
        let inner = self.lock();
        inner
            .models
            .get(model)
            .and_then(|model| model.thinking_by_call.get(call))
            .cloned()
            .unwrap_or_default()
    }

    pub(super) fn release(&self, hold: &str) {
        self.update(|inner| inner.holds.entry(hold.to_owned()).or_default().released = true);
    }

    pub(super) fn waiting(&self, hold: &str) -> usize {
        self.lock().holds.get(hold).map_or(0, |hold| hold.waiting)
    }

    /// Waits until the hold is released. Counted as waiting meanwhile, also when dropped.
    pub(super) async fn wait_for_release(self: &Arc<Self>, hold: &str) {
        struct Waiting<'a>(&'a State, &'a str);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.update(|inner| inner.holds.entry(self.1.to_owned()).or_default().waiting -= 1);
            }
        }
        self.update(|inner| inner.holds.entry(hold.to_owned()).or_default().waiting += 1);
        let _waiting = Waiting(self, hold);
        self.until(|inner| inner.holds.get(hold).is_some_and(|hold| hold.released)).await;
    }

    pub(super) async fn until_waiting(&self, hold: &str) {
        self.until(|inner| inner.holds.get(hold).is_some_and(|hold| hold.waiting > 0)).await;
    }

    pub(super) async fn until_requests(&self, model: &str, count: usize) {
        self.until(|inner| inner.models.get(model).is_some_and(|model| model.requests.len() >= count)).await;
    }

    pub(super) async fn until_outcome(&self, model: &str, index: usize, outcome: Outcome) {
        let reached =
            |inner: &Inner| inner.models.get(model)?.requests.get(index).map(|request| request.outcome);
        self.until(|inner| reached(inner) == Some(outcome)).await;
    }

    /// Subscribe, then look, then sleep: no change is missed.
    async fn until(&self, reached: impl Fn(&Inner) -> bool) {
        let mut changes = self.changed.subscribe();
        loop {
            changes.borrow_and_update();
            if reached(&self.lock()) {
                return;
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    fn update<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.send_modify(|version| *version += 1);
        result
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// Says how the answer fared. Only the first word counts.
    pub(super) fn settle(&self, outcome: Outcome) {
        self.state.update(|inner| {
            let request =
                inner.models.get_mut(&self.model).and_then(|model| model.requests.get_mut(self.index));
            if let Some(request) = request
                && request.outcome == Outcome::Open
            {
                request.outcome = outcome;
            }
        });
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.settle(Outcome::Aborted);
    }
}
