//! What a session brings into its sandbox, once that lives: placeholders for secrets, and the authority in whose name the
//! egress proxy spends them.

use std::sync::Arc;

use broker::{Belongings, Broker, Unreachable};
use protocol::event::{CredentialNamed, RetryStatus, SessionError, SessionErrorKind};
use protocol::id::{SandboxId, WorkspaceId};
use sandbox::{Equipment, Error, Provider};
use session::Record;

use crate::hands::{self, Outcome};

/// Whose luggage it is, and who knows what is in it.
#[derive(Clone)]
pub(crate) struct Luggage {
    pub(crate) broker: Option<Broker>,
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
        match hands.equip(&hands::handle(id), fence, &Equipment { variables, trusted }).await {
            Ok(()) => Ok(unreachable.into_iter().map(missed).collect()),
            Err(Error::Fenced { .. }) => Err(Outcome::Fenced),
            Err(error) => Err(Outcome::Failed { error }),
        }
    }
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
