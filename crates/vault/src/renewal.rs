//! Renewing an OAuth access token: one at a time for each credential, over all processes.
//!
//! Refresh tokens may be good for one use only. So whoever renews holds the right to (`Store::claim_refresh`), looks again
//! whether somebody else has done it meanwhile, asks once, and keeps all of the answer in one write. Whoever wanted the token may
//! give up meanwhile: what has been begun goes on without them. A process that dies between the answer and the write takes the
//! new tokens with it: no order of these steps avoids that.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use protocol::credential::{CredentialAuth, OauthRefresh, TokenEndpointAuth};
use protocol::credential_request::SecretField;
use protocol::credential_validation::HttpResponse;
use protocol::id::EventId;
use protocol::secret::Secret;
use protocol::time::Timestamp;
use reqwest::{Method, Url};
use serde::Deserialize;
use store::ChangeError;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::answer::{Answer, form_urlencoded};
use crate::audit::{Outcome, Who};
use crate::credentials::{Credentials, Renewed, Spendable};
use crate::error::Error;
use crate::opened::Opened;

/// How long one exchange may take.
const EXCHANGE_MAX: Duration = Duration::from_secs(20);
/// How long the right to renew is held by a process that has died. Longer than an exchange and its write.
const HELD: Duration = Duration::from_secs(45);
/// How long somebody waits for another's renewal, and how often it is looked.
const PATIENCE: Duration = Duration::from_secs(50);
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// The longest life of a token that is believed, in seconds: ten years.
const LIFE_MAX: i64 = 315_360_000;
const TOKEN_BYTES_MAX: usize = 8_192;

/// A token was not renewed.
#[derive(Debug, thiserror::Error)]
pub enum RenewalError {
    /// The credential has nothing to renew it with.
    #[error("the credential cannot be renewed: it has no refresh token")]
    NotRenewable,
    /// The token endpoint will not do it: somebody must authorize anew. Trying again is in vain.
    #[error("the token endpoint refused with status {}", .0.status_code)]
    Refused(HttpResponse),
    /// It did not work this time.
    #[error("the token endpoint {}", .0.as_ref().map_or_else(|| "cannot be reached".to_owned(), |answer| format!("answered with status {}", answer.status_code)))]
    Failed(Option<HttpResponse>),
    /// Somebody else renews it, and takes too long.
    #[error("another process has not finished renewing it")]
    Busy,
    /// The vault failed.
    #[error(transparent)]
    Vault(#[from] Error),
}

impl RenewalError {
    /// Whether it is in vain to try again.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::NotRenewable | Self::Refused(_) | Self::Vault(Error::Gone(_)) => true,
            Self::Failed(_) | Self::Busy | Self::Vault(_) => false,
        }
    }
}

/// The answer of a token endpoint.
#[derive(Deserialize)]
struct TokenAnswer {
    access_token: Text,
    refresh_token: Option<Text>,
    expires_in: Option<serde_json::Value>,
}

/// A text that is overwritten when it is dropped.
#[derive(Deserialize)]
#[serde(from = "String")]
struct Text(Zeroizing<String>);

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl Text {
    /// As a token, if it can be one: it goes into a header.
    fn into_token(mut self) -> Option<Secret> {
        let has_length = (1..=TOKEN_BYTES_MAX).contains(&self.0.len());
        let is_token = has_length && self.0.bytes().all(|byte| byte.is_ascii_graphic());
        is_token.then(|| Secret::new(std::mem::take(&mut *self.0)))
    }
}

impl Credentials {
    /// A fresh access token in the place of the one that `spendable` has. If somebody else has renewed it meanwhile, that one.
    /// Takes at most a minute and a half. `who` is for the audit: the session that needs it.
    pub async fn renew(&self, spendable: &Spendable, who: Option<&Who>) -> Result<Spendable, RenewalError> {
        if !spendable.is_renewable() {
            return Err(RenewalError::NotRenewable);
        }
        let began = Instant::now();
        // Each attempt has a name of its own, so that two of one process keep out of each other's way, too.
        let holder: EventId = self.store().ids().make();
        loop {
            if let Some(renewed) = self.renewed_meanwhile(spendable).await? {
                return Ok(renewed);
            }
            let (credentials, wanted, holder) = (self.clone(), spendable.clone(), holder.clone());
            let who = who.cloned();
            let renewing =
                tokio::spawn(async move { credentials.renew_if_free(&wanted, who.as_ref(), &holder).await });
            // It ends early only with a fault of ours, which has been reported where it happened.
            if let Some(outcome) = renewing.await.unwrap_or(Some(Err(RenewalError::Failed(None)))) {
                return outcome;
            }
            if began.elapsed() > PATIENCE {
                return Err(RenewalError::Busy);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// `None` if somebody else is at it.
    async fn renew_if_free(
        &self,
        spendable: &Spendable,
        who: Option<&Who>,
        holder: &EventId,
    ) -> Option<Result<Spendable, RenewalError>> {
        match self.store().claim_refresh(spendable.id(), holder.as_str(), HELD).await {
            Ok(true) => {}
            Ok(false) => return None,
            Err(error) => return Some(Err(Error::from(error).into())),
        }
        let outcome = self.renew_alone(spendable, who).await;
        if let Err(error) = self.store().release_refresh(spendable.id(), holder.as_str()).await {
            tracing::debug!(%error, "the right to renew a credential lapses by itself");
        }
        Some(outcome)
    }

    /// What somebody else has made of the credential since; `None` if it is as it was.
    async fn renewed_meanwhile(&self, spendable: &Spendable) -> Result<Option<Spendable>, Error> {
        let now = self.again(spendable).await?.ok_or_else(|| Error::Gone(spendable.id().clone()))?;
        Ok((!now.is_same_secret(spendable)).then_some(now))
    }

    async fn renew_alone(&self, spendable: &Spendable, who: Option<&Who>) -> Result<Spendable, RenewalError> {
        // Somebody may have finished between the look and the claim.
        if let Some(renewed) = self.renewed_meanwhile(spendable).await? {
            return Ok(renewed);
        }
        let exchanged = self.exchange(spendable).await;
        if let CredentialAuth::McpOauth { refresh: Some(refresh), .. } = &spendable.credential().auth {
            let outcome = match &exchanged {
                Ok(_) => Outcome::Renewed,
                Err(RenewalError::Refused(_)) => Outcome::RenewalRefused,
                Err(_) => Outcome::RenewalFailed,
            };
            spendable.record(who, &host_of(&refresh.token_endpoint), outcome);
        }
        let renewed = exchanged?;
        match self.save_renewed(spendable, renewed).await {
            // A client has put other tokens there: they are as good.
            Err(Error::Change(ChangeError::Conflict(_))) => {
                Ok(self.renewed_meanwhile(spendable).await?.unwrap_or_else(|| spendable.clone()))
            }
            saved => Ok(saved?),
        }
    }

    async fn exchange(&self, spendable: &Spendable) -> Result<Renewed, RenewalError> {
        let CredentialAuth::McpOauth { refresh: Some(refresh), .. } = &spendable.credential().auth else {
            return Err(RenewalError::NotRenewable);
        };
        let refresh_token = self.open_field(spendable, SecretField::RefreshToken).await?;
        let refresh_token = refresh_token.ok_or(RenewalError::NotRenewable)?;
        let client_secret = self.open_field(spendable, SecretField::ClientSecret).await?;
        let access_token = self.open_field(spendable, SecretField::AccessToken).await?;
        let secrets: Vec<&Opened> = [Some(&refresh_token), client_secret.as_ref(), access_token.as_ref()]
            .into_iter()
            .flatten()
            .collect();

        let asked = async {
            let response = self.ask(refresh, &refresh_token, client_secret.as_ref()).await?;
            Answer::read(response, |_| false).await.ok()
        };
        let answer = tokio::time::timeout(EXCHANGE_MAX, asked).await.ok().flatten();
        let Some(answer) = answer else { return Err(RenewalError::Failed(None)) };
        if !answer.is_success() {
            let shown = answer.shown(&secrets);
            // These two say to come again; all others of the four hundreds are about what was asked.
            let is_refused = (400..500).contains(&answer.status) && !matches!(answer.status, 408 | 429);
            return Err(if is_refused {
                RenewalError::Refused(shown)
            } else {
                RenewalError::Failed(Some(shown))
            });
        }
        let now = self.store().now();
        read_tokens(&answer.body, now).ok_or_else(|| {
            // It may hold tokens that are in none of our hands: nothing of it is shown.
            let shown = HttpResponse { body: String::new(), body_truncated: true, ..answer.shown(&secrets) };
            RenewalError::Failed(Some(shown))
        })
    }

    /// `None` if nobody answers.
    async fn ask(
        &self,
        refresh: &OauthRefresh,
        refresh_token: &Opened,
        client_secret: Option<&Opened>,
    ) -> Option<reqwest::Response> {
        let OauthRefresh { client_id, token_endpoint, token_endpoint_auth, scope, resource } = refresh;
        let mut form = Zeroizing::new(String::with_capacity(32 << 10));
        let mut field = |name: &str, value: &str| {
            if !form.is_empty() {
                form.push('&');
            }
            form.push_str(name);
            form.push('=');
            form.push_str(&Zeroizing::new(form_urlencoded(value)));
        };
        field("grant_type", "refresh_token");
        refresh_token.expose(|token| field("refresh_token", token));
        field("client_id", client_id);
        for (name, value) in [("scope", scope), ("resource", resource)] {
            if let Some(value) = value {
                field(name, value);
            }
        }
        let mut basic = None;
        match (token_endpoint_auth, client_secret) {
            (TokenEndpointAuth::ClientSecretPost {}, Some(secret)) => {
                secret.expose(|secret| field("client_secret", secret));
            }
            (TokenEndpointAuth::ClientSecretBasic {}, Some(secret)) => {
                basic = secret.expose(|secret| basic_header(client_id, secret));
            }
            (
                TokenEndpointAuth::None {}
                | TokenEndpointAuth::ClientSecretPost {}
                | TokenEndpointAuth::ClientSecretBasic {},
                _,
            ) => {}
        }
        let url = Url::parse(token_endpoint).ok()?;
        let mut request = match self.http()?.request(Method::POST, url) {
            Ok(request) => request,
            Err(refusal) => {
                tracing::info!(credential.host = %host_of(token_endpoint), %refusal, "a token endpoint may not be asked");
                return None;
            }
        };
        request = request
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(ACCEPT, "application/json")
            .body(form.as_bytes().to_vec());
        if let Some(basic) = basic {
            request = request.header(AUTHORIZATION, basic);
        }
        match request.send().await {
            Ok(response) => Some(response),
            Err(error) => {
                // Without the address: some put secrets there.
                tracing::debug!(error = %error.without_url(), "a token endpoint did not answer");
                None
            }
        }
    }
}

fn basic_header(client_id: &str, secret: &str) -> Option<HeaderValue> {
    // Both parts are encoded as in a form before they are joined (RFC 6749, section 2.3.1).
    let pair = Zeroizing::new(format!("{}:{}", form_urlencoded(client_id), form_urlencoded(secret)));
    let text = Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())));
    let mut value = HeaderValue::try_from(text.as_str()).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn read_tokens(body: &[u8], now: Timestamp) -> Option<Renewed> {
    let TokenAnswer { access_token, refresh_token, expires_in } = serde_json::from_slice(body).ok()?;
    let seconds = expires_in.and_then(|life| match life {
        serde_json::Value::Number(life) => life.as_f64(),
        // Some write it as text.
        serde_json::Value::String(life) => life.trim().parse().ok(),
        _ => None,
    });
    #[expect(clippy::cast_possible_truncation, reason = "bounded before")]
    let micros = seconds.map(|seconds: f64| seconds.clamp(0.0, LIFE_MAX as f64) as i64 * 1_000_000);
    Some(Renewed {
        access_token: access_token.into_token()?,
        refresh_token: refresh_token.and_then(Text::into_token),
        expires_at: micros.map(|micros| Timestamp::from_micros(now.as_micros().saturating_add(micros))),
    })
}

/// The host of an address, for a log line.
pub(crate) fn host_of(url: &str) -> String {
    Url::parse(url).ok().and_then(|url| Some(url.host_str()?.to_owned())).unwrap_or_default()
}
