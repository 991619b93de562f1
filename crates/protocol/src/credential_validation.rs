//! What trying a credential out came to.

use serde::{Deserialize, Serialize};

use crate::id::{CredentialId, VaultId};
use crate::time::Timestamp;

/// The verdict on a credential, as the wire shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CredentialValidation {
    /// Always `vault_credential_validation`.
    #[serde(rename = "type")]
    pub tag: CredentialValidationTag,
    /// The credential.
    pub credential_id: CredentialId,
    /// Its vault.
    pub vault_id: VaultId,
    /// When it was tried.
    pub validated_at: Timestamp,
    /// Whether it could be renewed at all.
    pub has_refresh_token: bool,
    /// The verdict.
    pub status: Verdict,
    /// The step that failed; null if none did.
    pub mcp_probe: Option<McpProbe>,
    /// The renewal; null if none was tried.
    pub refresh: Option<RefreshAttempt>,
}

/// The tag of a [`CredentialValidation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CredentialValidationTag {
    /// The only tag there is.
    VaultCredentialValidation,
}

/// What is to be thought of a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It works.
    Valid,
    /// Somebody must authorize anew.
    Invalid,
    /// It could not be found out; later it may be.
    Unknown,
}

/// A step of speaking to an MCP server that failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct McpProbe {
    /// The method.
    pub method: String,
    /// What the server answered, if it did.
    pub http_response: Option<HttpResponse>,
}

/// A renewal that was tried.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RefreshAttempt {
    /// What came of it.
    pub status: RefreshStatus,
    /// What the token endpoint answered, if it refused.
    pub http_response: Option<HttpResponse>,
}

/// What came of a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefreshStatus {
    /// There is a new access token.
    Succeeded,
    /// The token endpoint answered with an error.
    Failed,
    /// The token endpoint could not be reached.
    ConnectError,
    /// There is nothing to renew it with.
    NoRefreshToken,
}

/// An answer, cut and without secrets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HttpResponse {
    /// Its status.
    pub status_code: u16,
    /// Its `Content-Type`, or nothing.
    pub content_type: String,
    /// The beginning of its body.
    pub body: String,
    /// Whether the body was longer.
    pub body_truncated: bool,
}
