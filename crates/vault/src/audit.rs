//! Who spent which credential where: a line for each use, target `audit`.

use protocol::id::{AgentId, CredentialId, ResourceId, SessionId, VaultId};
use tracing::field::display;

/// One use of a credential, or an attempt. It has no place for a value.
#[derive(Clone, Copy, Debug)]
pub struct Use<'a> {
    /// For whom; nobody's session, if a client wants a credential tried out.
    pub who: Option<&'a Who>,
    /// Of which vault.
    pub vault: &'a VaultId,
    /// Which credential.
    pub credential: &'a CredentialId,
    /// On the way to which host; without port, path or query.
    pub host: &'a str,
    /// What came of it.
    pub outcome: Outcome,
}

/// Who makes the vault spend a credential.
#[derive(Clone, Debug)]
pub struct Who {
    /// For which session.
    pub session: SessionId,
    /// For which agent.
    pub agent: AgentId,
}

/// What came of a use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was put into a request that left.
    Spent,
    /// The other side did not accept it.
    Rejected,
    /// It left, or part of the request did, and no answer came.
    Unanswered,
    /// It was renewed.
    Renewed,
    /// It could not be renewed, and will not be: somebody must authorize anew.
    RenewalRefused,
    /// It could not be renewed this time.
    RenewalFailed,
    /// The host, or the place in the request, is not one for this credential.
    Withheld,
    /// It could not be opened.
    Unopened,
}

impl Outcome {
    /// As the line says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Spent => "spent",
            Self::Rejected => "rejected",
            Self::Unanswered => "unanswered",
            Self::Renewed => "renewed",
            Self::RenewalRefused => "renewal_refused",
            Self::RenewalFailed => "renewal_failed",
            Self::Withheld => "withheld",
            Self::Unopened => "unopened",
        }
    }
}

/// One use of a token of a session's resource, or an attempt.
#[derive(Clone, Copy, Debug)]
pub struct TokenUse<'a> {
    /// For which session.
    pub session: &'a SessionId,
    /// For which agent.
    pub agent: &'a AgentId,
    /// Which resource.
    pub resource: &'a ResourceId,
    /// On the way to which host; without port, path or query.
    pub host: &'a str,
    /// What came of it.
    pub outcome: Outcome,
}

impl TokenUse<'_> {
    /// Writes the line.
    pub fn record(&self) {
        let Self { session, agent, resource, host, outcome } = self;
        tracing::info!(
            target: "audit",
            { session.id = %session, agent.id = %agent, resource.id = %resource, host, outcome = outcome.as_str() },
            "a token of a resource was used"
        );
    }
}

impl Use<'_> {
    /// Writes the line.
    pub fn record(&self) {
        let Self { who, vault, credential, host, outcome } = self;
        let (session, agent) = (who.map(|who| display(&who.session)), who.map(|who| display(&who.agent)));
        tracing::info!(
            target: "audit",
            { session.id = session, agent.id = agent, vault.id = %vault, credential.id = %credential, host,
              outcome = outcome.as_str() },
            "a credential was used"
        );
    }
}
