//! From what the operator wrote to an endpoint that can be asked: the key, the address, the headers, the client.
//!
//! Nothing is sent here. What is wrong is said in a way that shows neither a key nor a password in an address.

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use reqwest::redirect::Policy;

use super::anthropic;
use super::config::{CONNECT_TIMEOUT_DEFAULT, IDLE_TIMEOUT_DEFAULT, Kind, ProviderConfig};
use super::http::{Endpoint, install_crypto};
use super::key::ApiKey;
use super::pace::SharedPace;

/// How long an unused connection is kept for the next request.
const POOL_IDLE: Duration = Duration::from_secs(60);

/// How often a connection in use is checked, so that one that a middlebox forgot is noticed long before the longest
/// silence is over.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A secret shorter than this would redact half of every message; nobody has a key so short.
const SECRET_CHARS_MIN: usize = 6;

/// The endpoint of a provider with a wire. `lookup` reads an environment variable.
pub(super) fn endpoint(
    config: &mut ProviderConfig,
    pace: Arc<SharedPace>,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<Endpoint, String> {
    let (variable, file) = (config.api_key_env.as_deref(), config.api_key_file.as_deref());
    let key = ApiKey::settle(config.api_key.take(), variable, file, lookup)?;
    let url = url(config.kind, config.base_url.as_deref())?;
    let headers = headers(config, key.as_ref())?;
    let mut secrets: Vec<ApiKey> = key.into_iter().collect();
    secrets.extend(config.extra_headers.values().filter_map(|value| ApiKey::new(value)));
    secrets.retain(|secret| secret.expose().len() >= SECRET_CHARS_MIN);
    install_crypto();
    let mut client = reqwest::Client::builder()
        .connect_timeout(config.connect_timeout.unwrap_or(CONNECT_TIMEOUT_DEFAULT))
        .pool_idle_timeout(POOL_IDLE)
        .tcp_keepalive(KEEP_ALIVE)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .http2_keep_alive_timeout(KEEP_ALIVE)
        .tcp_nodelay(true)
        .redirect(Policy::none())
        // Proxies are configured, not picked up behind the operator's back.
        .no_proxy();
    match proxy(config.proxy.as_deref(), &url, lookup)? {
        Some(proxy) => client = client.proxy(proxy),
        // Without TLS the machine's certificates are not needed, and there may be none.
        None if url.scheme() == "http" => client = client.tls_certs_only([]),
        None => {}
    }
    Ok(Endpoint {
        client: client.build().map_err(|error| innermost(&error))?,
        url,
        headers,
        secrets,
        idle_timeout: config.idle_timeout.unwrap_or(IDLE_TIMEOUT_DEFAULT),
        pace: config.rate_headers.unwrap_or(true).then_some(pace),
    })
}

fn url(kind: Kind, base_url: Option<&str>) -> Result<reqwest::Url, String> {
    let (default, path) = match kind {
        Kind::Anthropic => ("https://api.anthropic.com", "messages"),
        Kind::OpenAi => ("https://api.openai.com/v1", "chat/completions"),
        Kind::Scripted => return Err("a scripted provider has no address".to_owned()),
    };
    let base_url = base_url.map_or(default, str::trim).trim_end_matches('/');
    // Parse errors are not shown: the text may hold a password.
    let base = reqwest::Url::parse(base_url).map_err(|_| "`base_url` is no URL".to_owned())?;
    if !matches!(base.scheme(), "http" | "https") || !base.has_host() {
        return Err("`base_url` must start with http:// or https://".to_owned());
    }
    if !base.username().is_empty() || base.password().is_some() {
        return Err("`base_url` must not hold credentials".to_owned());
    }
    if base.query().is_some() || base.fragment().is_some() {
        return Err("`base_url` must not have a query or a fragment".to_owned());
    }
    // By custom, a base URL of Messages ends before the version and one of chat completions after it; both are
    // understood with and without.
    let has_version = match kind {
        Kind::Anthropic => base.path().ends_with("/v1"),
        Kind::OpenAi | Kind::Scripted => base.path() != "/",
    };
    let version = if has_version { "" } else { "/v1" };
    reqwest::Url::parse(&format!("{base_url}{version}/{path}")).map_err(|_| "`base_url` is no URL".to_owned())
}

fn headers(config: &ProviderConfig, key: Option<&ApiKey>) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("posthouse/", env!("CARGO_PKG_VERSION"))));
    let secret = |text: &str| {
        let mut value = HeaderValue::from_str(text)
            .map_err(|_| "the key holds characters that no header takes".to_owned())?;
        value.set_sensitive(true);
        Ok::<_, String>(value)
    };
    if config.kind == Kind::Anthropic {
        headers.insert(
            HeaderName::from_static("anthropic-version"),
            HeaderValue::from_static(anthropic::VERSION),
        );
        if let Some(key) = key {
            headers.insert(HeaderName::from_static("x-api-key"), secret(key.expose())?);
        }
    } else if let Some(key) = key {
        headers.insert(AUTHORIZATION, secret(&format!("Bearer {}", key.expose()))?);
    }
    for (name, value) in &config.extra_headers {
        let name =
            HeaderName::try_from(name).map_err(|_| format!("`extra_headers`: {name:?} is no header"))?;
        let value =
            secret(value).map_err(|_| format!("`extra_headers`: the value of {name} is not allowed"))?;
        headers.insert(name, value);
    }
    Ok(headers)
}

/// The proxy that is named, else the one that the usual variables say, for addresses with TLS.
pub(crate) fn proxy(
    named: Option<&str>,
    url: &reqwest::Url,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<Option<reqwest::Proxy>, String> {
    let either =
        |upper: &str, lower: &str| lookup(upper).or_else(|| lookup(lower)).filter(|value| !value.is_empty());
    let (address, except) = match named {
        Some(address) => (address.to_owned(), None),
        None if url.scheme() == "https" => match either("HTTPS_PROXY", "https_proxy") {
            Some(address) => (address, either("NO_PROXY", "no_proxy")),
            None => return Ok(None),
        },
        None => return Ok(None),
    };
    let proxy = reqwest::Proxy::all(&address).map_err(|_| "the proxy's address is no URL".to_owned())?;
    Ok(Some(proxy.no_proxy(except.as_deref().and_then(reqwest::NoProxy::from_string))))
}

pub(crate) fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_urls_are_understood_with_and_without_the_version() {
        let of = |kind, base| url(kind, base).map(String::from);
        for (kind, base, expected) in [
            (Kind::Anthropic, None, "https://api.anthropic.com/v1/messages"),
            (Kind::Anthropic, Some("http://localhost:1/"), "http://localhost:1/v1/messages"),
            (
                Kind::Anthropic,
                Some("https://gateway.test/claude/v1"),
                "https://gateway.test/claude/v1/messages",
            ),
            (Kind::OpenAi, None, "https://api.openai.com/v1/chat/completions"),
            (Kind::OpenAi, Some("http://localhost:11434"), "http://localhost:11434/v1/chat/completions"),
            (Kind::OpenAi, Some("http://localhost:8080/v1/"), "http://localhost:8080/v1/chat/completions"),
            (Kind::OpenAi, Some("https://gateway.test/api"), "https://gateway.test/api/chat/completions"),
        ] {
            assert_eq!(of(kind, base).as_deref(), Ok(expected));
        }
        for base in ["nonsense", "ftp://x", "https://user:secret@x", "https://x?key=secret"] {
            let error = of(Kind::OpenAi, Some(base)).expect_err("refused");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
