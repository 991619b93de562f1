//! `/v1/sessions/{session_id}/snapshots`, an extension.

use protocol::event::{Body, Snapshot};
use protocol::id::{SandboxId, SessionId};
use reqwest::Method;
use serde_json::json;

use crate::brain::Brain;
use crate::server::{Server, session_path};

fn path(session: &SessionId) -> String {
    format!("{}/snapshots", session_path(session))
}

async fn record(server: &Server, session: &SessionId, body: Body) {
    let mut brain = Brain::wake(&server.store, session).await;
    brain.step(vec![body]).await;
    brain.rest().await;
}

fn sandbox() -> Body {
    Body::Sandbox { sandbox_id: SandboxId::from_text("sbx_1") }
}

#[tokio::test]
async fn a_snapshot_that_is_asked_for_is_pending_until_it_is_there() {
    let server = Server::start().await;
    let session = server.session().await;
    record(&server, &session, sandbox()).await;
    let mut words = server.store.words();
    let asked = server.empty(Method::POST, &path(&session)).await;
    assert_eq!(asked.status, 202);
    assert_eq!((&asked.body["type"], &asked.body["status"]), (&json!("session_snapshot"), &json!("pending")));
    assert_eq!(store::Store::snapshot_wanted(&words.recv().await.expect("a word")), Some(session.clone()));
    let again = server.empty(Method::POST, &path(&session)).await;
    assert_eq!((again.status, &again.body), (202, &asked.body), "it is one wish");
    assert_eq!(server.get(&path(&session)).await.ok(), json!({"data": [asked.body]}));
    assert_eq!(server.get(&session_path(&session)).await.ok()["status"], "idle");

    record(&server, &session, Body::SnapshotUnsaved { reason: "it is too large".to_owned() }).await;
    let listed = server.get(&path(&session)).await.ok();
    assert_eq!(
        listed["data"],
        json!([{"type": "session_snapshot", "status": "failed", "error": "it is too large",
                "failed_at": listed["data"][0]["failed_at"]}])
    );

    let now = server.store.now();
    let snapshot = Snapshot {
        key: "snapshots/one".to_owned(),
        size_bytes: 7,
        sha256: "abc".to_owned(),
        base: "host".to_owned(),
        saved_at: now,
        begun_at: now,
        left_out: 0,
    };
    record(&server, &session, Body::Snapshot { snapshot, put_away: true }).await;
    let saved = server.empty(Method::POST, &path(&session)).await;
    assert_eq!((saved.status, &saved.body["status"]), (200, &json!("saved")), "it is all there is");
    assert_eq!(server.get(&path(&session)).await.ok(), json!({"data": [saved.body]}));
}

#[tokio::test]
async fn a_session_that_works_or_has_no_workspace_is_not_saved() {
    let server = Server::start().await;
    let session = server.session().await;
    let refused = server.empty(Method::POST, &path(&session)).await;
    assert_eq!((refused.refusal().0, refused.code()), (400, Some("workspace_not_there")));
    record(&server, &session, sandbox()).await;
    server.say(&session, &["hello"]).await;
    let (status, kind, message) = server.empty(Method::POST, &path(&session)).await.refusal();
    assert_eq!((status, kind.as_str()), (400, "invalid_request_error"));
    assert!(message.contains("cannot be saved while it works"), "{message}");
    let unknown = server.empty(Method::POST, "/v1/sessions/sesn_nobody/snapshots").await;
    assert_eq!(unknown.refusal().0, 404);
    assert_eq!(server.get(&path(&session)).await.ok(), json!({"data": []}));
}
