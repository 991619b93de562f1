//! `/v1/agents`.

use reqwest::Method;
use serde_json::json;

use crate::server::{Server, id, ids};

#[tokio::test]
async fn an_agent_is_made_read_changed_and_archived() {
    let server = Server::start().await;
    let made = server
        .post("/v1/agents", json!({"name": "a", "model": "unserved", "metadata": {"k": "v"}}))
        .await
        .ok();
    let path = format!("/v1/agents/{}", id(&made));
    assert_eq!(made["version"], 1);
    assert!(id(&made).starts_with("agent_01"));
    assert_eq!(server.get(&path).await.ok(), made);

    let changed =
        server.post(&path, json!({"version": 1, "system": "s", "metadata": {"k": null}})).await.ok();
    assert_eq!(
        (&changed["version"], &changed["system"], &changed["metadata"]),
        (&json!(2), &json!("s"), &json!({}))
    );
    assert_eq!(changed["created_at"], made["created_at"]);
    assert_eq!(
        server.post(&path, json!({"system": "s"})).await.ok(),
        changed,
        "nothing changes, no version is made"
    );
    assert_eq!(server.get(&format!("{path}?version=1")).await.ok(), made);
    assert_eq!(server.get(&path).await.ok(), changed);

    let archived = server.empty(Method::POST, &format!("{path}/archive")).await.ok();
    assert!(archived["archived_at"].is_string());
    assert_eq!(archived["version"], 2);
    assert_eq!(server.empty(Method::POST, &format!("{path}/archive")).await.ok(), archived);
    let refused = server.post(&path, json!({"name": "b"})).await;
    assert_eq!(refused.refusal().0, 400);
    assert_eq!(server.get(&path).await.ok(), archived);
}

#[tokio::test]
async fn an_update_of_an_old_version_loses_and_is_not_to_be_sent_again() {
    let server = Server::start().await;
    let path = format!("/v1/agents/{}", server.agent().await);
    server.post(&path, json!({"name": "b"})).await.ok();
    let refused = server.post(&path, json!({"version": 1, "name": "c"})).await;
    assert_eq!((refused.refusal().0, refused.refusal().1.as_str()), (409, "conflict_error"));
    assert_eq!(refused.header("x-should-retry"), Some("false"));
    assert_eq!(server.get(&path).await.ok()["name"], "b");
}

#[tokio::test]
async fn agents_are_listed_newest_first_page_by_page() {
    let server = Server::start().await;
    let mut made = Vec::new();
    for _ in 0..5 {
        made.insert(0, server.agent().await);
    }
    server.empty(Method::POST, &format!("/v1/agents/{}/archive", made[1])).await.ok();
    let archived = made.remove(1);

    let mut seen = Vec::new();
    let mut page = server.get("/v1/agents?limit=2").await.ok();
    loop {
        seen.extend(ids(&page));
        let Some(next) = page["next_page"].as_str() else { break };
        page = server.get(&format!("/v1/agents?limit=2&page={next}")).await.ok();
    }
    assert_eq!(seen, made);
    assert_eq!(page["next_page"], json!(null));
    assert!(ids(&server.get("/v1/agents?include_archived=true").await.ok()).contains(&archived));

    let first = server.get(&format!("/v1/agents/{}", made[3])).await.ok();
    let at = first["created_at"].as_str().expect("a time").to_owned();
    assert_eq!(ids(&server.get(&format!("/v1/agents?created_at[lte]={at}")).await.ok()), &made[3..]);
}

#[tokio::test]
async fn versions_are_listed_newest_first_page_by_page() {
    let server = Server::start().await;
    let path = format!("/v1/agents/{}", server.agent().await);
    for name in ["b", "c", "d"] {
        server.post(&path, json!({"name": name})).await.ok();
    }
    let first = server.get(&format!("{path}/versions?limit=3")).await.ok();
    let next = first["next_page"].as_str().expect("one more").to_owned();
    let second = server.get(&format!("{path}/versions?limit=3&page={next}")).await.ok();
    let names = |page: &serde_json::Value| -> Vec<serde_json::Value> {
        page["data"].as_array().expect("a list").iter().map(|agent| agent["name"].clone()).collect()
    };
    assert_eq!((names(&first), names(&second)), (vec![json!("d"), json!("c"), json!("b")], vec![json!("a")]));
    assert_eq!(second["next_page"], json!(null));
    let other = format!("/v1/agents/{}/versions?page={next}", server.agent().await);
    assert_eq!(server.get(&other).await.refusal().0, 400, "a cursor belongs to one agent");
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let server = Server::start().await;
    let agent = server.agent().await;
    for path in [
        "/v1/agents/agent_none".to_owned(),
        format!("/v1/agents/{agent}?version=9"),
        "/v1/agents/x/versions".to_owned(),
    ] {
        let (status, kind, _) = server.get(&path).await.refusal();
        assert_eq!((status, kind.as_str()), (404, "not_found_error"), "{path}");
    }
    assert_eq!(server.post("/v1/agents/agent_none", json!({"name": "b"})).await.refusal().0, 404);
    assert_eq!(server.empty(Method::POST, "/v1/agents/agent_none/archive").await.refusal().0, 404);
    assert_eq!(server.empty(Method::DELETE, &format!("/v1/agents/{agent}")).await.refusal().0, 405);
}
