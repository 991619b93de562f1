//! Vaults from the command line, and another master key while a server runs.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use protocol::id::VaultId;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use vault::{Credentials, Source};

use crate::server::{KEY, Server, posthouse};

const SECRET: &str = "planted-secret-of-the-command-line";

async fn vaults(server: &Server, words: &[&str], input: &str) -> Output {
    let mut command = posthouse();
    command.arg("vaults").args(words).args(["--url", &server.url]).env("POSTHOUSE_API_KEY", KEY);
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary starts");
    let mut pipe = child.stdin.take().expect("piped");
    // It may have refused before it reads.
    let _ = pipe.write_all(input.as_bytes()).await;
    drop(pipe);
    child.wait_with_output().await.expect("it ends")
}

async fn said(server: &Server, words: &[&str], input: &str) -> String {
    let output = vaults(server, words, input).await;
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

fn rotation(data_dir: &Path) -> tokio::process::Command {
    let mut command = posthouse();
    command.args(["vault", "rotate-key", "--json", "--data-dir"]).arg(data_dir);
    command
}

/// What a fresh process opens for that server, whoever has the data directory.
async fn opened(data_dir: &Path, vault: &str, url: &str) -> String {
    let store = store::Store::open(data_dir, store::Options::default()).expect("opens");
    let credentials = Credentials::new(store.clone(), Source::File(data_dir.join("vault.key")));
    let workspace = store.ensure_workspace().await.expect("works");
    let found = credentials.for_mcp(&workspace, &[VaultId::from_text(vault)], url).await;
    let opened = credentials.open(&found.expect("works").expect("found")).await.expect("opens");
    store.close().await;
    opened.expose(str::to_owned)
}

#[tokio::test]
async fn a_vault_is_filled_shown_and_emptied_from_the_command_line() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = Server::start(dir.path(), &[]).await;
    let vault = said(&server, &["create", "mine"], "").await;
    let url = "https://mcp.example.com";
    let token =
        said(&server, &["add", &vault, "--mcp-server", url, "--name", "n"], &format!("{SECRET}\n")).await;
    let file = dir.path().join("secret");
    std::fs::write(&file, SECRET).expect("written");
    let file = file.to_str().expect("text");
    said(&server, &["add", &vault, "--variable", "A", "--host", "a.example", "--secret-file", file], "")
        .await;
    for words in
        [&["add", &vault][..], &["add", &vault, "--variable", "B"], &["add", "vlt_nobody", "--variable", "B"]]
    {
        assert!(!vaults(&server, words, "").await.status.success(), "{words:?}");
    }
    let shown = said(&server, &["show", &vault], "").await;
    assert!(shown.contains("$A") && shown.contains(url) && !shown.contains(SECRET), "{shown}");
    let listed: Value = serde_json::from_str(&said(&server, &["list", "--json"], "").await).expect("JSON");
    assert_eq!((&listed["id"], &listed["display_name"]), (&json!(vault), &json!("mine")));
    said(&server, &["archive", &vault, &token], "").await;
    assert!(!said(&server, &["show", &vault], "").await.contains(url));
    said(&server, &["delete", &vault, &token], "").await;
    said(&server, &["archive", &vault], "").await;
    said(&server, &["delete", &vault], "").await;
    assert_eq!(said(&server, &["list", "--archived", "--json"], "").await, "");
    server.stop().await;
}

#[tokio::test]
async fn the_key_is_changed_under_a_server_and_killed_in_the_middle_again_and_again() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = Server::start(dir.path(), &[]).await;
    let client = server.client();
    let vault = client.create_vault(json!({"display_name": "v"})).await.expect("made").id.to_string();
    let mut random = SmallRng::seed_from_u64(7);
    let mut killed = 0;
    for round in 0..20 {
        let mut child =
            rotation(dir.path()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
        // Somewhere in its life: the number is the test, nothing waits for it.
        let moment = Duration::from_micros(random.random_range(0..80_000));
        if tokio::time::timeout(moment, child.wait()).await.is_err() {
            child.kill().await.expect("it is a child of ours");
            killed += 1;
        }
        let auth = json!({"type": "static_bearer", "mcp_server_url": format!("https://{round}.example"), "token": SECRET});
        client.create_credential(&vault, json!({ "auth": auth })).await.expect("sealed all the same");
    }
    assert!(killed > 0, "none was killed");
    let done = rotation(dir.path()).output().await.expect("runs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    server.stop().await;
    let ring = std::fs::read_to_string(dir.path().join("vault.key")).expect("a file");
    assert_eq!(ring.lines().count(), 1);
    for round in 0..20 {
        assert_eq!(opened(dir.path(), &vault, &format!("https://{round}.example")).await, SECRET);
    }
}

#[tokio::test]
async fn a_key_that_is_named_twice_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let key = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    let refused = rotation(dir.path())
        .args(["--vault-key-command", "true"])
        .env("POSTHOUSE_VAULT_KEY", key)
        .output()
        .await
        .expect("runs");
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && text.contains("exclude each other") && !text.contains(key),
        "{text}"
    );
}
