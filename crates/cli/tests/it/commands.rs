//! The commands, from a shell's point of view.

use std::process::Output;

use serde_json::{Value, json};

use crate::keys::live_keys;
use crate::server::{KEY, Server, posthouse, scripted};

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn complaint(output: &Output) -> String {
    assert!(!output.status.success(), "it should have failed: {}", text(output));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn help_names_every_command_and_every_variable() {
    let help = posthouse().arg("--help").output().await.expect("runs");
    let help = text(&help);
    for command in ["serve", "run", "sessions", "snapshots", "keys", "database", "doctor", "bench"] {
        assert!(help.contains(command), "{command} is missing:\n{help}");
    }
    assert!(help.contains("managed-agents server"), "{help}");
    assert!(!help.contains("supervisor"), "the supervisor is not for people:\n{help}");
    let help = posthouse().args(["serve", "--help"]).output().await.expect("runs");
    let help = text(&help);
    for name in
        ["POSTHOUSE_LISTEN", "POSTHOUSE_DATA_DIR", "POSTHOUSE_CONFIG", "POSTHOUSE_LOG", "127.0.0.1:8400"]
    {
        assert!(help.contains(name), "{name} is missing:\n{help}");
    }
}

#[tokio::test]
async fn the_demonstration_survives_its_kill() {
    let dir = tempfile::tempdir().expect("a folder");
    let run =
        posthouse().args(["run", "anything", "--data-dir"]).arg(dir.path()).output().await.expect("runs");
    let shown = text(&run);
    assert!(run.status.success(), "{shown}\n{}", String::from_utf8_lossy(&run.stderr));
    for expected in
        ["No model is configured", "kill -9", "carries on", "line 8", "has 8 lines", "first token"]
    {
        assert!(shown.contains(expected), "{expected:?} is missing:\n{shown}");
    }
    let files = shown.lines().find_map(|line| line.strip_prefix("files ")).expect("files are named").trim();
    let report =
        std::fs::read_to_string(std::path::Path::new(files).join("report.md")).expect("the report is there");
    assert!(report.contains("has 8 lines; 8 were asked for"), "{report}");
    assert_eq!(live_keys(dir.path()), Vec::<String>::new(), "the demonstration takes its key with it");
}

#[tokio::test]
async fn run_with_a_model_streams_the_session_and_ends_with_a_summary() {
    let dir = tempfile::tempdir().expect("a folder");
    let script = json!({"replies": [
        {"blocks": [{"text": "I look."}, {"tool": "bash", "input": {"command": "echo $((6 * 7))"}}]},
        {"blocks": [{"text": "It is 42."}]},
    ]});
    scripted(dir.path(), "my-model", &script);
    let run =
        posthouse().args(["run", "what is it?", "--data-dir"]).arg(dir.path()).output().await.expect("runs");
    let shown = text(&run);
    assert!(run.status.success(), "{shown}\n{}", String::from_utf8_lossy(&run.stderr));
    for expected in
        ["model my-model", "▸ bash echo $((6 * 7))", "│ 42", "It is 42.", "tokens", "files        none"]
    {
        assert!(shown.contains(expected), "{expected:?} is missing:\n{shown}");
    }
    let run = posthouse()
        .args(["run", "again", "--json", "--data-dir"])
        .arg(dir.path())
        .output()
        .await
        .expect("runs");
    let lines: Vec<Value> =
        text(&run).lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect();
    let summary = lines.last().expect("a last line");
    assert_eq!(summary["type"], "summary");
    assert!(summary["first_token_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{summary}");
    assert!(lines.iter().any(|line| line["type"] == "session.status_idle"));
}

#[tokio::test]
async fn sessions_can_be_looked_at_and_spoken_to() {
    let dir = tempfile::tempdir().expect("a folder");
    scripted(
        dir.path(),
        "m",
        &json!({"on_end": "repeat", "replies": [{"blocks": [{"text": "hello there"}]}]}),
    );
    let server = Server::start(dir.path(), &[]).await;
    let client = server.client();
    let agent = client.create_agent(json!({"name": "a", "model": "m"})).await.expect("made");
    let environment = client.create_environment(json!({"name": "e"})).await.expect("made");
    let body = json!({"agent": agent.id, "environment_id": environment.id, "title": "my title"});
    let session = client.create_session(body).await.expect("made").id.to_string();
    let sessions = |words: &[&str]| {
        let mut command = posthouse();
        command.arg("sessions").args(words).args(["--url", &server.url]).env("POSTHOUSE_API_KEY", KEY);
        async move { command.output().await.expect("runs") }
    };
    let sent = sessions(&["send", &session, "hi"]).await;
    assert!(text(&sent).starts_with("sent sevt_"), "{}", text(&sent));
    let mut stream =
        client.stream(&session, Some(protocol::position::Position(0)), &[]).await.expect("opens");
    loop {
        let Some(client::Item::Event { event, .. }) = stream.next().await.expect("reads") else { continue };
        if event.body.kind() == "session.status_idle" {
            break;
        }
    }
    let list = text(&sessions(&["list"]).await);
    assert!(list.contains(&session) && list.contains("my title") && list.contains("idle"), "{list}");
    let show: Value =
        serde_json::from_str(&text(&sessions(&["show", &session, "--json"]).await)).expect("JSON");
    assert_eq!(show["id"], session.as_str());
    let events = text(&sessions(&["events", &session]).await);
    assert!(events.contains("hello there"), "{events}");
    let interrupted = sessions(&["interrupt", &session, "--json"]).await;
    assert!(text(&interrupted).contains("user.interrupt"));
    let unknown = complaint(&sessions(&["show", "sesn_none"]).await);
    assert!(unknown.starts_with("posthouse: "), "{unknown}");
    server.stop().await;
}

#[tokio::test]
async fn keys_are_made_listed_and_revoked_while_a_server_runs() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = Server::start(dir.path(), &[]).await;
    let keys = |words: &[&str]| {
        let mut command = posthouse();
        command.arg("keys").args(words).arg("--data-dir").arg(dir.path());
        async move { command.output().await.expect("runs") }
    };
    let made: Value = serde_json::from_str(&text(&keys(&["create", "ci", "--json"]).await)).expect("JSON");
    let key = made["key"].as_str().expect("shown once").to_owned();
    let client = client::Client::new(&server.url, &key).expect("valid");
    client.list_sessions(&[]).await.expect("the key works at once");
    let list = text(&keys(&["list"]).await);
    assert!(list.contains("ci") && list.contains("POSTHOUSE_API_KEY") && !list.contains(&key), "{list}");
    let id = made["id"].as_str().expect("an id");
    assert!(keys(&["revoke", id]).await.status.success());
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
    while client.list_sessions(&[]).await.is_ok() {
        assert!(tokio::time::Instant::now() < deadline, "a revoked key is refused soon");
    }
    assert!(complaint(&keys(&["revoke", "apikey_none"]).await).contains("there is no key apikey_none"));
    server.stop().await;
}

#[tokio::test]
async fn a_second_server_on_the_same_data_says_so() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = Server::start(dir.path(), &[]).await;
    let second = posthouse()
        .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(dir.path())
        .output()
        .await
        .expect("runs");
    let said = complaint(&second);
    assert!(said.contains("cannot be opened") && said.contains("in use"), "{said}");
    server.stop().await;
}

#[tokio::test]
async fn the_doctor_reports_for_people_and_programs() {
    let report = posthouse().arg("doctor").output().await.expect("runs");
    assert!(text(&report).contains("seccomp"), "{}", text(&report));
    let report = posthouse().args(["doctor", "--json"]).output().await.expect("runs");
    let report: Value = serde_json::from_str(&text(&report)).expect("JSON");
    assert!(report["guards"].as_array().is_some_and(|guards| !guards.is_empty()), "{report}");
}
