//! `/v1/vaults` and what lies below. The official client's tests have the rules one by one; here is what it cannot do.

use reqwest::Method;
use serde_json::{Value, json};
use store::hash_key;

use crate::server::{Server, id};

const SECRET: &str = "planted-secret";

fn bearer(url: &str) -> Value {
    json!({"auth": {"type": "static_bearer", "mcp_server_url": url, "token": SECRET}})
}

async fn vault(server: &Server) -> String {
    let vault = server.post("/v1/vaults", json!({"display_name": "v"})).await.ok();
    format!("/v1/vaults/{}", id(&vault))
}

#[tokio::test]
async fn a_vault_and_its_credentials_are_made_read_changed_archived_and_deleted() {
    let server = Server::start().await;
    let path = vault(&server).await;
    let changed = server.post(&path, json!({"display_name": "w", "metadata": {"k": "v"}})).await.ok();
    assert_eq!(server.get(&path).await.ok(), changed);
    let credentials = format!("{path}/credentials");
    let made = server.post(&credentials, bearer("https://a.example")).await.ok();
    let one = format!("{credentials}/{}", id(&made));
    assert_eq!(server.get(&one).await.ok(), made);
    assert_eq!(server.get(&credentials).await.ok()["data"], json!([made]));
    let changed = server.post(&one, json!({"display_name": "d"})).await.ok();
    assert_eq!(changed["display_name"], "d");
    assert_eq!(server.post(&one, json!({"display_name": "d"})).await.ok(), changed, "nothing changes");
    let archived = server.empty(Method::POST, &format!("{path}/archive")).await.ok();
    assert_eq!(server.get(&one).await.ok()["archived_at"], archived["archived_at"]);
    let gone = server.empty(Method::DELETE, &one).await.ok();
    assert_eq!(gone, json!({"id": id(&made), "type": "vault_credential_deleted"}));
    let gone = server.empty(Method::DELETE, &path).await.ok();
    assert_eq!(gone["type"], "vault_deleted");
    assert_eq!(server.get(&path).await.refusal().0, 404);
}

#[tokio::test]
async fn another_workspace_sees_nothing() {
    let server = Server::start().await;
    let path = vault(&server).await;
    let made = server.post(&format!("{path}/credentials"), bearer("https://a.example")).await.ok();
    let one = format!("{path}/credentials/{}", id(&made));
    let other = server.store.create_workspace().await.expect("made");
    server.store.create_key(&other, "other", hash_key("sk-other")).await.expect("kept");
    for (method, path) in [
        (Method::GET, path.clone()),
        (Method::POST, path.clone()),
        (Method::DELETE, path.clone()),
        (Method::POST, format!("{path}/archive")),
        (Method::GET, format!("{path}/credentials")),
        (Method::GET, one.clone()),
        (Method::POST, one.clone()),
        (Method::DELETE, one.clone()),
        (Method::POST, format!("{one}/archive")),
        (Method::POST, format!("{one}/mcp_oauth_validate")),
    ] {
        let request = server.bare(method.clone(), &path).header("x-api-key", "sk-other");
        let request = request.header("anthropic-beta", crate::server::BETA);
        let request = if method == Method::POST && !path.contains("archive") && !path.contains("validate") {
            request.header("content-type", "application/json").body("{}")
        } else {
            request
        };
        let answer = request.send().await.expect("an answer");
        assert_eq!(answer.status(), 404, "{method} {path}");
    }
    assert_eq!(server.get(&one).await.ok(), made);
}

#[tokio::test]
async fn refusals_have_their_codes() {
    let server = Server::start().await;
    let path = vault(&server).await;
    let credentials = format!("{path}/credentials");
    let made = server.post(&credentials, bearer("https://a.example")).await.ok();
    let one = format!("{credentials}/{}", id(&made));
    let taken = server.post(&credentials, bearer("HTTPS://a.example:443/")).await;
    assert_eq!(taken.refusal().0, 409);
    server.empty(Method::POST, &format!("{one}/archive")).await.ok();
    let refused = server.post(&one, json!({"display_name": "x"})).await;
    assert_eq!((refused.refusal().0, refused.code()), (400, Some("vault_credential_archived")));
    server.empty(Method::POST, &format!("{path}/archive")).await.ok();
    for refused in [
        server.post(&path, json!({"display_name": "x"})).await,
        server.post(&credentials, bearer("https://b.example")).await,
    ] {
        assert_eq!((refused.refusal().0, refused.code()), (400, Some("vault_archived")));
    }
    let session = json!({
        "agent": server.agent().await, "environment_id": server.environment().await,
        "vault_ids": [path.rsplit('/').next().expect("an id")],
    });
    let refused = server.post("/v1/sessions", session).await;
    assert_eq!((refused.refusal().0, refused.code()), (400, Some("vault_archived")));
}

#[tokio::test]
async fn a_vault_without_its_key_says_so_and_shows_nothing() {
    let server = Server::start().await;
    // Somebody else's key seals here.
    server.store.set_vault_master("of somebody else").await.expect("set");
    let path = vault(&server).await;
    let refused = server.post(&format!("{path}/credentials"), bearer("https://a.example")).await;
    let (status, kind, message) = refused.refusal();
    assert_eq!((status, kind.as_str()), (500, "api_error"));
    assert!(message.contains("vault") && !message.contains(SECRET) && !message.contains("somebody"));
    // All else goes on.
    server.post(&path, json!({"display_name": "w"})).await.ok();
}

#[tokio::test]
async fn a_session_shows_its_vaults() {
    let server = Server::start().await;
    let (one, two) = (vault(&server).await, vault(&server).await);
    let ids = [&two, &one].map(|path| path.rsplit('/').next().expect("an id").to_owned());
    let body = json!({
        "agent": server.agent().await, "environment_id": server.environment().await, "vault_ids": ids,
    });
    let session = server.post("/v1/sessions", body.clone()).await.ok();
    assert_eq!(session["vault_ids"], json!(ids));
    assert_eq!(server.get(&format!("/v1/sessions/{}", id(&session))).await.ok()["vault_ids"], json!(ids));
    server.empty(Method::DELETE, &one).await.ok();
    assert_eq!(server.post("/v1/sessions", body).await.refusal().0, 404);
}
