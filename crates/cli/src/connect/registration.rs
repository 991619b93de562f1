//! Who we are at the authorization server: a client that the operator has registered, or one that it registers now (RFC 7591).

use anyhow::{Context as _, bail, ensure};
use protocol::credential::TokenEndpointAuth;
use reqwest::Method;
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use serde::Deserialize;
use serde_json::json;

use super::discovery::Found;
use super::web::{Hidden, Web, send, words};
use crate::out;

const NONE: &str = "none";
const BASIC: &str = "client_secret_basic";
const POST: &str = "client_secret_post";

/// A client of the authorization server.
pub(super) struct OauthClient {
    pub(super) id: String,
    pub(super) auth: TokenEndpointAuth,
    /// There exactly if `auth` needs it.
    pub(super) secret: Option<Hidden>,
}

#[derive(Deserialize)]
struct Registered {
    client_id: String,
    client_secret: Option<Hidden>,
    token_endpoint_auth_method: Option<String>,
    client_secret_expires_at: Option<f64>,
}

/// The client that the operator brings.
pub(super) fn known(found: &Found, id: String, secret: Option<Hidden>) -> anyhow::Result<OauthClient> {
    let method = match &secret {
        None => NONE,
        Some(_) => [BASIC, POST].into_iter().find(|method| takes(found, method)).context(
            "the authorization server takes a client secret neither by HTTP Basic nor in the body",
        )?,
    };
    Ok(OauthClient { id, auth: auth(method)?, secret })
}

/// Registers a client for this redirect.
pub(super) async fn register(web: &Web, found: &Found, redirect: &str) -> anyhow::Result<OauthClient> {
    let endpoint = found.registration_endpoint.as_ref().with_context(|| {
        format!(
            "{} registers no clients by itself: register one there, with the redirect {redirect} (its port is another each \
             time, unless --redirect-port names one), and give its id with --client-id",
            words(&found.issuer)
        )
    })?;
    // A refresh token of a client without a secret is as safe here: both would lie in the same vault.
    let wanted = [NONE, BASIC, POST].into_iter().find(|method| takes(found, method));
    let wanted = wanted.context("it knows no way for clients to prove themselves that Posthouse knows")?;
    let mut body = json!({
        "client_name": "Posthouse", "redirect_uris": [redirect], "response_types": ["code"],
        "grant_types": ["authorization_code", "refresh_token"], "token_endpoint_auth_method": wanted,
    });
    if let Some(scope) = &found.scope {
        body["scope"] = json!(scope);
    }
    let request = web
        .request(Method::POST, endpoint)
        .header(ACCEPT, "application/json")
        .header(CONTENT_TYPE, "application/json")
        .body(body.to_string());
    let answer = send(request).await.with_context(|| format!("{endpoint} cannot be asked"))?;
    ensure!(
        answer.status.is_success(),
        "{endpoint} refused ({}): register a client there by hand, and give its id with --client-id",
        answer.complaint(&[])
    );
    let Registered { client_id, client_secret, token_endpoint_auth_method, client_secret_expires_at } =
        answer.json().with_context(|| format!("{endpoint} is not understood"))?;
    if client_secret.is_some() && client_secret_expires_at.is_some_and(|at| at > 0.0) {
        out::remark("The client secret that the server gave ends one day; then connect again.");
    }
    let method = match (&token_endpoint_auth_method, &client_secret) {
        (Some(method), _) => method.as_str(),
        (None, None) => NONE,
        (None, Some(_)) if wanted == NONE => BASIC,
        (None, Some(_)) => wanted,
    };
    let auth = auth(method)?;
    let secret = match auth {
        TokenEndpointAuth::None {} => None,
        TokenEndpointAuth::ClientSecretBasic {} | TokenEndpointAuth::ClientSecretPost {} => {
            Some(client_secret.with_context(|| format!("{endpoint} wants a client secret and gave none"))?)
        }
    };
    Ok(OauthClient { id: client_id, auth, secret })
}

/// Whether the authorization server takes a way. One that says nothing knows HTTP Basic (RFC 8414).
fn takes(found: &Found, method: &str) -> bool {
    match found.auth_methods.is_empty() {
        true => method == BASIC,
        false => found.auth_methods.iter().any(|named| named == method),
    }
}

fn auth(method: &str) -> anyhow::Result<TokenEndpointAuth> {
    Ok(match method {
        NONE => TokenEndpointAuth::None {},
        BASIC => TokenEndpointAuth::ClientSecretBasic {},
        POST => TokenEndpointAuth::ClientSecretPost {},
        other => bail!("clients prove themselves by `{}` there, which Posthouse does not know", words(other)),
    })
}
