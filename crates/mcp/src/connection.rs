//! One session's connection to one server.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reqwest::Url;
use rmcp::model::{
    CallToolRequest, CallToolRequestParams, CancelledNotificationParam, ClientCapabilities, ClientConfig,
    ClientRequest, ErrorCode, Implementation, PaginatedRequestParams, ProtocolVersion, ServerResult,
};
use rmcp::service::{
    ClientInitializeError, NotificationContext, PeerRequestOptions, RequestHandle, RunningService,
};
use rmcp::transport::common::client_side_sse::ExponentialBackoff;
use rmcp::transport::streamable_http_client::{
    StreamableHttpClientTransport, StreamableHttpClientTransportConfig,
};
use rmcp::{ClientHandler, ClientLifecycleMode, Peer, RoleClient, ServiceError, serve_client_with_lifecycle};
use serde_json::{Map, Value};
use tokio::time::timeout;
use tokio_util::sync::DropGuard;

use crate::content::{self, Output};
use crate::error::Error;
use crate::http::{Failure, Http};
use crate::limits::{MESSAGE_BYTES_MAX, PAGES_MAX, Times};
use crate::proxy::Pass;
use crate::sse::SseTransport;
use crate::tools::{List, Tool};

/// How long a goodbye may take, and a notice that nobody waits for an answer any more.
const FAREWELL_MAX: Duration = Duration::from_secs(2);
/// How often a stream that cannot be begun again is tried.
const RETRIES_MAX: usize = 3;

/// A connection to a server. Dropped, it ends without a goodbye.
pub struct Connection {
    service: RunningService<RoleClient, Handler>,
    http: Http,
    is_stale: Arc<AtomicBool>,
    _end: DropGuard,
}

/// Connects with whatever the server speaks: streamable HTTP with or without a handshake, else the older HTTP+SSE.
pub(crate) async fn connect(pass: Pass, url: Url) -> Result<Connection, Error> {
    let proxy = Arc::clone(&pass.proxy);
    let limit = proxy.times.connect_max;
    let connecting = async {
        let _place = proxy.places.acquire().await.expect("the semaphore is never closed");
        start(Arc::new(pass), url).await
    };
    // Late, it was not asked for anything yet.
    timeout(limit, connecting).await.unwrap_or_else(|_| {
        Err(Error::Unreachable(format!("the server was not ready within {} s", limit.as_secs_f64())))
    })
}

async fn start(pass: Arc<Pass>, url: Url) -> Result<Connection, Error> {
    let http = Http::new(Arc::clone(&pass), url.clone());
    let error = match streamable(&http, ClientLifecycleMode::Initialize).await {
        Ok(connection) => return Ok(connection),
        Err(error) => error,
    };
    if let ClientInitializeError::JsonRpcError(_) = &error {
        // The newest servers know no handshake, and say so.
        let preferred_versions = vec![ProtocolVersion::V_2026_07_28];
        let http = Http::new(Arc::clone(&pass), url.clone());
        if let Ok(connection) = streamable(&http, ClientLifecycleMode::Discover { preferred_versions }).await
        {
            return Ok(connection);
        }
    }
    let failure = http.failure();
    let is_older = matches!(&failure, Some(Failure::Status { code, .. }) if matches!(code.as_u16(), 400 | 404 | 405 | 406 | 415));
    if is_older {
        let older = Http::new(pass, url);
        let end = older.end();
        if let Ok(transport) = SseTransport::open(older.clone()).await {
            let (handler, is_stale) = Handler::new();
            let served =
                serve_client_with_lifecycle(handler, transport, ClientLifecycleMode::Initialize).await;
            return match served {
                Ok(service) => Ok(Connection { service, http: older, is_stale, _end: end }),
                Err(error) => Err(described(&older, &error)),
            };
        }
    }
    Err(described(&http, &error))
}

/// What a request failed with says more than that there is no connection.
fn described(http: &Http, error: &ClientInitializeError) -> Error {
    let error = match (http.failure(), error) {
        (
            Some(failure),
            ClientInitializeError::TransportError { .. } | ClientInitializeError::ConnectionClosed(_),
        ) => Error::from(&failure),
        _ => Error::of_start(error),
    };
    error.map(shown)
}

/// A stranger's words are not shown at any length.
fn shown(text: String) -> String {
    crate::tools::cut(text, 500)
}

async fn streamable(http: &Http, mode: ClientLifecycleMode) -> Result<Connection, ClientInitializeError> {
    // Whichever way this ends without a connection, nothing of the attempt stays.
    let end = http.end();
    let mut config = StreamableHttpClientTransportConfig::with_uri(http.url().as_str())
        .max_sse_event_size(MESSAGE_BYTES_MAX)
        .max_json_response_size(MESSAGE_BYTES_MAX);
    let mut retries = ExponentialBackoff::default();
    retries.max_times = Some(RETRIES_MAX);
    config.retry_config = Arc::new(retries);
    let transport = StreamableHttpClientTransport::with_client(http.clone(), config);
    let (handler, is_stale) = Handler::new();
    let service = serve_client_with_lifecycle(handler, transport, mode).await?;
    Ok(Connection { service, http: http.clone(), is_stale, _end: end })
}

impl Connection {
    /// The server's tools, in the order of their names. Takes no longer than [`Times::list_max`].
    pub async fn tools(&self) -> Result<Vec<Tool>, Error> {
        self.is_stale.store(false, Ordering::Relaxed);
        let limit = self.times().list_max;
        let listed = timeout(limit, self.list())
            .await
            .unwrap_or_else(|_| Err(Error::late("the list of tools", limit)));
        listed.map_err(|error| error.map(shown))
    }

    async fn list(&self) -> Result<Vec<Tool>, Error> {
        let mut list = List::default();
        let mut cursor = None;
        for _ in 0..PAGES_MAX {
            let params = cursor.map(|cursor| PaginatedRequestParams::default().with_cursor(Some(cursor)));
            let page = match self.service.peer().list_tools(params).await {
                Ok(page) => page,
                Err(ServiceError::McpError(error)) if error.code == ErrorCode::METHOD_NOT_FOUND => {
                    return Ok(Vec::new());
                }
                Err(error) => return Err(Error::of_request(error)),
            };
            for tool in page.tools {
                list.add(tool).map_err(Error::Broken)?;
            }
            cursor = page.next_cursor;
            if cursor.is_none() {
                return Ok(list.finish());
            }
        }
        Err(Error::Broken(format!("the server's list of tools has more than {PAGES_MAX} pages")))
    }

    /// Whether the server has said that its list has changed since it was asked for it.
    pub fn is_stale(&self) -> bool {
        self.is_stale.load(Ordering::Relaxed)
    }

    /// Whether nothing can be asked over it any more.
    pub fn is_closed(&self) -> bool {
        self.service.is_closed() || self.service.peer().is_transport_closed()
    }

    /// Begins a call. Once this has returned, it may have been made.
    pub async fn call(&self, tool: &str, arguments: Map<String, Value>) -> Result<Call, Error> {
        let params = CallToolRequestParams::new(tool.to_owned()).with_arguments(arguments);
        let request = CallToolRequest::new(params);
        let options = PeerRequestOptions::with_timeout(self.times().call_quiet_max)
            .reset_timeout_on_progress()
            .with_max_total_timeout(self.times().call_max);
        let peer = self.service.peer().clone();
        let handle = peer
            .send_cancellable_request(ClientRequest::CallToolRequest(request), options)
            .await
            .map_err(Error::of_request)?;
        Ok(Call { handle, peer })
    }

    /// Says goodbye to the server, within two seconds.
    pub async fn close(mut self) {
        let _ = self.service.close_with_timeout(FAREWELL_MAX).await;
    }

    fn times(&self) -> Times {
        self.http.pass.proxy.times
    }
}

/// A call that is being made.
pub struct Call {
    handle: RequestHandle<RoleClient>,
    peer: Peer<RoleClient>,
}

/// Ends a call that nobody waits for any more.
pub struct Cancel {
    peer: Peer<RoleClient>,
    id: rmcp::model::RequestId,
}

impl Call {
    /// What ends it.
    pub fn cancel(&self) -> Cancel {
        Cancel { peer: self.peer.clone(), id: self.handle.id.clone() }
    }

    /// Waits for what it comes to: as long as the server shows progress, and no longer than [`Times::call_max`].
    pub async fn output(self) -> Result<Output, Error> {
        let answer = self.handle.await_response().await;
        let result = match answer {
            Ok(ServerResult::CallToolResult(result)) => return Ok(content::output(result)),
            Ok(ServerResult::EmptyResult(_)) => return Ok(content::output(Default::default())),
            Ok(ServerResult::InputRequiredResult(_)) => Err(Error::Refused(
                "the server asks for input from a user, which cannot be given here".to_owned(),
            )),
            Ok(ServerResult::CreateTaskResult(_)) => Err(Error::Broken(
                "the server made a task of the call, which is not followed here".to_owned(),
            )),
            Ok(_) => Err(Error::Broken("the server's answer is not what was asked for".to_owned())),
            Err(error) => Err(Error::of_request(error)),
        };
        result.map_err(|error| error.map(shown))
    }
}

impl Cancel {
    /// Tells the server, within two seconds. Whether it stops is its own affair.
    pub async fn send(self) {
        let notice =
            CancelledNotificationParam::new(Some(self.id), Some("the user has interrupted".to_owned()));
        let _ = timeout(FAREWELL_MAX, self.peer.notify_cancelled(notice)).await;
    }
}

/// What a server may ask of us: that we notice that its list has changed. There are no roots, elicitation is declined, and
/// sampling is a method that is not found: what [`ClientHandler`] does by itself.
struct Handler {
    is_stale: Arc<AtomicBool>,
}

impl Handler {
    fn new() -> (Self, Arc<AtomicBool>) {
        let is_stale = Arc::new(AtomicBool::new(false));
        (Self { is_stale: Arc::clone(&is_stale) }, is_stale)
    }
}

impl ClientHandler for Handler {
    fn get_info(&self) -> ClientConfig {
        let us = Implementation::new("posthouse", env!("CARGO_PKG_VERSION"));
        ClientConfig::new(ClientCapabilities::default(), us)
            .with_protocol_version(ProtocolVersion::LATEST_WITH_INITIALIZE)
    }

    async fn on_tool_list_changed(&self, _: NotificationContext<RoleClient>) {
        self.is_stale.store(true, Ordering::Relaxed);
    }
}
