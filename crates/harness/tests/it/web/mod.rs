//! The web tools, over real sockets: a scripted model asks, sites and search providers on this machine answer.

mod origin;
mod pages;
mod search;
mod session;

use std::sync::Arc;
use std::time::Duration;

use egress::{Guard, PrivateHosts, Table};
use harness::web::{SearchProvider, Times, Web};
use protocol::content::{Content, Source};
use protocol::event::Body;
use protocol::id::SessionId;
use serde_json::{Value, json};

use self::origin::Origin;
use crate::world::{World, scripted};

/// What is not about time does not hang on how busy the machine is.
const PATIENT: Times = Times { fetch_max: Duration::from_secs(600), search_max: Duration::from_secs(600) };

/// A web in which every name below `example` is the origin, and nothing else on this machine may be reached.
fn web(origin: &Origin, search: Option<SearchProvider>, times: Times) -> Web {
    let port = origin.port();
    let private: PrivateHosts = format!("*.example:{port}").parse().expect("valid");
    let names = Table::default();
    for name in ["site.example", "sub.site.example", "other.example"] {
        names.set(name, vec![vec![[127, 0, 0, 1].into()]]);
    }
    let guard = Guard::new(private, []).with_names(names.names());
    Web::new(Arc::new(guard), search).expect("a client").with_times(times)
}

/// A toolset with these settings of its tools, and a tool that the client runs.
fn tools(configs: Value) -> Value {
    json!([
        {"type": "agent_toolset_20260401", "configs": configs},
        {"type": "custom", "name": "lookup", "description": "d", "input_schema": {"type": "object"}},
    ])
}

async fn world(dir: &tempfile::TempDir, replies: Value) -> World {
    World::open(dir.path(), scripted(replies), Arc::default()).await
}

/// A session whose agent has these settings of its tools, and that has just got a message.
async fn session(world: &World, configs: Value, text: &str) -> SessionId {
    let tools = protocol::agent_request::tools(tools(configs), "tools").expect("valid tools");
    let policy = protocol::agent::PermissionPolicy::AlwaysAllow {};
    let change = |record: &mut ::session::Record| record.agent.spec.tools = tools;
    world.session_like(world.workspace.clone(), policy, text, change).await
}

/// Drives the session until it rests.
async fn wake(world: &World, session: &SessionId, web: Web) {
    let brain = world.brain_with(|options| options.web = Some(web));
    brain.wake(session, &tokio_util::sync::CancellationToken::new()).await.expect("the store works");
}

/// What the calls of the session came to, in order.
async fn results(world: &World, session: &SessionId) -> Vec<(Vec<Content>, bool)> {
    let log = world.log(session).await;
    let results = log.into_iter().filter_map(|event| match event.body {
        Body::AgentToolResult { content, is_error, .. } => Some((content, is_error)),
        _ => None,
    });
    results.collect()
}

/// Fetches one page of the origin, whose URL the user has named.
async fn fetched(origin: &Origin, path: &str, configs: Value, times: Times) -> (Vec<Content>, bool) {
    let dir = tempfile::tempdir().expect("a folder");
    let url = origin.url("site.example", path);
    let replies =
        json!([{"blocks": [{"tool": "web_fetch", "input": {"url": url}}]}, {"blocks": [{"text": "done"}]}]);
    let world = world(&dir, replies).await;
    let session = session(&world, configs, &format!("read {url} please")).await;
    wake(&world, &session, web(origin, None, times)).await;
    assert!(world.told(&session).await.ends_with("agent: done\nidle: end_turn"), "{path}");
    assert_eq!(world.hands.living(), 0, "no sandbox is needed");
    results(&world, &session).await.remove(0)
}

/// The text of a page that could be fetched.
fn page_text(result: &(Vec<Content>, bool)) -> &str {
    match result {
        (content, false) => match content.as_slice() {
            [Content::Document { source: Source::Text { data, .. }, .. }] => data,
            other => panic!("not one text: {other:?}"),
        },
        (content, true) => panic!("an error: {content:?}"),
    }
}

/// The text of an error.
fn error_text(result: &(Vec<Content>, bool)) -> &str {
    match (result.0.as_slice(), result.1) {
        ([Content::Text { text }], true) => text,
        other => panic!("not an error: {other:?}"),
    }
}
