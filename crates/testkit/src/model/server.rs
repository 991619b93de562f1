//! The server itself: its handle for tests in Rust, its routes for everybody.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Query, State as Shared};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt as _;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::reply::{Block, Error, Reply};
use super::state::{Outcome, Request, State, Ticket};
use super::{anthropic, check, openai, play};

/// A running model server. Dropping it stops it.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    state: Arc<State>,
    serving: JoinHandle<()>,
}

impl Server {
    /// Starts on a free port of the loopback interface.
    pub async fn start() -> Self {
        Self::listen(SocketAddr::from(([127, 0, 0, 1], 0)))
            .await
            .expect("a free port on the loopback interface")
    }

    /// Starts on this address.
    pub async fn listen(address: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let state = Arc::new(State::new());
        let router = router(Arc::clone(&state));
        // Deltas are small; waiting to fill a packet would falsify every latency that is measured against this server.
        let counting = Arc::clone(&state);
        let listener = listener.tap_io(move |connection| {
            let _ = connection.set_nodelay(true);
            counting.count_connection();
        });
        let serving =
            tokio::spawn(async move { axum::serve(listener, router).await.expect("accepting never ends") });
        Ok(Self { address, state, serving })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The base URL for the Messages API, `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The base URL for chat completions, `http://127.0.0.1:PORT/v1`.
    pub fn openai_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Appends to the model's queue of replies.
    pub fn script(&self, model: &str, replies: impl IntoIterator<Item = Reply>) {
        self.state.script(model, replies);
    }

    /// Answers every request for which no queue has a reply, from its body. What was asked is not kept from then on,
    /// only how it fared and what was wrong with it.
    ///
    /// # Panics
    /// If there is one already.
    pub fn improvise(&self, answer: impl Fn(&Value) -> Reply + Send + Sync + 'static) {
        self.state.improvise(Box::new(answer));
    }

    /// Lets go what waits on the hold, now and later.
    pub fn release(&self, hold: &str) {
        self.state.release(hold);
    }

    /// How many answers wait on the hold.
    pub fn waiting(&self, hold: &str) -> usize {
        self.state.waiting(hold)
    }

    /// Returns when an answer waits on the hold.
    pub async fn until_waiting(&self, hold: &str) {
        self.state.until_waiting(hold).await;
    }

    /// Every request for the model, in order.
    pub fn requests(&self, model: &str) -> Vec<Request> {
        self.state.requests(Some(model))
    }

    /// Returns when the model was asked this many times.
    pub async fn until_requests(&self, model: &str, count: usize) {
        self.state.until_requests(model, count).await;
    }

    /// Returns when the answer to the request of this index fared so.
    pub async fn until_outcome(&self, model: &str, index: usize, outcome: Outcome) {
        self.state.until_outcome(model, index, outcome).await;
    }

    /// How many replies the model has left.
    pub fn replies_left(&self, model: &str) -> usize {
        self.state.replies_left(model)
    }

    /// How many connections were made.
    pub fn connections(&self) -> usize {
        self.state.connections()
    }

    /// What was wrong with the requests so far, for all models.
    pub fn violations(&self) -> Vec<String> {
        self.state.requests(None).into_iter().filter_map(|request| request.violation).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn router(state: Arc<State>) -> Router {
    Router::new()
        .route("/v1/messages", post(messages))
        .route("/v1/chat/completions", post(chat_completions))
        .route("/chat/completions", post(chat_completions))
        .route("/v1/models", get(models))
        .route("/_script", post(script))
        .route("/_release", post(release))
        .route("/_requests", get(requests))
        .route("/_waiting", get(waiting))
        // As large as the real services take.
        .layer(DefaultBodyLimit::max(32 * 1024 * 1024))
        .with_state(state)
}

/// The two wire formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wire {
    Anthropic,
    OpenAi,
}

async fn messages(Shared(state): Shared<Arc<State>>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    answer(state, Wire::Anthropic, uri.path(), &headers, &body)
}

async fn chat_completions(
    Shared(state): Shared<Arc<State>>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    answer(state, Wire::OpenAi, uri.path(), &headers, &body)
}

fn answer(state: Arc<State>, wire: Wire, path: &str, headers: &HeaderMap, body: &Bytes) -> Response {
    let raw = String::from_utf8_lossy(body).into_owned();
    let parsed: Value = serde_json::from_str(&raw).unwrap_or_default();
    let model = parsed["model"].as_str().unwrap_or_default().to_owned();
    let headers: BTreeMap<String, String> = headers
        .iter()
        .map(|(name, value)| {
            (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        })
        .collect();
    let refusal = refusal(&state, wire, &model, &headers, &parsed);
    let violation = refusal.as_ref().map(|(_, _, message)| message.clone());
    let ticket = state.record(&model, path, headers.clone(), raw, violation);
    if let Some((status, kind, message)) = refusal {
        return refuse(wire, &ticket, status, kind, &message);
    }
    let Some(reply) = state.next_reply(&model, &parsed) else {
        return refuse(wire, &ticket, 500, "api_error", "script is empty");
    };
    if let Some(raw) = reply.raw.clone() {
        let response = response(raw.status, &raw.content_type, &raw.headers);
        let event = play::Event { kind: play::Kind::Frame, frame: raw.body };
        return response(Body::from_stream(play::body(state, ticket, reply, vec![event])));
    }
    if let Some(error) = reply.error.clone().filter(|error| !error.in_stream) {
        return fail(wire, &ticket, &error, &headers);
    }
    let index = ticket.index;
    remember_thinking(&state, &model, index, &reply);
    let streamed = parsed["stream"] == true;
    let content_type = if streamed { "text/event-stream; charset=utf-8" } else { "application/json" };
    let events = match (wire, streamed) {
        (Wire::Anthropic, true) => anthropic::events(&reply, &model, index),
        (Wire::OpenAi, true) => {
            openai::events(&reply, &model, index, parsed["stream_options"]["include_usage"] == true)
        }
        (Wire::Anthropic, false) => whole(anthropic::message(&reply, &model, index)),
        (Wire::OpenAi, false) => whole(openai::completion(&reply, &model, index)),
    };
    let mut headers = reply.headers.clone();
    headers.insert("request-id".to_owned(), format!("req_{index}"));
    response(200, content_type, &headers)(Body::from_stream(play::body(state, ticket, reply, events)))
}

fn whole(message: Value) -> Vec<play::Event> {
    vec![play::Event { kind: play::Kind::Frame, frame: message.to_string() }]
}

/// Status, error type and message, if the request is not one.
fn refusal(
    state: &State,
    wire: Wire,
    model: &str,
    headers: &BTreeMap<String, String>,
    body: &Value,
) -> Option<(u16, &'static str, String)> {
    let bad = |message: String| Some((400, "invalid_request_error", message));
    if wire == Wire::Anthropic {
        if !headers.contains_key("x-api-key") && !headers.contains_key("authorization") {
            return Some((401, "authentication_error", "x-api-key header is required".into()));
        }
        if !headers.contains_key("anthropic-version") {
            return bad("anthropic-version: header is required".into());
        }
    }
    if !body.is_object() {
        return bad("The request body is not valid JSON".into());
    }
    if model.is_empty() {
        return bad("model: Field required".into());
    }
    let verdict = match wire {
        Wire::Anthropic => check::anthropic(state, model, body),
        Wire::OpenAi => check::openai(body),
    };
    verdict.err().and_then(bad)
}

fn refuse(wire: Wire, ticket: &Ticket, status: u16, kind: &str, message: &str) -> Response {
    let error = Reply::error(status, kind).with_error(|error| message.clone_into(&mut error.message)).error;
    fail(wire, ticket, &error.expect("an error reply"), &BTreeMap::new())
}

fn fail(wire: Wire, ticket: &Ticket, error: &Error, request_headers: &BTreeMap<String, String>) -> Response {
    let mut message = error.message.clone();
    if error.echo_headers {
        message = format!("{message}; your headers were {request_headers:?}");
    }
    let body = match wire {
        Wire::Anthropic => anthropic::error_body(error, &message, &format!("req_{}", ticket.index)),
        Wire::OpenAi => openai::error_body(error, &message),
    };
    let mut headers = error.headers.clone();
    if let Some(seconds) = error.retry_after {
        headers.insert("retry-after".into(), seconds.to_string());
    }
    ticket.settle(Outcome::Complete);
    response(error.status, "application/json", &headers)(Body::from(body.to_string()))
}

fn response(
    status: u16,
    content_type: &str,
    headers: &BTreeMap<String, String>,
) -> impl FnOnce(Body) -> Response + use<> {
    let mut response = Response::builder().status(status).header(header::CONTENT_TYPE, content_type);
    for (name, value) in headers {
        response = response.header(name, HeaderValue::from_str(value).expect("a scripted header is legal"));
    }
    move |body| response.body(body).expect("a scripted status is legal")
}

/// Thinking that came with a tool call has to come back with it.
fn remember_thinking(state: &State, model: &str, request: usize, reply: &Reply) {
    let thinking: Vec<String> = reply
        .blocks
        .iter()
        .filter_map(|block| match block {
            Block::Thinking { thinking } => Some(thinking.clone()),
            Block::RedactedThinking { .. } | Block::Text { .. } | Block::Tool { .. } => None,
        })
        .collect();
    for (index, block) in reply.blocks.iter().enumerate() {
        if matches!(block, Block::Tool { .. }) {
            state.remember_thinking(model, &anthropic::call_id(model, request, index), &thinking);
        }
    }
}

async fn models(Shared(state): Shared<Arc<State>>, headers: HeaderMap) -> axum::Json<Value> {
    let names = state.models();
    if headers.contains_key("anthropic-version") {
        let model = |name: &String| {
            json!({
                "type": "model",
                "id": name,
                "display_name": name,
                "created_at": "1970-01-01T00:00:00Z",
                "lifecycle": "active",
            })
        };
        let data: Vec<Value> = names.iter().map(model).collect();
        return axum::Json(
            json!({"data": data, "has_more": false, "first_id": names.first(), "last_id": names.last()}),
        );
    }
    let model = |name: &String| json!({"id": name, "object": "model", "created": 0, "owned_by": "testkit"});
    axum::Json(json!({"object": "list", "data": names.iter().map(model).collect::<Vec<_>>()}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ScriptBody {
    model: String,
    replies: Vec<Reply>,
}

async fn script(Shared(state): Shared<Arc<State>>, body: Bytes) -> Response {
    match serde_json::from_slice::<ScriptBody>(&body) {
        Ok(ScriptBody { model, replies }) => {
            state.script(&model, replies);
            axum::Json(json!({})).into_response()
        }
        Err(error) => bad_control(&error),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReleaseBody {
    hold: String,
}

async fn release(Shared(state): Shared<Arc<State>>, body: Bytes) -> Response {
    match serde_json::from_slice::<ReleaseBody>(&body) {
        Ok(ReleaseBody { hold }) => {
            state.release(&hold);
            axum::Json(json!({})).into_response()
        }
        Err(error) => bad_control(&error),
    }
}

/// The script itself is wrong: a 422, which no model answers, so that nobody takes it for the model's.
fn bad_control(error: &serde_json::Error) -> Response {
    (StatusCode::UNPROCESSABLE_ENTITY, axum::Json(json!({"error": error.to_string()}))).into_response()
}

async fn requests(
    Shared(state): Shared<Arc<State>>,
    Query(query): Query<HashMap<String, String>>,
) -> axum::Json<Value> {
    axum::Json(json!({"requests": state.requests(query.get("model").map(String::as_str))}))
}

async fn waiting(
    Shared(state): Shared<Arc<State>>,
    Query(query): Query<HashMap<String, String>>,
) -> axum::Json<Value> {
    let hold = query.get("hold").map(String::as_str).unwrap_or_default();
    axum::Json(json!({"waiting": state.waiting(hold)}))
}
