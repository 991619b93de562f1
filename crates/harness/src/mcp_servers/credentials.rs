//! The vault, as the proxy of MCP servers asks it.
//!
//! Nothing is kept here: each question reads the session, its vaults and the credential anew, so what is changed, archived or
//! deleted reaches running sessions. The order of vaults and what counts as the same address is the vault's business.

use mcp::proxy::{Bearer, CredentialError, Used, Why};
use protocol::id::SessionId;
use store::Store;
use vault::{Outcome, Spendable, Use};

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

    async fn find(&self, session: &SessionId, url: &str) -> Result<Option<Spendable>, CredentialError> {
        let view = self.store.look(session).await.map_err(|error| unavailable(&error))?;
        let Some(view) = view.filter(|view| !view.record.vault_ids.is_empty()) else { return Ok(None) };
        let found = self.vault.for_mcp(&view.workspace, &view.record.vault_ids, url).await;
        found.map_err(|error| unavailable(&error))
    }

    /// The same credential with a token from its token endpoint; one renewal at a time, over all processes.
    async fn renew(&self, spendable: &Spendable) -> Result<Spendable, CredentialError> {
        self.vault.renew(spendable).await.map_err(|error| {
            tracing::warn!(%error, credential.id = %spendable.id(), "a credential was not renewed");
            if error.is_permanent() {
                CredentialError::Spent(format!("its credential has to be authorized anew: {error}"))
            } else {
                CredentialError::Unavailable(format!("its credential could not be renewed: {error}"))
            }
        })
    }

    fn ends_soon(&self, spendable: &Spendable) -> bool {
        let now = self.store.now();
        spendable.expires_at().is_some_and(|end| end.seconds_since(now) < AHEAD_SECONDS)
    }

    async fn open(&self, spendable: &Spendable) -> Result<Option<Bearer>, CredentialError> {
        let opened = self.vault.open(spendable).await.map_err(|error| unavailable(&error))?;
        let (vault, credential) = (spendable.vault().clone(), spendable.id().clone());
        Ok(opened.expose(|token| Bearer::new(token, vault, credential)))
    }
}

#[async_trait::async_trait]
impl mcp::Credentials for VaultCredentials {
    async fn bearer(
        &self,
        session: &SessionId,
        url: &str,
        _: Why,
    ) -> Result<Option<Bearer>, CredentialError> {
        let Some(spendable) = self.find(session, url).await? else { return Ok(None) };
        if !spendable.is_renewable() || !self.ends_soon(&spendable) {
            return self.open(&spendable).await;
        }
        match self.renew(&spendable).await {
            Ok(renewed) => self.open(&renewed).await,
            // It may still be good for this once, and the server knows best.
            Err(CredentialError::Unavailable(_)) => self.open(&spendable).await,
            Err(spent @ CredentialError::Spent(_)) => Err(spent),
        }
    }

    async fn after_401(
        &self,
        session: &SessionId,
        url: &str,
        refused: &Bearer,
    ) -> Result<Option<Bearer>, CredentialError> {
        let Some(spendable) = self.find(session, url).await? else { return Ok(None) };
        // Somebody may have renewed it, or put another there, since.
        let there = self.open(&spendable).await?;
        if there.as_ref().is_some_and(|bearer| !bearer.is_same(refused)) {
            return Ok(there);
        }
        if !spendable.is_renewable() {
            return Ok(None);
        }
        let renewed = self.renew(&spendable).await?;
        Ok(self.open(&renewed).await?.filter(|bearer| !bearer.is_same(refused)))
    }

    fn used(&self, used: Used<'_>) {
        let Used { session, agent, bearer, host, was_accepted } = used;
        let outcome = if was_accepted { Outcome::Spent } else { Outcome::Rejected };
        let (vault, credential) = (bearer.vault(), bearer.credential());
        Use { session, agent, vault, credential, host, outcome }.record();
    }
}

/// What a client is shown names no inside story.
fn unavailable(error: &(dyn std::error::Error + 'static)) -> CredentialError {
    tracing::warn!(error, "a credential could not be looked up");
    CredentialError::Unavailable("its credential could not be looked up".to_owned())
}
