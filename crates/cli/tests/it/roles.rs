//! What a process does, how it is probed, and how it ends.

use std::time::Duration;

use client::{Client, Item};
use protocol::event::{Body, Event};
use protocol::position::Position;
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::model::{Reply, Server as ModelServer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::server::{KEY, Server, serve, signal};

/// Asks without a key; gives the status and the body.
pub(crate) async fn probe(url: &str, path: &str) -> (u16, Value) {
    let address = url.strip_prefix("http://").expect("plain HTTP");
    let mut connection = TcpStream::connect(address).await.expect("connects");
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.expect("text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}

/// Ends a test that hangs; no test waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("it happens soon")
}

/// A server whose model waits in the middle of its answers until it is let go.
struct World {
    dir: TempDir,
    models: ModelServer,
}

const MODEL: &str = "claude-drain";
const HOLD: &str = "half";

impl World {
    async fn start() -> Self {
        let models = ModelServer::start().await;
        models.script(
            MODEL,
            [Reply::text("one two three four").hold_after(HOLD, 2), Reply::text("another try")],
        );
        Self { dir: tempfile::tempdir().expect("a folder"), models }
    }

    async fn server(&self, arguments: &[&str]) -> Server {
        let mut command = serve(self.dir.path());
        command.args(arguments).env("POSTHOUSE_API_KEY", KEY).env("ANTHROPIC_BASE_URL", self.models.url());
        command.env("ANTHROPIC_API_KEY", "a key of the test");
        Server::greet(command).await.0
    }

    /// A session whose model is in the middle of its answer, and a stream of it.
    async fn in_mid_answer(&self, client: &Client) -> (String, client::Stream) {
        let agent = client.create_agent(json!({"name": "a", "model": MODEL})).await.expect("made");
        let environment = client.create_environment(json!({"name": "e"})).await.expect("made");
        let body = json!({"agent": agent.id, "environment_id": environment.id});
        let session = client.create_session(body).await.expect("made").id.to_string();
        let stream = client.stream(&session, Some(Position::START), &[]).await.expect("opens");
        client.send_message(&session, "go").await.expect("accepted");
        soon(self.models.until_waiting(HOLD)).await;
        (session, stream)
    }
}

/// Shows the rest of a stream; gives its last position.
async fn until_end(stream: &mut client::Stream) -> Position {
    let mut last = Position::START;
    while let Some(item) = soon(stream.next()).await.expect("the stream is ended and not broken off") {
        if let Item::Event { position: Some(position), .. } = item {
            last = position;
        }
    }
    last
}

/// What follows a position, up to the end of the turn.
async fn until_idle(client: &Client, session: &str, after: Position) -> Vec<Event> {
    let mut stream = client.stream(session, Some(after), &[]).await.expect("opens");
    let mut events = Vec::new();
    loop {
        let Some(item) = soon(stream.next()).await.expect("reads") else { panic!("the stream ended") };
        let Item::Event { position: Some(_), event } = item else { continue };
        let is_idle = matches!(event.body, Body::StatusIdle { .. });
        events.push(event);
        if is_idle {
            return events;
        }
    }
}

fn kinds(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| event.body.kind()).collect()
}

#[tokio::test]
async fn some_of_the_roles_need_a_database() {
    let dir = tempfile::tempdir().expect("a folder");
    let refused = serve(dir.path()).args(["--role", "api,background"]).output().await.expect("runs");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success());
    assert!(said.contains("`--role api,background` needs --database"), "{said}");
    let refused = serve(dir.path()).args(["--database", "me:secret@host"]).output().await.expect("runs");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("--database must be") && !said.contains("secret"), "{said}");
}

#[tokio::test]
async fn a_server_says_whether_it_is_ready_and_what_it_needs() {
    let world = World::start().await;
    let server = world.server(&[]).await;
    assert_eq!(probe(&server.url, "/livez").await, (200, json!({"status": "ok"})));
    let (status, body) = probe(&server.url, "/readyz").await;
    assert_eq!((status, &body["status"], &body["draining"]), (200, &json!("ready"), &json!(false)), "{body}");
    assert_eq!(body["dependencies"]["database"], json!({"state": "ok"}));
    // Whatever this machine allows: clients are served without hands.
    assert!(
        ["ok", "degraded"].map(|state| json!(state)).contains(&body["dependencies"]["hands"]["state"]),
        "{body}"
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_on_its_way_is_finished_before_a_server_ends() {
    let world = World::start().await;
    let mut server = world.server(&[]).await;
    let (session, mut stream) = world.in_mid_answer(&server.client()).await;
    signal(&server.child, Signal::TERM);
    let last = until_end(&mut stream).await;
    world.models.release(HOLD);
    let status = soon(server.child.wait()).await.expect("a child of ours");
    assert!(status.success(), "{status}");
    let server = world.server(&[]).await;
    let rest = until_idle(&server.client(), &session, last).await;
    assert_eq!(
        kinds(&rest),
        [
            "agent.message",
            "span.model_request_end",
            "session.thread_status_idle",
            "session.usage",
            "session.status_idle"
        ]
    );
    assert_eq!(world.models.requests(MODEL).len(), 1, "the answer was paid for once");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_takes_too_long_is_asked_for_again_by_the_next_server() {
    let world = World::start().await;
    let mut server = world.server(&["--drain-timeout", "0.4"]).await;
    let (session, mut stream) = world.in_mid_answer(&server.client()).await;
    signal(&server.child, Signal::TERM);
    let last = until_end(&mut stream).await;
    let status = soon(server.child.wait()).await.expect("a child of ours");
    assert!(status.success(), "{status}");
    let server = world.server(&[]).await;
    let rest = until_idle(&server.client(), &session, last).await;
    assert_eq!(
        kinds(&rest)[..4],
        ["span.model_request_end", "span.model_request_start", "agent.message", "span.model_request_end"]
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_a_server_at_once() {
    let world = World::start().await;
    let mut server = world.server(&["--drain-timeout", "3600"]).await;
    let (_, mut stream) = world.in_mid_answer(&server.client()).await;
    signal(&server.child, Signal::TERM);
    until_end(&mut stream).await;
    signal(&server.child, Signal::TERM);
    soon(server.child.wait()).await.expect("a child of ours");
}

#[tokio::test]
async fn a_server_that_drains_is_not_ready_and_serves_on_for_its_delay() {
    let world = World::start().await;
    let mut server = world.server(&["--drain-delay", "3600"]).await;
    assert_eq!(probe(&server.url, "/readyz").await.0, 200);
    signal(&server.child, Signal::TERM);
    let (status, body) = soon(async {
        loop {
            let answer = probe(&server.url, "/readyz").await;
            if answer.0 != 200 {
                return answer;
            }
        }
    })
    .await;
    assert_eq!((status, &body["status"], &body["draining"]), (503, &json!("unready"), &json!(true)));
    assert_eq!(probe(&server.url, "/livez").await.0, 200);
    server.client().create_agent(json!({"name": "late", "model": MODEL})).await.expect("still served");
    signal(&server.child, Signal::TERM);
    soon(server.child.wait()).await.expect("a child of ours");
}
