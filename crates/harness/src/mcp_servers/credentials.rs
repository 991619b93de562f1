//! The vault, as the proxy of MCP servers asks it.
//!
//! Nothing is kept here: each question reads the session, its vaults and the credential anew, so what is changed, archived or
//! deleted reaches running sessions. The order of vaults and what counts as the same address is the vault's business.

use mcp::proxy::{Bearer, CredentialError, Used};
use protocol::id::SessionId;
use reqwest::Url;
use store::Store;
use vault::{Outcome, Spendable, Use, Who};

/// A token is renewed this long before it ends, so that it does not end on its way.
const AHEAD_SECONDS: f64 = 60.0;

/// Credentials of sessions' vaults.
pub struct VaultCredentials {
    store: Store,
    vault: vault::Credentials,
}

impl VaultCredentials {
    /// Over the store that holds the sessions, and their vault.
    pub fn new(store: Store, vault: vault::Credentials) -> Self {
        Self { store, vault }
    }

    async fn find(&self, session: &SessionId, url: &str) -> Result<Option<Found>, CredentialError> {
        let view = self.store.look(session).await.map_err(|error| unavailable(&error))?;
        let Some(view) = view.filter(|view| !view.record.vault_ids.is_empty()) else { return Ok(None) };
        let found = self.vault.for_mcp(&view.workspace, &view.record.vault_ids, url).await;
        let host = Url::parse(url).ok().and_then(|url| url.host_str().map(str::to_owned)).unwrap_or_default();
        let who = Who { session: session.clone(), agent: view.record.agent.id.clone() };
        let found = found.map_err(|error| unavailable(&error))?;
        Ok(found.map(|spendable| Found { who, host, spendable }))
    }

    /// The same credential with a token from its token endpoint; one renewal at a time, over all processes.
    async fn renew(&self, found: &Found) -> Result<Found, CredentialError> {
        match self.vault.renew(&found.spendable, Some(&found.who)).await {
            Ok(renewed) => Ok(Found { spendable: renewed, ..found.clone() }),
            Err(error) => {
                let is_permanent = error.is_permanent();
                tracing::warn!(%error, credential.id = %found.spendable.id(), "a credential was not renewed");
                Err(if is_permanent {
                    CredentialError::Spent(format!("its credential has to be authorized anew: {error}"))
                } else {
                    CredentialError::Unavailable(format!("its credential could not be renewed: {error}"))
                })
            }
        }
    }

    fn ends_soon(&self, spendable: &Spendable) -> bool {
        let now = self.store.now();
        spendable.expires_at().is_some_and(|end| end.seconds_since(now) < AHEAD_SECONDS)
    }

    async fn open(&self, found: &Found) -> Result<Option<Bearer>, CredentialError> {
        let spendable = &found.spendable;
        let opened = self.vault.open(spendable).await.map_err(|error| {
            found.record(Outcome::Unopened);
            unavailable(&error)
        })?;
        let (vault, credential) = (spendable.vault().clone(), spendable.id().clone());
        Ok(opened.expose(|token| Bearer::new(token, vault, credential)))
    }
}

/// A session's credential for a server, and what a line of the audit says beside.
#[derive(Clone)]
struct Found {
    who: Who,
    host: String,
    spendable: Spendable,
}

impl Found {
    fn record(&self, outcome: Outcome) {
        self.spendable.record(Some(&self.who), &self.host, outcome);
    }
}

#[async_trait::async_trait]
impl mcp::Credentials for VaultCredentials {
    async fn bearer(&self, session: &SessionId, url: &str) -> Result<Option<Bearer>, CredentialError> {
        let Some(found) = self.find(session, url).await? else { return Ok(None) };
        if !found.spendable.is_renewable() || !self.ends_soon(&found.spendable) {
            return self.open(&found).await;
        }
        match self.renew(&found).await {
            Ok(renewed) => self.open(&renewed).await,
            // It may still be good for this once, and the server knows best.
            Err(CredentialError::Unavailable(_)) => self.open(&found).await,
            Err(spent @ CredentialError::Spent(_)) => Err(spent),
        }
    }

    async fn after_401(
        &self,
        session: &SessionId,
        url: &str,
        refused: &Bearer,
    ) -> Result<Option<Bearer>, CredentialError> {
        let Some(found) = self.find(session, url).await? else { return Ok(None) };
        // Somebody may have renewed it, or put another there, since.
        let there = self.open(&found).await?;
        if there.as_ref().is_some_and(|bearer| !bearer.is_same(refused)) {
            return Ok(there);
        }
        if !found.spendable.is_renewable() {
            return Ok(None);
        }
        let renewed = self.renew(&found).await?;
        Ok(self.open(&renewed).await?.filter(|bearer| !bearer.is_same(refused)))
    }

    fn used(&self, used: Used<'_>) {
        let Used { session, agent, bearer, host, was_accepted } = used;
        let outcome = if was_accepted { Outcome::Spent } else { Outcome::Rejected };
        let (vault, credential) = (bearer.vault(), bearer.credential());
        let who = Who { session: session.clone(), agent: agent.clone() };
        Use { who: Some(&who), vault, credential, host, outcome }.record();
    }
}

/// What a client is shown names no inside story.
fn unavailable(error: &(dyn std::error::Error + 'static)) -> CredentialError {
    tracing::warn!(error, "a credential could not be looked up");
    CredentialError::Unavailable("its credential could not be looked up".to_owned())
}
