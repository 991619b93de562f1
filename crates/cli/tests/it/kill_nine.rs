//! `kill -9` at random times under load: nothing acknowledged is lost, nothing runs twice.
//!
//! Sessions work all the while: each turn runs a command that appends a line to a file in the session's sandbox and
//! prints how many lines the file has. So the n-th call of a session must print n: a call that was lost would leave
//! a gap, one that ran twice would skip a number. The rounds are `POSTHOUSE_CRASH_ROUNDS`, 20 by default.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use client::Client;
use protocol::content::Content;
use protocol::event::{Body, Event, StopReason};
use protocol::session::Status;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::server::{Server, scripted};

const SESSIONS: usize = 6;
const ROUNDS_DEFAULT: u32 = 20;
/// The server lives at most this long in a round: long enough for some turns, short enough to be cut off in most.
const LIFE_MAX: Duration = Duration::from_millis(600);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_killed_at_random_times_loses_nothing_and_runs_nothing_twice() {
    let rounds = std::env::var("POSTHOUSE_CRASH_ROUNDS").ok().and_then(|text| text.parse().ok());
    let rounds: u32 = rounds.unwrap_or(ROUNDS_DEFAULT);
    let dir = tempfile::tempdir().expect("a folder");
    let script = json!({
        "on_end": "repeat",
        "first_token": {"kind": "lognormal", "median_ms": 15.0, "p95_ms": 60.0},
        "token_ms": 1.0,
        "replies": [
            {"blocks": [
                {"text": "I will count."},
                {"tool": "bash", "input": {"command": "sleep 0.02; echo x >> /workspace/n; wc -l < /workspace/n"}},
            ]},
            {"blocks": [{"text": "counted"}]},
        ],
    });
    scripted(dir.path(), "load", &script);
    let mut server = Server::start(dir.path(), &[]).await;
    let sessions = make_sessions(&server.client()).await;

    let (servers, current) = watch::channel(server.client());
    let over = CancellationToken::new();
    let tracker = TaskTracker::new();
    let loads: Vec<_> = sessions
        .iter()
        .map(|session| tracker.spawn(load(session.clone(), current.clone(), over.clone())))
        .collect();
    tracker.close();

    let mut random = SmallRng::seed_from_u64(0x9057_4005);
    for round in 0..rounds {
        tokio::time::sleep(LIFE_MAX.mul_f64(random.random::<f64>())).await;
        server.kill().await;
        server = Server::start(dir.path(), &[]).await;
        servers.send_replace(server.client());
        if (round + 1) % 50 == 0 {
            println!("{} rounds", round + 1);
        }
    }
    over.cancel();
    let client = server.client();
    let mut events = 0;
    let mut calls = 0;
    for (session, load) in sessions.iter().zip(loads) {
        let acknowledged = load.await.expect("no load panics");
        until_idle(&client, session).await;
        let log = client.all_events(session).await.expect("the log can be read");
        events += log.len();
        calls += check(session, &log, &acknowledged);
    }
    println!(
        "{rounds} kills, {SESSIONS} sessions, {events} events, {calls} calls: nothing lost, nothing twice"
    );
    assert!(calls > 0, "the load did something");
    server.stop().await;
}

async fn make_sessions(client: &Client) -> Vec<String> {
    let agent = json!({"name": "load", "model": "load", "tools": [{"type": "agent_toolset_20260401"}]});
    let agent = client.create_agent(agent).await.expect("made");
    let environment = client.create_environment(json!({"name": "load"})).await.expect("made");
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS {
        let body = json!({"agent": agent.id, "environment_id": environment.id});
        sessions.push(client.create_session(body).await.expect("made").id.to_string());
    }
    sessions
}

/// Sends a message whenever the last one was answered or lost; gives the ids of those that were acknowledged.
async fn load(session: String, mut current: watch::Receiver<Client>, over: CancellationToken) -> Vec<String> {
    let mut acknowledged = Vec::new();
    while !over.is_cancelled() {
        let client = current.borrow_and_update().clone();
        match client.send_message(&session, "count").await {
            Ok(echoes) => acknowledged.extend(echoes.into_iter().map(|event| event.id.to_string())),
            Err(client::Error::Refused { status, body }) => panic!("refused with {status}: {body:?}"),
            // The server is dead: what was sent may be there or not.
            Err(_) => {}
        }
        tokio::select! {
            () = until_idle(&client, &session) => {}
            _ = current.changed() => {}
            () = over.cancelled() => {}
        }
    }
    acknowledged
}

/// Waits until the session is idle, or for ever if the server is dead.
async fn until_idle(client: &Client, session: &str) {
    let Ok(mut stream) = client.stream(session, None, &[]).await else { return std::future::pending().await };
    loop {
        match client.get_session(session).await {
            Ok(session) if session.status == Status::Idle => return,
            Ok(_) => {}
            Err(_) => return std::future::pending().await,
        }
        if !matches!(stream.next().await, Ok(Some(_))) {
            return std::future::pending().await;
        }
    }
}

/// Checks one log; gives the number of calls in it.
fn check(session: &str, log: &[Event], acknowledged: &[String]) -> usize {
    let list: Vec<_> =
        log.iter().map(|event| serde_json::to_value(event).expect("it came as JSON")).collect();
    assert_eq!(testkit::invariants::check_at_rest(&list), Ok(()), "{session}");
    let ids: HashSet<&str> = log.iter().map(|event| event.id.as_str()).collect();
    for id in acknowledged {
        assert!(ids.contains(id.as_str()), "{session}: {id} was acknowledged and is not there");
    }
    let mut calls = 0;
    for event in log {
        match &event.body {
            Body::AgentToolResult { tool_use_id: _, content, is_error } => {
                calls += 1;
                assert!(!is_error, "{session}: call {calls} failed: {content:?}");
                let expected = Arc::new(calls.to_string());
                assert_eq!(
                    content,
                    &vec![Content::text(expected.as_str())],
                    "{session}: call {calls} ran once"
                );
            }
            Body::Error { error } => panic!("{session}: {error:?}"),
            Body::StatusIdle { stop_reason, .. } => assert_eq!(*stop_reason, StopReason::EndTurn {}),
            _ => {}
        }
    }
    calls
}
