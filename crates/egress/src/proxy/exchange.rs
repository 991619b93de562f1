//! One connection out of a sandbox: one request, decided and passed on.

use std::convert::Infallible;
use std::io::Cursor;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{PathAndQuery, Scheme};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::BodyExt as _;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper::{client, server};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::answer::Answer;
use super::meter::{Meter, Metered, Visit};
use super::tunnel::Tunnel;
use super::{Served, head, tunnel};
use crate::edge::Body;
use crate::host::Host;
use crate::policy::Allowed;
use crate::refusal::Refusal;

/// The most that is buffered of a connection, either way; more than the largest head.
const BUFFER_BYTES_MAX: usize = 64 * 1024;
/// How many addresses of a host are tried.
const DIALS_MAX: usize = 4;
/// How much longer than the far side's silence the near side is waited for, so that it gets an answer that says so.
const ANSWER_GRACE: Duration = Duration::from_secs(5);
/// How long, and how much, is read of a request that was answered early: closing with bytes unread would reset the
/// connection, and the answer would be lost with it.
const LINGER_TIME: Duration = Duration::from_secs(2);
const LINGER_BYTES: u64 = 1024 * 1024;

/// Headers that concern one connection only.
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];
/// The same, where the library has no name for them. The last is the proxy's own, which nobody else may send.
const HOP_BY_HOP_TOO: [&str; 4] = ["keep-alive", "proxy-connection", "http2-settings", "x-posthouse-egress"];

/// Serves a connection to its end.
pub(super) async fn connection(served: Arc<Served>, stream: TcpStream) {
    // A tunnel carries whatever it carries; small messages must not wait for others.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(target: "egress", %error, "TCP_NODELAY could not be set");
    }
    let (mut read, mut write) = stream.into_split();
    let head = match head::read(&mut read, served.limits.head_time_max).await {
        Ok(head) => head,
        Err(broken) => {
            let Some(answer) = broken.answer() else { return };
            served.log_denial("-", None, &answer, None);
            // Who does not read it does not want it.
            if let Ok(Ok(())) = timeout(LINGER_TIME, write.write_all(&answer.bytes())).await {
                linger(tokio::io::join(read, write)).await;
            }
            return;
        }
    };
    let near = tokio::io::join(Cursor::new(head.freeze()).chain(read), write);
    let exchange = Arc::new(Exchange { served, meter: Meter::new(), tunnel: Mutex::default() });
    let service = {
        let exchange = Arc::clone(&exchange);
        service_fn(move |request| {
            let exchange = Arc::clone(&exchange);
            async move { Ok::<_, Infallible>(exchange.answer(request).await) }
        })
    };
    let serving = server::conn::http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(BUFFER_BYTES_MAX)
        .serve_connection(TokioIo::new(near), service)
        .without_shutdown();
    let patience = exchange.served.limits.idle_time_max + ANSWER_GRACE;
    let parts = tokio::select! {
        served = serving => match served {
            Ok(parts) => parts,
            Err(error) => {
                // Mostly clients that went away; nobody can act on it.
                tracing::debug!(target: "egress", %error, "a connection out of a sandbox ended early");
                return;
            }
        },
        () = exchange.meter.idle(patience) => return,
    };
    let near = parts.io.into_inner();
    let tunnel = exchange.tunnel.lock().unwrap_or_else(PoisonError::into_inner).take();
    match tunnel {
        Some(tunnel) => tunnel::run(Arc::clone(&exchange.served), near, parts.read_buf, tunnel).await,
        None => linger(near).await,
    }
}

/// Ends a connection so that what was written last arrives.
pub(super) async fn linger(mut near: impl AsyncRead + AsyncWrite + Unpin) {
    let ending = async {
        near.shutdown().await?;
        tokio::io::copy(&mut near.take(LINGER_BYTES), &mut tokio::io::sink()).await
    };
    // However it ends, it has ended.
    let _ = timeout(LINGER_TIME, ending).await;
}

/// Where a request wants to go.
struct Target {
    host: Host,
    port: u16,
}

/// One request on its way.
struct Exchange {
    served: Arc<Served>,
    meter: Arc<Meter>,
    /// Left here by a CONNECT that was allowed.
    tunnel: Mutex<Option<Tunnel>>,
}

impl Exchange {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        self.answer_boxed(request.map(|body| body.map_err(Into::into).boxed_unsync())).await
    }

    /// Answers what is asked of the exit itself; gives back everything else.
    async fn local(&self, request: Request<Body>) -> Result<Response<Body>, Request<Body>> {
        let is_local = request.uri().scheme().is_none() && request.uri().authority().is_none();
        match &self.served.edge {
            Some(edge) if is_local => {
                // What goes by here is no far side's, and counts as life all the same.
                let touching = |body| Touching { body, meter: Arc::clone(&self.meter) }.boxed_unsync();
                let answered = edge.local(request.map(touching)).await;
                answered.map(|response| response.map(touching))
            }
            Some(_) | None => Err(request),
        }
    }

    async fn answer_boxed(&self, request: Request<Body>) -> Response<Body> {
        let method = method_name(request.method());
        let is_connect = request.method() == Method::CONNECT;
        let request = match self.local(request).await {
            Ok(response) => return response,
            Err(request) => request,
        };
        let target = if is_connect { connect_target(request.uri()) } else { plain_target(request.uri()) };
        let target = match target {
            Ok(target) => target,
            Err(answer) => {
                self.served.log_denial(method, None, &answer, None);
                return answer.response();
            }
        };
        let far = match self.reach(method, &target).await {
            Ok(far) => far,
            Err(answer) => return answer.response(),
        };
        if is_connect {
            *self.tunnel.lock().unwrap_or_else(PoisonError::into_inner) = Some(Tunnel { far });
            return Response::new(
                http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync(),
            );
        }
        let visit = Arc::clone(far.visit());
        match self.pass_on(request, &target, far).await {
            Ok(response) => response,
            Err(answer) => {
                self.served.log_denial(method, Some((&visit.host, visit.port)), &answer, Some(visit.address));
                self.meter.touch();
                answer.response()
            }
        }
    }

    /// Decides, and connects to what was decided upon.
    async fn reach(&self, method: &'static str, target: &Target) -> Result<Metered, Answer> {
        let Target { host, port } = target;
        let denied = |answer: Answer, address: Option<SocketAddr>| {
            self.served.log_denial(method, Some((host, *port)), &answer, address);
            answer
        };
        let refused = |refusal: Refusal| {
            let address = refusal.address().map(|address| SocketAddr::new(address, *port));
            denied(Answer::from(&refusal), address)
        };
        let allowed = self.served.policy.decide(host).map_err(refused)?;
        if method == "CONNECT" && *port == 80 && self.served.policy.is_limited() {
            let answer = Answer::new(
                StatusCode::FORBIDDEN,
                "plain_connect",
                format!("a CONNECT to port 80 of {host} would hide which host is asked for"),
            );
            return Err(denied(
                answer.with_remedy("Ask for the http:// URL through the proxy, or use https."),
                None,
            ));
        }
        let addresses = {
            let _turn = self.served.lookups.acquire().await;
            self.served.guard.resolve(host, *port).await.map_err(refused)?
        };
        let (stream, address) =
            self.dial(host, &addresses).await.map_err(|answer| denied(answer, addresses.first().copied()))?;
        self.served.log_allowance(method, target, &allowed, address);
        let visit = Visit {
            who: self.served.who.clone(),
            method,
            host: host.clone(),
            port: *port,
            address,
            meter: Arc::clone(&self.meter),
        };
        Ok(Metered::new(stream, Arc::new(visit)))
    }

    /// Connects to the first address that answers.
    async fn dial(&self, host: &Host, addresses: &[SocketAddr]) -> Result<(TcpStream, SocketAddr), Answer> {
        let mut failure = StatusCode::BAD_GATEWAY;
        for &address in addresses.iter().take(DIALS_MAX) {
            match timeout(self.served.limits.connect_time_max, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    // As for the near side.
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(target: "egress", %error, "TCP_NODELAY could not be set");
                    }
                    return Ok((stream, address));
                }
                Ok(Err(_)) => failure = StatusCode::BAD_GATEWAY,
                Err(_) => failure = StatusCode::GATEWAY_TIMEOUT,
            }
        }
        let (rule, reason) = if failure == StatusCode::BAD_GATEWAY {
            ("unreachable", format!("{host} is allowed but does not accept the connection"))
        } else {
            ("connect_timeout", format!("{host} is allowed but did not answer in time"))
        };
        Err(Answer::new(failure, rule, reason))
    }

    /// Sends the request to the far side and gives its response, whose body is still on its way.
    async fn pass_on(
        &self,
        request: Request<Body>,
        target: &Target,
        far: Metered,
    ) -> Result<Response<Body>, Answer> {
        let host = &target.host;
        let broken = |_: hyper::Error| {
            Answer::new(
                StatusCode::BAD_GATEWAY,
                "broken",
                format!("{host} broke off or sent what is no HTTP"),
            )
        };
        let visit = Arc::clone(far.visit());
        let (mut sender, connection) = client::conn::http1::Builder::new()
            .max_buf_size(BUFFER_BYTES_MAX)
            .handshake(TokioIo::new(far))
            .await
            .map_err(broken)?;
        let driver = AbortOnDropHandle::new(tokio::spawn(async move {
            // Its failures reach the sender or the body.
            let _ = connection.await;
        }));
        let response = tokio::select! {
            response = sender.send_request(outgoing(request, target)?) => response.map_err(broken)?,
            () = self.meter.idle(self.served.limits.idle_time_max) => {
                let reason = format!("{host} was silent for too long");
                return Err(Answer::new(StatusCode::GATEWAY_TIMEOUT, "idle", reason));
            }
        };
        let (mut parts, body) = response.into_parts();
        if parts.status.is_informational() {
            let reason = format!("{host} changed the protocol, which nobody asked for");
            return Err(Answer::new(StatusCode::BAD_GATEWAY, "broken", reason));
        }
        if parts.headers.contains_key(header::TRANSFER_ENCODING) {
            // The other one wins, and goes out alone.
            parts.headers.remove(header::CONTENT_LENGTH);
        }
        strip(&mut parts.headers);
        parts.version = Version::HTTP_11;
        let body = Streamed { body, _driver: Some(driver), _visit: visit };
        Ok(Response::from_parts(parts, body.boxed_unsync()))
    }
}

impl Served {
    pub(super) fn log_denial(
        &self,
        method: &str,
        target: Option<(&Host, u16)>,
        answer: &Answer,
        address: Option<SocketAddr>,
    ) {
        // What was allowed and then could not be had is no denial, but as much an operator's business.
        let verdict = if answer.status.is_server_error() { "failed" } else { "denied" };
        tracing::info!(
            target: "egress",
            {
            sandbox.id = %self.who.sandbox,
            session.id = self.who.session.as_deref(),
            method,
            host = target.map(|(host, _)| tracing::field::display(host)),
            port = target.map(|(_, port)| port),
            verdict,
            rule = answer.rule,
            status = answer.status.as_u16(),
            address = address.map(tracing::field::display)
            },
            "a request out of a sandbox was not served"
        );
    }

    fn log_allowance(&self, method: &str, target: &Target, allowed: &Allowed, address: SocketAddr) {
        tracing::debug!(
            target: "egress",
            {
            sandbox.id = %self.who.sandbox,
            session.id = self.who.session.as_deref(),
            method,
            host = %target.host,
            port = target.port,
            verdict = "allowed",
            rule = %allowed,
            %address
            },
            "a request out of a sandbox was allowed"
        );
    }
}

/// The name of a method for the log. A name of the client's own invention could carry anything.
fn method_name(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        "CONNECT" => "CONNECT",
        _ => "other",
    }
}

fn connect_target(uri: &Uri) -> Result<Target, Answer> {
    let form = "CONNECT takes a host and a port, such as example.com:443";
    let authority = match (uri.scheme(), uri.authority(), uri.path_and_query()) {
        (None, Some(authority), None) => authority.as_str(),
        _ => return Err(Answer::malformed(form)),
    };
    let (host, port) = split(authority)?;
    Ok(Target { host, port: port.ok_or_else(|| Answer::malformed(form))? })
}

fn plain_target(uri: &Uri) -> Result<Target, Answer> {
    let authority = match (uri.scheme(), uri.authority()) {
        (Some(scheme), Some(authority)) if *scheme == Scheme::HTTP => authority.as_str(),
        (Some(scheme), _) if *scheme == Scheme::HTTPS => {
            let reason = "an https:// URL is not asked of the proxy in the open";
            return Err(Answer::malformed(reason)
                .with_remedy("Use CONNECT, as every client does with HTTPS_PROXY set."));
        }
        (Some(_), _) => return Err(Answer::malformed("only http:// URLs and CONNECT are served")),
        (None, _) => {
            let remedy = "Set HTTP_PROXY and HTTPS_PROXY, or ask for the whole URL, such as `GET http://example.com/`.";
            return Err(Answer::malformed("this is a proxy, not a web server").with_remedy(remedy));
        }
    };
    let (host, port) = split(authority)?;
    Ok(Target { host, port: port.unwrap_or(80) })
}

/// Host and port of an authority.
pub(super) fn split(authority: &str) -> Result<(Host, Option<u16>), Answer> {
    if authority.contains('@') {
        return Err(Answer::malformed("the URL contains a user or a password"));
    }
    // After the bracket, if there is one: an IPv6 address has colons of its own.
    let from = authority.rfind(']').unwrap_or(0);
    let (host, port) = match authority[from..].find(':') {
        None => (authority, None),
        Some(colon) => {
            let (host, port) = authority.split_at(from + colon);
            let port = &port[1..];
            let is_number = port.bytes().all(|byte| byte.is_ascii_digit());
            let number = port.parse::<u16>().ok().filter(|port| is_number && *port > 0);
            let number = number.ok_or_else(|| Answer::malformed("the port is no number from 1 to 65535"))?;
            (host, Some(number))
        }
    };
    Ok((Host::parse(host).map_err(|refusal| Answer::from(&refusal))?, port))
}

/// The request as the far side gets it: to the host that was decided upon, whatever Host said.
fn outgoing(request: Request<Body>, target: &Target) -> Result<Request<Body>, Answer> {
    let (mut parts, body) = request.into_parts();
    let is_chunked = parts.headers.contains_key(header::TRANSFER_ENCODING);
    strip(&mut parts.headers);
    // Whoever connected has had its 100 from here.
    parts.headers.remove(header::EXPECT);
    if is_chunked {
        parts.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    let Target { host, port } = target;
    let authority = if *port == 80 { host.to_string() } else { format!("{host}:{port}") };
    let authority = HeaderValue::try_from(authority).map_err(|_| Answer::malformed("the host is no host"))?;
    parts.headers.insert(header::HOST, authority);
    let path = parts.uri.into_parts().path_and_query;
    parts.uri = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    parts.version = Version::HTTP_11;
    Ok(Request::from_parts(parts, body))
}

/// Removes what concerns one connection only, and what the connection's ends name as such.
pub(super) fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::try_from(name.trim()).ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
    for name in HOP_BY_HOP_TOO {
        headers.remove(name);
    }
}

/// A body whose every piece shows that something moves.
struct Touching {
    body: Body,
    meter: Arc<Meter>,
}

impl hyper::body::Body for Touching {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if polled.is_ready() {
            self.meter.touch();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of a response, with what keeps it coming.
pub(super) struct Streamed {
    pub(super) body: Incoming,
    /// Dropped with the body: then the connection to the far side is closed, if it was for this response alone.
    pub(super) _driver: Option<AbortOnDropHandle<()>>,
    pub(super) _visit: Arc<Visit>,
}

impl hyper::body::Body for Streamed {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
