//! A sandbox that nobody uses is put away, and what was in it is there again: in the same session, and in one made from it.

use std::time::Duration;

use protocol::content::Content;
use protocol::event::Body;
use serde_json::{Value, json};
use testkit::model::{Reply, Server as ModelServer};

use crate::server::Server;

const MODEL: &str = "claude-put-away";

fn bash(command: &str) -> Reply {
    Reply::tool("bash", json!({"command": command}))
}

/// Sends a message and waits until the session rests; gives what the tools printed since.
async fn turn(client: &client::Client, session: &str) -> String {
    let before = client.all_events(session).await.expect("reads").len();
    let mut stream = client.stream(session, None, &[]).await.expect("opens");
    client.send_message(session, "go").await.expect("accepted");
    loop {
        let Some(client::Item::Event { event, .. }) = stream.next().await.expect("reads") else {
            panic!("the stream ended");
        };
        if matches!(event.body, Body::StatusIdle { .. } | Body::StatusTerminated {}) {
            break;
        }
    }
    let log = client.all_events(session).await.expect("reads");
    let results = log.iter().skip(before).filter_map(|event| match &event.body {
        Body::AgentToolResult { content, .. } => Some(content),
        _ => None,
    });
    let texts = results.flatten().filter_map(|content| match content {
        Content::Text { text } => Some(text.trim().to_owned()),
        _ => None,
    });
    texts.collect::<Vec<_>>().join("\n")
}

/// What a command printed, and what is said of its sandbox.
fn split(result: &str) -> (String, String) {
    let (printed, note) = result.split_once("\nhand: ").unwrap_or((result, ""));
    (printed.to_owned(), note.to_owned())
}

/// What is saved of the session's workspace, once something is.
async fn saved(client: &client::Client, session: &str) -> Value {
    let looks = async {
        let mut between = tokio::time::interval(Duration::from_millis(50));
        loop {
            between.tick().await;
            let listed = client.list_snapshots(session).await.expect("lists");
            if let Some(snapshot) = listed["data"].get(0) {
                return snapshot.clone();
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), looks).await.expect("it is never saved")
}

#[tokio::test]
async fn an_idle_sandbox_is_put_away_and_its_workspace_comes_back_and_can_be_forked() {
    let dir = tempfile::tempdir().expect("a folder");
    let models = ModelServer::start().await;
    let variables = [
        ("ANTHROPIC_API_KEY", "sk-ant-secret-of-the-test".to_owned()),
        ("ANTHROPIC_BASE_URL", models.url()),
        ("POSTHOUSE_SANDBOX_IDLE", "0.2".to_owned()),
    ];
    let server = Server::start(dir.path(), &variables).await;
    let client = server.client();
    let look = "cat note /usr/local/bin/thing; echo more >> note";
    let end = || Reply::text("done");
    models.script(
        MODEL,
        vec![
            bash("echo one > note; echo two > /usr/local/bin/thing"),
            end(),
            bash(look),
            end(),
            bash("cat note"),
            end(),
        ],
    );
    let agent = json!({"name": "a", "model": MODEL, "tools": [{"type": "agent_toolset_20260401"}]});
    let agent = client.create_agent(agent).await.expect("made");
    let environment = client.create_environment(json!({"name": "e"})).await.expect("made");
    let body = json!({"agent": agent.id, "environment_id": environment.id});
    let session = client.create_session(body.clone()).await.expect("made").id.to_string();

    let mut nothing_saved = body.clone();
    nothing_saved["workspace"] = json!({"from_session": session});
    let refused = client.create_session(nothing_saved.clone()).await.expect_err("nothing is saved");
    assert!(refused.to_string().contains("has no saved workspace"), "{refused}");

    turn(&client, &session).await;
    let snapshot = saved(&client, &session).await;
    assert_eq!((&snapshot["type"], &snapshot["base"]), (&json!("session_snapshot"), &json!("host")));
    let fork = client.create_session(nothing_saved).await.expect("made").id.to_string();
    let (files, note) = split(&turn(&client, &session).await);
    assert_eq!(files, "one\ntwo");
    assert!(note.contains("Whatever ran in the background has ended"), "{note}");
    assert_eq!(turn(&client, &fork).await, "one", "the fork is as the other was when it was saved");
}
