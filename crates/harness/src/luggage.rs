//! What a session brings into its sandbox, once that lives: placeholders for secrets, and the authority in whose name the
//! egress proxy spends them; and the session's repositories.

use std::sync::Arc;

use broker::{Belongings, Broker, Unreachable};
use protocol::event::{CredentialNamed, RetryStatus, SessionError, SessionErrorKind};
use protocol::id::{SandboxId, WorkspaceId};
use repositories::{Prepared, Repositories};
use sandbox::{Equipment, Error, Provider, Tree};
use session::Record;

use crate::hands::{self, Outcome};

/// Whose luggage it is, and who knows what is in it.
#[derive(Clone)]
pub(crate) struct Luggage {
    pub(crate) broker: Option<Broker>,
    pub(crate) repositories: Option<Repositories>,
    pub(crate) workspace: WorkspaceId,
    pub(crate) record: Arc<Record>,
}

impl Luggage {
    /// Brings it all, and gives what the session will miss. Asking again is as good as once.
    pub(crate) async fn bring(
        &self,
        hands: &dyn Provider,
        id: &SandboxId,
        fence: u64,
    ) -> Result<Vec<SessionError>, Outcome> {
        let Some(broker) = &self.broker else { return Ok(Vec::new()) };
        let belongings = broker.belongings(&self.workspace, &self.record).await.map_err(|error| {
            tracing::error!(session.id = %self.record.id, error = &error as &dyn std::error::Error,
                "what a session brings into its sandbox cannot be had");
            // The error's own words are for the operator; none of them is a secret.
            let reason = "the session's credentials cannot be had at the moment".to_owned();
            Outcome::Failed { error: Error::Busy { reason } }
        })?;
        let Belongings { variables, trusted, unreachable } = belongings;
        let equipment = Equipment { variables, trusted, trees: Vec::new() };
        match hands.equip(&hands::handle(id), fence, &equipment).await {
            Ok(()) => Ok(unreachable.into_iter().map(missed).collect()),
            Err(Error::Fenced { .. }) => Err(Outcome::Fenced),
            Err(error) => Err(Outcome::Failed { error }),
        }
    }
}

impl Luggage {
    /// Fetches the session's repositories, which needs no sandbox.
    pub(crate) async fn fetch(&self) -> Prepared {
        match &self.repositories {
            Some(repositories) if Repositories::has_any(&self.record) => {
                repositories.prepare(&self.workspace, &self.record).await
            }
            Some(_) | None => Prepared::default(),
        }
    }
}

/// Puts what was fetched into a sandbox, and gives what the session will miss.
pub(crate) async fn unpack(
    hands: &dyn Provider,
    id: &SandboxId,
    fence: u64,
    fetched: Prepared,
) -> Result<Vec<SessionError>, Outcome> {
    let Prepared { trees, errors: mut missed } = fetched;
    for ready in trees {
        let tree = Tree { at: ready.at().to_owned(), archive: ready.archive().to_owned() };
        let equipment = Equipment { trees: vec![tree], ..Equipment::default() };
        match hands.equip(&hands::handle(id), fence, &equipment).await {
            Ok(()) => {}
            Err(Error::Fenced { .. }) => return Err(Outcome::Fenced),
            Err(error @ Error::Gone { .. }) => return Err(Outcome::Failed { error }),
            Err(error) => missed.push(ready.refused(&error.to_string())),
        }
    }
    Ok(missed)
}

/// The client is told: environment and credential do not fit, and somebody must mend one of them.
fn missed(Unreachable { credential, vault, hosts }: Unreachable) -> SessionError {
    let hosts = hosts.join(", ");
    let message = format!(
        "environment: its networking does not let out {hosts}, for which the credential {credential} is. Add it to \
         `allowed_hosts` of the environment, or take it off the credential."
    );
    let about = CredentialNamed { credential_id: credential, vault_id: vault };
    let kind = SessionErrorKind::CredentialHostUnreachableError;
    SessionError { credential: Some(about), ..SessionError::new(kind, message, RetryStatus::Retrying) }
}
