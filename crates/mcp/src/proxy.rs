//! Where a credential meets a request: the only place.
//!
//! ```text
//!   brain ── token ──▶ Proxy ── session, URL ──▶ Credentials (the vault)
//!                        │  ◀────── Bearer ─────────┘
//!                        └── request with its header ──▶ server
//! ```
//!
//! A brain holds a [`SessionToken`] and never a credential. A token is 32 random bytes, of which the proxy keeps a digest
//! beside what it is good for: one session, the addresses of its servers, until its lease could have lapsed. It is looked at
//! before every request, so one that is forged, of another session, revoked or too old gets nothing, whatever connection it
//! comes through. Tokens do not outlive the process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use egress::{Client, Guard};
use protocol::agent::McpServer;
use protocol::id::{AgentId, CredentialId, SessionId, VaultId};
use reqwest::{RequestBuilder, Url};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::connection::{self, Connection};
use crate::error::Error;
use crate::limits::{PLACES, Times};

/// How long a connection may take to be made, its name's resolution included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A token's bytes, and those of the digest by which it is kept.
const TOKEN_BYTES: usize = 32;
/// How many secrets one connection keeps in mind to strike them from what a server says.
const SECRETS_MAX: usize = 8;

/// A secret, overwritten when the last that holds it lets go.
type Token = Arc<Zeroizing<String>>;

/// A credential for one request's header. Opaque: it has no `Debug`, `Display` or `Serialize`, and leaves only through a
/// header of a request of this crate.
pub struct Bearer {
    token: Token,
    vault: VaultId,
    credential: CredentialId,
}

impl Bearer {
    /// The token of a credential. `None` if it cannot stand in a header.
    pub fn new(token: &str, vault: VaultId, credential: CredentialId) -> Option<Self> {
        let is_visible = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
        is_visible.then(|| Self { token: Arc::new(Zeroizing::new(token.to_owned())), vault, credential })
    }

    /// The vault that keeps the credential.
    pub fn vault(&self) -> &VaultId {
        &self.vault
    }

    /// Which credential it is of.
    pub fn credential(&self) -> &CredentialId {
        &self.credential
    }

    /// Whether it is the same token of the same credential.
    pub fn is_same(&self, other: &Self) -> bool {
        self.credential == other.credential && self.token == other.token
    }
}

/// One use of a credential, for whoever keeps the audit.
pub struct Used<'a> {
    /// For which session.
    pub session: &'a SessionId,
    /// For which agent.
    pub agent: &'a AgentId,
    /// What was put into the request. The value cannot be had from it.
    pub bearer: &'a Bearer,
    /// The host of the server.
    pub host: &'a str,
    /// Whether the server took it. It did if it did not say that it does not.
    pub was_accepted: bool,
}

/// Why a credential could not be had.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// There is one, and it is of no use any more: it has expired and cannot be renewed. The text holds no secret.
    #[error("{0}")]
    Spent(String),
    /// It could not be looked up, or not renewed for the moment. Trying again may help.
    #[error("{0}")]
    Unavailable(String),
}

/// Why a credential is looked up. For the audit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// A connection begins.
    Connect,
    /// It has lasted for a while, and the credential may have been changed or withdrawn.
    Again,
}

/// Where credentials come from. The session's vaults are looked up by whoever implements it, on each call: what has been
/// archived or changed meanwhile counts. Matching of addresses, the order of vaults and renewal are its own, too.
#[async_trait::async_trait]
pub trait Credentials: Send + Sync {
    /// The credential of a session for an address, renewed if it is about to expire; `None` if there is none.
    async fn bearer(
        &self,
        session: &SessionId,
        url: &str,
        why: Why,
    ) -> Result<Option<Bearer>, CredentialError>;

    /// The same after the server has refused one. `None` if there is no other: a renewed one, or one that has been put in
    /// its place.
    async fn after_401(
        &self,
        session: &SessionId,
        url: &str,
        refused: &Bearer,
    ) -> Result<Option<Bearer>, CredentialError>;

    /// Takes down that a credential was used. Called for each request that carried one.
    fn used(&self, used: Used<'_>);
}

/// No credentials: servers are asked without.
pub struct NoCredentials;

#[async_trait::async_trait]
impl Credentials for NoCredentials {
    async fn bearer(&self, _: &SessionId, _: &str, _: Why) -> Result<Option<Bearer>, CredentialError> {
        Ok(None)
    }

    async fn after_401(&self, _: &SessionId, _: &str, _: &Bearer) -> Result<Option<Bearer>, CredentialError> {
        Ok(None)
    }

    fn used(&self, _: Used<'_>) {}
}

/// What a brain holds in a credential's place.
#[derive(Clone)]
pub struct SessionToken([u8; TOKEN_BYTES]);

impl SessionToken {
    /// A token from bytes that somebody made up. It is good for nothing, which tests want to see.
    pub fn forged(bytes: [u8; TOKEN_BYTES]) -> Self {
        Self(bytes)
    }

    fn digest(&self) -> [u8; TOKEN_BYTES] {
        digest(&SHA256, &self.0).as_ref().try_into().expect("a SHA-256 has 32 bytes")
    }
}

/// What a token is good for.
#[derive(Clone)]
struct Grant {
    session: SessionId,
    agent: AgentId,
    urls: Vec<String>,
    until: Instant,
}

/// Connects sessions to their servers, and puts credentials into their requests.
pub struct Proxy {
    client: Client,
    credentials: Arc<dyn Credentials>,
    grants: Mutex<HashMap<[u8; TOKEN_BYTES], Grant>>,
    random: SystemRandom,
    pub(crate) times: Times,
    pub(crate) places: Semaphore,
}

impl Proxy {
    /// A proxy that reaches what this guard allows, with credentials from there. The process needs a default provider of
    /// cryptography for rustls.
    pub fn new(
        guard: Arc<Guard>,
        credentials: Arc<dyn Credentials>,
        times: Times,
    ) -> reqwest::Result<Arc<Self>> {
        let client =
            egress::client_without_redirects(guard, |client| client.connect_timeout(CONNECT_TIMEOUT))?;
        Ok(Arc::new(Self {
            client,
            credentials,
            grants: Mutex::default(),
            random: SystemRandom::new(),
            times,
            places: Semaphore::new(PLACES),
        }))
    }

    /// A token for the servers of a session, good until then.
    pub fn issue(
        &self,
        session: &SessionId,
        agent: &AgentId,
        servers: &[McpServer],
        until: Instant,
    ) -> SessionToken {
        let mut bytes = [0; TOKEN_BYTES];
        self.random.fill(&mut bytes).expect("the system has randomness");
        let token = SessionToken(bytes);
        let urls = servers.iter().map(|server| server.url.clone()).collect();
        let grant = Grant { session: session.clone(), agent: agent.clone(), urls, until };
        let mut grants = self.grants.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever forgot to revoke his leaves nothing behind for longer than it was good.
        let now = Instant::now();
        grants.retain(|_, grant| grant.until > now);
        grants.insert(token.digest(), grant);
        token
    }

    /// Makes a token that is still good last until then.
    pub fn extend(&self, token: &SessionToken, until: Instant) {
        let mut grants = self.grants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(grant) = grants.get_mut(&token.digest()).filter(|grant| grant.until > Instant::now()) {
            grant.until = until;
        }
    }

    /// Ends a token.
    pub fn revoke(&self, token: &SessionToken) {
        self.grants.lock().unwrap_or_else(PoisonError::into_inner).remove(&token.digest());
    }

    /// Connects a session to one of its servers. Takes no longer than [`Times::connect_max`].
    pub async fn connect(
        self: &Arc<Self>,
        token: &SessionToken,
        session: &SessionId,
        server: &McpServer,
    ) -> Result<Connection, Error> {
        let url = Url::parse(&server.url)
            .map_err(|_| Error::Unreachable("the server's address cannot be read".to_owned()))?;
        let pass = Pass {
            proxy: Arc::clone(self),
            token: token.clone(),
            session: session.clone(),
            server: server.name.clone(),
            url: server.url.clone(),
        };
        connection::connect(pass, url).await
    }

    fn grant(&self, token: &SessionToken) -> Option<Grant> {
        let grants = self.grants.lock().unwrap_or_else(PoisonError::into_inner);
        grants.get(&token.digest()).filter(|grant| grant.until > Instant::now()).cloned()
    }
}

/// A brain's token with what it is presented for.
pub(crate) struct Pass {
    pub(crate) proxy: Arc<Proxy>,
    token: SessionToken,
    session: SessionId,
    pub(crate) server: String,
    url: String,
}

impl Pass {
    /// The way out, if the token is good for it.
    pub(crate) fn client(&self) -> Result<&Client, Error> {
        self.agent().map(|_| &self.proxy.client)
    }

    fn agent(&self) -> Result<AgentId, Error> {
        let grant = self.proxy.grant(&self.token).ok_or(Error::TokenRefused)?;
        if grant.session != self.session || !grant.urls.contains(&self.url) {
            return Err(Error::TokenRefused);
        }
        Ok(grant.agent)
    }

    pub(crate) async fn bearer(&self, why: Why) -> Result<Option<Bearer>, Error> {
        self.agent()?;
        let found = self.proxy.credentials.bearer(&self.session, &self.url, why).await;
        // The lookup may have taken its time.
        let agent = self.agent()?;
        match found {
            Ok(found) => Ok(found),
            Err(error) => Err(self.refused(&agent, error)),
        }
    }

    pub(crate) async fn after_401(&self, refused: &Bearer) -> Result<Option<Bearer>, Error> {
        self.agent()?;
        let found = self.proxy.credentials.after_401(&self.session, &self.url, refused).await;
        let agent = self.agent()?;
        found.map_err(|error| self.refused(&agent, error))
    }

    fn refused(&self, agent: &AgentId, error: CredentialError) -> Error {
        tracing::warn!(
            target: "audit",
            { session.id = %self.session, agent.id = %agent, server = %self.server, %error },
            "a credential could not be had"
        );
        match error {
            CredentialError::Spent(text) => Error::Unauthorized(text),
            CredentialError::Unavailable(text) => Error::Unreachable(text),
        }
    }

    /// Puts a credential into a request.
    pub(crate) fn put(&self, request: RequestBuilder, bearer: Option<&Bearer>) -> RequestBuilder {
        match bearer {
            Some(bearer) => request.bearer_auth(bearer.token.as_str()),
            None => request,
        }
    }

    /// Takes down that a credential was used, and whether the server took it.
    pub(crate) fn used(&self, bearer: Option<&Bearer>, url: &Url, was_accepted: bool) {
        let (Some(bearer), Ok(agent)) = (bearer, self.agent()) else { return };
        let host = url.host_str().unwrap_or_default();
        let used = Used { session: &self.session, agent: &agent, bearer, host, was_accepted };
        self.proxy.credentials.used(used);
    }
}

/// The secrets that a connection has used, to strike them from what its server says: a server that sends back what it was
/// sent must not put it before a model, or into a log.
#[derive(Clone, Default)]
pub(crate) struct Scrub(Vec<Token>);

impl Scrub {
    pub(crate) fn keep(&mut self, bearer: &Bearer) {
        if !self.0.contains(&bearer.token) {
            self.0.push(Arc::clone(&bearer.token));
            if self.0.len() > SECRETS_MAX {
                self.0.remove(0);
            }
        }
    }

    pub(crate) fn text(&self, text: String) -> String {
        self.0.iter().fold(text, |text, secret| {
            if text.contains(secret.as_str()) { text.replace(secret.as_str(), "[credential]") } else { text }
        })
    }
}
