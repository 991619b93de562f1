//! MCP servers and the whole server: what the model is told and the client sees, and a server that is killed in the middle
//! of a call.

use protocol::content::Content;
use protocol::event::Body;
use protocol::position::Position;
use serde_json::{Value, json};
use testkit::mcp::{McpServer, Reply as Answer};
use testkit::model::{Reply, Server as ModelServer};

use crate::server::Server;

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
    let body = json!({"agent": agent.id, "environment_id": environment.id});
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
