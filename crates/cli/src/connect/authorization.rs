//! One authorization with a code: what the browser is sent with, whether what it brings back belongs to it, and the tokens
//! that the code is exchanged for (RFC 6749, 7636, 8707, 9207).

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use protocol::credential::TokenEndpointAuth;
use protocol::time::Timestamp;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Method, Url};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::Deserialize;
use serde_json::Value;
use url::form_urlencoded;
use zeroize::Zeroizing;

use super::discovery::{Found, is_same_issuer};
use super::registration::OauthClient;
use super::web::{Hidden, Web, send, words};

/// The longest life of a token that is believed, in seconds: ten years.
const LIFE_MAX: f64 = 315_360_000.0;

/// What only this run knows.
pub(super) struct Authorization<'a> {
    pub(super) found: &'a Found,
    pub(super) client: &'a OauthClient,
    pub(super) redirect: String,
    state: Zeroizing<String>,
    verifier: Zeroizing<String>,
}

/// What was got.
pub(super) struct Tokens {
    pub(super) access_token: Hidden,
    pub(super) refresh_token: Option<Hidden>,
    pub(super) expires_at: Option<Timestamp>,
    pub(super) scope: Option<String>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    access_token: Hidden,
    token_type: Option<String>,
    refresh_token: Option<Hidden>,
    expires_in: Option<Value>,
    scope: Option<String>,
}

impl<'a> Authorization<'a> {
    pub(super) fn begin(found: &'a Found, client: &'a OauthClient, redirect: String) -> Self {
        Self { found, client, redirect, state: random(), verifier: random() }
    }

    /// What the operator opens.
    pub(super) fn address(&self) -> Url {
        let challenge = URL_SAFE_NO_PAD.encode(digest(&SHA256, self.verifier.as_bytes()));
        let mut url = self.found.authorization_endpoint.clone();
        url.set_fragment(None);
        let mut query = url.query_pairs_mut();
        query
            .append_pair("response_type", "code")
            .append_pair("client_id", &self.client.id)
            .append_pair("redirect_uri", &self.redirect)
            .append_pair("state", &self.state)
            .append_pair("code_challenge", &challenge)
            .append_pair("code_challenge_method", "S256")
            .append_pair("resource", &self.found.resource);
        if let Some(scope) = &self.found.scope {
            query.append_pair("scope", scope);
        }
        drop(query);
        url
    }

    /// The code in what the browser brought, if all of it belongs to this authorization.
    pub(super) fn code(&self, query: &str) -> anyhow::Result<Zeroizing<String>> {
        let one = |name: &str| {
            let mut values = form_urlencoded::parse(query.as_bytes()).filter(|(found, _)| found == name);
            let value = values.next().map(|(_, value)| Zeroizing::new(value.into_owned()));
            ensure!(values.next().is_none(), "the browser brought `{name}` twice");
            Ok(value)
        };
        ensure!(
            one("state")?.as_ref() == Some(&self.state),
            "the browser brought an answer that belongs to no question of ours (wrong state): run it again, and open only the \
             address that is printed"
        );
        match one("iss")? {
            Some(issuer) => ensure!(
                is_same_issuer(&issuer, &self.found.issuer),
                "the issuer does not match: another authorization server answered, {}",
                words(&issuer)
            ),
            None => ensure!(!self.found.names_issuer, "the answer does not name its issuer, as it should"),
        }
        if let Some(error) = one("error")? {
            let description = one("error_description")?;
            let description = description.map_or_else(String::new, |text| format!(" ({})", words(&text)));
            bail!("the authorization server says no: {}{description}", words(&error));
        }
        let code = one("code")?.filter(|code| !code.is_empty());
        code.context("the browser brought no code")
    }

    /// Exchanges the code at `now`.
    pub(super) async fn exchange(&self, web: &Web, code: &str, now: Timestamp) -> anyhow::Result<Tokens> {
        let OauthClient { id, auth, secret } = self.client;
        let secret = secret.as_ref().map_or("", Hidden::as_str);
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "authorization_code")
            .append_pair("code", code)
            .append_pair("redirect_uri", &self.redirect)
            // With HTTP Basic it is said twice: some look for it here only.
            .append_pair("client_id", id)
            .append_pair("code_verifier", &self.verifier)
            .append_pair("resource", &self.found.resource);
        let mut request = web
            .request(Method::POST, &self.found.token_endpoint)
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        match auth {
            TokenEndpointAuth::None {} => {}
            TokenEndpointAuth::ClientSecretPost {} => _ = form.append_pair("client_secret", secret),
            TokenEndpointAuth::ClientSecretBasic {} => {
                request = request.header(AUTHORIZATION, basic(id, secret)?);
            }
        }
        let endpoint = &self.found.token_endpoint;
        let answer = send(request.body(form.finish())).await;
        let answer = answer.with_context(|| format!("{endpoint} cannot be asked"))?;
        ensure!(
            answer.status.is_success(),
            "{endpoint} refused ({}): run it again",
            answer.complaint(&[code, &self.verifier, secret])
        );
        let TokenAnswer { access_token, token_type, refresh_token, expires_in, scope } =
            answer.json().with_context(|| format!("{endpoint} is not understood"))?;
        let kind = token_type.unwrap_or_default();
        ensure!(
            kind.is_empty() || kind.eq_ignore_ascii_case("bearer"),
            "{endpoint} gave a token of the type `{}`, and MCP servers take bearer tokens",
            words(&kind)
        );
        Ok(Tokens {
            access_token,
            refresh_token,
            expires_at: expires_in.as_ref().and_then(|life| end(life, now)),
            scope: scope.or_else(|| self.found.scope.clone()).filter(|scope| !scope.is_empty()),
        })
    }
}

/// When a token ends; `None` if that is not known.
fn end(life: &Value, now: Timestamp) -> Option<Timestamp> {
    // Some write it as text.
    let seconds = life.as_f64().or_else(|| life.as_str()?.trim().parse().ok())?;
    let is_life = seconds > 0.0;
    #[expect(clippy::cast_possible_truncation, reason = "bounded")]
    let micros = (seconds.min(LIFE_MAX) * 1e6) as i64;
    is_life.then(|| Timestamp::from_micros(now.as_micros().saturating_add(micros)))
}

/// Both parts are encoded as in a form before they are joined (RFC 6749, section 2.3.1).
fn basic(id: &str, secret: &str) -> anyhow::Result<HeaderValue> {
    let encoded = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let pair = Zeroizing::new(format!("{}:{}", encoded(id), encoded(secret)));
    let mut value = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(pair.as_bytes())))?;
    value.set_sensitive(true);
    Ok(value)
}

/// 256 bits that nobody guesses, in characters that a verifier may have.
fn random() -> Zeroizing<String> {
    let mut bits = [0; 32];
    SystemRandom::new().fill(&mut bits).expect("the system has randomness");
    Zeroizing::new(URL_SAFE_NO_PAD.encode(bits))
}
