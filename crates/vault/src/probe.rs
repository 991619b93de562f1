//! Trying a credential out: speaking to its MCP server as a session would, up to the list of tools.

use std::time::Duration;

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderName, HeaderValue};
use protocol::credential::CredentialAuth;
use protocol::credential_validation::{
    CredentialValidation, CredentialValidationTag, HttpResponse, McpProbe, RefreshAttempt, RefreshStatus,
    Verdict,
};
use protocol::id::{CredentialId, VaultId, WorkspaceId};
use protocol::parse::Invalid;
use reqwest::{Method, Url};
use serde_json::{Value, json};
use session::Refusal;
use store::ChangeError;

use crate::answer::Answer;
use crate::audit::Outcome;
use crate::credentials::{Credentials, Spendable};
use crate::error::Error;
use crate::opened::Opened;
use crate::renewal::{RenewalError, host_of};

/// How long one step may take.
const STEP_MAX: Duration = Duration::from_secs(20);
/// What we say we speak; servers answer with what they do.
const MCP_VERSION: &str = "2025-06-18";
const SESSION: HeaderName = HeaderName::from_static("mcp-session-id");
const VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");
const INITIALIZE: &str = "initialize";
const TOOLS: &str = "tools/list";

/// A step that failed.
struct Failed {
    method: &'static str,
    status: Option<u16>,
    answer: Option<HttpResponse>,
}

impl Credentials {
    /// Speaks to the credential's server with its access token, and renews that once if the server does not accept it. What
    /// was renewed is kept. Refused if the credential is none of OAuth, or is archived.
    pub async fn validate(
        &self,
        workspace: &WorkspaceId,
        vault: &VaultId,
        id: &CredentialId,
    ) -> Result<CredentialValidation, Error> {
        let mut spendable =
            self.find(workspace, vault, id).await?.ok_or(Error::Change(ChangeError::NotFound))?;
        let refused = |rule: &str| {
            Error::Change(ChangeError::Refused(Refusal::Invalid(Invalid::new("credential_id", rule))))
        };
        let CredentialAuth::McpOauth { mcp_server_url, .. } = spendable.credential().auth.clone() else {
            return Err(refused("must be a credential of the type `mcp_oauth`"));
        };
        if spendable.credential().archived_at.is_some() {
            return Err(refused("the credential is archived and holds no token any more"));
        }
        let has_refresh_token = spendable.is_renewable();
        let mut refresh = None;
        let mut outcome = self.speak(&spendable, &mcp_server_url).await?;
        if matches!(&outcome, Err(Failed { status: Some(401), .. })) {
            let (attempt, renewed) = self.attempt(&spendable).await?;
            refresh = Some(attempt);
            if let Some(renewed) = renewed {
                spendable = renewed;
                outcome = self.speak(&spendable, &mcp_server_url).await?;
            }
        }
        let status = verdict(&outcome, refresh.as_ref());
        let mcp_probe = outcome.err().map(|Failed { method, answer, .. }| McpProbe {
            method: method.to_owned(),
            http_response: answer,
        });
        Ok(CredentialValidation {
            tag: CredentialValidationTag::VaultCredentialValidation,
            credential_id: id.clone(),
            vault_id: vault.clone(),
            validated_at: self.store().now(),
            has_refresh_token,
            status,
            mcp_probe,
            refresh,
        })
    }

    async fn attempt(&self, spendable: &Spendable) -> Result<(RefreshAttempt, Option<Spendable>), Error> {
        let attempt = |status, http_response| RefreshAttempt { status, http_response };
        Ok(match self.renew(spendable, None).await {
            Ok(renewed) => (attempt(RefreshStatus::Succeeded, None), Some(renewed)),
            Err(RenewalError::NotRenewable) => (attempt(RefreshStatus::NoRefreshToken, None), None),
            Err(RenewalError::Refused(answer) | RenewalError::Failed(Some(answer))) => {
                (attempt(RefreshStatus::Failed, Some(answer)), None)
            }
            Err(RenewalError::Failed(None) | RenewalError::Busy) => {
                (attempt(RefreshStatus::ConnectError, None), None)
            }
            Err(RenewalError::Vault(error)) => return Err(error),
        })
    }

    async fn speak(&self, spendable: &Spendable, url: &str) -> Result<Result<(), Failed>, Error> {
        let token = self.open(spendable).await?;
        let spoken = self.speak_with(&token, url).await;
        let outcome = match &spoken {
            Ok(()) => Outcome::Spent,
            Err(Failed { status: Some(401 | 403), .. }) => Outcome::Rejected,
            Err(Failed { status: Some(_), .. }) => Outcome::Spent,
            Err(Failed { status: None, .. }) => Outcome::Unanswered,
        };
        spendable.record(None, &host_of(url), outcome);
        Ok(spoken)
    }

    async fn speak_with(&self, token: &Opened, url: &str) -> Result<(), Failed> {
        let hello = json!({
            "jsonrpc": "2.0", "id": 1, "method": INITIALIZE,
            "params": {
                "protocolVersion": MCP_VERSION, "capabilities": {},
                "clientInfo": {"name": "posthouse", "version": env!("CARGO_PKG_VERSION")},
            },
        });
        let answer = self.step(url, token, None, &hello, INITIALIZE).await?;
        let session = answer.headers.get(SESSION).cloned();
        let said = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
        // Servers may ignore it, and what they answer is nobody's business.
        let _ = self.post(url, token, session.as_ref(), &said).await;
        let ask = json!({"jsonrpc": "2.0", "id": 2, "method": TOOLS, "params": {}});
        self.step(url, token, session.as_ref(), &ask, TOOLS).await.map(drop)
    }

    async fn step(
        &self,
        url: &str,
        token: &Opened,
        session: Option<&HeaderValue>,
        message: &Value,
        method: &'static str,
    ) -> Result<Answer, Failed> {
        let Some(answer) = self.post(url, token, session, message).await else {
            return Err(Failed { method, status: None, answer: None });
        };
        if answer.is_success() && has_result(&answer, &message["id"]) {
            return Ok(answer);
        }
        Err(Failed { method, status: Some(answer.status), answer: Some(answer.shown(&[token])) })
    }

    /// `None` if nobody answers.
    async fn post(
        &self,
        url: &str,
        token: &Opened,
        session: Option<&HeaderValue>,
        message: &Value,
    ) -> Option<Answer> {
        let asked = async {
            let request = self.http()?.request(Method::POST, Url::parse(url).ok()?).ok()?;
            let mut request = request
                .header(AUTHORIZATION, token.authorization())
                .header(ACCEPT, "application/json, text/event-stream")
                .header(CONTENT_TYPE, "application/json")
                .header(VERSION, MCP_VERSION)
                .body(message.to_string());
            if let Some(session) = session {
                request = request.header(SESSION, session);
            }
            let response = request.send().await.ok()?;
            // A stream may stay open after what was asked for has come.
            let id = message["id"].clone();
            Answer::read(response, move |body| events(body).any(|event| event["id"] == id && !id.is_null()))
                .await
                .ok()
        };
        tokio::time::timeout(STEP_MAX, asked).await.ok().flatten()
    }
}

fn verdict(outcome: &Result<(), Failed>, refresh: Option<&RefreshAttempt>) -> Verdict {
    let Err(failed) = outcome else { return Verdict::Valid };
    match (failed.status, refresh) {
        (Some(401), Some(RefreshAttempt { status: RefreshStatus::ConnectError, .. })) => Verdict::Unknown,
        (Some(401), Some(RefreshAttempt { status: RefreshStatus::Failed, http_response: Some(answer) })) => {
            let is_refusal =
                (400..500).contains(&answer.status_code) && !matches!(answer.status_code, 408 | 429);
            if is_refusal { Verdict::Invalid } else { Verdict::Unknown }
        }
        (Some(401 | 403), _) => Verdict::Invalid,
        (_, _) => Verdict::Unknown,
    }
}

/// Whether the answer holds the result of the request with this id.
fn has_result(answer: &Answer, id: &Value) -> bool {
    let is_it = |message: &Value| message["id"] == *id && message.get("result").is_some();
    match answer.content_type().split(';').next().unwrap_or_default().trim() {
        "text/event-stream" => events(&answer.body).any(|message| is_it(&message)),
        _ => serde_json::from_slice(&answer.body).is_ok_and(|message| is_it(&message)),
    }
}

/// The messages in a stream of events so far, each on one line.
fn events(body: &[u8]) -> impl Iterator<Item = Value> {
    let lines = body.split(|byte| *byte == b'\n');
    lines.filter_map(|line| serde_json::from_slice(line.strip_prefix(b"data:")?).ok())
}
