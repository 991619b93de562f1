//! Credentials: kept for clients, found and opened for whoever spends them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use egress::{Client, Guard};
use protocol::credential::{
    Credential, CredentialAuth, CredentialKey, CredentialNetworking, InjectionLocation,
};
use protocol::credential_request::{CredentialCreate, CredentialUpdate, SecretField, Secrets};
use protocol::id::{CredentialId, ResourceId, SessionId, VaultId, WorkspaceId};
use protocol::secret::Secret;
use protocol::time::Timestamp;
use session::Refusal;
use store::{ChangeError, KeptCredential, Sealed, SealedToken, Store, Wanted};

use crate::audit::{Outcome, Use, Who};
use crate::error::{Error, KeyError};
use crate::keys::Keys;
use crate::master::Source;
use crate::opened::Opened;
use crate::seal::{Key, Place};

/// How long a connection may take, an answer, and how long a connection is kept for another request.
const CONNECT_MAX: Duration = Duration::from_secs(10);
const REQUEST_MAX: Duration = Duration::from_secs(30);
const IDLE_MAX: Duration = Duration::from_secs(20);
/// How often a renewed token is saved anew because somebody changed something else of the credential.
const SAVES_MAX: usize = 8;

/// The credentials of a store. Cheap to clone; all clones share the keys.
#[derive(Clone)]
pub struct Credentials {
    inner: Arc<Inner>,
    /// To token endpoints, and to servers that a credential is tried on.
    http: Option<Client>,
}

struct Inner {
    store: Store,
    keys: Keys,
}

/// A credential that a session may spend, as it was a moment ago: ask again for each connection and each request, so that
/// what is changed, archived or deleted reaches running sessions.
#[derive(Clone)]
pub struct Spendable {
    workspace: WorkspaceId,
    kept: KeptCredential,
}

/// What a token endpoint gave.
pub struct Renewed {
    /// The new access token.
    pub access_token: Secret,
    /// The new refresh token, if the old one is used up.
    pub refresh_token: Option<Secret>,
    /// When the access token ends, if that is known.
    pub expires_at: Option<Timestamp>,
}

impl Credentials {
    /// Over that store, sealed with keys from that source. Neither is touched yet.
    pub fn new(store: Store, source: Source) -> Self {
        Self { inner: Arc::new(Inner { keys: Keys::new(store.clone(), source), store }), http: None }
    }

    /// The same, with a way to token endpoints and servers past this guard; without one nothing is renewed or tried. The
    /// process needs a default provider of cryptography for rustls.
    pub fn reaching(self, guard: Arc<Guard>) -> reqwest::Result<Self> {
        // A redirect would take a secret elsewhere.
        let http = egress::client_without_redirects(guard, |builder| {
            builder.connect_timeout(CONNECT_MAX).timeout(REQUEST_MAX).pool_idle_timeout(IDLE_MAX)
        })?;
        Ok(Self { http: Some(http), ..self })
    }

    pub(crate) fn http(&self) -> Option<&Client> {
        self.http.as_ref()
    }

    /// Sees whether the keys can be used, and makes the key file if nothing is sealed yet. Gives the name of the master key
    /// for what is new.
    pub async fn check(&self) -> Result<String, Error> {
        self.inner.keys.check().await
    }

    /// Where they last.
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    // For clients.

    /// Seals and keeps a new credential.
    pub async fn create(
        &self,
        workspace: &WorkspaceId,
        vault: &VaultId,
        create: CredentialCreate,
    ) -> Result<Credential, Error> {
        let store = &self.inner.store;
        let (credential, secrets) = create.into_credential(store.ids().make(), vault.clone(), store.now());
        let sealed = self.seal(workspace, vault, &credential.id, &secrets).await?;
        let kept = KeptCredential { credential, sealed };
        Ok(store.create_credential(workspace, kept).await?.credential)
    }

    /// Changes a credential; the secrets that are not sent are kept, and are not opened for that.
    pub async fn update(
        &self,
        workspace: &WorkspaceId,
        vault: &VaultId,
        id: &CredentialId,
        mut update: CredentialUpdate,
    ) -> Result<Credential, Error> {
        let store = &self.inner.store;
        let secrets = update.take_secrets();
        let sealed = self.seal(workspace, vault, id, &secrets).await?;
        let sent: Vec<SecretField> = secrets.into_keys().collect();
        let now = store.now();
        let change = move |kept: &KeptCredential| {
            let changed = update.apply(&kept.credential, &sent, now).map_err(Refusal::Invalid);
            let changed = changed.map_err(ChangeError::Refused)?;
            Ok(changed.map(|credential| {
                let mut all = kept.sealed.clone();
                all.extend(sealed);
                KeptCredential { credential, sealed: all }
            }))
        };
        Ok(store.change_credential(workspace, vault, id, Box::new(change)).await?.credential)
    }

    /// Archives a credential: its secrets are gone, its key is free. Doing it again changes nothing.
    pub async fn archive(
        &self,
        workspace: &WorkspaceId,
        vault: &VaultId,
        id: &CredentialId,
    ) -> Result<Credential, Error> {
        let now = self.inner.store.now();
        let change = move |kept: &KeptCredential| {
            let credential = &kept.credential;
            let archived = Credential { archived_at: Some(now), updated_at: now, ..credential.clone() };
            let purged = KeptCredential { credential: archived, sealed: Sealed::new() };
            Ok(credential.archived_at.is_none().then_some(purged))
        };
        Ok(self.inner.store.change_credential(workspace, vault, id, Box::new(change)).await?.credential)
    }

    // For whoever spends them.

    /// The credential for an MCP server: of the first of these vaults that has one. Addresses that mean the same server are
    /// the same (see [`protocol::credential::normalized`]). `None` says to connect without.
    pub async fn for_mcp(
        &self,
        workspace: &WorkspaceId,
        vaults: &[VaultId],
        url: &str,
    ) -> Result<Option<Spendable>, Error> {
        let Some(key) = CredentialKey::of_server(url) else { return Ok(None) };
        let found = self.inner.store.spendable(workspace, vaults, Wanted::Key(key)).await?;
        Ok(found.into_iter().next().map(|kept| Spendable { workspace: workspace.clone(), kept }))
    }

    /// The environment variables of these vaults: for each name the credential of the first vault that has it.
    pub async fn for_environment(
        &self,
        workspace: &WorkspaceId,
        vaults: &[VaultId],
    ) -> Result<Vec<Spendable>, Error> {
        let mut first: Vec<Spendable> = Vec::new();
        for kept in self.inner.store.spendable(workspace, vaults, Wanted::Variables).await? {
            let key = kept.credential.auth.key();
            if first.iter().all(|other| other.kept.credential.auth.key() != key) {
                first.push(Spendable { workspace: workspace.clone(), kept });
            }
        }
        Ok(first)
    }

    /// A credential of that vault, archived or not.
    pub(crate) async fn find(
        &self,
        workspace: &WorkspaceId,
        vault: &VaultId,
        id: &CredentialId,
    ) -> Result<Option<Spendable>, Error> {
        let found = self.inner.store.get_credential(workspace, vault, id).await?;
        Ok(found.map(|kept| Spendable { workspace: workspace.clone(), kept }))
    }

    /// The same credential as it is now; `None` if it cannot be spent any more.
    pub async fn again(&self, spendable: &Spendable) -> Result<Option<Spendable>, Error> {
        let Spendable { workspace, kept } = spendable;
        let vault = [kept.credential.vault_id.clone()];
        let found =
            self.inner.store.spendable(workspace, &vault, Wanted::Key(kept.credential.auth.key())).await?;
        let same = found.into_iter().find(|other| other.credential.id == kept.credential.id);
        Ok(same.map(|kept| Spendable { workspace: workspace.clone(), kept }))
    }

    /// Opens what is spent of it: the token, the access token or the value. Say what became of it with
    /// [`Use::record`](crate::Use::record).
    pub async fn open(&self, spendable: &Spendable) -> Result<Opened, Error> {
        let field = match spendable.credential().auth {
            CredentialAuth::McpOauth { .. } => SecretField::AccessToken,
            CredentialAuth::StaticBearer { .. } => SecretField::Token,
            CredentialAuth::EnvironmentVariable { .. } => SecretField::SecretValue,
        };
        self.open_field(spendable, field).await?.ok_or_else(|| Error::Gone(spendable.id().clone()))
    }

    /// Keeps what a token endpoint gave for the refresh token that `spendable` had: all of it or nothing. Refused with a
    /// [`ChangeError::Conflict`] if the credential has another refresh token by now, or is archived.
    pub async fn save_renewed(&self, spendable: &Spendable, renewed: Renewed) -> Result<Spendable, Error> {
        let Spendable { workspace, kept } = spendable;
        let Renewed { access_token, refresh_token, expires_at: until } = renewed;
        let (vault, id) = (&kept.credential.vault_id, &kept.credential.id);
        let mut secrets = Secrets::from([(SecretField::AccessToken, access_token)]);
        secrets.extend(refresh_token.map(|token| (SecretField::RefreshToken, token)));
        let sealed = self.seal(workspace, vault, id, &secrets).await?;
        let used = kept.sealed.get(SecretField::RefreshToken.as_str()).cloned();
        let mut tries = SAVES_MAX;
        loop {
            let (sealed, used, now) = (sealed.clone(), used.clone(), self.inner.store.now());
            let change = move |kept: &KeptCredential| {
                if kept.sealed.get(SecretField::RefreshToken.as_str()) != used.as_ref() || used.is_none() {
                    return Err(ChangeError::Conflict(OVERTAKEN.to_owned()));
                }
                let mut changed = kept.clone();
                if let CredentialAuth::McpOauth { expires_at, .. } = &mut changed.credential.auth {
                    *expires_at = until;
                }
                changed.credential.updated_at = now;
                changed.sealed.extend(sealed);
                Ok(Some(changed))
            };
            match self.inner.store.change_credential(workspace, vault, id, Box::new(change)).await {
                Ok(kept) => return Ok(Spendable { workspace: workspace.clone(), kept }),
                // Somebody changed its name, say: what was renewed must not be lost for that.
                Err(ChangeError::Conflict(message)) if message != OVERTAKEN && tries > 1 => tries -= 1,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The key of a workspace.
    pub(crate) async fn key(&self, workspace: &WorkspaceId) -> Result<Arc<Key>, Error> {
        self.inner.keys.of(workspace).await
    }

    /// Opens one secret; `None` if the credential has none of that name.
    pub(crate) async fn open_field(
        &self,
        spendable: &Spendable,
        field: SecretField,
    ) -> Result<Option<Opened>, Error> {
        let Spendable { workspace, kept } = spendable;
        let Some(sealed) = kept.sealed.get(field.as_str()) else { return Ok(None) };
        let key = self.inner.keys.of(workspace).await?;
        let (vault, credential) = (&kept.credential.vault_id, &kept.credential.id);
        let opened = key.open(Place::Credential { workspace, vault, credential, field }, sealed);
        opened.map(|secret| Some(Opened::new(secret))).map_err(|_| Error::Sealed(credential.clone()))
    }

    async fn seal(
        &self,
        workspace: &WorkspaceId,
        vault: &VaultId,
        credential: &CredentialId,
        secrets: &Secrets,
    ) -> Result<Sealed, Error> {
        if secrets.is_empty() {
            return Ok(Sealed::new());
        }
        let key = self.inner.keys.of(workspace).await?;
        let seal = |(field, secret): (&SecretField, &Secret)| {
            let place = Place::Credential { workspace, vault, credential, field: *field };
            (field.as_str().to_owned(), key.seal(place, secret))
        };
        Ok(secrets.iter().map(seal).collect())
    }
}

impl Credentials {
    /// Seals the token of a session's resource.
    pub async fn seal_token(
        &self,
        workspace: &WorkspaceId,
        session: &SessionId,
        resource: &ResourceId,
        token: &Secret,
    ) -> Result<SealedToken, Error> {
        let key = self.inner.keys.of(workspace).await?;
        let sealed = key.seal(Place::Resource { workspace, session, resource }, token);
        Ok(SealedToken { resource: resource.clone(), sealed })
    }

    /// The token of a session's resource, as it is now; `None` if it has none, or none any more.
    pub async fn token(
        &self,
        workspace: &WorkspaceId,
        session: &SessionId,
        resource: &ResourceId,
    ) -> Result<Option<Opened>, Error> {
        let Some(sealed) = self.inner.store.session_token(workspace, session, resource).await? else {
            return Ok(None);
        };
        let key = self.inner.keys.of(workspace).await?;
        let opened = key.open(Place::Resource { workspace, session, resource }, &sealed);
        opened.map(|token| Some(Opened::new(token))).map_err(|_| Error::SealedToken(resource.clone()))
    }
}

/// Why a renewed token is not kept.
const OVERTAKEN: &str = "the credential has another refresh token by now";

impl Spendable {
    /// Writes the audit's line of a use.
    pub fn record(&self, who: Option<&Who>, host: &str, outcome: Outcome) {
        Use { who, vault: self.vault(), credential: self.id(), host, outcome }.record();
    }

    /// As the wire shows it.
    pub fn credential(&self) -> &Credential {
        &self.kept.credential
    }

    /// Its id.
    pub fn id(&self) -> &CredentialId {
        &self.kept.credential.id
    }

    /// The vault that keeps it.
    pub fn vault(&self) -> &VaultId {
        &self.kept.credential.vault_id
    }

    /// Of an environment variable: its name, and where it may be put.
    pub fn variable(&self) -> Option<(&str, &CredentialNetworking, InjectionLocation)> {
        match &self.kept.credential.auth {
            CredentialAuth::EnvironmentVariable { secret_name, networking, injection_location } => {
                Some((secret_name, networking, *injection_location))
            }
            CredentialAuth::McpOauth { .. } | CredentialAuth::StaticBearer { .. } => None,
        }
    }

    /// When its access token ends, if that is known.
    pub fn expires_at(&self) -> Option<Timestamp> {
        match &self.kept.credential.auth {
            CredentialAuth::McpOauth { expires_at, .. } => *expires_at,
            CredentialAuth::StaticBearer { .. } | CredentialAuth::EnvironmentVariable { .. } => None,
        }
    }

    /// Whether it can be renewed.
    pub fn is_renewable(&self) -> bool {
        self.kept.sealed.contains_key(SecretField::RefreshToken.as_str())
    }

    /// Whether this is still the secret that `other` had.
    pub fn is_same_secret(&self, other: &Self) -> bool {
        self.kept.sealed == other.kept.sealed
    }
}

impl fmt::Debug for Spendable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Spendable({})", self.kept.credential.id)
    }
}

impl Error {
    /// Whether an operator must see to the keys first.
    pub fn is_about_keys(&self) -> bool {
        matches!(self, Self::Key(KeyError::File { .. } | KeyError::Exposed { .. } | KeyError::Other { .. }))
    }
}
