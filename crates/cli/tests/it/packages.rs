//! Environments with packages, through the whole server, against the real registry: what clients see while they are
//! installed, and when they cannot be.
//!
//! Where the registry cannot be reached, the tests say that they were left out.

use std::io::Write as _;
use std::process::Command;
use std::time::Duration;

use protocol::content::Content;
use protocol::event::Body;
use protocol::session::WaitsFor;
use serde_json::json;
use testkit::model::{Reply, Server as ModelServer};

use crate::server::Server;

const MODEL: &str = "claude-packed";
const PAGE: &str = "https://pypi.org/simple/six/";

/// Why packages cannot be installed from here, told as well.
fn left_out(test: &str) -> bool {
    let tried = Command::new("curl").args(["-sSf", "--max-time", "20", "-o", "/dev/null", PAGE]).output();
    let why = match tried {
        Ok(output) if output.status.success() => return false,
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => format!("curl: {error}"),
    };
    let _ = writeln!(std::io::stderr(), "LEFT OUT: packages::{test}: {why}");
    true
}

/// What a turn of a session whose environment has these packages came to.
struct Played {
    /// The public events from its first message on.
    events: Vec<Body>,
    /// Whether it was ever shown to wait for its packages.
    waited: bool,
}

async fn play(package: &str, command: &str) -> Played {
    let dir = tempfile::tempdir().expect("a folder");
    let models = ModelServer::start().await;
    // By name: where this machine's registries are mirrors, their addresses may be any.
    let registries = egress::PACKAGE_REGISTRIES.join(",");
    let variables = [
        ("ANTHROPIC_API_KEY", "sk-ant-test".to_owned()),
        ("ANTHROPIC_BASE_URL", models.url()),
        ("POSTHOUSE_ALLOW_PRIVATE_HOSTS", registries),
    ];
    let server = Server::start(dir.path(), &variables).await;
    let client = server.client();
    models.script(MODEL, vec![Reply::tool("bash", json!({"command": command})), Reply::text("well")]);
    let agent = json!({"name": "a", "model": MODEL, "tools": [{"type": "agent_toolset_20260401"}]});
    let agent = client.create_agent(agent).await.expect("made");
    let config = json!({"type": "cloud", "packages": {"pip": [package]}});
    let environment = client.create_environment(json!({"name": "e", "config": config})).await.expect("made");
    let body = json!({"agent": agent.id, "environment_id": environment.id});
    let session = client.create_session(body).await.expect("made").id.to_string();
    let mut stream = client.stream(&session, None, &[]).await.expect("opens");
    client.send_message(&session, "go").await.expect("accepted");
    let (mut events, mut waited) = (Vec::new(), false);
    // Installing takes seconds, a look milliseconds.
    let mut looks = tokio::time::interval(Duration::from_millis(20));
    loop {
        let item = tokio::select! {
            item = stream.next() => item.expect("reads"),
            _ = looks.tick() => {
                let waiting = client.get_session(&session).await.expect("reads").waiting;
                waited |= waiting.is_some_and(|waiting| waiting.reason == WaitsFor::Packages);
                continue;
            }
        };
        let Some(client::Item::Event { event, .. }) = item else { panic!("the stream ended") };
        let is_over = matches!(event.body, Body::StatusIdle { .. } | Body::StatusTerminated {});
        events.push(event.body);
        if is_over {
            let waiting = client.get_session(&session).await.expect("reads").waiting;
            assert!(waiting.is_none(), "it rests: {waiting:?}");
            return Played { events, waited };
        }
    }
}

fn result(events: &[Body]) -> (String, bool) {
    let results = events.iter().find_map(|body| match body {
        Body::AgentToolResult { content, is_error, .. } => Some((content.as_slice(), *is_error)),
        _ => None,
    });
    match results.expect("the call has a result") {
        ([Content::Text { text }], is_error) => (text.trim().to_owned(), is_error),
        other => panic!("one text is expected: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_shown_to_wait_while_its_packages_are_installed_and_then_goes_on() {
    if left_out("a_session_is_shown_to_wait_while_its_packages_are_installed_and_then_goes_on") {
        return;
    }
    let command = "python3 -c 'import six; print(six.__version__)'";
    let Played { events, waited } = play("six==1.16.0", command).await;
    assert_eq!(result(&events), ("1.16.0".to_owned(), false));
    assert!(waited, "nobody saw what it waited for");
    assert!(!events.iter().any(|body| matches!(body, Body::Error { .. })), "{events:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_package_that_cannot_be_installed_is_named_to_the_client_and_to_the_model() {
    if left_out("a_package_that_cannot_be_installed_is_named_to_the_client_and_to_the_model") {
        return;
    }
    let Played { events, .. } = play("posthouse-no-such-package", "echo never").await;
    let error = events.iter().find_map(|body| match body {
        Body::Error { error } => Some(error.message.clone()),
        _ => None,
    });
    let error = error.expect("the session says what is wrong");
    let begins = "environment: pip could not install posthouse-no-such-package: ";
    assert!(error.starts_with(begins), "{error}");
    assert!(error.contains("No matching distribution found"), "the manager's last lines: {error}");
    let (told, is_error) = result(&events);
    assert!(is_error && told.starts_with("hand: pip could not install posthouse-no-such-package"), "{told}");
    assert!(matches!(events.last(), Some(Body::StatusIdle { .. })), "the session goes on: {events:?}");
}
