//! `/v1/environments`.

use reqwest::Method;
use serde_json::{Value, json};

use crate::server::{Server, id, ids};

#[tokio::test]
async fn an_environment_is_made_read_changed_and_archived() {
    let server = Server::start().await;
    let body = json!({"name": "e", "description": "d", "config": {"type": "cloud", "networking": {"type": "limited", "allowed_hosts": ["a.example"]}}});
    let made = server.post("/v1/environments", body).await.ok();
    let path = format!("/v1/environments/{}", id(&made));
    assert_eq!(server.get(&path).await.ok(), made);

    assert_eq!(
        server.post(&path, json!({"name": "e"})).await.ok(),
        made,
        "nothing changes, not even the time"
    );
    let networking = json!({"type": "limited", "allow_mcp_servers": true});
    let changed = server
        .post(&path, json!({"description": null, "config": {"type": "cloud", "networking": networking}}))
        .await
        .ok();
    assert_eq!(changed["description"], Value::Null);
    assert_eq!(changed["config"]["networking"]["allowed_hosts"], json!(["a.example"]));
    assert_ne!(changed["updated_at"], made["updated_at"]);

    let archived = server.empty(Method::POST, &format!("{path}/archive")).await.ok();
    assert!(archived["archived_at"].is_string());
    assert_eq!(server.empty(Method::POST, &format!("{path}/archive")).await.ok(), archived);
    let refused = server.post(&path, json!({"name": "f"})).await;
    assert_eq!((refused.refusal().0, refused.code()), (400, Some("environment_archived")));
    let kind = server.post(&path, json!({"config": {"type": "self_hosted"}})).await;
    assert_eq!(kind.refusal().0, 400);
}

#[tokio::test]
async fn the_kind_of_an_environment_cannot_change() {
    let server = Server::start().await;
    let path = format!("/v1/environments/{}", server.environment().await);
    let refused = server.post(&path, json!({"config": {"type": "self_hosted"}})).await;
    assert_eq!((refused.refusal().0, refused.code()), (400, Some("invalid_config_type_change")));
}

#[tokio::test]
async fn a_name_is_unique_among_those_not_archived() {
    let server = Server::start().await;
    let made = id(&server.post("/v1/environments", json!({"name": "e"})).await.ok());
    let refused = server.post("/v1/environments", json!({"name": "e"})).await;
    assert_eq!((refused.refusal().0, refused.refusal().1.as_str()), (409, "conflict_error"));
    assert_eq!(refused.header("x-should-retry"), Some("false"));
    let other = server.environment().await;
    assert_eq!(
        server.post(&format!("/v1/environments/{other}"), json!({"name": "e"})).await.refusal().0,
        409
    );
    server.empty(Method::POST, &format!("/v1/environments/{made}/archive")).await.ok();
    server.post("/v1/environments", json!({"name": "e"})).await.ok();
}

#[tokio::test]
async fn an_environment_is_deleted_only_while_no_session_was_made_in_it() {
    let server = Server::start().await;
    let session = server.session().await;
    let used = server.get(&format!("/v1/sessions/{session}")).await.ok()["environment_id"]
        .as_str()
        .expect("id")
        .to_owned();
    let refused = server.empty(Method::DELETE, &format!("/v1/environments/{used}")).await;
    assert_eq!((refused.refusal().0, refused.header("x-should-retry")), (409, Some("false")));

    let free = server.environment().await;
    let deleted = server.empty(Method::DELETE, &format!("/v1/environments/{free}")).await.ok();
    assert_eq!(deleted, json!({"id": free, "type": "environment_deleted"}));
    let gone = server.get(&format!("/v1/environments/{free}")).await;
    assert_eq!((gone.refusal().0, gone.code()), (404, Some("environment_not_found")));
    assert_eq!(server.empty(Method::DELETE, &format!("/v1/environments/{free}")).await.refusal().0, 404);
    server.empty(Method::DELETE, &format!("/v1/sessions/{session}")).await.ok();
    server.empty(Method::DELETE, &format!("/v1/environments/{used}")).await.ok();
}

#[tokio::test]
async fn environments_are_listed_newest_first_page_by_page() {
    let server = Server::start().await;
    let mut made = Vec::new();
    for _ in 0..3 {
        made.insert(0, server.environment().await);
    }
    let first = server.get("/v1/environments?limit=2").await.ok();
    assert_eq!(ids(&first), &made[..2]);
    let next = first["next_page"].as_str().expect("one more");
    let second = server.get(&format!("/v1/environments?limit=2&page={next}")).await.ok();
    assert_eq!((ids(&second), &second["next_page"]), (made[2..].to_vec(), &Value::Null));
}
