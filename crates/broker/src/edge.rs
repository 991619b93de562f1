//! What the egress proxy is given for one session's sandbox.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use egress::{Authority, Body, Edge, Host, Replacement, Secret, Spent, Unavailable};
use http::{Request, Response};
use protocol::id::{CredentialId, SessionId, VaultId, WorkspaceId};
use tokio::sync::OnceCell;
use vault::{Opened, Outcome, Spendable, Use, Who};

use crate::{Broker, Error};

/// One session, as its exit sees it.
struct SessionEdge {
    broker: Broker,
    session: SessionId,
    /// What never changes of the session; `None` if there is none.
    facts: OnceCell<Option<Facts>>,
}

#[derive(Clone)]
struct Facts {
    workspace: WorkspaceId,
    who: Who,
    vaults: Vec<VaultId>,
}

impl Broker {
    /// What this session may spend on the way out of its sandbox.
    pub fn edge(&self, session: SessionId) -> Arc<dyn Edge> {
        Arc::new(SessionEdge { broker: self.clone(), session, facts: OnceCell::new() })
    }
}

impl SessionEdge {
    async fn facts(&self) -> Result<Option<&Facts>, Error> {
        let facts = self.facts.get_or_try_init(|| async {
            let view = self.broker.store().look(&self.session).await?;
            Ok::<_, Error>(view.map(|view| Facts {
                workspace: view.workspace,
                who: Who { session: self.session.clone(), agent: view.record.agent.id.clone() },
                vaults: view.record.vault_ids.clone(),
            }))
        });
        Ok(facts.await?.as_ref())
    }

    async fn replacements_for(&self, host: &Host) -> Result<Vec<Replacement>, Error> {
        let Some(facts) = self.facts().await? else { return Ok(Vec::new()) };
        if facts.vaults.is_empty() {
            return Ok(Vec::new());
        }
        let credentials = self.broker.credentials();
        let text = host.to_string();
        let mut replacements = Vec::new();
        for spendable in credentials.for_environment(&facts.workspace, &facts.vaults).await? {
            let Some((_, networking, places)) = spendable.variable() else { continue };
            if !networking.allows(&text) {
                continue;
            }
            let secret = match credentials.open(&spendable).await {
                Ok(opened) => Word(opened),
                Err(error) => {
                    spendable.record(Some(&facts.who), &text, Outcome::Unopened);
                    return Err(error.into());
                }
            };
            replacements.push(Replacement {
                credential: known(&spendable),
                placeholder: credentials.placeholder(&facts.workspace, &self.session, spendable.id()).await?,
                secret: Arc::new(secret),
                in_headers: places.header,
                in_body: places.body,
            });
        }
        Ok(replacements)
    }
}

/// How the proxy knows a credential: its vault and itself, for the line of its use.
fn known(spendable: &Spendable) -> String {
    format!("{} {}", spendable.vault(), spendable.id())
}

/// An opened secret, as the proxy spends it.
struct Word(Opened);

impl Secret for Word {
    fn write_to(&self, into: &mut Vec<u8>) {
        self.0.expose(|secret| into.extend_from_slice(secret.as_bytes()));
    }
}

#[async_trait]
impl Edge for SessionEdge {
    async fn replacements(&self, host: &Host) -> Result<Vec<Replacement>, Unavailable> {
        self.replacements_for(host).await.map_err(|error| Unavailable(error.to_string()))
    }

    async fn authority(&self) -> Result<Arc<Authority>, Unavailable> {
        let found = async {
            let facts = self.facts().await?;
            let workspace = facts.map(|facts| facts.workspace.clone());
            match workspace {
                Some(workspace) => self.broker.authority(&workspace, &self.session).await.map(Some),
                None => Ok(None),
            }
        };
        let found: Result<Option<Arc<Authority>>, Error> = found.await;
        match found {
            Ok(Some(authority)) => Ok(authority),
            Ok(None) => Err(Unavailable("there is no such session".to_owned())),
            Err(error) => Err(Unavailable(error.to_string())),
        }
    }

    fn spent(&self, host: &Host, credential: &str, outcome: Spent) {
        let (Some(Some(facts)), Some((vault, id))) = (self.facts.get(), credential.split_once(' ')) else {
            return;
        };
        let outcome = match outcome {
            Spent::Answered(401 | 403) => Outcome::Rejected,
            Spent::Answered(_) | Spent::Sent => Outcome::Spent,
            Spent::Unanswered => Outcome::Unanswered,
        };
        Use {
            who: Some(&facts.who),
            vault: &VaultId::from_text(vault),
            credential: &CredentialId::from_text(id),
            host: &host.to_string(),
            outcome,
        }
        .record();
    }

    async fn local(&self, request: Request<Body>) -> Result<Response<Body>, Request<Body>> {
        match &self.broker.repositories {
            Some(repositories) => repositories.local(&self.session, request).await,
            None => Err(request),
        }
    }
}

impl fmt::Debug for SessionEdge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionEdge").field("session", &self.session).finish_non_exhaustive()
    }
}
