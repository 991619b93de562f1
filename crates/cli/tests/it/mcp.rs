//! MCP servers and the whole server: what the model is told and the client sees, and a server that is killed in the middle
//! of a call.

use std::fs::File;
use std::path::Path;

use protocol::content::Content;
use protocol::event::{Body, SessionErrorKind};
use protocol::position::Position;
use serde_json::{Value, json};
use testkit::mcp::{McpServer, Reply as Answer};
use testkit::model::{Reply, Server as ModelServer};

use crate::server::{KEY, Server, posthouse};

const FIRST: &str = "access-token-that-is-refused";
const RENEWED: &str = "access-token-that-was-renewed";

/// What lets the server reach this one of ours.
fn variables(models: &ModelServer, servers: &[&McpServer]) -> Vec<(&'static str, String)> {
    let ports = servers.iter().filter_map(|server| {
        let address = server.url().strip_prefix("http://127.0.0.1:")?.to_owned();
        address.split('/').next().map(str::to_owned)
    });
    vec![
        ("ANTHROPIC_API_KEY", "sk-ant-secret-of-the-test".to_owned()),
        ("ANTHROPIC_BASE_URL", models.url()),
        ("POSTHOUSE_ALLOW_PRIVATE_HOSTS", "127.0.0.1".to_owned()),
        ("POSTHOUSE_ALLOW_PORTS", ports.collect::<Vec<_>>().join(",")),
    ]
}

async fn session(server: &Server, mcp: &[(&str, String)]) -> String {
    session_with(server, mcp, &[]).await
}

async fn session_with(server: &Server, mcp: &[(&str, String)], vaults: &[&str]) -> String {
    let client = server.client();
    let servers: Vec<Value> =
        mcp.iter().map(|(name, url)| json!({"type": "url", "name": name, "url": url})).collect();
    let allow = json!({"permission_policy": {"type": "always_allow"}});
    let tools: Vec<Value> = mcp
        .iter()
        .map(|(name, _)| json!({"type": "mcp_toolset", "mcp_server_name": name, "default_config": allow}))
        .collect();
    let agent = json!({"name": "m", "model": "claude-mcp", "mcp_servers": servers, "tools": tools});
    let agent = client.create_agent(agent).await.expect("made");
    let environment = client.create_environment(json!({"name": "mcp"})).await.expect("made");
    let body = json!({"agent": agent.id, "environment_id": environment.id, "vault_ids": vaults});
    client.create_session(body).await.expect("made").id.to_string()
}

async fn until_idle(server: &Server, session: &str) {
    let mut stream = server.client().stream(session, Some(Position::START), &[]).await.expect("opens");
    loop {
        let Some(client::Item::Event { event, .. }) = stream.next().await.expect("reads") else {
            panic!("the stream ended");
        };
        if matches!(event.body, Body::StatusIdle { .. } | Body::StatusTerminated {}) {
            return;
        }
    }
}

fn result_of(body: &Body) -> Option<(String, bool)> {
    match body {
        Body::AgentMcpToolResult { content, is_error, .. } => match content.as_slice() {
            [Content::Text { text }] => Some((text.clone(), *is_error)),
            other => panic!("{other:?}"),
        },
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_model_is_told_of_all_tools_in_the_same_order_each_time() {
    let dir = tempfile::tempdir().expect("a folder");
    let (models, first, second) =
        (ModelServer::start().await, McpServer::usual().await, McpServer::usual().await);
    let server = Server::start(dir.path(), &variables(&models, &[&first, &second])).await;
    models.script("claude-mcp", vec![Reply::tool("mcp__b__echo", json!({"x": "1"})), Reply::text("done")]);
    let session = session(&server, &[("b", first.url()), ("a", second.url())]).await;
    server.client().send_message(&session, "go").await.expect("accepted");
    until_idle(&server, &session).await;
    let log = server.client().all_events(&session).await.expect("reads");
    let results: Vec<(String, bool)> = log.iter().filter_map(|event| result_of(&event.body)).collect();
    assert_eq!(results, [(r#"echo {"x":"1"}"#.to_owned(), false)]);
    assert!(log.iter().all(|event| !event.body.is_private()), "the intent stays behind the door");
    let requests = models.requests("claude-mcp");
    let names: Vec<Vec<String>> = requests
        .iter()
        .map(|request| {
            let tools = request.body["tools"].as_array().expect("a list").iter();
            tools.map(|tool| tool["name"].as_str().expect("a name").to_owned()).collect()
        })
        .collect();
    let expected = ["b", "a"]
        .map(|server| ["echo", "flood", "look", "pay"].map(|tool| format!("mcp__{server}__{tool}")));
    assert_eq!(names[0], expected.concat());
    assert_eq!(requests[0].body["tools"], requests[1].body["tools"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_the_server_is_killed_in_is_not_made_again() {
    let dir = tempfile::tempdir().expect("a folder");
    let models = ModelServer::start().await;
    let there = McpServer::start(|asked| match asked.method.as_str() {
        "tools/call" => Answer::Open(Vec::new()),
        _ => Answer::Usual,
    })
    .await;
    let variables = variables(&models, &[&there]);
    let server = Server::start(dir.path(), &variables).await;
    models.script("claude-mcp", vec![Reply::tool("mcp__bank__pay", json!({})), Reply::text("done")]);
    let session = session(&server, &[("bank", there.url())]).await;
    server.client().send_message(&session, "go").await.expect("accepted");
    while there.count("tools/call") == 0 {
        tokio::task::yield_now().await;
    }
    server.kill().await;
    let server = Server::start(dir.path(), &variables).await;
    until_idle(&server, &session).await;
    let log = server.client().all_events(&session).await.expect("reads");
    let results: Vec<(String, bool)> = log.iter().filter_map(|event| result_of(&event.body)).collect();
    assert_eq!(results, [(session::step::OUTCOME_UNKNOWN.to_owned(), true)]);
    assert_eq!(there.count("tools/call"), 1);
}

/// A server that logs what the audit says, into this file.
async fn audited(dir: &Path, variables: &[(&str, String)], log: &Path) -> Server {
    let mut command = posthouse();
    command.args(["serve", "--listen", "127.0.0.1:0", "--log", "warn,audit=info", "--data-dir"]);
    command.arg(dir.join("data")).env("POSTHOUSE_API_KEY", KEY).stderr(File::create(log).expect("made"));
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    Server::greet(command).await.0
}

/// A vault with the OAuth credential of a server, which is renewed at that server, too.
async fn vault_for(server: &Server, there: &McpServer) -> String {
    let client = server.client();
    let vault = client.create_vault(json!({"display_name": "v"})).await.expect("made").id.to_string();
    let renewal = json!({
        "refresh_token": "refresh-token-of-the-test", "client_id": "c",
        "token_endpoint": there.url().replace("/mcp", "/token"), "token_endpoint_auth": {"type": "none"},
    });
    let auth = json!({
        "type": "mcp_oauth", "mcp_server_url": there.url(), "access_token": FIRST, "refresh": renewal,
    });
    client.create_credential(&vault, json!({"auth": auth})).await.expect("made");
    vault
}

fn json_answer(status: u16, body: &Value) -> Answer {
    Answer::Http(status, vec![("content-type", "application/json".to_owned())], body.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_access_token_that_is_refused_is_renewed_once_and_the_call_is_made_with_the_new_one() {
    let dir = tempfile::tempdir().expect("a folder");
    let models = ModelServer::start().await;
    // The first token is good until the call.
    let there = McpServer::start(|asked| {
        let bearer = asked.authorization.as_deref().and_then(|header| header.strip_prefix("Bearer "));
        match (asked.path.as_str(), asked.method.as_str(), bearer) {
            ("/token", ..) => json_answer(
                200,
                &json!({"access_token": RENEWED, "token_type": "Bearer", "expires_in": 3600}),
            ),
            (_, "tools/call", Some(FIRST)) | (_, _, None) => Answer::Http(401, Vec::new(), String::new()),
            _ => Answer::Usual,
        }
    })
    .await;
    let log = dir.path().join("log");
    let server = audited(dir.path(), &variables(&models, &[&there]), &log).await;
    let vault = vault_for(&server, &there).await;
    let calls = [json!({"x": "1"}), json!({"x": "2"})].map(|input| Reply::tool("mcp__m__echo", input));
    models.script("claude-mcp", calls.into_iter().chain([Reply::text("done")]));
    let session = session_with(&server, &[("m", there.url())], &[&vault]).await;
    server.client().send_message(&session, "go").await.expect("accepted");
    until_idle(&server, &session).await;

    let events = server.client().all_events(&session).await.expect("reads");
    let results: Vec<(String, bool)> = events.iter().filter_map(|event| result_of(&event.body)).collect();
    let echo = |x: u8| (format!(r#"echo {{"x":"{x}"}}"#), false);
    assert_eq!(results, [echo(1), echo(2)]);
    let asked = there.asked();
    assert_eq!(asked.iter().filter(|asked| asked.path == "/token").count(), 1, "renewed once");
    let calls = asked.iter().filter(|asked| asked.method == "tools/call");
    let spent: Vec<_> = calls.map(|asked| asked.authorization.clone().unwrap_or_default()).collect();
    assert_eq!(spent, [FIRST, RENEWED, RENEWED].map(|token| format!("Bearer {token}")));

    // The refused one, its renewal, and every request are lines of the audit: who, what, where to, and what came of it.
    server.stop().await;
    let audit = std::fs::read_to_string(&log).expect("readable");
    let said = |outcome: &str| {
        let outcome = format!("outcome=\"{outcome}\"");
        let is_whole =
            |line: &str| ["agent_", "vlt_", "vcrd_", "127.0.0.1"].iter().all(|part| line.contains(part));
        audit
            .lines()
            .filter(|line| line.contains(&outcome) && line.contains(&session) && is_whole(line))
            .count()
    };
    let requests = there.asked().iter().filter(|asked| asked.path != "/token").count();
    assert_eq!((said("rejected"), said("renewed"), said("spent")), (1, 1, requests - 1), "{audit}");
    assert!(!audit.contains(FIRST) && !audit.contains(RENEWED), "{audit}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_access_token_that_cannot_be_renewed_is_told_of_and_the_session_goes_on() {
    for (status, error) in [(400, "invalid_grant"), (503, "temporarily_unavailable")] {
        let dir = tempfile::tempdir().expect("a folder");
        let models = ModelServer::start().await;
        let there = McpServer::start(move |asked| match asked.path.as_str() {
            "/token" => json_answer(status, &json!({"error": error})),
            _ => Answer::Http(401, Vec::new(), String::new()),
        })
        .await;
        let server = Server::start(dir.path(), &variables(&models, &[&there])).await;
        let vault = vault_for(&server, &there).await;
        models.script("claude-mcp", vec![Reply::text("without it")]);
        let session = session_with(&server, &[("m", there.url())], &[&vault]).await;
        server.client().send_message(&session, "go").await.expect("accepted");
        until_idle(&server, &session).await;
        let events = server.client().all_events(&session).await.expect("reads");
        let errors = events.iter().filter_map(|event| match &event.body {
            Body::Error { error } => Some((error.kind, error.mcp_server_name.clone())),
            _ => None,
        });
        let expected = (SessionErrorKind::McpAuthenticationFailedError, Some("m".to_owned()));
        assert_eq!(errors.collect::<Vec<_>>(), [expected], "{error}: {events:?}");
        let has_answered = |body: &Body| matches!(body, Body::AgentMessage { .. });
        assert!(events.iter().any(|event| has_answered(&event.body)), "{error}: {events:?}");
        assert_eq!(there.asked().iter().filter(|asked| asked.path == "/token").count(), 1, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tools_whose_names_would_be_the_same_are_each_called_at_their_own_server() {
    let dir = tempfile::tempdir().expect("a folder");
    let models = ModelServer::start().await;
    let listing = |tool: &'static str| {
        McpServer::start(move |asked| match asked.method.as_str() {
            "tools/list" => {
                Answer::Result(json!({"tools": [{"name": tool, "inputSchema": {"type": "object"}}]}))
            }
            _ => Answer::Usual,
        })
    };
    let (first, second) = (listing("b__c").await, listing("c").await);
    let server = Server::start(dir.path(), &variables(&models, &[&first, &second])).await;
    let named = mcp::named(&[("a", vec!["b__c"]), ("a__b", vec!["c"])]);
    let names: Vec<&str> = named.iter().map(|named| named.name.as_str()).collect();
    assert!(names.len() == 2 && names[0] != names[1], "{names:?}");
    let calls = names.iter().rev().map(|name| Reply::tool(*name, json!({})));
    models.script("claude-mcp", calls.chain([Reply::text("done")]));
    let session = session(&server, &[("a", first.url()), ("a__b", second.url())]).await;
    server.client().send_message(&session, "go").await.expect("accepted");
    until_idle(&server, &session).await;
    let request = &models.requests("claude-mcp")[0];
    let offered: Vec<&str> = request.body["tools"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|tool| tool["name"].as_str())
        .collect();
    assert_eq!(offered, names);
    let events = server.client().all_events(&session).await.expect("reads");
    let results: Vec<(String, bool)> = events.iter().filter_map(|event| result_of(&event.body)).collect();
    assert_eq!(results, [("c {}".to_owned(), false), ("b__c {}".to_owned(), false)]);
    assert_eq!((first.count("tools/call"), second.count("tools/call")), (1, 1));
}
