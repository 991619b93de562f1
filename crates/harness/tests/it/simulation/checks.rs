//! What must be true in the end, whatever happened.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use protocol::event::{Body, Event};
use protocol::id::SessionId;
use serde_json::Value;
use store::{Order, Slice, Stored};

use super::World;
use super::clients::{Acknowledged, Read};

/// Everything that was told, byte for byte.
#[derive(PartialEq, Eq)]
pub(super) struct Told {
    /// Each session's log, private events included.
    logs: BTreeMap<SessionId, Vec<Stored>>,
    runs: Vec<(String, String)>,
    pub(super) misfortunes: BTreeMap<&'static str, u64>,
    read: Vec<(SessionId, usize)>,
    acknowledged: Vec<(SessionId, Vec<Value>)>,
}

impl fmt::Display for Told {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (session, log) in &self.logs {
            writeln!(formatter, "{session}")?;
            for stored in log {
                let position =
                    stored.position.map_or_else(|| "-".to_owned(), |position| position.to_string());
                writeln!(formatter, "{position:>5} {}", String::from_utf8_lossy(&stored.json))?;
            }
        }
        writeln!(formatter, "ran: {:?}", self.runs)?;
        writeln!(formatter, "misfortunes: {:?}", self.misfortunes)
    }
}

/// The logs as they are.
pub(super) async fn told(world: &World) -> Told {
    let sessions = world.sessions.lock().expect("not poisoned").clone();
    let mut logs = BTreeMap::new();
    for (_, session) in sessions {
        let slice = Slice { limit: usize::MAX, bytes_max: usize::MAX, private: true, ..Slice::default() };
        let (mut log, inbox) = world.store.get_history(&session, slice).await.expect("it is calm");
        log.extend(inbox);
        logs.insert(session, log);
    }
    let (runs, misfortunes) = (world.hands.runs(), world.misfortunes.counts());
    Told { logs, runs, misfortunes, read: Vec::new(), acknowledged: Vec::new() }
}

/// Checks everything; gives what was told.
pub(super) async fn check(world: &World, acknowledged: Vec<Acknowledged>, read: Vec<Read>) -> Told {
    let mut told = told(world).await;
    for (session, log) in &told.logs {
        check_places(log);
        check_state(world, session).await;
        check_slices(world, session, log).await;
        let public: Vec<Value> = public(log).map(|stored| value(&stored.json)).collect();
        if let Err(broken) = testkit::invariants::check_at_rest(&public) {
            panic!("{broken}\n{told}");
        }
    }
    check_calls(&told);
    for Acknowledged { session, events, pages } in &acknowledged {
        let log = &told.logs[session];
        check_acknowledged(log, events);
        for page in pages {
            assert_eq!(page[..], log[..page.len()], "what was read once is read again");
        }
    }
    for Read { session, events } in &read {
        let expected: Vec<_> = public(&told.logs[session])
            .map(|stored| (stored.position.expect("nothing waits"), stored.json.clone()))
            .collect();
        assert!(*events == expected, "a reader saw {events:?}\n{told}");
    }
    told.read = read.into_iter().map(|read| (read.session, read.events.len())).collect();
    told.acknowledged = acknowledged.into_iter().map(|one| (one.session, one.events)).collect();
    told
}

fn public(log: &[Stored]) -> impl Iterator<Item = &Stored> {
    log.iter().filter(|stored| !event(stored).body.is_private())
}

fn event(stored: &Stored) -> Event {
    serde_json::from_slice(&stored.json).expect("an event")
}

fn value(json: &[u8]) -> Value {
    serde_json::from_slice(json).expect("JSON")
}

/// Positions count from one without a gap, times grow, and nothing waits.
fn check_places(log: &[Stored]) {
    for (stored, expected) in log.iter().zip(1..) {
        assert_eq!(stored.position.map(|position| position.0), Some(expected), "in its place");
    }
    assert!(log.is_sorted_by(|one, other| one.processed_at < other.processed_at), "times grow");
}

/// What is kept beside the log is what the log says.
async fn check_state(world: &World, session: &SessionId) {
    let kept = world.store.look(session).await.expect("it is calm").expect("it is there");
    let rebuilt = world.store.rebuild(session).await.expect("it is calm").expect("it is there");
    assert_eq!(kept.state, rebuilt, "the state is the fold of the log");
    assert!(!kept.state.wants_brain(), "it rests");
}

/// The log read backwards is the log.
async fn check_slices(world: &World, session: &SessionId, log: &[Stored]) {
    let slice = Slice {
        order: Order::Desc,
        limit: usize::MAX,
        bytes_max: usize::MAX,
        private: true,
        ..Slice::default()
    };
    let mut backwards = world.store.get_events(session, slice).await.expect("it is calm");
    backwards.reverse();
    assert_eq!(backwards, log, "backwards");
}

/// Every acknowledged event is in the log once, in the order in which it was acknowledged to its one client.
fn check_acknowledged(log: &[Stored], events: &[Value]) {
    for event in events {
        let found = log.iter().filter(|stored| {
            let mut listed = value(&stored.json);
            let is_it = listed["id"] == event["id"];
            if is_it && event["processed_at"].is_null() {
                listed["processed_at"] = Value::Null;
            }
            assert!(!is_it || listed == *event, "{event} became {listed}");
            is_it
        });
        assert_eq!(found.count(), 1, "acknowledged, so it is there once: {event}");
    }
}

/// Each call ran at most once; what the log says of it is what came of it, or that nobody knows.
fn check_calls(told: &Told) {
    let mut ran: HashMap<&str, &str> = HashMap::new();
    for (call, command) in &told.runs {
        assert_eq!(ran.insert(call, command), None, "{call} ran twice\n{told}");
    }
    let mut answered = HashSet::new();
    for log in told.logs.values() {
        let mut asked: HashMap<String, String> = HashMap::new();
        for stored in log {
            let event = event(stored);
            match event.body {
                Body::AgentToolUse { input, .. } => {
                    let command = input.get("command").and_then(Value::as_str).unwrap_or_default();
                    asked.insert(event.id.to_string(), command.to_owned());
                }
                // An interrupt answers it, too.
                Body::AgentCustomToolUse { .. } => {
                    asked.insert(event.id.to_string(), String::new());
                }
                Body::AgentToolResult { tool_use_id, content, is_error } => {
                    let id = tool_use_id.to_string();
                    let text = serde_json::to_string(&content).expect("JSON");
                    let command = &asked[&id];
                    check_result(&text, is_error, command, ran.get(id.as_str()).copied(), told);
                    answered.insert(id);
                }
                _ => {}
            }
        }
    }
    for (call, command) in &ran {
        assert!(answered.contains(*call), "{call} ({command}) ran, and no log has its result\n{told}");
    }
}

fn check_result(text: &str, is_error: bool, command: &str, ran: Option<&str>, told: &Told) {
    let is_output = text.contains(&format!("ran {command}")) || text.contains("failed");
    let is_unknown = text.contains("It is not known whether");
    let is_cut_off = text.contains("interrupted before completion") || text.contains("cancelled");
    let is_given_up = text.contains("the server failed repeatedly");
    match ran {
        Some(_) if is_output => assert_eq!(is_error, command == "fail", "{text}"),
        // What came of it is not known, and it says so.
        Some(_) => {
            assert!(is_error && (is_unknown || is_cut_off || is_given_up), "{command} ran: {text}\n{told}")
        }
        None => assert!(is_error && !is_output, "{command} never ran: {text}\n{told}"),
    }
}
