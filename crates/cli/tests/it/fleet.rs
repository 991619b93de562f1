//! Many processes on one PostgreSQL: what each is for, and that any of them may be stopped.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use client::{Client, Item};
use protocol::content::Content;
use protocol::event::{Body, Event, Preview, PreviewDelta, PreviewKind, PreviewText};
use protocol::position::Position;
use protocol::session::Status;
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::cut::CutProxy;
use testkit::model::{Reply, Server as ModelServer};
use testkit::postgres::Cluster;
use tokio::process::Command;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::roles::{probe, soon};
use crate::server::{KEY, Server, posthouse, scripted, serve, signal};

const DOORS: usize = 2;
const BRAINS: usize = 2;

/// A process with these roles.
fn process(roles: &str, database: &str, data_dir: &Path) -> Command {
    let mut command = serve(data_dir);
    command.args(["--role", roles, "--database", database]).env("POSTHOUSE_API_KEY", KEY);
    command
}

async fn start(roles: &str, database: &str, data_dir: &Path) -> Server {
    Server::greet(process(roles, database, data_dir)).await.0
}

/// A session of an agent that may use the sandbox.
async fn make_session(client: &Client, model: &str) -> String {
    let agent = json!({"name": model, "model": model, "tools": [{"type": "agent_toolset_20260401"}]});
    let agent = client.create_agent(agent).await.expect("made");
    let id = agent.id.to_string();
    let environment = client.create_environment(json!({"name": id})).await.expect("made");
    let body = json!({"agent": agent.id, "environment_id": environment.id});
    client.create_session(body).await.expect("made").id.to_string()
}

async fn until_at_rest(client: &Client, session: &str) -> Vec<Event> {
    let mut stream = client.stream(session, Some(Position::START), &[]).await.expect("opens");
    let at_rest = async {
        while client.get_session(session).await.expect("reads").status != Status::Idle {
            stream.next().await.expect("reads").expect("the stream goes on");
        }
    };
    soon(at_rest).await;
    client.all_events(session).await.expect("reads")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_shows_what_a_brain_in_another_process_does_as_it_does_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let database = Cluster::shared().database();
    let models = ModelServer::start().await;
    let mut brain = process("brain,background", &database, dir.path());
    brain.env("ANTHROPIC_API_KEY", "a key of the test").env("ANTHROPIC_BASE_URL", models.url());
    let brain = Server::greet(brain).await.0;
    // A door knows the models by their names alone.
    let named = || {
        let mut door = process("api", &database, dir.path());
        door.env("ANTHROPIC_BASE_URL", models.url());
        door
    };
    let doors = [Server::greet(named()).await.0, Server::greet(named()).await.0];
    models.script("claude-far", [Reply::text("one two three four").hold_after("half", 3)]);

    let session = make_session(&doors[0].client(), "claude-far").await;
    let mut stream = doors[0].client().stream(&session, None, &[PreviewKind::Message]).await.expect("opens");
    doors[1].client().send_message(&session, "go").await.expect("accepted");
    // The answer is not complete yet: these pieces can only be previews.
    let mut text = String::new();
    soon(async {
        while text.split_whitespace().count() < 2 {
            let item = stream.next().await.expect("reads").expect("goes on");
            if let Item::Preview(Preview::EventDelta { delta, .. }) = item {
                let PreviewDelta::ContentDelta { content: PreviewText::Text { text: piece }, .. } = delta;
                text += &piece;
            }
        }
    })
    .await;
    assert!("one two three four".starts_with(text.trim()), "{text}");
    models.release("half");
    let message = soon(async {
        loop {
            let item = stream.next().await.expect("reads").expect("goes on");
            if let Item::Event { event: Event { body: Body::AgentMessage { content }, .. }, .. } = item {
                return content;
            }
        }
    })
    .await;
    assert_eq!(message, [Content::text("one two three four")]);
    for server in [brain].into_iter().chain(doors) {
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_needs_only_what_its_roles_do() {
    let dir = tempfile::tempdir().expect("a folder");
    let database = Cluster::shared().database();
    let config = dir.path().join("posthouse.toml");
    let text = "[[provider]]\nname = \"p\"\nkind = \"anthropic\"\napi_key_env = \"NOBODY_HAS_THIS\"\nmodels = [\"m-1\"]\n";
    std::fs::write(config, text).expect("writes");
    let door = start("api", &database, dir.path()).await;
    let models = door.client().list_models(&[]).await.expect("reads");
    assert_eq!(
        models.data.iter().map(|model| model.id.as_str()).collect::<Vec<_>>(),
        ["m-1", "posthouse-demo"]
    );
    // Listening begins beside the serving.
    let expected = json!({"database": {"state": "ok"}, "listener": {"state": "ok"}});
    soon(async {
        loop {
            let (status, body) = probe(&door.url, "/readyz").await;
            assert_eq!(status, 200, "{body}");
            if body["dependencies"] == expected {
                return;
            }
        }
    })
    .await;
    assert!(!dir.path().join("supervisor").exists(), "nobody needs sandboxes");

    let brain = process("brain", &database, dir.path()).output().await.expect("runs");
    let said = String::from_utf8_lossy(&brain.stderr).into_owned();
    assert!(!brain.status.success() && said.contains("NOBODY_HAS_THIS"), "{said}");
    let mut brain = process("brain", &database, dir.path());
    brain.env("NOBODY_HAS_THIS", "a key");
    let brain = Server::greet(brain).await.0;
    let (_, body) = probe(&brain.url, "/readyz").await;
    assert_eq!(
        body["dependencies"].as_object().expect("an object").keys().collect::<Vec<_>>(),
        ["database", "hands", "listener"]
    );
    assert_eq!(probe(&brain.url, "/v1/sessions").await.0, 404);
    let background = start("background", &database, dir.path()).await;
    assert_eq!(probe(&background.url, "/readyz").await.0, 200);
    for server in [door, brain, background] {
        server.stop().await;
    }
}

/// Probes until the process answers with this status; gives the body.
async fn until_ready_is(url: &str, status: u16) -> Value {
    soon(async {
        loop {
            let (found, body) = probe(url, "/readyz").await;
            if found == status {
                return body;
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_whose_database_is_away_says_so_and_is_ready_again_when_it_is_back() {
    let dir = tempfile::tempdir().expect("a folder");
    let cluster = Cluster::shared();
    let line = CutProxy::start(SocketAddr::from(([127, 0, 0, 1], cluster.port()))).await.expect("listens");
    let door = start("api", &line.url(&cluster.database()), dir.path()).await;
    until_ready_is(&door.url, 200).await;
    line.cut().await;
    let body = until_ready_is(&door.url, 503).await;
    assert_eq!(body["dependencies"]["database"]["state"], "down", "{body}");
    assert_eq!(probe(&door.url, "/livez").await.0, 200, "nobody is to kill it");
    let refused = door.client().create_agent(json!({"name": "a", "model": "m"})).await;
    assert!(matches!(refused, Err(client::Error::Refused { status: 503, .. })), "{refused:?}");
    line.heal().await;
    until_ready_is(&door.url, 200).await;
    door.client().create_agent(json!({"name": "a", "model": "m"})).await.expect("made");
    door.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_brain_that_stops_hands_its_call_to_another() {
    let world = World::start();
    world.script(&json!({"replies": [
        {"blocks": [{"tool": "bash", "input": {"command": "sleep 86400"}}]},
        {"blocks": [{"text": "well then"}]},
    ]}));
    let door = world.process("api").await;
    let client = door.client();
    // It would wait for a day, if it waited for the call.
    let mut first = process("brain", &world.database, world.dir.path());
    first.args(["--drain-timeout", "3600"]);
    let mut first = Server::greet(first).await.0;
    let session = make_session(&client, "load").await;
    let mut stream = client.stream(&session, None, &[]).await.expect("opens");
    client.send_message(&session, "go").await.expect("accepted");
    soon(async {
        loop {
            let item = stream.next().await.expect("reads").expect("goes on");
            if matches!(item, Item::Event { event: Event { body: Body::AgentToolUse { .. }, .. }, .. }) {
                return;
            }
        }
    })
    .await;
    let second = world.process("brain").await;
    signal(&first.child, Signal::TERM);
    assert!(soon(first.child.wait()).await.expect("a child of ours").success());
    client.interrupt(&session).await.expect("accepted");
    let log = until_at_rest(&client, &session).await;
    let results: Vec<&Event> =
        log.iter().filter(|event| matches!(event.body, Body::AgentToolResult { .. })).collect();
    assert_eq!(results.len(), 1, "{log:?}");
    client.send_message(&session, "and now?").await.expect("accepted");
    let log = until_at_rest(&client, &session).await;
    assert!(log.iter().any(|event| matches!(&event.body, Body::AgentMessage { content } if *content == [Content::text("well then")])));
    for server in [door, second] {
        server.stop().await;
    }
}

/// A database and a data directory, for processes on one machine.
struct World {
    dir: TempDir,
    database: String,
}

impl World {
    fn start() -> Self {
        Self { dir: tempfile::tempdir().expect("a folder"), database: Cluster::shared().database() }
    }

    fn script(&self, script: &Value) {
        scripted(self.dir.path(), "load", script);
    }

    async fn process(&self, roles: &str) -> Server {
        start(roles, &self.database, self.dir.path()).await
    }
}

const SESSIONS: usize = 6;
/// Each process is stopped and started this often.
const ROUNDS: usize = 2;

/// Doors that are open now.
type Doors = watch::Receiver<Vec<Option<Client>>>;

async fn pick(doors: &mut Doors, turn: usize) -> Client {
    let doors = doors.wait_for(|doors| doors.iter().any(Option::is_some)).await.expect("there are doors");
    let open: Vec<&Client> = doors.iter().flatten().collect();
    open[turn % open.len()].clone()
}

/// What a client of one session has sent and seen.
#[derive(Default)]
struct Seen {
    acknowledged: Vec<String>,
    events: Vec<String>,
    position: Position,
    turn: usize,
}

/// Talks to a session until it is over, at whatever door is open.
async fn talk(session: String, mut doors: Doors, over: CancellationToken) -> Seen {
    let mut seen = Seen::default();
    while !over.is_cancelled() {
        seen.turn += 1;
        let client = pick(&mut doors, seen.turn).await;
        match client.send_message(&session, "count").await {
            Ok(echoes) => seen.acknowledged.extend(echoes.into_iter().map(|event| event.id.to_string())),
            // The door closed: another one is open.
            Err(client::Error::Transport(_)) => continue,
            Err(error) => panic!("{session}: {error:?}"),
        }
        seen.follow(&session, &mut doors).await;
    }
    seen
}

impl Seen {
    /// Follows until what was sent last is answered, through as many streams as that takes.
    async fn follow(&mut self, session: &str, doors: &mut Doors) {
        let sent = self.acknowledged.last().expect("something was sent").clone();
        loop {
            self.turn += 1;
            let client = pick(doors, self.turn).await;
            let Ok(mut stream) = client.stream(session, Some(self.position), &[]).await else { continue };
            // A stream of a process that stops is ended and not broken off.
            while let Some(item) = soon(stream.next()).await.expect("ended in order") {
                let Item::Event { position: Some(position), event } = item else { continue };
                assert!(position > self.position, "{session}: nothing is repeated");
                self.position = position;
                self.events.push(event.id.to_string());
                if matches!(event.body, Body::StatusIdle { .. }) && self.events.contains(&sent) {
                    return;
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_of_all_processes_under_load_loses_nothing() {
    let world = World::start();
    world.script(&json!({
        "on_end": "repeat",
        "first_token": {"kind": "lognormal", "median_ms": 30.0, "p95_ms": 120.0},
        "token_ms": 2.0,
        "replies": [
            {"blocks": [
                {"text": "I will count."},
                {"tool": "bash", "input": {"command": "sleep 0.05; echo x >> /workspace/n; wc -l < /workspace/n"}},
            ]},
            {"blocks": [{"text": "counted"}]},
        ],
    }));
    let mut doors = Vec::new();
    for _ in 0..DOORS {
        doors.push(world.process("api").await);
    }
    let mut brains = Vec::new();
    for _ in 0..BRAINS {
        brains.push(world.process("brain,background").await);
    }
    let (open, watched) = watch::channel(doors.iter().map(|door| Some(door.client())).collect::<Vec<_>>());
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS {
        sessions.push(make_session(&doors[0].client(), "load").await);
    }
    let over = CancellationToken::new();
    let tracker = TaskTracker::new();
    let talks: Vec<_> = sessions
        .iter()
        .map(|session| tracker.spawn(talk(session.clone(), watched.clone(), over.clone())))
        .collect();

    for _ in 0..ROUNDS {
        for index in 0..DOORS {
            open.send_modify(|open| open[index] = None);
            doors.remove(index).stop().await;
            doors.insert(index, world.process("api").await);
            open.send_modify(|open| open[index] = Some(doors[index].client()));
        }
        for index in 0..BRAINS {
            brains.remove(index).stop().await;
            brains.insert(index, world.process("brain,background").await);
        }
    }
    over.cancel();
    let client = doors[0].client();
    let mut calls = 0;
    for (session, talk) in sessions.iter().zip(talks) {
        let seen = soon(talk).await.expect("no panic");
        let log = until_at_rest(&client, session).await;
        calls += check(session, &log, &seen);
    }
    println!("{} processes stopped: {calls} calls in {SESSIONS} sessions", ROUNDS * (DOORS + BRAINS));
    assert!(calls > SESSIONS, "the load did something");
    for server in doors.into_iter().chain(brains) {
        server.stop().await;
    }
    let checked = posthouse()
        .args(["database", "check", "--database", &world.database, "--data-dir"])
        .arg(world.dir.path())
        .output()
        .await
        .expect("runs");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}

/// Checks one log; gives the number of calls in it.
fn check(session: &str, log: &[Event], seen: &Seen) -> usize {
    let ids: Vec<&str> = log.iter().map(|event| event.id.as_str()).collect();
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len(), "{session}: each id is there once");
    for id in &seen.acknowledged {
        assert!(ids.contains(&id.as_str()), "{session}: {id} was acknowledged and is not there");
    }
    assert_eq!(seen.events, ids[..seen.events.len()], "{session}: streams show the log");
    let mut calls = 0;
    for event in log {
        match &event.body {
            Body::AgentToolResult { content, is_error, .. } => {
                calls += 1;
                assert!(!is_error, "{session}: call {calls} failed: {content:?}");
                let expected = Arc::new(calls.to_string());
                assert_eq!(*content, [Content::text(expected.as_str())], "{session}: call {calls} ran once");
            }
            // A brain that stops finishes what it asked for.
            Body::ModelRequestEnd { is_error, .. } => {
                assert!(!is_error, "{session}: an answer was thrown away")
            }
            Body::Error { error } => panic!("{session}: {error:?}"),
            _ => {}
        }
    }
    calls
}

#[tokio::test]
async fn a_shared_database_is_looked_after_like_any_other() {
    let world = World::start();
    world.script(&json!({"on_end": "repeat", "replies": [{"blocks": [{"text": "hello"}]}]}));
    let command = |words: &[&str]| {
        let mut command = posthouse();
        command.args(words).args(["--database", &world.database, "--data-dir"]).arg(world.dir.path());
        async move {
            let output = command.output().await.expect("runs");
            let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            (output.status.success(), text)
        }
    };
    let (is_well, text) = command(&["database", "check"]).await;
    assert!(!is_well && text.contains("has format 0"), "nothing is changed by looking: {text}");
    let (is_made, text) = command(&["database", "migrate"]).await;
    assert!(is_made && text.starts_with("made a database of format "), "{text}");
    let (is_made, key) = command(&["keys", "create", "mine"]).await;
    assert!(is_made, "{key}");

    let servers = [world.process("api").await, world.process("brain,background").await];
    let client = Client::new(&servers[0].url, key.lines().next().expect("a key")).expect("valid");
    let session = make_session(&client, "load").await;
    client.send_message(&session, "hello").await.expect("accepted");
    until_at_rest(&client, &session).await;
    assert_eq!(
        command(&["database", "check"]).await,
        (true, "1 sessions, 10 events: all is well\n".to_owned())
    );
    for server in servers {
        server.stop().await;
    }
    let damage = "UPDATE head SET state = jsonb_set(state::jsonb, '{rounds}', '7')::text";
    Cluster::shared().psql(&world.database, damage).expect("runs");
    let problem = format!("{session}: the state is not what the log says: rounds");
    let (is_well, text) = command(&["database", "check"]).await;
    assert!(!is_well && text.starts_with(&format!("{problem}\n")), "{text}");
    let (is_well, text) = command(&["database", "rebuild"]).await;
    assert!(is_well && text.starts_with(&format!("{problem}; written anew\n")), "{text}");
    let (is_well, text) = command(&["database", "check"]).await;
    assert!(is_well, "{text}");
}
