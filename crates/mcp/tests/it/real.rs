//! Real servers: the reference server of the protocol's authors, and one in Python that wants a bearer.
//! `cargo xtask check` installs both.

use std::path::PathBuf;
use std::process::Stdio;

use mcp::Error;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::common::{PATIENT, Vault, called, connect, connect_to, failed, proxy_with, text_of};

/// A server in a process of its own. It ends with the value.
struct Running {
    _child: Child,
    url: String,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it is bound").port()
}

/// Starts a server and waits until its port is open. A port that another process has taken meanwhile is tried again.
async fn start(mut command: impl FnMut(u16) -> Command, path: &str) -> Running {
    for _ in 0..5 {
        let port = free_port();
        let mut child = command(port)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the server is installed: `cargo xtask check` does it");
        let mut lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
        // What it prints is read for as long as it runs, so that it never waits for a reader.
        let reading = tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        loop {
            if child.try_wait().expect("it can be asked").is_some() {
                break;
            }
            if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                drop(reading);
                return Running { _child: child, url: format!("http://127.0.0.1:{port}{path}") };
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
    panic!("the server does not start");
}

async fn everything(transport: &'static str, path: &str) -> Running {
    let script =
        root().join("target/mcp-servers/node_modules/@modelcontextprotocol/server-everything/dist/index.js");
    assert!(script.exists(), "{} is not there: `cargo xtask check` installs it", script.display());
    start(
        move |port| {
            let mut command = Command::new("node");
            command.arg(&script).arg(transport).env("PORT", port.to_string());
            command
        },
        path,
    )
    .await
}

async fn python(token: &'static str) -> Running {
    let (python, script) = (root().join(".venv/bin/python"), root().join("tests/sdk/support/mcp_server.py"));
    start(
        move |port| {
            let mut command = Command::new(&python);
            command.arg(&script).arg(port.to_string()).arg(token);
            command
        },
        "/mcp",
    )
    .await
}

#[tokio::test]
async fn the_reference_server_is_understood_over_streamable_http() {
    let server = everything("streamableHttp", "/mcp").await;
    understands(&server.url).await;
}

#[tokio::test]
async fn the_reference_server_is_understood_over_the_older_transport() {
    let server = everything("sse", "/sse").await;
    understands(&server.url).await;
}

async fn understands(url: &str) {
    let connection = connect(url).await.expect("connects");
    let tools = connection.tools().await.expect("lists");
    let names: Vec<&str> = tools.iter().map(|tool| tool.name.as_str()).collect();
    assert!(names.contains(&"echo") && names.contains(&"get-tiny-image"), "{names:?}");
    let output = called(&connection, "echo", json!({"message": "hi"})).await.expect("calls");
    assert_eq!(text_of(&output), "Echo: hi");
    let image = called(&connection, "get-tiny-image", json!({})).await.expect("calls");
    let has_image =
        image.content.iter().any(|block| matches!(block, protocol::content::Content::Image { .. }));
    assert!(has_image, "{image:?}");
    let sum = called(&connection, "get-sum", json!({"a": 2, "b": 3})).await.expect("calls");
    assert!(text_of(&sum).contains('5'), "{sum:?}");
    let long = json!({"duration": 1, "steps": 4});
    let long = called(&connection, "trigger-long-running-operation", long).await.expect("calls");
    assert!(text_of(&long).contains("completed"), "{long:?}");
    let refused = called(&connection, "get-sum", json!({"a": "x"})).await;
    assert!(refused.is_err() || refused.is_ok_and(|output| output.is_error));
    connection.close().await;
}

#[tokio::test]
async fn a_python_server_takes_our_bearer_and_no_other() {
    let server = python("py-token").await;
    let connection =
        connect_to(&proxy_with(Vault::with("py-token", &[]), PATIENT), &server.url).await.expect("connects");
    let output = called(&connection, "add", json!({"a": 2, "b": 3})).await.expect("calls");
    assert_eq!(text_of(&output), "5");
    connection.close().await;
    for vault in [Vault::with("wrong", &[]), std::sync::Arc::default()] {
        let error = failed(connect_to(&proxy_with(vault, PATIENT), &server.url).await);
        assert!(matches!(error, Error::Unauthorized(_)), "{error}");
    }
}
