//! Where the browser comes back to: a listener on this machine that takes one answer, once, and closes.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, REFERRER_POLICY};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use zeroize::Zeroizing;

const PATH: &str = "/callback";
/// Line and headers of a request. Codes have been seen with a few kilobytes.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Browsers open some ahead and leave them silent.
const CONNECTIONS_MAX: usize = 16;
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(10);

/// A listener that waits for a browser.
pub(super) struct Redirect {
    listener: TcpListener,
    address: String,
}

impl Redirect {
    /// Listens at a port of 127.0.0.1; 0 is any that is free.
    pub(super) async fn listen(port: u16) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await;
        let listener = listener.with_context(|| format!("cannot listen at 127.0.0.1:{port}"))?;
        let address = format!("http://{}{PATH}", listener.local_addr()?);
        Ok(Self { listener, address })
    }

    /// What the authorization server sends the browser to.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// What the browser brings, as the query of its request; `None` if it does not come in time.
    pub(super) async fn wait(self, limit: Duration) -> anyhow::Result<Option<Zeroizing<String>>> {
        let (found, mut brought) = mpsc::channel(1);
        let mut connections = JoinSet::new();
        let wait = async {
            loop {
                tokio::select! {
                    accepted = self.listener.accept(), if connections.len() < CONNECTIONS_MAX => {
                        let (stream, _) = accepted.context("the listener for the browser failed")?;
                        connections.spawn(serve(stream, found.clone()));
                    }
                    // Looked at when the connection has ended, so that the browser has its page before this process ends.
                    Some(_) = connections.join_next() => {
                        if let Ok(query) = brought.try_recv() {
                            return Ok(query);
                        }
                    }
                }
            }
        };
        timeout(limit, wait).await.ok().transpose()
    }
}

async fn serve(stream: TcpStream, found: mpsc::Sender<Zeroizing<String>>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer(&request, &found);
        async move { Ok::<_, Infallible>(answer) }
    });
    let mut http = http1::Builder::new();
    http.keep_alive(false).header_read_timeout(None).max_buf_size(HEAD_BYTES_MAX);
    let _ = timeout(CONNECTION_TIME_MAX, http.serve_connection(TokioIo::new(stream), service)).await;
}

fn answer(request: &Request<Incoming>, found: &mpsc::Sender<Zeroizing<String>>) -> Response<Full<Bytes>> {
    let query = request.uri().query().filter(|query| !query.is_empty());
    let (status, text) =
        match query.filter(|_| request.method() == Method::GET && request.uri().path() == PATH) {
            None => (StatusCode::NOT_FOUND, "Nothing is here."),
            Some(query) => match found.try_send(Zeroizing::new(query.to_owned())) {
                Ok(()) => (
                    StatusCode::OK,
                    "Posthouse has the answer and goes on in the terminal. This page can be closed.",
                ),
                Err(_) => (StatusCode::GONE, "This address works once. See the terminal."),
            },
        };
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    // The address of this page holds the code.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}
