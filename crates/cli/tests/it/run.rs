//! `posthouse run` where things are not as usual.

use std::process::{Output, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use testkit::model::{Reply, Server as ModelServer};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, ChildStdout};

use crate::keys::live_keys;
use crate::server::{KEY, Server, posthouse, scripted, serve_at, signal};

/// What a shell shows for a program whose reader went away.
const CLOSED: i32 = 141;

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_local_server_is_asked_which_model_it_has() {
    let dir = tempfile::tempdir().expect("a folder");
    let models = ModelServer::start().await;
    let run = || async {
        let mut command = posthouse();
        command.args(["run", "hi", "--data-dir"]).arg(dir.path()).env("OPENAI_BASE_URL", models.openai_url());
        command.output().await.expect("runs")
    };
    let nameless = run().await;
    assert!(!nameless.status.success(), "it has none, and the demonstration is not what was asked for");
    assert!(stderr(&nameless).contains("name one with --model"), "{}", stderr(&nameless));
    models.script("local-model", [Reply::text("hello from here")]);
    let named = run().await;
    let shown = String::from_utf8_lossy(&named.stdout).into_owned();
    assert!(shown.contains("model local-model") && shown.contains("hello from here"), "{shown}");
}

#[tokio::test]
async fn a_model_server_that_is_away_is_named_and_not_replaced_by_the_demonstration() {
    let dir = tempfile::tempdir().expect("a folder");
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("binds").local_addr().expect("bound");
    let run = posthouse()
        .args(["run", "hi", "--data-dir"])
        .arg(dir.path())
        .env("OPENAI_BASE_URL", format!("http://{free}/v1"))
        .output()
        .await
        .expect("runs");
    assert!(!run.status.success());
    let said = stderr(&run);
    assert!(said.contains("`openai` cannot be listed") && said.contains("--model"), "{said}");
}

#[tokio::test]
async fn nothing_panics_when_nobody_reads() {
    let dir = tempfile::tempdir().expect("a folder");
    let made = posthouse().args(["keys", "create", "--data-dir"]).arg(dir.path()).output().await;
    assert!(made.expect("runs").status.success());
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = posthouse();
    command.args(["keys", "list", "--data-dir"]).arg(dir.path());
    let list =
        command.stdout(writer).stderr(Stdio::piped()).spawn().expect("starts").wait_with_output().await;
    let list = list.expect("ends");
    assert_eq!((list.status.code(), stderr(&list).as_str()), (Some(CLOSED), ""));
}

#[tokio::test]
async fn a_run_whose_reader_went_away_leaves_nothing_behind() {
    let dir = tempfile::tempdir().expect("a folder");
    let script = json!({"replies": [
        {"blocks": [{"tool": "bash", "input": {"command": "echo 1"}}]},
        {"blocks": [{"text": "done"}]},
    ]});
    scripted(dir.path(), "m", &script);
    let mut command = posthouse();
    command.args(["run", "hi", "--json", "--data-dir"]).arg(dir.path());
    let mut run = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    let mut lines = BufReader::new(run.stdout.take().expect("piped")).lines();
    lines.next_line().await.expect("readable").expect("a line");
    drop(lines);
    let run = run.wait_with_output().await.expect("ends");
    assert_eq!((run.status.code(), stderr(&run).as_str()), (Some(CLOSED), ""));
    assert_eq!(live_keys(dir.path()), Vec::<String>::new());
    Server::start(dir.path(), &[]).await.stop().await;
}

/// Reads what a run shows until it shows this.
async fn until(shown: &str, run: &mut Child) -> BufReader<ChildStdout> {
    let mut stdout = BufReader::new(run.stdout.take().expect("piped"));
    let mut text = String::new();
    while !text.contains(shown) {
        assert_ne!(stdout.read_line(&mut text).await.expect("readable"), 0, "it ended early: {text}");
    }
    stdout
}

#[tokio::test]
async fn an_interrupted_run_interrupts_its_session_and_takes_its_key_with_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let script = json!({"replies": [{"blocks": [{"tool": "bash", "input": {"command": "sleep 100"}}]}]});
    scripted(dir.path(), "m", &script);
    let mut command = posthouse();
    command.args(["run", "hi", "--data-dir"]).arg(dir.path());
    let mut run = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    let mut stdout = until("sleep 100", &mut run).await;
    signal(&run, Signal::INT);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).await.expect("readable");
    let run = run.wait_with_output().await.expect("ends");
    assert!(run.status.success() && rest.contains("tokens"), "{rest}\n{}", stderr(&run));
    assert_eq!(live_keys(dir.path()), Vec::<String>::new());
}

#[tokio::test]
async fn an_interrupted_demonstration_leaves_no_key_and_no_server() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut command = posthouse();
    command.args(["run", "hi", "--data-dir"]).arg(dir.path());
    let mut run = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    let _stdout = until("listens on", &mut run).await;
    signal(&run, Signal::INT);
    let run = run.wait_with_output().await.expect("ends");
    assert!(stderr(&run).starts_with("posthouse: left"), "{}", stderr(&run));
    assert_eq!(live_keys(dir.path()), Vec::<String>::new());
    Server::start(dir.path(), &[]).await.stop().await;
}

#[tokio::test]
async fn a_run_logs_what_the_file_says_and_only_trouble_if_nothing_does() {
    let dir = tempfile::tempdir().expect("a folder");
    let config =
        scripted(dir.path(), "m", &json!({"on_end": "repeat", "replies": [{"blocks": [{"text": "hello"}]}]}));
    let run = |words: &[&str]| {
        let mut command = posthouse();
        command.args(["run", "hi", "--data-dir"]).arg(dir.path()).args(words);
        async move { stderr(&command.output().await.expect("runs")) }
    };
    assert!(!run(&[]).await.contains("DEBUG"));
    assert!(run(&["--log", "debug"]).await.contains("DEBUG"));
    let text = std::fs::read_to_string(&config).expect("reads");
    std::fs::write(&config, format!("log = \"debug\"\n{text}")).expect("writes");
    assert!(run(&[]).await.contains("DEBUG"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_goes_on_when_the_server_that_it_watches_is_started_again() {
    let dir = tempfile::tempdir().expect("a folder");
    let script = json!({"replies": [
        {"blocks": [{"text": "I wait."}, {"tool": "bash", "input": {"command": "sleep 2; echo waited"}}]},
        {"blocks": [{"text": "All is well."}]},
    ]});
    scripted(dir.path(), "m", &script);
    let server = Server::start(dir.path(), &[]).await;
    let address = server.url.trim_start_matches("http://").to_owned();
    let mut command = posthouse();
    command.args(["run", "hi", "--model", "m", "--url", &server.url]).env("POSTHOUSE_API_KEY", KEY);
    let mut run = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    let mut stdout = until("sleep 2", &mut run).await;
    let mut shown = String::new();
    server.kill().await;
    let mut again = serve_at(&address, dir.path());
    again.env("POSTHOUSE_API_KEY", KEY);
    let (server, _lines) = Server::greet(again).await;
    let rest = tokio::time::timeout(Duration::from_secs(60), stdout.read_to_string(&mut shown));
    rest.await.expect("it ends").expect("readable");
    let run = run.wait_with_output().await.expect("ends");
    assert!(run.status.success(), "{shown}\n{}", stderr(&run));
    assert!(shown.contains("All is well."), "{shown}");
    server.stop().await;
}
