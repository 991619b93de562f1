//! The one way to a repository's host: who asks has been told apart before, and what is asked is one of four requests.
//!
//! The token is opened for each request, put into its head, and dropped. Of the request nothing passes that a host does not
//! need, and of the answer nothing that tells of the token: no cookie, no redirect, no challenge.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use egress::{Body, Client, Refusal};
use futures_util::{StreamExt as _, TryStreamExt as _};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited, StreamBody};
use hyper::body::Frame;
use protocol::id::{AgentId, ResourceId, SessionId, WorkspaceId};
use protocol::resource_request::RepositoryUrl;
use reqwest::Url;
use tokio::time::{Instant, sleep_until, timeout};
use vault::{Credentials, Opened, Outcome, TokenUse};

use crate::Unusable;
use crate::settings::Settings;
use crate::smart::Endpoint;

/// How long a connection to a host may take.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
/// The user's name beside a token; GitHub wants this one, and others do not look at it.
const USER: &str = "x-access-token";
/// A repository that was renamed has one new place, which may have been renamed in turn.
const MOVES_MAX: usize = 3;
/// Renamed repositories that are remembered.
const MOVED_MAX: usize = 1024;

/// What of a request passes.
const REQUEST_HEADERS: [HeaderName; 4] =
    [header::ACCEPT, header::ACCEPT_ENCODING, header::CONTENT_ENCODING, header::CONTENT_TYPE];
/// The same, where the library has no name for it: which version of its protocol git speaks.
const GIT_PROTOCOL: &str = "git-protocol";
/// What of an answer passes.
const RESPONSE_HEADERS: [HeaderName; 6] = [
    header::CACHE_CONTROL,
    header::CONTENT_ENCODING,
    header::CONTENT_TYPE,
    header::EXPIRES,
    header::PRAGMA,
    header::RETRY_AFTER,
];

/// A repository, and for whom it is asked.
#[derive(Clone, Debug)]
pub(crate) struct Asker {
    pub(crate) workspace: WorkspaceId,
    pub(crate) session: SessionId,
    pub(crate) agent: AgentId,
    pub(crate) resource: ResourceId,
    pub(crate) url: RepositoryUrl,
}

/// Why there is no answer to pass on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    /// The host does not accept the token, or wants one.
    #[error("the host rejected the token, or wants one")]
    Authentication,
    /// The token may not do this.
    #[error("the token may not do this with the repository")]
    Forbidden,
    /// There is no such repository for this token.
    #[error("the host has no such repository, or shows it to others only")]
    NotFound,
    /// It is elsewhere.
    #[error("the host sends to another host, which is not followed")]
    Moved,
    /// Another answer than 200.
    #[error("the host answered with status {0}")]
    Status(u16),
    /// The address is not one that may be connected to.
    #[error("{0}")]
    Refused(Refusal),
    /// No answer.
    #[error("the host cannot be reached, broke off, or did not answer in time")]
    Unreachable,
    /// The token cannot be opened.
    #[error("the token cannot be opened at the moment")]
    Unopened,
}

/// The hosts. A clone shares the connections.
#[derive(Clone)]
pub(crate) struct Hosts(Arc<Inner>);

struct Inner {
    credentials: Credentials,
    client: Client,
    silence_max: Duration,
    fetch_bytes_max: u64,
    push_bytes_max: u64,
    /// Hosts that want tokens in the other form.
    bearers: Mutex<HashSet<String>>,
    /// Where a repository is that was renamed: its address before, and now.
    moved: Mutex<HashMap<String, String>>,
}

impl Hosts {
    pub(crate) fn new(credentials: Credentials, settings: &Settings) -> Result<Self, Unusable> {
        // Whoever makes a client of HTTP says which cryptography it uses; one that was chosen before will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let limits = &settings.limits;
        let mut authorities = Vec::new();
        for authority in &settings.authorities {
            authorities.extend(reqwest::Certificate::from_pem_bundle(authority.as_bytes())?);
        }
        let configure = |builder: reqwest::ClientBuilder| {
            let builder = builder.connect_timeout(CONNECT_TIME_MAX);
            let builder = builder.https_only(true).user_agent("git/2 (posthouse)").http1_only();
            match authorities.is_empty() {
                true => builder,
                false => builder.tls_certs_merge(authorities),
            }
        };
        let client = egress::client_without_redirects(Arc::clone(&settings.guard), configure)?;
        Ok(Self(Arc::new(Inner {
            credentials,
            client,
            silence_max: limits.silence_max,
            fetch_bytes_max: limits.fetch_bytes_max,
            push_bytes_max: limits.push_bytes_max,
            bearers: Mutex::default(),
            moved: Mutex::default(),
        })))
    }

    /// Asks the host, and gives its answer if that is 200. The body is on its way then, and is as long as it is.
    pub(crate) async fn ask(
        &self,
        asker: &Asker,
        endpoint: Endpoint,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Response<Body>, Fault> {
        let Asker { workspace, session, agent, resource, url } = asker;
        let said = |outcome| TokenUse { session, agent, resource, host: url.host(), outcome }.record();
        let token = match self.0.credentials.token(workspace, session, resource).await {
            Ok(token) => token,
            Err(error) => {
                said(Outcome::Unopened);
                tracing::warn!(session.id = %session, resource.id = %resource, %error, "a repository's token cannot be had");
                return Err(Fault::Unopened);
            }
        };
        let asked = match endpoint {
            Endpoint::Refs(_) => self.look(url, endpoint, headers, token.as_ref()).await,
            Endpoint::Rpc(_) => self.send(url, endpoint, headers, body, token.as_ref()).await,
        };
        if token.is_some() {
            match &asked {
                Ok(_) => said(Outcome::Spent),
                Err(Fault::Authentication | Fault::Forbidden) => said(Outcome::Rejected),
                Err(Fault::Refused(_)) => said(Outcome::Withheld),
                Err(_) => said(Outcome::Spent),
            }
        }
        asked
    }

    /// Asks what is there. This may be asked twice, so here it is found out how the host wants its token, and whether the
    /// repository was renamed.
    async fn look(
        &self,
        url: &RepositoryUrl,
        endpoint: Endpoint,
        headers: &HeaderMap,
        token: Option<&Opened>,
    ) -> Result<Response<Body>, Fault> {
        let origin = Url::parse(&url.base()).map_err(|_| Fault::Unreachable)?.origin();
        let first = url.base();
        // Always from where it was: a name may have been given to another repository since.
        let mut base = first.clone();
        for _ in 0..=MOVES_MAX {
            let was_bearer = lock(&self.0.bearers).contains(url.host());
            let mut answer = self.once(&base, url, endpoint, headers, empty(), token).await?;
            if answer.status() == StatusCode::UNAUTHORIZED
                && token.is_some()
                && !was_bearer
                && wants_bearer(answer.headers())
            {
                lock(&self.0.bearers).insert(url.host().to_owned());
                answer = self.once(&base, url, endpoint, headers, empty(), token).await?;
                if answer.status() == StatusCode::UNAUTHORIZED {
                    lock(&self.0.bearers).remove(url.host());
                }
            }
            if !answer.status().is_redirection() {
                let mut moved = lock(&self.0.moved);
                if base == first {
                    moved.remove(&first);
                } else if answer.status().is_success() {
                    if moved.len() >= MOVED_MAX {
                        moved.clear();
                    }
                    moved.insert(first, base);
                }
                drop(moved);
                return self.passed_on(answer);
            }
            // Within the host only, and only to where the same is asked.
            let to = answer.headers().get(header::LOCATION).and_then(|to| to.to_str().ok());
            let to =
                to.and_then(|to| Url::parse(&base).ok()?.join(to).ok()).filter(|to| to.origin() == origin);
            let to = to.filter(|to| to.username().is_empty() && to.password().is_none());
            let to = to.ok_or(Fault::Moved)?;
            base = to.as_str().strip_suffix(&endpoint.tail()).ok_or(Fault::Moved)?.to_owned();
        }
        Err(Fault::Moved)
    }

    async fn send(
        &self,
        url: &RepositoryUrl,
        endpoint: Endpoint,
        headers: &HeaderMap,
        body: Body,
        token: Option<&Opened>,
    ) -> Result<Response<Body>, Fault> {
        let limit = usize::try_from(self.0.push_bytes_max).unwrap_or(usize::MAX);
        let body = Limited::new(body, limit).boxed_unsync();
        let answer = self.once(&self.place(url), url, endpoint, headers, body, token).await?;
        if answer.status().is_redirection() {
            return Err(Fault::Moved);
        }
        self.passed_on(answer)
    }

    /// Where the repository is, as far as is known.
    fn place(&self, url: &RepositoryUrl) -> String {
        let base = url.base();
        lock(&self.0.moved).get(&base).cloned().unwrap_or(base)
    }

    async fn once(
        &self,
        base: &str,
        url: &RepositoryUrl,
        endpoint: Endpoint,
        headers: &HeaderMap,
        body: Body,
        token: Option<&Opened>,
    ) -> Result<reqwest::Response, Fault> {
        let address = Url::parse(&format!("{base}{}", endpoint.tail())).map_err(|_| Fault::Unreachable)?;
        let mut request = self.0.client.request(endpoint.method(), address).map_err(Fault::Refused)?;
        let git_protocol = HeaderName::from_static(GIT_PROTOCOL);
        for name in REQUEST_HEADERS.iter().chain([&git_protocol]) {
            if let Some(value) = headers.get(name) {
                request = request.header(name, value);
            }
        }
        if let Some(token) = token {
            let is_bearer = lock(&self.0.bearers).contains(url.host());
            let value = if is_bearer { token.authorization() } else { token.basic(USER) };
            request = request.header(header::AUTHORIZATION, value);
        }
        // A push may take long before anything is answered to it: what counts is that it moves.
        let moved = Arc::new(Mutex::new(Instant::now()));
        if let Endpoint::Rpc(_) = endpoint {
            if let Some(length) = headers.get(header::CONTENT_LENGTH) {
                request = request.header(header::CONTENT_LENGTH, length);
            }
            let sent = Arc::clone(&moved);
            let body = body.into_data_stream().inspect(move |_| *lock(&sent) = Instant::now());
            request = request.body(reqwest::Body::wrap_stream(body));
        }
        let answered = self.patiently(request.send(), &moved).await.ok_or(Fault::Unreachable)?;
        answered.map_err(|error| match Client::refusal(&error) {
            Some(refusal) => Fault::Refused(refusal.clone()),
            None => {
                let error = error.without_url();
                tracing::debug!(host = url.host(), %error, "a git host did not answer");
                Fault::Unreachable
            }
        })
    }

    /// Waits as long as something moves; `None` if the host is silent for too long.
    async fn patiently<T>(&self, act: impl Future<Output = T>, moved: &Mutex<Instant>) -> Option<T> {
        let mut act = std::pin::pin!(act);
        loop {
            let deadline = *lock(moved) + self.0.silence_max;
            tokio::select! {
                biased;
                done = &mut act => return Some(done),
                () = sleep_until(deadline) => if *lock(moved) + self.0.silence_max <= Instant::now() { return None },
            }
        }
    }

    /// An answer as whoever asked may have it.
    fn passed_on(&self, answer: reqwest::Response) -> Result<Response<Body>, Fault> {
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED => return Err(Fault::Authentication),
            StatusCode::FORBIDDEN => return Err(Fault::Forbidden),
            StatusCode::NOT_FOUND | StatusCode::GONE => return Err(Fault::NotFound),
            other => return Err(Fault::Status(other.as_u16())),
        }
        let mut response = Response::new(());
        for name in &RESPONSE_HEADERS {
            if let Some(value) = answer.headers().get(name) {
                response.headers_mut().insert(name, value.clone());
            }
        }
        let limit = usize::try_from(self.0.fetch_bytes_max).unwrap_or(usize::MAX);
        let silence_max = self.0.silence_max;
        let pieces = futures_util::stream::unfold(Some(answer.bytes_stream()), move |stream| async move {
            let mut stream = stream?;
            match timeout(silence_max, stream.next()).await {
                Ok(piece) => piece.map(|piece| (piece.map_err(|_| Fault::Unreachable), Some(stream))),
                Err(_) => Some((Err(Fault::Unreachable), None)),
            }
        });
        let bytes = Box::pin(pieces.map_ok(Frame::data));
        let body = Limited::new(StreamBody::new(bytes), limit).map_err(Into::into).boxed_unsync();
        Ok(response.map(|()| body))
    }
}

fn wants_bearer(headers: &HeaderMap) -> bool {
    let challenges = headers.get_all(header::WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    let challenges: Vec<String> = challenges.map(str::to_ascii_lowercase).collect();
    let has = |scheme: &str| challenges.iter().any(|challenge| challenge.starts_with(scheme));
    has("bearer") && !has("basic")
}

impl Fault {
    /// As an answer to git, which shows the status and, for some, the text.
    pub(crate) fn response(&self) -> Response<Body> {
        let status = match self {
            // Not 401: git would ask for a name and a password, and there is nobody to give any.
            Self::Authentication | Self::Forbidden | Self::Refused(_) => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Moved | Self::Status(_) | Self::Unreachable => StatusCode::BAD_GATEWAY,
            Self::Unopened => StatusCode::SERVICE_UNAVAILABLE,
        };
        said(status, &self.to_string())
    }
}

/// An answer of our own.
pub(crate) fn said(status: StatusCode, text: &str) -> Response<Body> {
    let body = Full::new(Bytes::from(format!("{text}\n"))).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn empty() -> Body {
    Full::default().map_err(|never| match never {}).boxed_unsync()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A map is whole after every single statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
