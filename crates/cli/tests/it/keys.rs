//! Who has a key: after whatever came before, a server can be reached.

use std::path::Path;
use std::process::Output;
use std::time::Duration;

use client::Client;
use serde_json::json;
use tokio::io::{AsyncBufRead, Lines};

use crate::server::{KEY, Server, posthouse, scripted, serve};

/// The name of the keys that `posthouse run` makes for itself.
const INTERNAL: &str = "internal: posthouse run";

/// The names of the keys that work.
pub(crate) fn live_keys(data_dir: &Path) -> Vec<String> {
    let mut keys = store::Keys::open(data_dir, store::Options::default()).expect("opens");
    let workspace = keys.ensure_workspace().expect("reads");
    let all = keys.list_keys(&workspace).expect("reads");
    all.into_iter().filter(|key| key.revoked_at.is_none()).map(|key| key.name).collect()
}

/// What stands behind `start` in one of the lines that follow.
async fn line(lines: &mut Lines<impl AsyncBufRead + Unpin>, start: &str) -> String {
    let find = async {
        while let Some(line) = lines.next_line().await.expect("readable") {
            if let Some(rest) = line.trim().strip_prefix(start) {
                return rest.trim().to_owned();
            }
        }
        panic!("the server closed its output before it said {start:?}");
    };
    tokio::time::timeout(Duration::from_secs(20), find).await.expect("it is said soon")
}

async fn keys(words: &[&str], data_dir: &Path) -> Output {
    posthouse().arg("keys").args(words).arg("--data-dir").arg(data_dir).output().await.expect("runs")
}

#[tokio::test]
async fn a_server_prints_a_key_after_a_run_and_never_again() {
    let dir = tempfile::tempdir().expect("a folder");
    scripted(dir.path(), "m", &json!({"on_end": "repeat", "replies": [{"blocks": [{"text": "hello"}]}]}));
    let run = posthouse().args(["run", "hi", "--data-dir"]).arg(dir.path()).output().await.expect("runs");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    assert_eq!(live_keys(dir.path()), Vec::<String>::new());
    let (server, mut lines) = Server::greet(serve(dir.path())).await;
    let key = line(&mut lines, "API key:").await;
    Client::new(&server.url, &key).expect("valid").list_sessions(&[]).await.expect("the key works");
    server.stop().await;
    let (server, _lines) = Server::greet(serve(dir.path())).await;
    assert_eq!(live_keys(dir.path()), ["first key"]);
    server.stop().await;
}

#[tokio::test]
async fn the_key_that_is_named_works_whatever_keys_there_are() {
    let dir = tempfile::tempdir().expect("a folder");
    assert!(keys(&["create", "another"], dir.path()).await.status.success());
    for _ in 0..2 {
        let server = Server::start(dir.path(), &[]).await;
        server.client().list_sessions(&[]).await.expect("the key works");
        server.stop().await;
    }
    assert_eq!(live_keys(dir.path()), ["another", "POSTHOUSE_API_KEY"]);
}

#[tokio::test]
async fn a_named_key_that_was_revoked_stays_so_and_the_server_says_it() {
    let dir = tempfile::tempdir().expect("a folder");
    Server::start(dir.path(), &[]).await.stop().await;
    let list = keys(&["list", "--json"], dir.path()).await;
    let key: serde_json::Value = serde_json::from_slice(&list.stdout).expect("one key");
    assert!(keys(&["revoke", key["id"].as_str().expect("an id")], dir.path()).await.status.success());
    let mut command = serve(dir.path());
    command.env("POSTHOUSE_API_KEY", KEY);
    let (server, mut lines) = Server::greet(command).await;
    line(&mut lines, "The key in POSTHOUSE_API_KEY was revoked").await;
    server.client().list_sessions(&[]).await.expect_err("it does not work");
    server.stop().await;
}

#[tokio::test]
async fn what_a_killed_run_left_over_is_revoked_at_the_next_start() {
    let dir = tempfile::tempdir().expect("a folder");
    let leave = |key: &str| {
        let mut keys = store::Keys::open(dir.path(), store::Options::default()).expect("opens");
        let workspace = keys.ensure_workspace().expect("made");
        keys.create_key(&workspace, INTERNAL, store::hash_key(key)).expect("made");
    };
    leave("one");
    Server::start(dir.path(), &[]).await.stop().await;
    assert_eq!(live_keys(dir.path()), ["POSTHOUSE_API_KEY"]);
    leave("another");
    scripted(dir.path(), "m", &json!({"replies": [{"blocks": [{"text": "hello"}]}]}));
    let run = posthouse().args(["run", "hi", "--data-dir"]).arg(dir.path()).output().await.expect("runs");
    assert!(run.status.success());
    assert_eq!(live_keys(dir.path()), ["POSTHOUSE_API_KEY"]);
    let refused = keys(&["create", INTERNAL], dir.path()).await;
    assert!(!refused.status.success(), "nobody else's key has the name");
}

#[tokio::test]
async fn keys_are_those_of_the_directory_that_the_file_names() {
    let dir = tempfile::tempdir().expect("a folder");
    let (data, config) = (dir.path().join("data"), dir.path().join("p.toml"));
    std::fs::write(&config, format!("data_dir = {data:?}\n")).expect("writes");
    let made = posthouse().args(["keys", "create", "ci", "--config"]).arg(&config).output().await;
    assert!(made.expect("runs").status.success());
    assert_eq!(live_keys(&data), ["ci"]);
    let list = posthouse().args(["keys", "list"]).env("POSTHOUSE_CONFIG", &config).output().await;
    assert!(String::from_utf8_lossy(&list.expect("runs").stdout).contains("ci"));
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_not_made_by_looking_at_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let typo = dir.path().join("typo");
    for words in [&["list"][..], &["revoke", "apikey_none"]] {
        let said = keys(words, &typo).await;
        assert!(!said.status.success());
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(said.contains("holds no data of Posthouse"), "{said}");
    }
    assert!(!typo.exists());
}
