//! The requests of one connection: guarded, bounded, each with the credential of the moment.
//!
//! Nothing here reaches another origin than the server's own. Redirects within it are followed, since many servers move
//! `/mcp` to `/mcp/`; any other is an error that the agent's owner can mend.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt as _};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use reqwest::{Response, Url};
use rmcp::model::{ClientJsonRpcMessage, JsonRpcMessage, ServerJsonRpcMessage};
use rmcp::transport::streamable_http_client::{
    SseError, StreamableHttpClient, StreamableHttpError, StreamableHttpPostResponse,
};
use sse_stream::{Sse, SseStream};
use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::error::Error;
use crate::limits::{
    ERROR_BYTES_MAX, MESSAGE_BYTES_MAX, REDIRECTS_MAX, STREAM_BYTES_MAX, STREAM_PAUSE, STREAMS_MAX,
};
use crate::proxy::{Bearer, Pass};
use crate::tools::cut;

const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream";
const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// How much of a server's own words is shown in an error.
const SHOWN_CHARS_MAX: usize = 300;
/// A session's id, and an event's. They are sent back with each request.
const ID_BYTES_MAX: usize = 1_024;

/// Why a request gave nothing of use.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// 401, or a credential that could not be had.
    #[error("{reason}")]
    Unauthorized { reason: String },
    #[error("the session's token is not valid")]
    Token,
    /// Refused by the guard, or no connection: nothing was sent.
    #[error("{0}")]
    NotAsked(String),
    #[error("the server redirects to another place, which is not followed: put that address into the agent")]
    Redirected,
    /// A status that says that nothing was done.
    #[error("the server answered HTTP {code}{shown}")]
    Status { code: StatusCode, shown: String },
    /// The request went out; what came back is no answer.
    #[error("{0}")]
    Broken(String),
    #[error("the server's answer is larger than {MESSAGE_BYTES_MAX} bytes")]
    TooLarge,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Unauthorized(reason) => Self::Unauthorized { reason },
            Error::TokenRefused => Self::Token,
            Error::Unreachable(text) | Error::Broken(text) | Error::Refused(text) => Self::NotAsked(text),
        }
    }
}

/// The HTTP of one connection.
#[derive(Clone)]
pub(crate) struct Http {
    pub(crate) pass: Arc<Pass>,
    shared: Arc<Shared>,
}

struct Shared {
    url: Url,
    /// Nobody wants the connection any more: what is on its way is given up. The SDK has tasks of its own, which would wait
    /// for a silent server for ever.
    over: CancellationToken,
    /// How many streams the connection has begun by itself.
    streams: AtomicU32,
    /// A bound was passed: what is left of the connection is not resumed.
    is_spoilt: AtomicBool,
    /// Why the last request failed, for whoever asks why there is no connection.
    failure: Mutex<Option<Failure>>,
}

impl Http {
    pub(crate) fn new(pass: Arc<Pass>, url: Url) -> Self {
        let shared = Shared {
            url,
            over: CancellationToken::new(),
            streams: AtomicU32::new(0),
            is_spoilt: AtomicBool::new(false),
            failure: Mutex::default(),
        };
        Self { pass, shared: Arc::new(shared) }
    }

    pub(crate) fn url(&self) -> &Url {
        &self.shared.url
    }

    /// Gives up whatever is on its way, and whatever would be, when it is dropped.
    pub(crate) fn end(&self) -> DropGuard {
        self.shared.over.clone().drop_guard()
    }

    /// Why the last request failed, if one did.
    pub(crate) fn failure(&self) -> Option<Failure> {
        self.shared.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends a request and gives its response once that says 2xx. Each request passes the proxy.
    pub(crate) async fn send(
        &self,
        method: Method,
        url: Url,
        headers: HeaderMap,
        body: Option<Bytes>,
    ) -> Result<Response, Failure> {
        let sending = self.send_with_credential(method, url, headers, body);
        let sent = self.shared.over.run_until_cancelled(sending).await.ok_or_else(over)?;
        if let Err(failure) = &sent {
            *self.shared.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure.clone());
        }
        sent
    }

    async fn send_with_credential(
        &self,
        method: Method,
        url: Url,
        headers: HeaderMap,
        body: Option<Bytes>,
    ) -> Result<Response, Failure> {
        // It is looked up for each request: it may have been changed or withdrawn since the last.
        let bearer = self.pass.bearer().await?;
        let response =
            self.follow(method.clone(), url.clone(), headers.clone(), body.clone(), bearer.as_ref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return self.checked(response).await;
        }
        // A 401 says that nothing was done, so that the request may be made again: once.
        let Some(refused) = bearer else {
            let reason =
                "the server wants a credential, and the session's vaults have none for it".to_owned();
            return Err(Failure::Unauthorized { reason });
        };
        let Some(fresh) = self.pass.after_401(&refused).await? else {
            return Err(Failure::Unauthorized { reason: "the server refuses the credential".to_owned() });
        };
        let response = self.follow(method, url, headers, body, Some(&fresh)).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            let reason = "the server refuses the credential, and the renewed one".to_owned();
            return Err(Failure::Unauthorized { reason });
        }
        self.checked(response).await
    }

    /// Sends, and follows what stays at the same origin and says to ask in the same way.
    async fn follow(
        &self,
        method: Method,
        mut url: Url,
        headers: HeaderMap,
        body: Option<Bytes>,
        bearer: Option<&Bearer>,
    ) -> Result<Response, Failure> {
        for _ in 0..=REDIRECTS_MAX {
            let client = self.pass.client()?;
            let request = client
                .request(method.clone(), url.clone())
                .map_err(|refusal| Failure::NotAsked(refusal.to_string()))?
                .headers(headers.clone());
            let (request, spending) = self.pass.spend(request, bearer, &url);
            let request = match &body {
                Some(body) => request.body(body.clone()),
                None => request,
            };
            let response = match request.send().await {
                Ok(response) => response,
                Err(error) => {
                    let failure = failure_of(&error);
                    if matches!(failure, Failure::NotAsked(_)) {
                        spending.void();
                    }
                    return Err(failure);
                }
            };
            spending.close(response.status() != StatusCode::UNAUTHORIZED);
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let keeps_method =
                matches!(response.status(), StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT);
            let location =
                response.headers().get(http::header::LOCATION).and_then(|value| value.to_str().ok());
            let next = location.and_then(|location| url.join(location).ok());
            url = match next {
                Some(next) if keeps_method && next.origin() == self.shared.url.origin() => next,
                Some(_) | None => return Err(Failure::Redirected),
            };
        }
        Err(Failure::Redirected)
    }

    async fn checked(&self, response: Response) -> Result<Response, Failure> {
        let code = response.status();
        if code.is_success() || is_answer(&response) {
            return Ok(response);
        }
        let body = self.body(response, ERROR_BYTES_MAX).await.unwrap_or_default();
        // Scrubbed first: of a secret that is cut, what is left would not be found.
        let text = self.pass.scrubbed(String::from_utf8_lossy(&body).into_owned());
        let text = cut(text, SHOWN_CHARS_MAX).split_whitespace().collect::<Vec<_>>().join(" ");
        let shown = if text.is_empty() { text } else { format!(": {text}") };
        if code == StatusCode::FORBIDDEN {
            return Err(Failure::Unauthorized { reason: format!("the server answered HTTP {code}{shown}") });
        }
        if code.is_server_error() {
            return Err(Failure::Broken(format!("the server answered HTTP {code}{shown}")));
        }
        Err(Failure::Status { code, shown })
    }

    /// Reads a body. An error's may be cut; an answer's is whole or too large.
    async fn body(&self, response: Response, bytes_max: usize) -> Result<Vec<u8>, Failure> {
        let is_error = !response.status().is_success() && !is_answer(&response);
        let mut body = Vec::new();
        let mut stream = response.bytes_stream();
        loop {
            let next = self.shared.over.run_until_cancelled(stream.next()).await.ok_or_else(over)?;
            let Some(chunk) = next else { break };
            let chunk = chunk.map_err(|error| failure_of(&error))?;
            if body.len() + chunk.len() > bytes_max {
                if is_error {
                    body.extend_from_slice(&chunk[..bytes_max - body.len()]);
                    break;
                }
                return Err(Failure::TooLarge);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// The events of a response, each within its bound and all within theirs, until the connection is over. Credentials
    /// are struck from them.
    fn events(&self, response: Response) -> BoxStream<'static, Result<Sse, SseError>> {
        let shared = Arc::clone(&self.shared);
        let bytes = bounded(response.bytes_stream(), move || shared.is_spoilt.store(true, Ordering::Relaxed));
        let pass = Arc::clone(&self.pass);
        let scrubbed = move |event: Result<Sse, SseError>| {
            event.map(|event| Sse {
                data: event.data.map(|data| pass.scrubbed(data)),
                id: event.id.filter(|id| pass.is_clean(id)),
                ..event
            })
        };
        let over = self.shared.over.clone().cancelled_owned();
        SseStream::from_bytes_stream(bytes).map(scrubbed).take_until(over).boxed()
    }

    /// Begins a stream of the connection's own: of notices, or what is left of an answer.
    pub(crate) async fn stream(
        &self,
        headers: HeaderMap,
    ) -> Result<BoxStream<'static, Result<Sse, SseError>>, Failure> {
        let begun = self.shared.streams.fetch_add(1, Ordering::Relaxed);
        if begun >= STREAMS_MAX || self.shared.is_spoilt.load(Ordering::Relaxed) {
            return Err(Failure::Broken("the server has ended its streams too often".to_owned()));
        }
        if begun > 0 {
            sleep(STREAM_PAUSE).await;
        }
        let response = self.send(Method::GET, self.shared.url.clone(), headers, None).await?;
        if !is_of_type(&response, EVENTS) {
            return Err(Failure::Broken("the server's answer is no stream of events".to_owned()));
        }
        Ok(self.events(response))
    }

    /// Posts a message of the connection to an address of the server's origin.
    pub(crate) async fn post(
        &self,
        url: Url,
        headers: HeaderMap,
        message: &ClientJsonRpcMessage,
    ) -> Result<Response, Failure> {
        let body = serde_json::to_vec(message)
            .map_err(|error| Failure::NotAsked(format!("the request cannot be written as JSON: {error}")))?;
        let mut headers = headers;
        headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static(JSON));
        self.send(Method::POST, url, headers, Some(body.into())).await
    }

    async fn answer(
        &self,
        message: &ClientJsonRpcMessage,
        response: Response,
    ) -> Result<StreamableHttpPostResponse, Failure> {
        // What is no request awaits no answer, and whatever comes is none.
        let awaits_answer = matches!(message, JsonRpcMessage::Request(_));
        if !awaits_answer || matches!(response.status(), StatusCode::ACCEPTED | StatusCode::NO_CONTENT) {
            return Ok(StreamableHttpPostResponse::Accepted);
        }
        let session = response.headers().get(&SESSION_ID).and_then(|value| value.to_str().ok());
        let session =
            session.filter(|id| id.len() <= ID_BYTES_MAX && self.pass.is_clean(id)).map(str::to_owned);
        if is_of_type(&response, EVENTS) {
            return Ok(StreamableHttpPostResponse::Sse(self.events(response), session));
        }
        if !is_of_type(&response, JSON) {
            let text = "the server's answer is neither JSON nor a stream of events";
            return Err(Failure::Broken(text.to_owned()));
        }
        let body = self.body(response, MESSAGE_BYTES_MAX).await?;
        let message = String::from_utf8(body).ok().map(|body| self.pass.scrubbed(body));
        let message: Option<ServerJsonRpcMessage> =
            message.and_then(|message| serde_json::from_str(&message).ok());
        let Some(message) = message else {
            return Err(Failure::Broken("the server's answer is no JSON-RPC message".to_owned()));
        };
        Ok(StreamableHttpPostResponse::Json(message, session))
    }
}

impl StreamableHttpClient for Http {
    type Error = Failure;

    async fn post_message(
        &self,
        _: Arc<str>,
        message: ClientJsonRpcMessage,
        session: Option<Arc<str>>,
        _: Option<String>,
        custom: HashMap<HeaderName, HeaderValue>,
    ) -> Result<StreamableHttpPostResponse, StreamableHttpError<Failure>> {
        let has_session = session.is_some();
        let headers = headers(session.as_deref(), None, custom);
        match self.post(self.shared.url.clone(), headers, &message).await {
            Ok(response) => self.answer(&message, response).await.map_err(StreamableHttpError::Client),
            Err(Failure::Status { code: StatusCode::NOT_FOUND, .. }) if has_session => {
                Err(StreamableHttpError::SessionExpired)
            }
            Err(failure) => Err(StreamableHttpError::Client(failure)),
        }
    }

    async fn delete_session(
        &self,
        _: Arc<str>,
        session: Arc<str>,
        _: Option<String>,
        custom: HashMap<HeaderName, HeaderValue>,
    ) -> Result<(), StreamableHttpError<Failure>> {
        let headers = headers(Some(&session), None, custom);
        match self.send(Method::DELETE, self.shared.url.clone(), headers, None).await {
            // Servers need not have it.
            Ok(_) | Err(Failure::Status { code: StatusCode::METHOD_NOT_ALLOWED, .. }) => Ok(()),
            Err(failure) => Err(StreamableHttpError::Client(failure)),
        }
    }

    async fn get_stream(
        &self,
        _: Arc<str>,
        session: Option<Arc<str>>,
        last_event_id: Option<String>,
        _: Option<String>,
        custom: HashMap<HeaderName, HeaderValue>,
    ) -> Result<BoxStream<'static, Result<Sse, SseError>>, StreamableHttpError<Failure>> {
        let last_event_id = last_event_id.filter(|id| id.len() <= ID_BYTES_MAX);
        let headers = headers(session.as_deref(), last_event_id.as_deref(), custom);
        // Whatever the reason: a stream that cannot be had is not asked for again.
        self.stream(headers).await.map_err(|_| StreamableHttpError::ServerDoesNotSupportSse)
    }
}

fn headers(
    session: Option<&str>,
    last_event_id: Option<&str>,
    custom: HashMap<HeaderName, HeaderValue>,
) -> HeaderMap {
    let mut headers: HeaderMap = custom.into_iter().collect();
    headers.remove(http::header::AUTHORIZATION);
    headers.insert(http::header::ACCEPT, HeaderValue::from_static("application/json, text/event-stream"));
    for (name, value) in [(SESSION_ID, session), (LAST_EVENT_ID, last_event_id)] {
        if let Some(value) = value.and_then(|value| HeaderValue::from_str(value).ok()) {
            headers.insert(name, value);
        }
    }
    headers
}

fn is_of_type(response: &Response, wanted: &str) -> bool {
    let kind = response.headers().get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    kind.and_then(|kind| kind.split(';').next()).is_some_and(|kind| kind.trim().eq_ignore_ascii_case(wanted))
}

/// Whether a refusal may hold a JSON-RPC error: then that is the answer.
fn is_answer(response: &Response) -> bool {
    let code = response.status();
    let is_usual = matches!(code.as_u16(), 400 | 422 | 500);
    is_usual && is_of_type(response, JSON) && response.headers().contains_key(SESSION_ID)
}

fn over() -> Failure {
    Failure::Broken("the connection is over".to_owned())
}

fn failure_of(error: &reqwest::Error) -> Failure {
    if let Some(refusal) = egress::Client::refusal(error) {
        return Failure::NotAsked(refusal.to_string());
    }
    if error.is_connect() {
        return Failure::NotAsked("the server cannot be connected to".to_owned());
    }
    Failure::Broken("the connection broke before the server had answered".to_owned())
}

#[derive(Debug, thiserror::Error)]
enum Cut {
    #[error("the connection broke")]
    Broken(#[source] reqwest::Error),
    #[error("the stream is larger than it may be")]
    TooLarge,
}

/// The bytes of a stream of events, as long as each event and all together stay within their bounds. `spoil` is called when
/// they do not.
fn bounded(
    bytes: impl Stream<Item = reqwest::Result<Bytes>> + Send + 'static,
    spoil: impl Fn() + Send + 'static,
) -> impl Stream<Item = Result<Bytes, Cut>> + Send {
    let start = (Box::pin(bytes), Meter::default(), spoil);
    futures_util::stream::try_unfold(start, |(mut bytes, mut meter, spoil)| async move {
        match bytes.next().await {
            None => Ok(None),
            Some(Err(error)) => Err(Cut::Broken(error)),
            Some(Ok(chunk)) if meter.takes(&chunk) => Ok(Some((chunk, (bytes, meter, spoil)))),
            Some(Ok(_)) => {
                spoil();
                Err(Cut::TooLarge)
            }
        }
    })
}

/// Counts what one event and the whole stream have taken.
#[derive(Default)]
struct Meter {
    all: usize,
    event: usize,
    /// Whether the last byte ended a line: another end of line ends the event.
    is_line_end: bool,
}

impl Meter {
    fn takes(&mut self, chunk: &[u8]) -> bool {
        self.all += chunk.len();
        if self.all > STREAM_BYTES_MAX {
            return false;
        }
        for &byte in chunk {
            match byte {
                b'\r' => {}
                b'\n' if self.is_line_end => self.event = 0,
                b'\n' => self.is_line_end = true,
                _ => self.is_line_end = false,
            }
            self.event += 1;
            if self.event > MESSAGE_BYTES_MAX {
                return false;
            }
        }
        true
    }
}
