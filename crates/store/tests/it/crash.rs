//! `kill -9` under load: every acknowledged event is there once, and every log is whole.
//!
//! The test runs its own binary again as the process that dies. The child writes a line for each acknowledgement; the
//! parent kills it after a random number of lines and looks at what is left.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use protocol::content::Content;
use protocol::event::Body;
use protocol::id::{SessionId, WorkspaceId};
use protocol::position::Position;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use session::Draft;
use store::{NewSession, Options, Seen, SessionQuery, Slice, Store, Stored};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::world::{event, message, said};

/// Names the directory that the child works in.
const CHILD: &str = "POSTHOUSE_STORE_CRASH_DIR";
const ROUNDS: u64 = 5;
const SESSIONS: usize = 6;
/// Events in one append: all or none of them survive.
const TOGETHER: usize = 3;

#[test]
fn what_was_acknowledged_survives_kill_nine_once() {
    let dir = TempDir::new().expect("a directory can be made");
    let mut rng = StdRng::seed_from_u64(9);
    let mut acknowledged = HashSet::new();
    for _ in 0..ROUNDS {
        let lines = rng.random_range(1..400);
        acknowledged.extend(run_and_kill(dir.path(), lines));
        check(dir.path(), &acknowledged);
    }
}

/// Not a test of its own: what the child process of the test above runs. Does nothing in an ordinary run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_child_of_the_crash_test() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    work(Path::new(&dir)).await;
}

/// Lets a child work until it has said so many lines, then kills it. Gives all it said, to the last.
fn run_and_kill(dir: &Path, lines: usize) -> Vec<String> {
    let binary = std::env::current_exe().expect("this binary");
    let mut child = Command::new(binary)
        .args(["crash::the_child_of_the_crash_test", "--exact", "--nocapture"])
        .env(CHILD, dir)
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let said = BufReader::new(child.stdout.take().expect("piped"));
    let mut acknowledged = Vec::new();
    for line in said.lines() {
        let line = line.expect("text");
        if let Some(text) = line.strip_prefix("ack ") {
            acknowledged.push(text.to_owned());
        }
        if acknowledged.len() == lines {
            // SIGKILL. What is still in the pipe is read to the end.
            child.kill().expect("killed");
        }
    }
    let status = child.wait().expect("ended");
    assert!(!status.success() && acknowledged.len() >= lines, "the child ended by itself: {status}");
    acknowledged
}

fn workspace() -> WorkspaceId {
    WorkspaceId::from_text("wrkspc_crash")
}

/// Appends and sends, in several sessions at once, until the process dies.
async fn work(dir: &Path) {
    // Space in the log's file, so that what follows the last frame is not the end of the file.
    let options = Options { log_space_bytes: 2 << 20, ..Options::default() };
    let store = Store::open(dir, options).expect("the dead have left no lock");
    let mut workers = JoinSet::new();
    let found =
        store.list_sessions(&workspace(), SessionQuery { limit: SESSIONS, ..SessionQuery::default() }).await;
    let mut ids: Vec<SessionId> = found.expect("works").into_iter().map(|seen| seen.record.id).collect();
    while ids.len() < SESSIONS {
        ids.push(create(&store).await);
    }
    for id in ids {
        let lease = store.try_claim(&id, "child").await.expect("works").expect("the dead hold no lease");
        let (brain, client) = (store.clone(), store.clone());
        let session = id.clone();
        workers.spawn(async move {
            loop {
                let view = brain.look(&session).await.expect("works").expect("exists");
                let marker = brain.ids().make::<protocol::id::EventId>().to_string();
                let mut drafts: Vec<Draft> = (0..TOGETHER)
                    .map(|_| Draft::New { id: brain.ids().make(), body: said(&marker) })
                    .collect();
                drafts.extend(view.inbox.into_iter().map(|event| Draft::Take(event.id)));
                match brain.append(&lease.token, view.state.head, drafts).await {
                    Ok(_) => acknowledge(&marker),
                    Err(store::AppendError::Moved(_)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
        workers.spawn(async move {
            loop {
                let marker = client.ids().make::<protocol::id::EventId>().to_string();
                client.send_events(&workspace(), &id, vec![message(&marker)]).await.expect("accepted");
                acknowledge(&marker);
            }
        });
    }
    workers.join_all().await;
}

async fn create(store: &Store) -> SessionId {
    let now = store.now().to_string();
    let record = serde_json::json!({
        "id": store.ids().make::<SessionId>(), "agent": crate::world::agent_json("agent_1", 1),
        "environment_id": "env_1", "environment": {"type": "self_hosted"},
        "title": null, "metadata": {}, "created_at": now, "updated_at": now, "archived_at": null,
    });
    let record = serde_json::from_value(record).expect("a record");
    let new =
        NewSession { workspace: workspace(), record, thread_id: store.ids().make(), initial: Vec::new() };
    store.create_session(new).await.expect("made").record.id
}

fn acknowledge(marker: &str) {
    // One write, so that a line is said whole or not at all.
    std::io::stdout().write_all(format!("ack {marker}\n").as_bytes()).expect("the parent listens");
}

/// Every acknowledged marker is there, as often as it was written at once; every log is whole.
fn check(dir: &Path, acknowledged: &HashSet<String>) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let store = Store::open(dir, Options::default()).expect("opens");
        let sessions = store.list_sessions(&workspace(), SessionQuery::default()).await.expect("works");
        let mut found: HashMap<String, usize> = HashMap::new();
        let mut from_clients = HashSet::new();
        for Seen { record, state, .. } in sessions {
            assert_eq!(store.rebuild(&record.id).await.expect("works"), Some(state.clone()));
            let slice = Slice { limit: usize::MAX >> 1, bytes_max: usize::MAX, ..Slice::default() };
            let (log, inbox) = store.get_history(&record.id, slice).await.expect("works");
            let positions: Vec<_> = log.iter().filter_map(|stored| stored.position).collect();
            assert!(positions.iter().copied().eq((1..=state.head.0).map(Position)));
            for stored in log.iter().chain(&inbox) {
                let (marker, is_from_client) = marker(stored);
                *found.entry(marker.clone()).or_default() += 1;
                if is_from_client {
                    from_clients.insert(marker);
                }
            }
        }
        for (marker, count) in &found {
            let expected = if from_clients.contains(marker) { 1 } else { TOGETHER };
            assert_eq!(*count, expected, "{marker}");
        }
        for marker in acknowledged {
            assert!(found.contains_key(marker), "{marker} was acknowledged and is gone");
        }
        store.close().await;
    });
}

fn marker(stored: &Stored) -> (String, bool) {
    let (content, is_from_client) = match event(stored).body {
        Body::UserMessage { content } => (content, true),
        Body::AgentMessage { content } => (content, false),
        other => panic!("nobody wrote {other:?}"),
    };
    let Some(Content::Text { text }) = content.into_iter().next() else { panic!("one text") };
    (text, is_from_client)
}
