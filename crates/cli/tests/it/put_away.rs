//! A sandbox that nobody uses is put away, and what was in it is there again: in the same session, and in one made from it.

use std::io::Write as _;
use std::time::Duration;

use protocol::content::Content;
use protocol::event::Body;
use serde_json::{Value, json};
use testkit::engine::{Engine, IMAGE};
use testkit::model::{Reply, Server as ModelServer};

use crate::server::{KEY, Server, posthouse};

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
    come_and_go("/usr/local/bin/thing", &[], "host").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_container_is_put_away_and_its_workspace_comes_back_and_can_be_forked() {
    let engine = match Engine::shared() {
        Ok(engine) => engine,
        Err(why) => {
            // Not by a macro, whose words nobody would see as long as the test passes.
            let _ = writeln!(std::io::stderr(), "LEFT OUT: put_away::an_idle_container: {why}");
            return;
        }
    };
    let hands = [
        ("POSTHOUSE_SANDBOX_PROVIDER", "docker".to_owned()),
        ("POSTHOUSE_SANDBOX_DOCKER_HOST", format!("unix://{}", engine.socket().display())),
        ("POSTHOUSE_SANDBOX_DOCKER_IMAGE", IMAGE.to_owned()),
    ];
    come_and_go("~/thing", &hands, "image posthouse-test:tools").await;
}

/// Leaves a file in the workspace and one elsewhere, is put away, comes back, and is forked.
async fn come_and_go(elsewhere: &str, hands: &[(&'static str, String)], base: &str) {
    let dir = tempfile::tempdir().expect("a folder");
    let models = ModelServer::start().await;
    let variables = [
        ("ANTHROPIC_API_KEY", "sk-ant-secret-of-the-test".to_owned()),
        ("ANTHROPIC_BASE_URL", models.url()),
        ("POSTHOUSE_SANDBOX_IDLE", "0.2".to_owned()),
    ];
    let variables: Vec<_> = variables.iter().chain(hands).cloned().collect();
    let server = Server::start(dir.path(), &variables).await;
    let client = server.client();
    let look = format!("cat note {elsewhere}; echo more >> note");
    let end = || Reply::text("done");
    models.script(
        MODEL,
        vec![
            bash(&format!("echo one > note; echo two > {elsewhere}")),
            end(),
            bash(&look),
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
    assert_eq!(snapshot["type"], "session_snapshot");
    assert!(snapshot["base"].as_str().expect("text").starts_with(base), "{snapshot}");
    let fork = client.create_session(nothing_saved).await.expect("made").id.to_string();
    let (files, note) = split(&turn(&client, &session).await);
    assert_eq!(files, "one\ntwo");
    assert!(note.contains("Whatever ran in the background has ended"), "{note}");
    assert_eq!(turn(&client, &fork).await, "one", "the fork is as the other was when it was saved");
}

/// A server that puts nothing away by itself, and a session whose model asks for these commands, one a turn.
struct World {
    dir: tempfile::TempDir,
    variables: [(&'static str, String); 3],
    server: Server,
    session: String,
}

impl World {
    async fn start(models: &ModelServer, commands: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let variables = [
            ("ANTHROPIC_API_KEY", "sk-ant-secret-of-the-test".to_owned()),
            ("ANTHROPIC_BASE_URL", models.url()),
            ("POSTHOUSE_SANDBOX_IDLE", "0".to_owned()),
        ];
        let server = Server::start(dir.path(), &variables).await;
        let replies: Vec<Reply> =
            commands.iter().flat_map(|command| [bash(command), Reply::text("done")]).collect();
        models.script(MODEL, replies);
        let client = server.client();
        let agent = json!({"name": "a", "model": MODEL, "tools": [{"type": "agent_toolset_20260401"}]});
        let agent = client.create_agent(agent).await.expect("made");
        let environment = client.create_environment(json!({"name": "e"})).await.expect("made");
        let body = json!({"agent": agent.id, "environment_id": environment.id});
        let session = client.create_session(body).await.expect("made").id.to_string();
        Self { dir, variables, server, session }
    }

    /// What a command of the user's prints.
    async fn command(&self, arguments: &[&str]) -> String {
        let mut command = posthouse();
        command.args(arguments).args(["--url", &self.server.url, "--api-key", KEY]);
        let output = command.output().await.expect("runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

#[tokio::test]
async fn a_workspace_is_saved_when_the_user_asks_and_its_sandbox_goes_on() {
    let models = ModelServer::start().await;
    let goes_on = "cat note; echo changed > note; was=$(cat tick); until [ \"$(cat tick)\" != \"$was\" ]; do sleep 0.01; done; \
                   echo goes on";
    let commands = [
        "echo one > note; (while :; do date +%N > tick.new; mv tick.new tick; sleep 0.02; done) > /dev/null 2>&1 & \
         until [ -e tick ]; do sleep 0.01; done",
        goes_on,
        "cat note",
    ];
    let world = World::start(&models, &commands).await;
    let (client, session) = (world.server.client(), world.session.as_str());
    turn(&client, session).await;
    let made = world.command(&["snapshots", "create", session]).await;
    assert!(made.contains("saved") && made.contains("host"), "{made}");
    assert_eq!(turn(&client, session).await, "one\ngoes on", "nothing is told: nothing was put away");
    let listed = world.command(&["snapshots", "list", session, "--json"]).await;
    assert_eq!(serde_json::from_str::<Value>(&listed).expect("one object")["status"], "saved");
    let fork = world.command(&["sessions", "fork", session, "--json"]).await;
    let fork: Value = serde_json::from_str(&fork).expect("one object");
    let fork = fork["id"].as_str().expect("an id");
    assert_eq!(turn(&client, fork).await, "one", "as it was when it was saved");
}

#[tokio::test]
async fn a_snapshot_that_was_asked_for_of_a_server_that_died_is_taken_by_the_next() {
    let models = ModelServer::start().await;
    let mut world = World::start(&models, &["echo one > note", "cat note"]).await;
    turn(&world.server.client(), &world.session).await;
    let asked = world.server.client().take_snapshot(&world.session).await.expect("accepted");
    assert_eq!(asked["status"], "pending");
    world.server.kill().await;
    world.server = Server::start(world.dir.path(), &world.variables).await;
    let client = world.server.client();
    let looks = async {
        while saved(&client, &world.session).await["status"] != "saved" {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), looks).await.expect("it is never saved");
    assert_eq!(turn(&client, &world.session).await, "one");
}
