//! Who authorizes for an MCP server: RFC 9728 leads from the server to its authorization server, RFC 8414 or OpenID Connect
//! to that one's endpoints. Nobody is believed who speaks for others: the resource must contain the server that was asked,
//! and the issuer must be the one that was looked for.

use anyhow::{Context as _, bail, ensure};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, LOCATION, WWW_AUTHENTICATE};
use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;
use serde_json::json;

use super::web::{Web, named_by, send, words};

/// What we say we speak; servers answer with what they do.
const MCP_VERSION: &str = "2025-06-18";
const OFFLINE: &str = "offline_access";

/// What the rest of the flow needs to know.
pub(super) struct Found {
    pub(super) resource: String,
    pub(super) issuer: String,
    pub(super) authorization_endpoint: Url,
    pub(super) token_endpoint: Url,
    pub(super) registration_endpoint: Option<Url>,
    /// The ways of clients to prove who they are; empty if it does not say.
    pub(super) auth_methods: Vec<String>,
    /// What to ask for.
    pub(super) scope: Option<String>,
    /// Whether each answer names the issuer.
    pub(super) names_issuer: bool,
}

/// RFC 9728, as far as it matters here.
#[derive(Deserialize)]
struct Resource {
    resource: String,
    #[serde(default)]
    authorization_servers: Vec<String>,
    #[serde(default)]
    scopes_supported: Vec<String>,
}

/// RFC 8414, likewise.
#[derive(Deserialize)]
struct Authorizer {
    issuer: String,
    authorization_endpoint: Option<String>,
    token_endpoint: Option<String>,
    registration_endpoint: Option<String>,
    #[serde(default)]
    response_types_supported: Vec<String>,
    #[serde(default)]
    code_challenge_methods_supported: Vec<String>,
    #[serde(default)]
    token_endpoint_auth_methods_supported: Vec<String>,
    #[serde(default)]
    scopes_supported: Vec<String>,
    #[serde(default)]
    authorization_response_iss_parameter_supported: bool,
}

/// Asks the MCP server without a token, and then whom its refusal names. `scope` is what the operator wants.
pub(super) async fn discover(web: &Web, server: &Url, scope: Option<String>) -> anyhow::Result<Found> {
    let challenge = challenge(web, server).await?;
    let resource = resource(web, server, &challenge).await?;
    ensure!(
        contains(&resource.resource, server),
        "its metadata speaks for another resource, {}: check the address of the MCP server",
        words(&resource.resource)
    );
    let issuer = resource.authorization_servers.first().context(
        "its metadata names no authorization server: get a token elsewhere and use `posthouse vaults add`",
    )?;
    let authorizer = authorizer(web, server, issuer).await?;
    let is_named = |methods: &[String], method: &str| methods.iter().any(|named| named == method);
    ensure!(
        is_named(&authorizer.code_challenge_methods_supported, "S256"),
        "{} does not say that it knows PKCE with S256, without which a code could be stolen",
        words(&authorizer.issuer)
    );
    let types = &authorizer.response_types_supported;
    ensure!(
        types.is_empty() || is_named(types, "code"),
        "{} does not know the authorization code flow",
        words(&authorizer.issuer)
    );
    let usual = challenge.scope.or_else(|| joined(&resource.scopes_supported)).map(|mut scope| {
        // Without it some give no refresh token, and what an MCP server asks for seldom includes it.
        let has_it = scope.split(' ').any(|word| word == OFFLINE);
        if !has_it && is_named(&authorizer.scopes_supported, OFFLINE) {
            scope.push(' ');
            scope.push_str(OFFLINE);
        }
        scope
    });
    let endpoint = |what: &str, text: Option<&String>| {
        let text = text.with_context(|| format!("{} names no {what}", words(&authorizer.issuer)))?;
        named_by(server, text).with_context(|| format!("its {what} cannot be used"))
    };
    Ok(Found {
        resource: resource.resource,
        authorization_endpoint: endpoint(
            "authorization endpoint",
            authorizer.authorization_endpoint.as_ref(),
        )?,
        token_endpoint: endpoint("token endpoint", authorizer.token_endpoint.as_ref())?,
        registration_endpoint: authorizer
            .registration_endpoint
            .as_ref()
            .map(|text| endpoint("registration endpoint", Some(text)))
            .transpose()?,
        auth_methods: authorizer.token_endpoint_auth_methods_supported,
        scope: scope.or(usual),
        names_issuer: authorizer.authorization_response_iss_parameter_supported,
        issuer: authorizer.issuer,
    })
}

/// What the MCP server answers to whoever has no token.
#[derive(Default)]
struct Challenge {
    metadata: Option<String>,
    scope: Option<String>,
    is_open: bool,
}

async fn challenge(web: &Web, server: &Url) -> anyhow::Result<Challenge> {
    let hello = json!({
        "jsonrpc": "2.0", "id": 1, "method": "initialize",
        "params": {
            "protocolVersion": MCP_VERSION, "capabilities": {},
            "clientInfo": {"name": "posthouse", "version": env!("CARGO_PKG_VERSION")},
        },
    });
    let request = web
        .request(Method::POST, server)
        .header(ACCEPT, "application/json, text/event-stream")
        .header(CONTENT_TYPE, "application/json")
        .body(hello.to_string());
    let answer = send(request).await.with_context(|| format!("{server} cannot be asked"))?;
    match answer.status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Ok(Challenge {
            metadata: parameter(&answer.headers, "resource_metadata"),
            scope: parameter(&answer.headers, "scope"),
            is_open: false,
        }),
        // It may want a token for its tools only.
        status if status.is_success() => Ok(Challenge { is_open: true, ..Challenge::default() }),
        status if status.is_redirection() => {
            let target = answer.headers.get(LOCATION).and_then(|target| target.to_str().ok());
            let target = words(target.unwrap_or("an unnamed place"));
            bail!("{server} redirects to {target}: give the address where the MCP server is")
        }
        status => {
            bail!("{server} answered with status {}: is that the address of an MCP server?", status.as_u16())
        }
    }
}

async fn resource(web: &Web, server: &Url, challenge: &Challenge) -> anyhow::Result<Resource> {
    let places = match &challenge.metadata {
        Some(place) => vec![named_by(server, place).context("the place of its metadata cannot be used")?],
        None => {
            let mut places = vec![well_known(server, "oauth-protected-resource")];
            places.extend((server.path() != "/").then(|| {
                let mut root = server.clone();
                root.set_path("/");
                well_known(&root, "oauth-protected-resource")
            }));
            places
        }
    };
    if let Some(resource) = first(web, &places).await? {
        return Ok(resource);
    }
    if challenge.is_open {
        bail!("{server} answers without a token and has no metadata about one: it needs no credential");
    }
    bail!(
        "{server} wants a token and does not say whose (no metadata at {}): get a token elsewhere and use \
         `posthouse vaults add`",
        places.iter().map(Url::as_str).collect::<Vec<_>>().join(", ")
    )
}

async fn authorizer(web: &Web, server: &Url, issuer: &str) -> anyhow::Result<Authorizer> {
    let url = named_by(server, issuer).context("its authorization server cannot be used")?;
    let mut behind = url.clone();
    behind.set_query(None);
    behind.set_path(&format!("{}/.well-known/openid-configuration", url.path().trim_end_matches('/')));
    let mut places = vec![
        well_known(&url, "oauth-authorization-server"),
        well_known(&url, "openid-configuration"),
        behind,
    ];
    // Without a path the last two are one.
    places.dedup();
    let found: Option<Authorizer> = first(web, &places).await?;
    let authorizer = found.with_context(|| {
        format!(
            "its authorization server {url} publishes no metadata (none at {})",
            places.iter().map(Url::as_str).collect::<Vec<_>>().join(", ")
        )
    })?;
    ensure!(
        is_same_issuer(&authorizer.issuer, issuer),
        "the issuer does not match: the metadata of {url} is that of {}, which may be somebody else's",
        words(&authorizer.issuer)
    );
    Ok(authorizer)
}

/// The first of these that is there.
async fn first<T: serde::de::DeserializeOwned>(web: &Web, places: &[Url]) -> anyhow::Result<Option<T>> {
    for place in places {
        let request = web.request(Method::GET, place).header(ACCEPT, "application/json");
        let answer = send(request).await.with_context(|| format!("{place} cannot be asked"))?;
        if answer.status.is_success() {
            return answer.json().map(Some).with_context(|| format!("{place} is not understood"));
        }
        ensure!(
            !answer.status.is_server_error(),
            "{place} answered with status {}: try again later",
            answer.status.as_u16()
        );
    }
    Ok(None)
}

/// Where RFC 8414 and RFC 9728 put metadata: between the host and the path.
fn well_known(url: &Url, name: &str) -> Url {
    let mut place = url.clone();
    place.set_fragment(None);
    place.set_path(&format!("/.well-known/{name}{}", url.path().trim_end_matches('/')));
    place
}

/// Whether a resource is the server or has it below itself.
fn contains(resource: &str, server: &Url) -> bool {
    let Ok(resource) = Url::parse(resource) else { return false };
    let path = resource.path().trim_end_matches('/');
    let rest = server.path().strip_prefix(path);
    resource.origin() == server.origin() && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Equal, but for one slash at the end, which some libraries add where they read addresses.
pub(super) fn is_same_issuer(one: &str, other: &str) -> bool {
    let bare = |text: &str| text.strip_suffix('/').unwrap_or(text).to_owned();
    bare(one) == bare(other)
}

fn joined(scopes: &[String]) -> Option<String> {
    (!scopes.is_empty()).then(|| scopes.join(" "))
}

/// A parameter of the challenges in an answer, whichever scheme it belongs to.
fn parameter(headers: &HeaderMap, name: &str) -> Option<String> {
    let texts = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    texts.flat_map(parameters).find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

/// All `name=value` of a header, where a value may be quoted.
fn parameters(text: &str) -> Vec<(String, String)> {
    let (mut all, mut chars, mut name) = (Vec::new(), text.chars().peekable(), String::new());
    while let Some(char) = chars.next() {
        match char {
            '=' if chars.peek() == Some(&'"') => {
                chars.next();
                let mut value = String::new();
                while let Some(char) = chars.next().filter(|char| *char != '"') {
                    value.extend(if char == '\\' { chars.next() } else { Some(char) });
                }
                all.push((std::mem::take(&mut name), value));
            }
            '=' => {
                let mut value = String::new();
                while let Some(char) = chars.next_if(|char| *char != ',' && !char.is_whitespace()) {
                    value.push(char);
                }
                all.push((std::mem::take(&mut name), value));
            }
            // A scheme stands before its first parameter with a space, a parameter behind a comma.
            ' ' | '\t' | ',' => name.clear(),
            char => name.push(char),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).expect("an address")
    }

    #[test]
    fn a_challenge_is_read_however_it_is_written() {
        for text in [
            r#"Bearer resource_metadata="https://a.example/x?y=z""#,
            r#"Basic realm="a, b=c", Bearer error="invalid_token", Resource_Metadata="https://a.example/x?y=z", scope=a"#,
            r#"Bearer realm="\"", resource_metadata=https://a.example/x?y=z, scope="a b""#,
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(WWW_AUTHENTICATE, text.parse().expect("a header"));
            let found = parameter(&headers, "resource_metadata");
            assert_eq!(found.as_deref(), Some("https://a.example/x?y=z"), "{text}");
        }
    }

    #[test]
    fn metadata_stands_between_host_and_path() {
        let places =
            [("https://a.example", ""), ("https://a.example/", ""), ("https://a.example/t/mcp", "/t/mcp")];
        for (from, path) in places {
            let place = format!("https://a.example/.well-known/oauth-protected-resource{path}");
            assert_eq!(well_known(&url(from), "oauth-protected-resource").as_str(), place);
        }
    }

    #[test]
    fn a_resource_speaks_for_what_is_below_it_and_for_nothing_else() {
        let server = url("https://a.example/t/mcp");
        for resource in ["https://a.example", "https://a.example/t/", "https://a.example:443/t/mcp"] {
            assert!(contains(resource, &server), "{resource}");
        }
        for resource in ["https://b.example", "http://a.example/t/mcp", "https://a.example/t/m", "urn:x"] {
            assert!(!contains(resource, &server), "{resource}");
        }
    }
}
