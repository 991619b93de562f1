//! `posthouse database`: damage is found, and what the log can put right is put right.

use std::path::Path;
use std::process::Output;

use client::{Client, Item};
use protocol::event::Body;
use protocol::position::Position;
use rusqlite::Connection;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::server::{Server, posthouse, scripted};

/// The command, on the data directory.
async fn database(words: &[&str], data_dir: &Path) -> Output {
    let mut command = posthouse();
    command.arg("database").args(words).arg("--data-dir").arg(data_dir);
    command.output().await.expect("runs")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn lines(output: &Output) -> Vec<Value> {
    said(output).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Some sessions with a turn behind them, and a message in the inbox of the last.
async fn populate(client: &Client) -> Vec<String> {
    let agent = client.create_agent(json!({"name": "a", "model": "m"})).await.expect("made");
    let environment = client.create_environment(json!({"name": "e"})).await.expect("made");
    let mut sessions = Vec::new();
    for _ in 0..3 {
        let body = json!({"agent": agent.id, "environment_id": environment.id});
        let session = client.create_session(body).await.expect("made").id.to_string();
        client.send_message(&session, "hello").await.expect("accepted");
        until_idle(client, &session).await;
        sessions.push(session);
    }
    sessions
}

async fn until_idle(client: &Client, session: &str) {
    let mut stream = client.stream(session, Some(Position::START), &[]).await.expect("opens");
    loop {
        let Some(Item::Event { event, .. }) = stream.next().await.expect("reads") else { continue };
        if matches!(event.body, Body::StatusIdle { .. }) {
            return;
        }
    }
}

/// A data directory with some sessions, and nobody on it.
async fn filled() -> (TempDir, Vec<String>) {
    let dir = tempfile::tempdir().expect("a folder");
    scripted(
        dir.path(),
        "m",
        &json!({"on_end": "repeat", "replies": [{"blocks": [{"text": "hello there"}]}]}),
    );
    let server = Server::start(dir.path(), &[]).await;
    let sessions = populate(&server.client()).await;
    server.stop().await;
    (dir, sessions)
}

fn damage(dir: &TempDir, statement: &str, session: &str) {
    let conn = Connection::open(dir.path().join("posthouse.db")).expect("opens");
    let changed = conn.execute(statement, [session]).expect("runs");
    assert!(changed > 0, "{statement}");
}

#[tokio::test]
async fn a_sound_database_is_said_to_be_so_while_a_server_runs_on_it() {
    let (dir, _) = filled().await;
    let server = Server::start(dir.path(), &[]).await;
    let checked = database(&["check"], dir.path()).await;
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    assert_eq!(said(&checked), "3 sessions, 30 events: all is well\n");
    // The lock is the server's: nothing is written beside it.
    let refused = database(&["rebuild"], dir.path()).await;
    let reason = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && reason.contains("in use"), "{reason}");
    server.stop().await;
}

#[tokio::test]
async fn a_state_that_the_log_does_not_say_is_found_and_written_anew() {
    let (dir, sessions) = filled().await;
    let statement = "UPDATE head SET state = json_set(state, '$.rounds', 7, '$.status', 'running')
        WHERE session = (SELECT number FROM session WHERE id = ?1)";
    damage(&dir, statement, &sessions[1]);
    let checked = database(&["check", "--json"], dir.path()).await;
    assert!(!checked.status.success(), "damage is a failure");
    let problem = "the state is not what the log says: rounds, status";
    assert_eq!(
        lines(&checked),
        [
            json!({"session": sessions[1], "problem": problem, "mended": false}),
            json!({"type": "summary", "sessions": 3, "events": 30, "wrong": 1, "mended": 0}),
        ]
    );
    let rebuilt = database(&["rebuild"], dir.path()).await;
    let text = said(&rebuilt);
    assert!(rebuilt.status.success(), "{text}");
    assert!(text.starts_with(&format!("{}: {problem}; written anew\n", sessions[1])), "{text}");
    let checked = database(&["check"], dir.path()).await;
    assert_eq!(said(&checked), "3 sessions, 30 events: all is well\n");
}

#[tokio::test]
async fn a_log_with_a_gap_is_found_and_left_alone() {
    let (dir, sessions) = filled().await;
    let statement =
        "DELETE FROM event WHERE position = 5 AND session = (SELECT number FROM session WHERE id = ?1)";
    damage(&dir, statement, &sessions[2]);
    for command in ["check", "rebuild"] {
        let looked = database(&[command], dir.path()).await;
        assert!(!looked.status.success());
        assert_eq!(said(&looked), format!("{}: position 5 is missing\n", sessions[2]), "{command}");
        let reason = String::from_utf8_lossy(&looked.stderr).into_owned();
        assert!(reason.contains("1 of 3 sessions are damaged"), "{reason}");
    }
    let other = database(&["check", "--session", &sessions[0]], dir.path()).await;
    assert_eq!(said(&other), "1 sessions, 10 events: all is well\n");
}

#[tokio::test]
async fn what_cannot_be_read_is_found_and_the_rest_is_checked_all_the_same() {
    let (dir, sessions) = filled().await;
    let event = "UPDATE event SET body = 'nonsense' WHERE position = 3
        AND session = (SELECT number FROM session WHERE id = ?1)";
    damage(&dir, event, &sessions[0]);
    let state = "UPDATE head SET state = '{}' WHERE session = (SELECT number FROM session WHERE id = ?1)";
    damage(&dir, state, &sessions[1]);
    let checked = lines(&database(&["check", "--json"], dir.path()).await);
    assert_eq!(checked.len(), 3, "{checked:?}");
    assert!(checked[0]["problem"].as_str().is_some_and(|text| text.starts_with("position 3 cannot be read")));
    assert_eq!(checked[1]["session"], json!(sessions[1]));
    assert_eq!(checked[2]["wrong"], 2);
}

#[tokio::test]
async fn an_old_database_is_migrated_and_says_from_where_to_where() {
    let dir = tempfile::tempdir().expect("a folder");
    let refused = database(&["migrate"], dir.path()).await;
    let reason = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && reason.contains("holds no data"), "{reason}");

    let first = include_str!("../../../store/src/sqlite/migrations/0001_first.sql");
    let conn = Connection::open(dir.path().join("posthouse.db")).expect("opens");
    conn.execute_batch(first).expect("runs");
    conn.pragma_update(None, "user_version", 1).expect("written");
    let refused = database(&["check"], dir.path()).await;
    let reason = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && reason.contains("has format 1"), "{reason}");
    let migrated = said(&database(&["migrate"], dir.path()).await);
    assert!(migrated.starts_with("brought the database from format 1 to format "), "{migrated}");
    let again = said(&database(&["migrate"], dir.path()).await);
    assert!(again.starts_with("the database has format ") && again.ends_with(" already\n"), "{again}");
    assert_eq!(said(&database(&["check"], dir.path()).await), "0 sessions, 0 events: all is well\n");
}
