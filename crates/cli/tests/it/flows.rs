//! The whole server over real HTTP, with a scripted model server that speaks the providers' wires. The printed log
//! is the snapshot.

use protocol::content::Content;
use protocol::event::{Body, Event};
use serde_json::{Value, json};
use testkit::model::{Chunks, Reply, Server as ModelServer, Usage};

use crate::server::Server;

/// A running pair of servers, ours and the model's.
struct World {
    _dir: tempfile::TempDir,
    models: ModelServer,
    server: Server,
}

impl World {
    async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let models = ModelServer::start().await;
        let variables = [
            ("ANTHROPIC_API_KEY", "sk-ant-secret-of-the-test".to_owned()),
            ("ANTHROPIC_BASE_URL", models.url()),
            ("OPENAI_API_KEY", "sk-openai-secret-of-the-test".to_owned()),
            ("OPENAI_BASE_URL", models.openai_url()),
            ("POSTHOUSE_MODEL_RETRY_BASE_MS", "5".to_owned()),
            ("POSTHOUSE_MODEL_ATTEMPTS_MAX", "3".to_owned()),
        ];
        let server = Server::start(dir.path(), &variables).await;
        Self { _dir: dir, models, server }
    }

    /// Plays one message to a session of this model, and prints the log once it is idle.
    async fn play(&self, model: &str, replies: Vec<Reply>) -> String {
        self.models.script(model, replies);
        let client = self.server.client();
        let agent = json!({"name": model, "model": model, "tools": [{"type": "agent_toolset_20260401"}]});
        let agent = client.create_agent(agent).await.expect("made");
        let environment = client.create_environment(json!({"name": model})).await.expect("made");
        let body = json!({"agent": agent.id, "environment_id": environment.id});
        let session = client.create_session(body).await.expect("made").id.to_string();
        let mut stream = client.stream(&session, None, &[]).await.expect("opens");
        client.send_message(&session, "go").await.expect("accepted");
        loop {
            let Some(client::Item::Event { event, .. }) = stream.next().await.expect("reads") else {
                panic!("the stream ended");
            };
            if matches!(event.body, Body::StatusIdle { .. } | Body::StatusTerminated {}) {
                break;
            }
        }
        let log = client.all_events(&session).await.expect("reads");
        for event in &log {
            let text = serde_json::to_string(event).expect("writes");
            assert!(!text.contains("secret-of-the-test"), "a key in an event: {text}");
        }
        print(&log)
    }
}

fn print(log: &[Event]) -> String {
    log.iter().map(|event| line(&event.body)).collect::<Vec<_>>().join("\n")
}

fn line(body: &Body) -> String {
    let text = |content: &[Content]| match content {
        [Content::Text { text }] => text.clone(),
        other => json!(other).to_string(),
    };
    let rest = match body {
        Body::UserMessage { content } | Body::AgentMessage { content } => text(content),
        Body::AgentToolUse { name, input, .. } => format!("{name} {}", json!(input)),
        Body::AgentToolResult { content, is_error, .. } => {
            format!("{}{}", text(content), if *is_error { " (error)" } else { "" })
        }
        Body::ModelRequestEnd { is_error, model_usage, .. } => {
            format!("is_error={is_error} in={} out={}", model_usage.input_tokens, model_usage.output_tokens)
        }
        Body::StatusIdle { stop_reason, .. } => {
            json!(stop_reason)["type"].as_str().unwrap_or_default().to_owned()
        }
        Body::Error { error } => format!("{} {}", json!(error.kind), json!(error.retry_status)["type"]),
        _ => String::new(),
    };
    format!("{} {rest}", body.kind()).trim_end().to_owned()
}

const BEGIN: &str = "session.status_running\nsession.thread_status_running\nuser.message go\n";
const IDLE: &str = "session.thread_status_idle\nsession.usage\nsession.status_idle end_turn";

fn usage(input_tokens: u64, output_tokens: u64) -> Usage {
    Usage { input_tokens, output_tokens, ..Usage::default() }
}

fn tool_turn() -> Vec<Reply> {
    vec![
        Reply::text("let me see").and_tool("bash", json!({"command": "echo $((6 * 7))"})).usage(usage(10, 5)),
        Reply::text("it is 42").usage(usage(20, 6)),
    ]
}

fn tool_log() -> String {
    format!(
        "{BEGIN}span.model_request_start\nagent.message let me see\nagent.tool_use bash {{\"command\":\"echo $((6 * 7))\"}}\n\
         span.model_request_end is_error=false in=10 out=5\nagent.tool_result 42\nspan.model_request_start\n\
         agent.message it is 42\nspan.model_request_end is_error=false in=20 out=6\n{IDLE}"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tool_turn_over_the_messages_format() {
    let world = World::start().await;
    assert_eq!(world.play("claude-tools", tool_turn()).await, tool_log());
    // The second request begins with the first's bytes, so that the provider's cache serves it.
    let requests = world.models.requests("claude-tools");
    let messages = |request: &Value| request["messages"].clone();
    let (first, second) = (messages(&requests[0].body), messages(&requests[1].body));
    assert_eq!(second.as_array().map(|all| &all[..1]), first.as_array().map(|all| &all[..]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tool_turn_over_chat_completions() {
    let world = World::start().await;
    assert_eq!(world.play("gpt-tools", tool_turn()).await, tool_log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn split_chunks_and_pings_change_nothing() {
    let world = World::start().await;
    for model in ["claude-split", "gpt-split"] {
        let replies = tool_turn().into_iter().map(|reply| reply.chunks(Chunks::Bytes).pings()).collect();
        assert_eq!(world.play(model, replies).await, tool_log(), "{model}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overload_limits_and_broken_streams_are_retried_in_sight() {
    let world = World::start().await;
    for model in ["claude-busy", "gpt-busy"] {
        for (trouble, shown) in [
            (Reply::error(529, "overloaded_error"), "model_overloaded_error"),
            (Reply::error(429, "rate_limit_error"), "model_rate_limited_error"),
            (Reply::text("one two three four").cut_after(4), "model_request_failed_error"),
        ] {
            let model = format!("{model}-{shown}");
            let expected = format!(
                "{BEGIN}span.model_request_start\nspan.model_request_end is_error=true in=0 out=0\n\
                 session.error \"{shown}\" \"retrying\"\nsession.thread_status_rescheduled\nsession.status_rescheduled\n\
                 session.status_running\nsession.thread_status_running\nspan.model_request_start\nagent.message fine\n\
                 span.model_request_end is_error=false in=10 out=5\n{IDLE}"
            );
            let log = world.play(&model, vec![trouble, Reply::text("fine").usage(usage(10, 5))]).await;
            let log = without_partial_usage(&log);
            assert_eq!(log, expected, "{model}");
        }
    }
}

/// A stream that broke may have reported some usage before: that is kept, and not what this test is about.
fn without_partial_usage(log: &str) -> String {
    let lines = log.lines().map(|line| match line.strip_prefix("span.model_request_end is_error=true") {
        Some(_) => "span.model_request_end is_error=true in=0 out=0",
        None => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_retry_can_mend_ends_the_turn_at_once() {
    let world = World::start().await;
    for (status, kind, shown) in [
        (400, "invalid_request_error", "model_request_failed_error"),
        (401, "authentication_error", "model_request_failed_error"),
        (402, "billing_error", "billing_error"),
    ] {
        let model = format!("claude-{status}");
        let log = world.play(&model, vec![Reply::error(status, kind)]).await;
        let expected = format!(
            "{BEGIN}span.model_request_start\nspan.model_request_end is_error=true in=0 out=0\n\
             session.error \"{shown}\" \"exhausted\"\nsession.thread_status_idle\nsession.usage\n\
             session.status_idle retries_exhausted"
        );
        assert_eq!(log, expected, "{model}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_sees_nothing_of_the_server() {
    let world = World::start().await;
    let command =
        "env; cat /proc/*/environ 2>/dev/null | tr '\\0' '\\n'; ls /root /home; ls -la /proc/self/fd";
    let log = world
        .play("claude-curious", vec![Reply::tool("bash", json!({"command": command})), Reply::text("ok")])
        .await;
    for secret in ["ANTHROPIC", "OPENAI", "POSTHOUSE", "secret"] {
        assert!(!log.contains(secret), "{secret} is visible inside:\n{log}");
    }
    assert!(log.contains("PATH="), "{log}");
}
