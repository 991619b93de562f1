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
use protocol::secret::Forms;
use reqwest::{RequestBuilder, Url};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde_json::{Map, Value};
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
/// What stands in the place of a secret.
const STRUCK: &str = "[credential]";

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

/// One use of a credential, for whoever keeps the audit: it was put into a request that left, or that nobody knows of
/// whether it did.
pub struct Used<'a> {
    /// For which session.
    pub session: &'a SessionId,
    /// For which agent.
    pub agent: &'a AgentId,
    /// What was put into the request. The value cannot be had from it.
    pub bearer: &'a Bearer,
    /// The host of the server.
    pub host: &'a str,
    /// Whether the server took it. It did if it did not say that it does not, or was not waited for.
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

/// Where credentials come from. It is asked before each request, and the session's vaults are looked up by whoever implements
/// it, on each call: what has been archived or changed meanwhile counts. Matching of addresses, the order of vaults and renewal
/// are its own, too, and so are the audit's lines about renewals.
#[async_trait::async_trait]
pub trait Credentials: Send + Sync {
    /// The credential of a session for an address, renewed if it is about to expire; `None` if there is none.
    async fn bearer(&self, session: &SessionId, url: &str) -> Result<Option<Bearer>, CredentialError>;

    /// The same after the server has refused one. `None` if there is no other: a renewed one, or one that has been put in
    /// its place.
    async fn after_401(
        &self,
        session: &SessionId,
        url: &str,
        refused: &Bearer,
    ) -> Result<Option<Bearer>, CredentialError>;

    /// Takes down that a credential was used. Called once for each request that carried one, also for one that was given up.
    fn used(&self, used: Used<'_>);
}

/// No credentials: servers are asked without.
pub struct NoCredentials;

#[async_trait::async_trait]
impl Credentials for NoCredentials {
    async fn bearer(&self, _: &SessionId, _: &str) -> Result<Option<Bearer>, CredentialError> {
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
        let agent = self.grant(token).ok_or(Error::TokenRefused)?.agent;
        let pass = Pass {
            proxy: Arc::clone(self),
            token: token.clone(),
            session: session.clone(),
            agent,
            url: server.url.clone(),
            scrub: Mutex::default(),
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
    /// For the audit, which wants to know also when the token is good no more.
    agent: AgentId,
    url: String,
    scrub: Mutex<Scrub>,
}

impl Pass {
    /// The way out, if the token is good for it.
    pub(crate) fn client(&self) -> Result<&Client, Error> {
        self.check()?;
        Ok(&self.proxy.client)
    }

    fn check(&self) -> Result<(), Error> {
        let grant = self.proxy.grant(&self.token).ok_or(Error::TokenRefused)?;
        let is_good = grant.session == self.session && grant.urls.contains(&self.url);
        if is_good { Ok(()) } else { Err(Error::TokenRefused) }
    }

    /// The credential of the moment.
    pub(crate) async fn bearer(&self) -> Result<Option<Bearer>, Error> {
        self.check()?;
        let found = self.proxy.credentials.bearer(&self.session, &self.url).await;
        self.found(found.map_err(|error| match error {
            CredentialError::Spent(text) => Error::Unauthorized(text),
            CredentialError::Unavailable(text) => Error::Unreachable(text),
        }))
    }

    /// The credential after one was refused.
    pub(crate) async fn after_401(&self, refused: &Bearer) -> Result<Option<Bearer>, Error> {
        self.check()?;
        let found = self.proxy.credentials.after_401(&self.session, &self.url, refused).await;
        // The server has refused what there is, whatever keeps another from being there.
        self.found(found.map_err(|error| Error::Unauthorized(error.to_string())))
    }

    fn found(&self, found: Result<Option<Bearer>, Error>) -> Result<Option<Bearer>, Error> {
        // The lookup may have taken its time.
        self.check()?;
        let bearer = found?;
        if let Some(bearer) = &bearer {
            self.scrub.lock().unwrap_or_else(PoisonError::into_inner).keep(bearer);
        }
        Ok(bearer)
    }

    /// Puts a credential into a request that is about to leave for there.
    pub(crate) fn spend<'a>(
        &'a self,
        request: RequestBuilder,
        bearer: Option<&'a Bearer>,
        url: &Url,
    ) -> (RequestBuilder, Spending<'a>) {
        let request = match bearer {
            Some(bearer) => request.bearer_auth(bearer.token.as_str()),
            None => request,
        };
        let host = url.host_str().unwrap_or_default().to_owned();
        (request, Spending { pass: self, bearer, host })
    }

    /// What the server has said, without the credentials that it was sent.
    pub(crate) fn scrubbed(&self, said: String) -> String {
        self.scrub().message(said)
    }

    /// Whether a mark of the server's, which comes back to it, holds none of them. Marks are logged.
    pub(crate) fn is_clean(&self, mark: &str) -> bool {
        self.scrub().text(mark.to_owned()) == mark
    }

    fn scrub(&self) -> Scrub {
        self.scrub.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What one request has spent. Each is a line of the audit, however the request ends.
pub(crate) struct Spending<'a> {
    pass: &'a Pass,
    bearer: Option<&'a Bearer>,
    host: String,
}

impl Spending<'_> {
    /// The server has answered, and may have refused it.
    pub(crate) fn close(mut self, was_accepted: bool) {
        self.say(was_accepted);
    }

    /// The request never left.
    pub(crate) fn void(mut self) {
        self.bearer = None;
    }

    fn say(&mut self, was_accepted: bool) {
        let Some(bearer) = self.bearer.take() else { return };
        let Pass { proxy, session, agent, .. } = self.pass;
        proxy.credentials.used(Used { session, agent, bearer, host: &self.host, was_accepted });
    }
}

impl Drop for Spending<'_> {
    fn drop(&mut self) {
        // It was given up on its way.
        self.say(true);
    }
}

/// The secrets that a connection has used, to strike them from what its server says: a server that sends back what it was
/// sent must not put it before a model, or into a log.
#[derive(Clone, Default)]
struct Scrub(Vec<(Token, Arc<Forms>)>);

impl Scrub {
    fn keep(&mut self, bearer: &Bearer) {
        if self.0.iter().all(|(known, _)| *known != bearer.token) {
            self.0.push((Arc::clone(&bearer.token), Arc::new(Forms::of(&bearer.token))));
            if self.0.len() > SECRETS_MAX {
                self.0.remove(0);
            }
        }
    }

    /// Every text in a message, names of fields too; of what is no JSON, all of it.
    fn message(&self, said: String) -> String {
        if self.0.is_empty() {
            return said;
        }
        // In JSON a text can be written in many ways, so what is looked at is what it means.
        match serde_json::from_str(&said) {
            Ok(message) => self.value(message).to_string(),
            Err(_) => self.text(said),
        }
    }

    fn value(&self, value: Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.text(text)),
            Value::Array(values) => values.into_iter().map(|value| self.value(value)).collect(),
            Value::Object(fields) => {
                let scrubbed = fields.into_iter().map(|(name, value)| (self.text(name), self.value(value)));
                Value::Object(scrubbed.collect::<Map<_, _>>())
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => value,
        }
    }

    fn text(&self, text: String) -> String {
        self.0.iter().fold(text, |text, (_, forms)| forms.strike(text, STRUCK))
    }
}
