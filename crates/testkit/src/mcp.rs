//! An MCP server that behaves as it is told to: well, or as a hostile one would. Streamable HTTP, with or without sessions.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, Response, StatusCode};
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// One request that the server has got.
#[derive(Clone, Debug)]
pub struct Asked {
    /// `POST`, `GET` or `DELETE`.
    pub http: String,
    /// The JSON-RPC method; empty if there is none.
    pub method: String,
    /// Its parameters.
    pub params: Value,
    /// Its id.
    pub id: Value,
    /// The `Authorization` header.
    pub authorization: Option<String>,
    /// The session that it names.
    pub session: Option<String>,
    /// The path that it came to.
    pub path: String,
}

/// What the server does with a request.
pub enum Reply {
    /// What a server does that means well.
    Usual,
    /// This result.
    Result(Value),
    /// This JSON-RPC error.
    Error(i64, &'static str),
    /// This status, with a header and a body.
    Http(u16, Vec<(&'static str, String)>, String),
    /// A stream of events: these, as they are, and then the end.
    Events(Vec<String>),
    /// The same, with a pause before each.
    Paced(Duration, Vec<String>),
    /// A stream of events: these, then this one for ever.
    Endless(Vec<String>, String),
    /// A stream of events: these, and then nothing, for ever.
    Open(Vec<String>),
    /// No answer, ever.
    Never,
}

type Act = dyn Fn(&Asked) -> Reply + Send + Sync;

/// A running server. It ends with the value.
pub struct McpServer {
    url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    task: JoinHandle<()>,
}

#[derive(Clone)]
struct Desk {
    act: Arc<Act>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

/// The session that a well-meaning server gives everybody.
pub const SESSION: &str = "session-1";

impl McpServer {
    /// A server that means well: `echo`, `pay` (which changes something), `look` (which does not) and `flood`.
    pub async fn usual() -> Self {
        Self::start(|_| Reply::Usual).await
    }

    /// A server that decides by each request.
    pub async fn start(act: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let asked = Arc::default();
        let desk = Desk { act: Arc::new(act), asked: Arc::clone(&asked) };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let url = format!("http://127.0.0.1:{}/mcp", listener.local_addr().expect("it is bound").port());
        let router = Router::new().fallback(serve).with_state(desk);
        let task = tokio::spawn(async move { axum::serve(listener, router).await.expect("it serves") });
        Self { url, asked, task }
    }

    /// Where it is asked.
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// Everything that it was asked, oldest first.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How often it was asked for this method.
    pub fn count(&self, method: &str) -> usize {
        self.asked().iter().filter(|asked| asked.method == method).count()
    }
}

impl Drop for McpServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One event of a stream, with a message.
pub fn event(message: &Value) -> String {
    format!("data: {message}\n\n")
}

/// A JSON-RPC response.
pub fn response(id: &Value, result: &Value) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "result": result})
}

async fn serve(
    State(desk): State<Desk>,
    method: Method,
    uri: axum::http::Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let message: Value = serde_json::from_slice(&body).unwrap_or_default();
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let asked = Asked {
        http: method.to_string(),
        method: message["method"].as_str().unwrap_or_default().to_owned(),
        params: message["params"].clone(),
        id: message["id"].clone(),
        authorization: header("authorization"),
        session: header("mcp-session-id"),
        path: uri.path().to_owned(),
    };
    desk.asked.lock().unwrap_or_else(PoisonError::into_inner).push(asked.clone());
    let reply = match (desk.act)(&asked) {
        Reply::Usual => usual(&asked),
        other => other,
    };
    answer(&asked, reply).await
}

/// What a server does that means well.
pub fn usual(asked: &Asked) -> Reply {
    match asked.method.as_str() {
        "initialize" => Reply::Result(json!({
            "protocolVersion": "2025-11-25", "capabilities": {"tools": {"listChanged": true}},
            "serverInfo": {"name": "testkit", "version": "1"},
        })),
        "tools/list" => Reply::Result(json!({ "tools": tools() })),
        "tools/call" => {
            let name = asked.params["name"].as_str().unwrap_or_default();
            let text = match name {
                "flood" => "0123456789".repeat(15_000),
                _ => format!("{name} {}", asked.params["arguments"]),
            };
            Reply::Result(json!({"content": [{"type": "text", "text": text}]}))
        }
        "" if asked.http == "GET" => Reply::Http(405, Vec::new(), String::new()),
        "" => Reply::Http(200, Vec::new(), String::new()),
        _ => Reply::Http(202, Vec::new(), String::new()),
    }
}

/// What it lists.
pub fn tools() -> Value {
    let schema = json!({"type": "object", "properties": {"x": {"type": "string"}}});
    json!([
        {"name": "pay", "description": "Pays.", "inputSchema": schema},
        {"name": "echo", "description": "Says it again.", "inputSchema": schema},
        {"name": "look", "description": "Looks.", "inputSchema": schema, "annotations": {"readOnlyHint": true}},
        {"name": "flood", "description": "Says much.", "inputSchema": schema},
    ])
}

async fn answer(asked: &Asked, reply: Reply) -> Response<Body> {
    let builder = Response::builder();
    let json = |body: Value| {
        let builder = Response::builder().header("content-type", "application/json");
        builder.header("mcp-session-id", SESSION).body(Body::from(body.to_string()))
    };
    let events = |body: Body| {
        Response::builder()
            .header("content-type", "text/event-stream")
            .header("mcp-session-id", SESSION)
            .body(body)
    };
    let text = |events: Vec<String>| stream::iter(events.into_iter().map(Ok::<_, std::convert::Infallible>));
    let answer = match reply {
        Reply::Usual => unreachable!("it was turned into what is usual"),
        Reply::Result(result) => json(response(&asked.id, &result)),
        Reply::Error(code, message) => {
            json(json!({"jsonrpc": "2.0", "id": asked.id, "error": {"code": code, "message": message}}))
        }
        Reply::Http(status, headers, body) => {
            let status = StatusCode::from_u16(status).expect("a status");
            let builder = headers
                .into_iter()
                .fold(builder.status(status), |builder, (name, value)| builder.header(name, value));
            builder.body(Body::from(body))
        }
        Reply::Events(all) => events(Body::from_stream(text(all))),
        Reply::Paced(pause, all) => {
            let paced = text(all).then(move |event| async move {
                tokio::time::sleep(pause).await;
                event
            });
            events(Body::from_stream(paced))
        }
        Reply::Endless(first, again) => {
            let endless = stream::repeat(again).map(Ok);
            events(Body::from_stream(text(first).chain(endless)))
        }
        Reply::Open(first) => {
            let never = stream::pending::<Result<String, std::convert::Infallible>>();
            events(Body::from_stream(text(first).chain(never)))
        }
        Reply::Never => std::future::pending().await,
    };
    answer.expect("a response")
}
