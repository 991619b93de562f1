//! `/v1/sessions/{session_id}/threads`.

use reqwest::Method;
use serde_json::{Value, json};

use crate::brain::run;
use crate::server::{Server, events_of, id, ids, session_path};

#[tokio::test]
async fn a_session_has_its_primary_thread_from_the_beginning() {
    let server = Server::start().await;
    let session = server.session().await;
    let path = format!("{}/threads", session_path(&session));
    let page = server.get(&path).await.ok();
    let thread = &page["data"][0];
    assert_eq!((page["data"].as_array().expect("a list").len(), &page["next_page"]), (1, &Value::Null));
    assert!(id(thread).starts_with("sthr_"));
    for (name, expected) in [
        ("type", json!("session_thread")),
        ("session_id", json!(session)),
        ("parent_thread_id", Value::Null),
        ("workflow_run_id", Value::Null),
        ("status", json!("idle")),
        ("stats", Value::Null),
        ("usage", Value::Null),
        ("archived_at", Value::Null),
    ] {
        assert_eq!(thread.get(name), Some(&expected), "{name}");
    }
    assert!(thread["agent"].get("multiagent").is_none());
    assert_eq!(&server.get(&format!("{path}/{}", id(thread))).await.ok(), thread);
    assert_eq!(ids(&server.get(&format!("{path}?statuses[]=running")).await.ok()), Vec::<String>::new());
    assert_eq!(ids(&server.get(&format!("{path}?statuses[]=idle&limit=1")).await.ok()).len(), 1);
    for query in ["statuses[]=x", "limit=0", "page=page_x", "order=asc"] {
        assert_eq!(server.get(&format!("{path}?{query}")).await.refusal().0, 400, "{query}");
    }
}

#[tokio::test]
async fn the_primary_threads_events_are_the_sessions() {
    let server = Server::start().await;
    let session = server.session().await;
    let thread = ids(&server.get(&format!("{}/threads", session_path(&session))).await.ok()).remove(0);
    let path = format!("{}/threads/{thread}", session_path(&session));
    let mut stream = server.stream(&format!("{path}/stream")).await;
    server.say(&session, &["hello"]).await;
    run(&server.store, &session, "hi").await;
    assert_eq!(server.get(&format!("{path}/events")).await.ok(), server.get(&events_of(&session)).await.ok());
    let first = server.get(&format!("{path}/events?limit=5")).await.ok();
    let next = first["next_page"].as_str().expect("more");
    let rest = server.get(&format!("{path}/events?limit=5&page={next}")).await.ok();
    assert_eq!(ids(&first).len() + ids(&rest).len(), 9);
    assert_eq!(stream.take(2).await, ["- user.message", "1 session.status_running"]);
    assert_eq!(server.get(&format!("{path}/events?types[]=user.message")).await.refusal().0, 400);
    let thread = server.get(&path).await.ok();
    assert!(thread["usage"].is_object() && thread["stats"]["startup_seconds"].is_number());
}

#[tokio::test]
async fn the_primary_thread_is_not_archived_by_itself() {
    let server = Server::start().await;
    let session = server.session().await;
    let path = format!("{}/threads", session_path(&session));
    let thread = ids(&server.get(&path).await.ok()).remove(0);
    let refused = server.empty(Method::POST, &format!("{path}/{thread}/archive")).await;
    assert_eq!(refused.refusal().0, 400);
    assert!(refused.refusal().2.contains("primary"));
}

#[tokio::test]
async fn an_unknown_thread_is_not_found() {
    let server = Server::start().await;
    let session = server.session().await;
    let other = server.session().await;
    let foreign = ids(&server.get(&format!("{}/threads", session_path(&other))).await.ok()).remove(0);
    for thread in ["sthr_none", &foreign] {
        let path = format!("{}/threads/{thread}", session_path(&session));
        for path in [path.clone(), format!("{path}/events"), format!("{path}/stream")] {
            let (status, _, message) = server.get(&path).await.refusal();
            assert_eq!((status, message), (404, format!("Thread not found: {thread}")), "{path}");
        }
        assert_eq!(server.empty(Method::POST, &format!("{path}/archive")).await.refusal().0, 404);
    }
}
