//! A server for one test, and raw requests to it.

use std::sync::Arc;
use std::time::Duration;

use api::{App, Catalog, Health, ModelRule};
use client::Client;
use protocol::environment::Networking;
use protocol::id::{SessionId, WorkspaceId};
use protocol::model::{Lifecycle, ModelInfo, ModelTag};
use protocol::sse::{Frame, Parser};
use protocol::time::Timestamp;
use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};
use store::{Options, Store, hash_key};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub(crate) const KEY: &str = "sk-test-1";
pub(crate) const BETA: &str = "managed-agents-2026-04-01";
/// Only ends a test that hangs; no test waits for it.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running server.
pub(crate) struct Server {
    pub(crate) base: String,
    pub(crate) store: Store,
    pub(crate) workspace: WorkspaceId,
    pub(crate) client: Client,
    pub(crate) http: reqwest::Client,
    pub(crate) stop: CancellationToken,
    pub(crate) serving: JoinHandle<std::io::Result<()>>,
    _directory: TempDir,
}

/// An answer, read.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::start_over(Options::default(), Health::default()).await
    }

    /// A server over a store with these options.
    pub(crate) async fn start_with(options: Options) -> Self {
        Self::start_over(options, Health::default()).await
    }

    /// A server that tells its probes this.
    pub(crate) async fn start_probed(health: Health) -> Self {
        Self::start_over(Options::default(), health).await
    }

    async fn start_over(options: Options, health: Health) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path(), options).expect("opens");
        let workspace = store.ensure_workspace().await.expect("a workspace");
        store.create_key(&workspace, "test", hash_key(KEY)).await.expect("a key");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let base = format!("http://{}", listener.local_addr().expect("an address"));
        let app = App {
            store: store.clone(),
            credentials: vault::Credentials::new(
                store.clone(),
                vault::Source::File(directory.path().join("vault.key")),
            ),
            models: Arc::new(catalog()),
            health,
            git_hosts: "git.example.com".parse().expect("a host"),
            default_networking: Networking::default(),
        };
        let stop = CancellationToken::new();
        let serving = tokio::spawn(api::serve(listener, app, stop.clone()));
        let client = Client::new(&base, KEY).expect("a client");
        let http = reqwest::Client::builder().no_proxy().build().expect("a client");
        Self { base, store, workspace, client, http, stop, serving, _directory: directory }
    }

    /// A request with the key and the beta header.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.bare(method, path).header("x-api-key", KEY).header("anthropic-beta", BETA)
    }

    /// A request without either.
    pub(crate) fn bare(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base))
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        send(self.request(Method::GET, path)).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        let request = self.request(Method::POST, path).header("content-type", "application/json");
        send(request.body(body.to_string())).await
    }

    /// An archive or a delete as the official clients send it: a content type and no content.
    pub(crate) async fn empty(&self, method: Method, path: &str) -> Answer {
        send(self.request(method, path).header("content-type", "application/json")).await
    }

    /// Opens a stream.
    pub(crate) async fn stream(&self, path: &str) -> Frames {
        Frames::new(self.request(Method::GET, path).send().await.expect("an answer"))
    }

    pub(crate) async fn agent(&self) -> String {
        let tool = json!({"type": "custom", "name": "weather", "description": "d", "input_schema": {"type": "object"}});
        let agent = self.post("/v1/agents", json!({"name": "a", "model": "m-1", "tools": [tool]})).await.ok();
        id(&agent)
    }

    pub(crate) async fn environment(&self) -> String {
        // A name of its own each time: names are unique.
        let name = self.store.ids().make::<protocol::id::EnvironmentId>().to_string();
        id(&self.post("/v1/environments", json!({"name": name})).await.ok())
    }

    /// A session that has nothing to do.
    pub(crate) async fn session(&self) -> SessionId {
        let body = json!({"agent": self.agent().await, "environment_id": self.environment().await});
        SessionId::from_text(id(&self.post("/v1/sessions", body).await.ok()))
    }

    /// Sends messages of one word each; gives their ids.
    pub(crate) async fn say(&self, session: &SessionId, words: &[&str]) -> Vec<String> {
        let events: Vec<Value> = words.iter().map(|word| message(word)).collect();
        let echoes = self.post(&events_of(session), json!({"events": events})).await.ok();
        ids(&echoes)
    }

    /// Everything that a client can list, to show that nothing changed.
    pub(crate) async fn everything(&self, session: &SessionId) -> Vec<Value> {
        let mut all = Vec::new();
        for path in [
            "/v1/agents?include_archived=true".to_owned(),
            "/v1/environments?include_archived=true".to_owned(),
            events_of(session),
        ] {
            all.push(self.get(&path).await.ok());
        }
        let mut sessions = self.get("/v1/sessions?include_archived=true").await.ok();
        for session in sessions["data"].as_array_mut().expect("a list") {
            // The only things that time alone changes.
            session["stats"] = Value::Null;
            session["usage"]["active_seconds"] = Value::Null;
        }
        all.push(sessions);
        all
    }
}

impl Answer {
    /// The body of a success.
    #[track_caller]
    pub(crate) fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        self.body
    }

    /// Checks the standard body; gives status, type and message.
    #[track_caller]
    pub(crate) fn refusal(&self) -> (u16, String, String) {
        let id = self.headers.get("request-id").expect("a request id").to_str().expect("text");
        assert_eq!(self.body["type"], "error", "{}", self.body);
        assert_eq!(self.body["request_id"], id);
        assert!(id.starts_with("req_"), "{id}");
        let error = &self.body["error"];
        let text = |name: &str| error[name].as_str().expect("text").to_owned();
        assert!(!text("message").is_empty());
        (self.status, text("type"), text("message"))
    }

    pub(crate) fn code(&self) -> Option<&str> {
        self.body["error"]["details"]["error_code"].as_str()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

pub(crate) async fn send(request: RequestBuilder) -> Answer {
    let answer = request.send().await.expect("an answer");
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    let text = answer.text().await.expect("a body");
    let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
    Answer { status, headers, body }
}

/// A stream, frame by frame, pings left out.
pub(crate) struct Frames {
    pub(crate) answer: Response,
    parser: Parser,
}

impl Frames {
    pub(crate) fn new(answer: Response) -> Self {
        Self { answer, parser: Parser::new() }
    }

    pub(crate) async fn next(&mut self) -> Option<Frame> {
        timeout(PATIENCE, self.wait()).await.expect("the stream gives something")
    }

    /// The next frames as `id event`, `-` for no id.
    pub(crate) async fn take(&mut self, count: usize) -> Vec<String> {
        let mut frames = Vec::new();
        for _ in 0..count {
            let frame = self.next().await.expect("the stream goes on");
            frames.push(format!(
                "{} {}",
                frame.id.as_deref().unwrap_or("-"),
                frame.event.as_deref().expect("each frame has its event line")
            ));
        }
        frames
    }

    /// Whether the stream ends, having shown nothing more.
    pub(crate) async fn ends(&mut self) -> bool {
        self.next().await.is_none()
    }

    async fn wait(&mut self) -> Option<Frame> {
        loop {
            while let Some(frame) = self.parser.next_frame().expect("frames fit") {
                if frame.event.as_deref() != Some("ping") {
                    return Some(frame);
                }
            }
            self.parser.push(&self.answer.chunk().await.ok()??);
        }
    }
}

pub(crate) fn message(text: &str) -> Value {
    json!({"type": "user.message", "content": [{"type": "text", "text": text}]})
}

pub(crate) fn session_path(session: &SessionId) -> String {
    format!("/v1/sessions/{session}")
}

pub(crate) fn events_of(session: &SessionId) -> String {
    format!("/v1/sessions/{session}/events")
}

#[track_caller]
pub(crate) fn id(thing: &Value) -> String {
    thing["id"].as_str().expect("an id").to_owned()
}

/// The ids of a list.
#[track_caller]
pub(crate) fn ids(list: &Value) -> Vec<String> {
    list["data"].as_array().expect("a list").iter().map(id).collect()
}

/// The types of a list of events.
#[track_caller]
pub(crate) fn kinds(list: &Value) -> Vec<String> {
    let kind = |event: &Value| event["type"].as_str().expect("a type").to_owned();
    list["data"].as_array().expect("a list").iter().map(kind).collect()
}

fn catalog() -> Catalog {
    let model = |id: &str, micros: i64, lifecycle: Lifecycle| ModelInfo {
        tag: ModelTag::Model,
        id: id.to_owned(),
        display_name: id.to_owned(),
        created_at: Timestamp::from_micros(micros),
        lifecycle,
        deprecated_at: None,
        retires_at: None,
        line: None,
        max_input_tokens: None,
        max_tokens: None,
        capabilities: None,
        allowed_fallback_models: None,
    };
    let rule = |pattern: &str, has_mid_conversation_system| ModelRule {
        pattern: pattern.to_owned(),
        has_mid_conversation_system,
    };
    Catalog {
        models: vec![
            model("m-1", 1, Lifecycle::Active),
            model("m-3", 3, Lifecycle::Active),
            model("m-2", 2, Lifecycle::Deprecated),
            model("m-0", 0, Lifecycle::Retired),
        ],
        rules: vec![rule("m-plain", false), rule("m-*", true), rule("org/*", true)],
    }
}
