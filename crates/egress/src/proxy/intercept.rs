//! A tunnel to a host to which secrets are spent: TLS ends here, twice.
//!
//! ```text
//! sandbox ══ TLS, signed by the sandbox's own authority ══▶ here ══ TLS, verified as any client does ══▶ host
//! ```
//!
//! The far side is asked first, and speaks to us what the near side offered (HTTP/1.1 or HTTP/2), so nothing is translated.
//! Every request must be for the host of the tunnel; requests and answers pass through hyper and are written anew. Secrets
//! take the place of their placeholders in the request only; they are asked for anew with each, so that one which is rotated or
//! archived is so for connections that are open, too. After an upgrade (a WebSocket) bytes pass as they are.
//!
//! | what is spoken | what happens |
//! |---|---|
//! | HTTP, by a client that trusts the sandbox's authority | placeholders are replaced |
//! | TLS, by a client that does not (it pins, or has a list of its own) | the client sees a certificate that it does not know; the log says so |
//! | TLS to a host that the operator names for such clients | passes as it is, with its placeholders |
//! | TLS for something that its ALPN says is not HTTP | refused with an alert, unless the operator lets it pass, with its placeholders |

use std::convert::Infallible;
use std::io::Cursor;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::uri::{Authority as UriAuthority, PathAndQuery, Scheme};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, copy_bidirectional, split};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::task::AbortOnDropHandle;

use super::Served;
use super::answer::Answer;
use super::exchange::{Streamed, split as split_authority, strip};
use super::head::HEAD_BYTES_MAX;
use super::meter::{Metered, Visit};
use super::splice::{self, Splicer};
use crate::edge::{Body, Edge, Replacement, Spent};
use crate::host::Host;

/// Bodies of a known length up to this are replaced as a whole, so that their new length can be told. Longer ones are sent in
/// chunks.
const BODY_KEPT_MAX: u64 = 1024 * 1024;
/// How long such a body may become by its secrets.
const BODY_SPLICED_MAX: usize = 8 * 1024 * 1024;
/// How much of a body is searched at a time, because what comes out may be many times as long.
const PIECE_BYTES: usize = 1024;
/// About as much as is sent on at a time.
const FRAME_BYTES: usize = 16 * 1024;
/// How many requests may be on their way at once over one connection, where it can carry several. Clients begin as many before
/// they hear of a bound.
const STREAMS_MAX: u32 = 100;

/// The protocols in which placeholders can be found.
pub(super) const HTTP2: &[u8] = b"h2";
pub(super) const HTTP1: &[u8] = b"http/1.1";

/// What ends TLS in a host's place.
#[derive(Clone)]
pub(super) struct Intercept {
    pub(super) edge: Arc<dyn Edge>,
    pub(super) certified: Arc<CertifiedKey>,
    /// What the near side offered, of [`HTTP2`] and [`HTTP1`], in its order; empty if it named none.
    pub(super) offered: Vec<Vec<u8>>,
}

/// Carries a tunnel to its end. `first` is what the near side has sent already.
pub(super) async fn run(
    served: Arc<Served>,
    near: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    first: Vec<u8>,
    far: Metered,
    intercept: Intercept,
) {
    let visit = Arc::clone(far.visit());
    let meter = Arc::clone(&visit.meter);
    let carrying = carry(Arc::clone(&served), near, first, far, intercept);
    let denied = tokio::select! {
        carried = carrying => carried.err(),
        () = meter.idle(served.limits.idle_time_max) => None,
    };
    if let Some(answer) = denied {
        served.log_denial("CONNECT", Some((&visit.host, visit.port)), &answer, Some(visit.address));
    }
}

async fn carry(
    served: Arc<Served>,
    near: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    first: Vec<u8>,
    far: Metered,
    intercept: Intercept,
) -> Result<(), Answer> {
    let visit = Arc::clone(far.visit());
    let (read, write) = split(near);
    let near = tokio::io::join(Cursor::new(first).chain(read), write);
    // Whom the far side is told apart by is the protocol; who cannot be reached is told in the near side's first choice.
    let far = meet(&served, far, &intercept.offered).await;
    let protocol = match &far {
        Ok((_, protocol)) => protocol.clone(),
        Err(_) => intercept.offered.first().cloned(),
    };
    let accepting = acceptor(&intercept, protocol.clone()).accept(near);
    let near = match timeout(served.limits.hello_time_max, accepting).await {
        Ok(Ok(near)) => near,
        Ok(Err(error)) => {
            tracing::debug!(target: "egress", %error, "TLS with a sandbox did not come about");
            return Err(Answer::new(StatusCode::FORBIDDEN, "certificate_refused", ""));
        }
        Err(_) => return Err(Answer::new(StatusCode::REQUEST_TIMEOUT, "handshake_timeout", "")),
    };
    let far = match far {
        Ok((far, _)) => Ok(far),
        Err(answer) => {
            served.log_denial("CONNECT", Some((&visit.host, visit.port)), &answer, Some(visit.address));
            Err(answer)
        }
    };
    let is_http2 = protocol.as_deref() == Some(HTTP2);
    let near = TokioIo::new(near);
    match far {
        Err(answer) => {
            let refuse = service_fn(move |_: Request<Incoming>| {
                let response = answer.response();
                async move { Ok::<_, Infallible>(response) }
            });
            // However it ends, it has been told.
            if is_http2 {
                let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .timer(TokioTimer::new())
                    .serve_connection(near, refuse)
                    .await;
            } else {
                let _ = hyper::server::conn::http1::Builder::new()
                    .keep_alive(false)
                    .timer(TokioTimer::new())
                    .serve_connection(near, refuse)
                    .await;
            }
        }
        Ok(far) => {
            let upgraded = Mutex::new(JoinSet::new());
            let speaking = Speaking { served, far: Mutex::new(None), intercept, visit, upgraded };
            let speaking = Arc::new(speaking);
            speak(near, far, is_http2, &speaking).await;
            // What a connection has become is still this tunnel, with its place among others and its bounds.
            let mut upgraded = std::mem::take(&mut *locked(&speaking.upgraded));
            while upgraded.join_next().await.is_some() {}
        }
    }
    Ok(())
}

/// TLS with the far side, in one of the protocols that the near side offered; and which one.
async fn meet(
    served: &Served,
    far: Metered,
    offered: &[Vec<u8>],
) -> Result<(tokio_rustls::client::TlsStream<Metered>, Option<Vec<u8>>), Answer> {
    let host = far.visit().host.clone();
    let failed =
        |why: String| Answer::new(StatusCode::BAD_GATEWAY, "tls", format!("TLS with {host} failed: {why}"));
    let name = ServerName::try_from(host.to_string()).map_err(|error| failed(error.to_string()))?;
    let mut config = ClientConfig::clone(&served.tls);
    config.alpn_protocols = offered.to_vec();
    let connecting = TlsConnector::from(Arc::new(config)).connect(name, far);
    match timeout(served.limits.hello_time_max, connecting).await {
        Ok(Ok(stream)) => {
            let protocol = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
            Ok((stream, protocol))
        }
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed("it took too long".to_owned())),
    }
}

/// TLS in the host's name, in this protocol or in none.
fn acceptor(intercept: &Intercept, protocol: Option<Vec<u8>>) -> TlsAcceptor {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has the default versions");
    let mut config =
        config.with_no_client_auth().with_cert_resolver(Arc::new(Always(Arc::clone(&intercept.certified))));
    config.alpn_protocols = protocol.into_iter().collect();
    TlsAcceptor::from(Arc::new(config))
}

/// The same certificate for whatever name: the name was judged before.
#[derive(Debug)]
struct Always(Arc<CertifiedKey>);

impl ResolvesServerCert for Always {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// What sends requests to the far side.
enum Far {
    Http1(Arc<tokio::sync::Mutex<http1::SendRequest<Body>>>),
    Http2(http2::SendRequest<Body>),
}

/// One connection on which requests are made.
struct Speaking {
    served: Arc<Served>,
    far: Mutex<Option<Far>>,
    intercept: Intercept,
    visit: Arc<Visit>,
    /// What carries bytes after an upgrade.
    upgraded: Mutex<JoinSet<()>>,
}

/// Serves the near side until either side ends.
async fn speak(
    near: TokioIo<impl AsyncRead + AsyncWrite + Unpin + Send + 'static>,
    far: tokio_rustls::client::TlsStream<Metered>,
    is_http2: bool,
    speaking: &Arc<Speaking>,
) {
    let far = TokioIo::new(far);
    let (sender, driver) = if is_http2 {
        let Ok((sender, connection)) = http2::Builder::new(TokioExecutor::new()).handshake(far).await else {
            return;
        };
        let driver = AbortOnDropHandle::new(tokio::spawn(async move { drop(connection.await) }));
        (Far::Http2(sender), driver)
    } else {
        let Ok((sender, connection)) =
            http1::Builder::new().max_buf_size(HEAD_BYTES_MAX * 2).handshake(far).await
        else {
            return;
        };
        let driver =
            AbortOnDropHandle::new(tokio::spawn(async move { drop(connection.with_upgrades().await) }));
        (Far::Http1(Arc::new(tokio::sync::Mutex::new(sender))), driver)
    };
    *locked(&speaking.far) = Some(sender);
    let service = {
        let speaking = Arc::clone(speaking);
        service_fn(move |request| {
            let speaking = Arc::clone(&speaking);
            async move {
                let answered = speaking.answer(request).await;
                Ok::<_, Infallible>(answered.unwrap_or_else(|answer| answer.response()))
            }
        })
    };
    // Its failures are mostly clients that went away; nobody can act on them.
    if is_http2 {
        let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(u32::try_from(HEAD_BYTES_MAX).unwrap_or(u32::MAX))
            .serve_connection(near, service);
        let mut serving = std::pin::pin!(serving);
        tokio::select! {
            _ = serving.as_mut() => {}
            _ = driver => {
                serving.as_mut().graceful_shutdown();
                let _ = serving.await;
            }
        }
    } else {
        let serving = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(speaking.served.limits.idle_time_max)
            .max_buf_size(HEAD_BYTES_MAX * 2)
            .serve_connection(near, service)
            .with_upgrades();
        let mut serving = std::pin::pin!(serving);
        tokio::select! {
            _ = serving.as_mut() => {}
            // The far side is done with this connection: so is the near side, after what it is being sent.
            _ = driver => {
                serving.as_mut().graceful_shutdown();
                let _ = serving.await;
            }
        }
    }
}

impl Speaking {
    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Body>, Answer> {
        let (mut parts, body) = request.into_parts();
        if parts.method == Method::CONNECT {
            return Err(Answer::malformed("a tunnel within a tunnel is not served"));
        }
        self.check_authority(&parts.uri, &parts.headers)?;
        let replacements = self.replacements().await?;
        let is_http2 = parts.version == Version::HTTP_2;
        let upgrade =
            is_upgrade(&parts.headers).then(|| parts.headers.get(header::UPGRADE).cloned()).flatten();
        strip(&mut parts.headers);
        let made = splice::headers(&mut parts.headers, &replacements).map_err(|splice::NoHeader| {
            Answer::new(
                StatusCode::BAD_REQUEST,
                "secret",
                "the secret behind a placeholder has a character that no header can have",
            )
        })?;
        let mut account = Account::new(self);
        for (replacement, _) in replacements.iter().zip(&made).filter(|(_, made)| **made) {
            account.add(&replacement.credential);
        }
        let (body, account) = self.body(&mut parts.headers, body, &replacements, is_http2, account).await?;
        let path = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        let authority = self.authority();
        if is_http2 {
            parts.headers.remove(header::HOST);
            let mut uri = http::uri::Parts::default();
            uri.scheme = Some(Scheme::HTTPS);
            uri.authority = Some(
                UriAuthority::try_from(authority).map_err(|_| Answer::malformed("the host is no host"))?,
            );
            uri.path_and_query = Some(path);
            parts.uri = Uri::from_parts(uri).map_err(|_| Answer::malformed("the target is no URL"))?;
        } else {
            let host =
                HeaderValue::try_from(authority).map_err(|_| Answer::malformed("the host is no host"))?;
            parts.headers.insert(header::HOST, host);
            parts.uri = Uri::from(path);
            if let Some(upgrade) = &upgrade {
                parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
                parts.headers.insert(header::UPGRADE, upgrade.clone());
            }
        }
        let near_upgrade = parts.extensions.remove::<hyper::upgrade::OnUpgrade>();
        parts.extensions = http::Extensions::new();
        let mut response = match self.send(Request::from_parts(parts, body)).await {
            Ok(response) => response,
            Err(error) => {
                account.close(Spent::Unanswered);
                tracing::debug!(target: "egress", %error, "a request with placeholders was not answered");
                let reason = format!("{} broke off or sent what is no HTTP", self.visit.host);
                return Err(Answer::new(StatusCode::BAD_GATEWAY, "broken", reason));
            }
        };
        account.close(Spent::Answered(response.status().as_u16()));
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let (Some(near), Some(_)) = (near_upgrade, upgrade) else {
                let reason = format!("{} changed the protocol, which nobody asked for", self.visit.host);
                return Err(Answer::new(StatusCode::BAD_GATEWAY, "broken", reason));
            };
            let far = hyper::upgrade::on(&mut response);
            locked(&self.upgraded).spawn(async move {
                if let (Ok(near), Ok(far)) = tokio::join!(near, far) {
                    let _ = copy_bidirectional(&mut TokioIo::new(near), &mut TokioIo::new(far)).await;
                }
            });
            return Ok(response.map(|body| body.map_err(Into::into).boxed_unsync()));
        }
        let (mut parts, body) = response.into_parts();
        if !is_http2 && parts.headers.contains_key(header::TRANSFER_ENCODING) {
            parts.headers.remove(header::CONTENT_LENGTH);
        }
        strip(&mut parts.headers);
        let body = Streamed { body, _driver: None, _visit: Arc::clone(&self.visit) };
        Ok(Response::from_parts(parts, body.boxed_unsync()))
    }

    /// What may be spent to the host by now.
    async fn replacements(&self) -> Result<Vec<Replacement>, Answer> {
        self.intercept.edge.replacements(&self.visit.host).await.map_err(|error| {
            let Visit { host, port, address, .. } = &*self.visit;
            let answer =
                Answer::new(StatusCode::SERVICE_UNAVAILABLE, "credentials_unavailable", error.to_string());
            self.served.log_denial("CONNECT", Some((host, *port)), &answer, Some(*address));
            answer
        })
    }

    /// A place among the bodies that are held as a whole. `None`: it is better sent as it comes.
    async fn place(&self, is_http2: bool) -> Option<OwnedSemaphorePermit> {
        let bodies = Arc::clone(&self.served.bodies);
        if is_http2 {
            // Needs no length, and those who wait would take the window of those who have a place.
            return bodies.try_acquire_owned().ok();
        }
        bodies.acquire_owned().await.ok()
    }

    async fn send(&self, request: Request<Body>) -> hyper::Result<Response<Incoming>> {
        let sender = {
            match locked(&self.far).as_ref().expect("requests come after the far side was met") {
                Far::Http1(sender) => Ok(Arc::clone(sender)),
                Far::Http2(sender) => Err(sender.clone()),
            }
        };
        match sender {
            Ok(sender) => {
                let mut sender = sender.lock().await;
                sender.ready().await?;
                sender.send_request(request).await
            }
            Err(mut sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }

    /// Host and port as this tunnel's requests name them.
    fn authority(&self) -> String {
        let Visit { host, port, .. } = &*self.visit;
        if *port == 443 { host.to_string() } else { format!("{host}:{port}") }
    }

    /// Every request must be for the host of the tunnel, wherever it names one.
    fn check_authority(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Answer> {
        let misdirected = || {
            let reason = format!("a request within a tunnel to {} is for another host", self.visit.host);
            Answer::new(StatusCode::MISDIRECTED_REQUEST, "misdirected", reason)
        };
        let mut hosts = headers.get_all(header::HOST).iter();
        let named = [
            uri.authority().map(|authority| Ok(authority.as_str())),
            hosts.next().map(|host| host.to_str().map_err(|_| misdirected())),
        ];
        if hosts.next().is_some() || named.iter().all(Option::is_none) {
            return Err(misdirected());
        }
        for named in named.into_iter().flatten() {
            let (host, port) = split_authority(named?)?;
            if host != self.visit.host || port.unwrap_or(443) != self.visit.port {
                return Err(misdirected());
            }
        }
        Ok(())
    }

    /// The body as it is sent, with the headers that tell of it.
    async fn body<'a>(
        &'a self,
        headers: &mut HeaderMap,
        body: Incoming,
        replacements: &[Replacement],
        is_http2: bool,
        mut account: Account<'a>,
    ) -> Result<(Body, Account<'a>), Answer> {
        let splicer = Splicer::new(replacements);
        // What is compressed holds no placeholder that could be seen.
        let is_coded = headers.get(header::CONTENT_ENCODING).is_some_and(|coding| coding != "identity");
        if body.is_end_stream() || is_coded || splicer.is_empty() {
            return Ok((body.map_err(Into::into).boxed_unsync(), account));
        }
        let mut splicer = splicer;
        match body.size_hint().exact() {
            Some(length)
                if length <= BODY_KEPT_MAX
                    && let Some(place) = self.place(is_http2).await =>
            {
                let limit = usize::try_from(BODY_KEPT_MAX).unwrap_or(usize::MAX);
                let kept = Limited::new(body, limit).collect().await;
                let kept = kept.map_err(|_| Answer::malformed("the body broke off"))?.to_bytes();
                let mut out = Vec::with_capacity(kept.len());
                for piece in kept.chunks(PIECE_BYTES) {
                    out.extend(splicer.push(piece));
                    if out.len() > BODY_SPLICED_MAX {
                        let reason = "the body has too many placeholders for so long a secret";
                        return Err(Answer::new(StatusCode::PAYLOAD_TOO_LARGE, "body_size", reason));
                    }
                }
                out.extend(splicer.finish());
                for credential in splicer.spent() {
                    account.add(credential);
                }
                headers.insert(header::CONTENT_LENGTH, HeaderValue::from(out.len()));
                // The place is free once the body has left.
                let body = Full::new(Bytes::from(out)).map_frame(move |frame| {
                    let _place = &place;
                    frame
                });
                Ok((body.map_err(|never| match never {}).boxed_unsync(), account))
            }
            _ => {
                headers.remove(header::CONTENT_LENGTH);
                let spliced = Spliced {
                    body,
                    pending: Bytes::new(),
                    splicer,
                    edge: Arc::clone(&self.intercept.edge),
                    host: self.visit.host.clone(),
                    is_over: false,
                    trailers: None,
                };
                Ok((spliced.boxed_unsync(), account))
            }
        }
    }
}

/// What one request has spent, said once it is known how it went.
struct Account<'a> {
    speaking: &'a Speaking,
    credentials: Vec<String>,
}

impl<'a> Account<'a> {
    fn new(speaking: &'a Speaking) -> Self {
        Self { speaking, credentials: Vec::new() }
    }

    fn add(&mut self, credential: &str) {
        if !self.credentials.iter().any(|known| known == credential) {
            self.credentials.push(credential.to_owned());
        }
    }

    fn close(mut self, outcome: Spent) {
        self.say(outcome);
    }

    fn say(&mut self, outcome: Spent) {
        for credential in std::mem::take(&mut self.credentials) {
            self.speaking.intercept.edge.spent(&self.speaking.visit.host, &credential, outcome);
        }
    }
}

impl Drop for Account<'_> {
    fn drop(&mut self) {
        // The request was given up on its way.
        self.say(Spent::Unanswered);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_upgrade(headers: &HeaderMap) -> bool {
    let named = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    headers.contains_key(header::UPGRADE)
        && named.flat_map(|value| value.split(',')).any(|name| name.trim().eq_ignore_ascii_case("upgrade"))
}

/// A body whose placeholders are replaced as it passes.
struct Spliced {
    body: Incoming,
    /// What has come of it and was not searched yet.
    pending: Bytes,
    splicer: Splicer,
    edge: Arc<dyn Edge>,
    host: Host,
    is_over: bool,
    trailers: Option<Frame<Bytes>>,
}

impl hyper::body::Body for Spliced {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        loop {
            if self.is_over {
                return Poll::Ready(self.trailers.take().map(Ok));
            }
            let mut out = Vec::new();
            while !self.pending.is_empty() && out.len() < FRAME_BYTES {
                let length = self.pending.len().min(PIECE_BYTES);
                let piece = self.pending.split_to(length);
                out.extend(self.splicer.push(&piece));
            }
            if !out.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(out.into()))));
            }
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => {
                    self.is_over = true;
                    let rest = self.splicer.finish();
                    if rest.is_empty() {
                        continue;
                    }
                    return Poll::Ready(Some(Ok(Frame::data(rest.into()))));
                }
            };
            match frame.into_data() {
                Ok(data) => self.pending = data,
                Err(trailers) => {
                    // They end a body. What was held back comes first.
                    self.is_over = true;
                    let rest = self.splicer.finish();
                    if rest.is_empty() {
                        return Poll::Ready(Some(Ok(trailers)));
                    }
                    self.trailers = Some(trailers);
                    return Poll::Ready(Some(Ok(Frame::data(rest.into()))));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.is_over && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

impl Drop for Spliced {
    fn drop(&mut self) {
        // How it was answered is known only later, or never: that it left is what counts.
        for credential in self.splicer.spent() {
            self.edge.spent(&self.host, credential, Spent::Sent);
        }
    }
}
