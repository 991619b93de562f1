//! What a client sees of the limits: sessions that wait for their turn, and requests that are one too many.

use protocol::id::SessionId;
use serde_json::{Value, json};
use store::{Limits, Options, WaitsFor};

use crate::server::{Answer, Server, events_of, message, session_path};

async fn full_after(waiting: u32) -> Server {
    let limits = Limits { waiting_per_workspace_max: Some(waiting), ..Limits::default() };
    Server::start_with(Options { limits, ..Options::default() }).await
}

fn check_refused(answer: &Answer) {
    assert_eq!(answer.status, 429, "{answer:?}");
    assert_eq!(answer.body["error"]["type"], "rate_limit_error");
    let retry_after = answer.headers["retry-after"].to_str().expect("text").parse::<u32>();
    assert!(retry_after.expect("seconds") > 0);
    assert!(!answer.headers.contains_key("x-should-retry"), "official clients may try again by themselves");
}

async fn waiting(server: &Server, session: &SessionId) -> Value {
    server.get(&session_path(session)).await.ok()["waiting"].clone()
}

#[tokio::test]
async fn a_session_says_that_it_waits_for_a_brain_and_since_when() {
    let server = Server::start().await;
    let session = server.session().await;
    let shown = server.get(&session_path(&session)).await.ok();
    assert!(shown.get("waiting").is_none(), "absent, not null: {shown}");
    server.say(&session, &["hi"]).await;
    let before = waiting(&server, &session).await;
    assert_eq!(before["for"], "brain");
    server.say(&session, &["and?"]).await;
    assert_eq!(waiting(&server, &session).await, before, "it has waited since the first");
    let listed = server.get("/v1/sessions").await.ok();
    assert_eq!(listed["data"][0]["waiting"], before);
    let lease = server.store.claim("test", 1).await.expect("claims").remove(0);
    assert_eq!(waiting(&server, &session).await, Value::Null);
    server.store.set_waiting(&lease.token, Some(WaitsFor::Model)).await.expect("held");
    assert_eq!(waiting(&server, &session).await["for"], "model");
    server.store.set_waiting(&lease.token, None).await.expect("held");
    assert_eq!(waiting(&server, &session).await, Value::Null);
}

#[tokio::test]
async fn a_session_too_many_is_told_to_come_again_and_is_not_made() {
    let server = full_after(1).await;
    let (agent, environment) = (server.agent().await, server.environment().await);
    let body =
        |initial: &[Value]| json!({"agent": agent, "environment_id": environment, "initial_events": initial});
    server.post("/v1/sessions", body(&[message("hi")])).await.ok();
    check_refused(&server.post("/v1/sessions", body(&[message("hi")])).await);
    assert_eq!(server.get("/v1/sessions").await.ok()["data"].as_array().map(Vec::len), Some(1));
    // One that has nothing to do waits for nobody.
    server.post("/v1/sessions", body(&[])).await.ok();
}

#[tokio::test]
async fn a_message_that_would_make_one_session_too_many_wait_is_refused_and_changes_nothing() {
    let server = full_after(1).await;
    let (first, second) = (server.session().await, server.session().await);
    server.say(&first, &["hi"]).await;
    let before = server.everything(&second).await;
    let events = json!({"events": [message("hi")]});
    check_refused(&server.post(&events_of(&second), events.clone()).await);
    assert_eq!(server.everything(&second).await, before);
    // A session that waits already takes more, and its place is free once it runs.
    server.post(&events_of(&first), events.clone()).await.ok();
    let _lease = server.store.claim("test", 1).await.expect("claims").remove(0);
    server.post(&events_of(&second), events).await.ok();
}
