//! The transport of servers from before 2025: one stream of events that begins with the address to post to.
//!
//! The answers come over the stream. If it ends, the connection is over: what was asked over it is not asked again.

use std::borrow::Cow;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use http::{HeaderMap, HeaderValue};
use reqwest::Url;
use rmcp::RoleClient;
use rmcp::model::{ClientJsonRpcMessage, ServerJsonRpcMessage};
use rmcp::transport::Transport;
use rmcp::transport::streamable_http_client::SseError;
use sse_stream::Sse;

use crate::http::{Failure, Http};

/// How many events may come before the address.
const EVENTS_BEFORE_MAX: usize = 16;

/// A connection of that kind.
pub(crate) struct SseTransport {
    http: Http,
    endpoint: Url,
    events: Option<BoxStream<'static, Result<Sse, SseError>>>,
}

impl SseTransport {
    /// Begins the stream and waits for the address.
    pub(crate) async fn open(http: Http) -> Result<Self, Failure> {
        let mut headers = HeaderMap::new();
        headers.insert(http::header::ACCEPT, HeaderValue::from_static("text/event-stream"));
        let mut events = http.stream(headers).await?;
        for _ in 0..EVENTS_BEFORE_MAX {
            let Some(Ok(event)) = events.next().await else {
                return Err(Failure::Broken("the server's stream ended before it began".to_owned()));
            };
            if event.event.as_deref() != Some("endpoint") {
                continue;
            }
            let endpoint = http.url().join(event.data.unwrap_or_default().trim());
            return match endpoint {
                // A credential goes to the server that it is for, and nowhere else.
                Ok(endpoint) if endpoint.origin() == http.url().origin() => {
                    Ok(Self { http, endpoint, events: Some(events) })
                }
                Ok(_) | Err(_) => Err(Failure::Redirected),
            };
        }
        Err(Failure::Broken("the server's stream does not begin with an address".to_owned()))
    }
}

impl Transport<RoleClient> for SseTransport {
    type Error = Failure;

    fn name() -> Cow<'static, str> {
        "HTTP+SSE".into()
    }

    fn send(
        &mut self,
        message: ClientJsonRpcMessage,
    ) -> impl Future<Output = Result<(), Failure>> + Send + 'static {
        let (http, endpoint) = (self.http.clone(), self.endpoint.clone());
        async move { http.post(endpoint, HeaderMap::new(), &message).await.map(drop) }
    }

    async fn receive(&mut self) -> Option<ServerJsonRpcMessage> {
        let events = self.events.as_mut()?;
        loop {
            match events.next().await {
                Some(Ok(event)) => {
                    let is_message = matches!(event.event.as_deref(), None | Some("" | "message"));
                    let message = event.data.filter(|_| is_message);
                    if let Some(message) = message.and_then(|data| serde_json::from_str(&data).ok()) {
                        return Some(message);
                    }
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, "the stream of an MCP server broke");
                    return None;
                }
                None => return None,
            }
        }
    }

    async fn close(&mut self) -> Result<(), Failure> {
        self.events = None;
        Ok(())
    }
}
