//! A store of its own for each test, and short words for what tests say most.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use protocol::content::Content;
use protocol::environment::Environment;
use protocol::event::{Body, Event};
use protocol::id::{AgentId, EnvironmentId, EventId, SessionId, ThreadId, WorkspaceId};
use protocol::position::Position;
use protocol::time::Timestamp;
use serde_json::{Value, json};
use session::{Draft, Record, State};
use store::{
    Follower, From, Ids, Item, Lease, ManualClock, NewSession, Options, Seen, Slice, Store, Stored, View,
};
use tempfile::TempDir;

pub(crate) struct World {
    pub(crate) store: Store,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) workspace: WorkspaceId,
    pub(crate) dir: TempDir,
    sessions: Mutex<Vec<SessionId>>,
    starts: u64,
}

pub(crate) fn noon() -> Timestamp {
    Timestamp::parse("2026-11-20T12:00:00Z").expect("valid")
}

impl World {
    pub(crate) fn on_sqlite() -> Self {
        Self::on_sqlite_with(|_| ())
    }

    pub(crate) fn on_sqlite_with(change: impl FnOnce(&mut Options)) -> Self {
        let dir = TempDir::new().expect("a directory can be made");
        let clock = Arc::new(ManualClock::new(noon()));
        let mut options = options(&clock, 1);
        change(&mut options);
        let store = Store::open(dir.path(), options).expect("opens");
        Self::over(store, clock, dir)
    }

    pub(crate) async fn on_postgres() -> Self {
        Self::on_postgres_with(|_| ()).await
    }

    pub(crate) async fn on_postgres_with(change: impl FnOnce(&mut Options)) -> Self {
        // It stays empty.
        let dir = TempDir::new().expect("a directory can be made");
        let clock = Arc::new(ManualClock::new(noon()));
        let url = testkit::postgres::Cluster::shared().database();
        let mut options = options(&clock, 1);
        change(&mut options);
        let store = Store::connect(&url, None, options).await.expect("connects");
        Self::over(store, clock, dir)
    }

    pub(crate) fn in_memory() -> Self {
        Self::in_memory_with(|_| ())
    }

    pub(crate) fn in_memory_with(change: impl FnOnce(&mut Options)) -> Self {
        // It stays empty.
        let dir = TempDir::new().expect("a directory can be made");
        let clock = Arc::new(ManualClock::new(noon()));
        let mut options = options(&clock, 1);
        change(&mut options);
        Self::over(Store::in_memory(options), clock, dir)
    }

    /// A world over this store.
    pub(crate) fn over_store(store: Store, clock: Arc<ManualClock>) -> Self {
        // It stays empty.
        Self::over(store, clock, TempDir::new().expect("a directory can be made"))
    }

    fn over(store: Store, clock: Arc<ManualClock>, dir: TempDir) -> Self {
        let workspace = store.ids().make();
        Self { store, clock, workspace, dir, sessions: Mutex::default(), starts: 1 }
    }

    /// Closes the store and opens it again, as a restart does.
    pub(crate) async fn restarted(self) -> Self {
        let Self { store, clock, workspace, dir, sessions, starts } = self;
        store.close().await;
        // Other ids than before.
        let starts = starts + 1;
        let store = open(&dir, &clock, starts);
        Self { store, clock, workspace, dir, sessions, starts }
    }

    pub(crate) fn id<T: protocol::id::FromBits>(&self) -> T {
        self.store.ids().make()
    }

    pub(crate) fn record(&self) -> Record {
        let now = self.store.now().to_string();
        let record = json!({
            "id": self.id::<SessionId>(), "agent": agent_json("agent_1", 1),
            "environment_id": "env_1", "environment": {"type": "self_hosted"},
            "title": null, "metadata": {}, "created_at": now, "updated_at": now, "archived_at": null,
        });
        serde_json::from_value(record).expect("a record")
    }

    pub(crate) fn new_session(&self, record: Record, initial: Vec<Body>) -> NewSession {
        self.sessions.lock().expect("not poisoned").push(record.id.clone());
        NewSession { workspace: self.workspace.clone(), record, thread_id: self.id::<ThreadId>(), initial }
    }

    /// A new idle session.
    pub(crate) async fn session(&self) -> SessionId {
        let record = self.record();
        let id = record.id.clone();
        self.store.create_session(self.new_session(record, Vec::new())).await.expect("made");
        id
    }

    /// A new idle session and the lease to it.
    pub(crate) async fn leased(&self) -> (SessionId, Lease) {
        let id = self.session().await;
        let lease = self.lease(&id).await;
        (id, lease)
    }

    pub(crate) async fn lease(&self, id: &SessionId) -> Lease {
        self.store.try_claim(id, "test").await.expect("works").expect("free")
    }

    /// Waits for a session that wants a brain.
    pub(crate) async fn claim(&self, holder: &str) -> Result<Lease, store::Error> {
        claim(&self.store, holder).await
    }

    pub(crate) async fn send(&self, id: &SessionId, sent: Vec<Body>) -> Vec<Arc<Stored>> {
        self.store.send_events(&self.workspace, id, sent).await.expect("accepted")
    }

    /// Appends with the lease at the end of the log.
    pub(crate) async fn append(&self, lease: &Lease, drafts: Vec<Draft>) -> View {
        let head = self.view(&lease.token.session).await.state.head;
        self.store.append(&lease.token, head, drafts).await.expect("appended")
    }

    pub(crate) fn draft(&self, body: Body) -> Draft {
        Draft::New { id: self.id(), body }
    }

    /// That many messages of the agent.
    pub(crate) fn says(&self, count: usize) -> Vec<Draft> {
        (0..count).map(|index| self.draft(said(&format!("said {index}")))).collect()
    }

    pub(crate) async fn view(&self, id: &SessionId) -> View {
        self.store.look(id).await.expect("works").expect("exists")
    }

    pub(crate) async fn state(&self, id: &SessionId) -> State {
        self.view(id).await.state
    }

    pub(crate) async fn slice(&self, id: &SessionId, slice: Slice) -> Vec<Stored> {
        self.store.get_events(id, slice).await.expect("works")
    }

    /// The whole log, private events included.
    pub(crate) async fn log(&self, id: &SessionId) -> Vec<Stored> {
        self.slice(id, Slice { limit: 1_000_000, private: true, ..Slice::default() }).await
    }

    pub(crate) async fn follow(&self, id: &SessionId, from: From) -> Follower {
        self.store.follow(id, from).await.expect("works").expect("exists")
    }

    /// What is kept beside each log is what the log says.
    pub(crate) async fn check_rebuild(&self) {
        let sessions = self.sessions.lock().expect("not poisoned").clone();
        for id in sessions {
            let Ok(rebuilt) = self.store.rebuild(&id).await else { continue };
            let kept = self.store.look(&id).await.expect("works").map(|view| view.state);
            assert_eq!(rebuilt, kept);
        }
    }
}

/// Waits for a session that wants a brain.
pub(crate) async fn claim(store: &Store, holder: &str) -> Result<Lease, store::Error> {
    Ok(store.claim(holder, 1).await?.pop().expect("a claim that returns has something"))
}

fn open(dir: &TempDir, clock: &Arc<ManualClock>, seed: u64) -> Store {
    Store::open(dir.path(), options(clock, seed)).expect("opens")
}

fn options(clock: &Arc<ManualClock>, seed: u64) -> Options {
    Options {
        clock: clock.clone(),
        ids: Ids::seeded(seed),
        lapsed_poll: Duration::from_millis(20),
        ..Options::default()
    }
}

/// A session's own facts and its state.
pub(crate) fn pair(seen: Seen) -> (Record, State) {
    (seen.record, seen.state)
}

pub(crate) fn agent_json(id: &str, version: i64) -> Value {
    json!({
        "type": "agent", "id": id, "version": version, "name": "coder", "description": null,
        "model": {"id": "m", "effort": {"type": "high"}, "speed": "standard", "inference_geo": null},
        "system": null, "tools": [], "mcp_servers": [], "skills": [], "multiagent": null,
        "execution_identity": {"type": "service_account"},
    })
}

pub(crate) fn agent(id: &AgentId, created_at: Timestamp) -> protocol::agent::Agent {
    let mut agent = agent_json(id.as_str(), 1);
    agent["metadata"] = json!({});
    agent["created_at"] = json!(created_at);
    agent["updated_at"] = json!(created_at);
    agent["archived_at"] = json!(null);
    serde_json::from_value(agent).expect("an agent")
}

pub(crate) fn environment(id: &EnvironmentId, name: &str, created_at: Timestamp) -> Environment {
    let environment = json!({
        "type": "environment", "id": id, "name": name, "description": null, "config": {"type": "self_hosted"},
        "metadata": {}, "scope": null, "created_at": created_at, "updated_at": created_at, "archived_at": null,
    });
    serde_json::from_value(environment).expect("an environment")
}

pub(crate) fn message(text: &str) -> Body {
    Body::UserMessage { content: vec![Content::text(text)] }
}

pub(crate) fn interrupt() -> Body {
    Body::UserInterrupt { session_thread_id: None }
}

pub(crate) fn said(text: &str) -> Body {
    Body::AgentMessage { content: vec![Content::text(text)] }
}

pub(crate) fn custom_call() -> Body {
    Body::AgentCustomToolUse { name: "ask".to_owned(), input: serde_json::Map::new() }
}

pub(crate) fn event(stored: &Stored) -> Event {
    serde_json::from_slice(&stored.json).expect("an event")
}

pub(crate) fn positions(events: &[Stored]) -> Vec<u64> {
    events.iter().map(|event| event.position.expect("in the log").0).collect()
}

pub(crate) fn kinds(events: &[Stored]) -> Vec<&str> {
    events.iter().map(|event| &*event.kind).collect()
}

pub(crate) fn id_of(stored: &Stored) -> EventId {
    event(stored).id
}

/// An item in a word: `3 agent.message`, `(user.message)` for a waiting copy, `~start` and `~text` for previews.
pub(crate) fn word(item: &Item) -> String {
    match item {
        Item::Event { position, kind, json } => {
            assert_ne!(value(json)["processed_at"], Value::Null);
            assert_eq!(value(json)["type"], **kind);
            format!("{position} {kind}")
        }
        Item::Queued { kind, json } => {
            assert_eq!(value(json)["processed_at"], Value::Null);
            assert_eq!(value(json)["type"], **kind);
            format!("({kind})")
        }
        Item::Preview { kind: _, json } => {
            let preview = value(json);
            match preview["delta"]["content"]["text"].as_str() {
                Some(text) => format!("~{text}"),
                None => "~start".to_owned(),
            }
        }
        Item::Deleted { json } => value(json)["type"].as_str().expect("a type").to_owned(),
    }
}

fn value(json: &[u8]) -> Value {
    serde_json::from_slice(json).expect("JSON")
}

/// The follower's next items, in words.
pub(crate) async fn words(follower: &mut Follower, count: usize) -> Vec<String> {
    let mut words = Vec::new();
    for _ in 0..count {
        words.push(word(&soon(follower.next()).await.expect("goes on")));
    }
    words
}

/// What must come soon. A test that waits for ever says nothing.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("in time")
}

/// Whether nothing comes: looked at once, after all that was done before has been answered.
pub(crate) async fn is_quiet(follower: &mut Follower) -> bool {
    tokio::time::timeout(Duration::from_millis(50), follower.next()).await.is_err()
}

pub(crate) const START: Position = Position::START;
