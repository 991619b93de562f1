//! What holds for every request: keys, the beta header, request ids, unknown paths.

use reqwest::Method;
use serde_json::json;
use store::hash_key;

use crate::server::{BETA, KEY, Server, send};

#[tokio::test]
async fn every_answer_has_a_request_id() {
    let server = Server::start().await;
    let session = server.session().await;
    let stream = server.stream(&format!("/v1/sessions/{session}/events/stream")).await;
    assert!(stream.answer.headers()["request-id"].to_str().expect("text").starts_with("req_"));
    assert_eq!(stream.answer.headers()["content-type"], "text/event-stream");
    assert!(stream.answer.headers().contains_key("anthropic-workspace-id"));
    assert!(server.get("/v1/agents").await.header("request-id").is_some());
    let health = send(server.bare(Method::GET, "/health")).await;
    assert!(health.header("request-id").is_some());
    assert_eq!(health.ok(), json!({"status": "ok"}));
    for (path, status) in [("/v1/agents/none", 404), ("/v1/nothing", 404), ("/", 404)] {
        assert_eq!(server.get(path).await.refusal().0, status, "{path}");
    }
}

#[tokio::test]
async fn the_key_comes_in_either_header() {
    let server = Server::start().await;
    let get = || server.bare(Method::GET, "/v1/agents").header("anthropic-beta", BETA);
    for request in [
        get().header("x-api-key", KEY),
        get().header("authorization", format!("Bearer {KEY}")),
        get().header("authorization", format!("bearer  {KEY}")),
        get().header("authorization", "Basic eDp5").header("x-api-key", KEY),
    ] {
        let answer = send(request).await;
        assert_eq!(answer.header("anthropic-workspace-id"), Some(server.workspace.as_str()));
        answer.ok();
    }
    for request in [
        get(),
        get().header("x-api-key", ""),
        get().header("x-api-key", "wrong"),
        get().header("authorization", "Bearer wrong"),
        get().header("authorization", KEY),
        get().header("authorization", "Bearer "),
    ] {
        let answer = send(request).await;
        let (status, kind, message) = answer.refusal();
        assert_eq!((status, kind.as_str()), (401, "authentication_error"));
        assert!(!message.contains("wrong") && !message.contains(KEY), "a key is never repeated");
        assert_eq!(answer.header("anthropic-workspace-id"), None);
    }
}

#[tokio::test]
async fn a_revoked_key_opens_nothing() {
    let server = Server::start().await;
    let key = server.store.create_key(&server.workspace, "other", hash_key("sk-other")).await.expect("a key");
    server.store.revoke_key(&server.workspace, &key.id).await.expect("revoked");
    let request = server.bare(Method::GET, "/v1/models").header("x-api-key", "sk-other");
    assert_eq!(send(request).await.refusal().0, 401);
}

#[tokio::test]
async fn a_workspace_that_is_named_must_be_the_keys_own() {
    let server = Server::start().await;
    let named = |id: &str| server.request(Method::GET, "/v1/agents").header("anthropic-workspace-id", id);
    send(named(server.workspace.as_str())).await.ok();
    let (status, kind, _) = send(named("wrkspc_other")).await.refusal();
    assert_eq!((status, kind.as_str()), (403, "permission_error"));
}

#[tokio::test]
async fn the_beta_header_is_a_set_and_is_required() {
    let server = Server::start().await;
    let session = server.session().await;
    let get = |path: &str| server.bare(Method::GET, path).header("x-api-key", KEY);
    for path in ["/v1/agents", "/v1/environments", "/v1/sessions", &format!("/v1/sessions/{session}/events")]
    {
        let (status, kind, message) = send(get(path)).await.refusal();
        assert_eq!((status, kind.as_str()), (400, "invalid_request_error"), "{path}");
        assert!(message.contains("anthropic-beta") && message.contains(BETA), "{message}");
        assert_eq!(send(get(path).header("anthropic-beta", "other-2026-01-01")).await.refusal().0, 400);
    }
    let threads = format!("/v1/sessions/{session}/threads");
    assert_eq!(send(get(&threads)).await.refusal().0, 404);
    send(get(&threads).header("anthropic-beta", BETA)).await.ok();
    send(get("/v1/agents").header("anthropic-beta", format!("other-2026-01-01 , {BETA},x"))).await.ok();
    send(get("/v1/agents").header("anthropic-beta", "other-2026-01-01").header("anthropic-beta", BETA))
        .await
        .ok();
    send(get("/v1/agents?beta=true").header("anthropic-beta", BETA)).await.ok();
}

#[tokio::test]
async fn an_unknown_method_is_told_which_there_are() {
    let server = Server::start().await;
    let answer = send(server.request(Method::PUT, "/v1/agents")).await;
    assert_eq!(answer.refusal().0, 405);
    let allow = answer.header("allow").expect("the list").to_owned();
    assert!(allow.contains("POST") && allow.contains("GET"), "{allow}");
    assert_eq!(send(server.request(Method::DELETE, "/v1/models")).await.refusal().0, 405);
}
