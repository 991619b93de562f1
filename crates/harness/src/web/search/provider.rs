//! The configured provider: one request, one list of hits.
//!
//! Its address is the operator's choice and may be a private one. Redirects are not followed, as a key must not travel
//! to an address that nobody configured.

use std::sync::Arc;
use std::time::Duration;

use protocol::web::SearchSettings;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, USER_AGENT};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode, Url};

use super::config::{SearchConfig, SearchConfigError, SearchKind};
use super::{brave, searxng};
use crate::model::{self, ApiKey};
use crate::web::domains::Domains;
use crate::web::failure::{Code, Failure};
use crate::web::{fetch, html};

/// The longest query that the Brave Search API takes; others take no longer ones that mean anything.
pub(crate) const QUERY_CHARS_MAX: usize = 400;
/// How many hits a model gets: the first page of what people see.
const HITS_MAX: usize = 10;
/// The longest answer that is read; real ones have a tenth of it.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// A title is a line.
const TITLE_CHARS_MAX: usize = 300;
/// What a hit says of its page, in characters. Whoever wants more fetches it.
const TEXT_CHARS_MAX: usize = 2_000;
/// An address that is longer could not be fetched.
const URL_BYTES_MAX: usize = 2_048;
/// Of more domains a search engine is not told; it finds what it finds, and the rest is dropped.
const HINTED_DOMAINS_MAX: usize = 5;
/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A search provider, ready to be asked.
#[derive(Clone)]
pub struct SearchProvider {
    inner: Arc<Inner>,
}

struct Inner {
    kind: SearchKind,
    client: Client,
    url: Url,
    /// Sent with every request. Holds the key.
    headers: HeaderMap,
}

/// A hit as a provider sends it.
pub(super) struct Found {
    pub(super) url: String,
    pub(super) title: String,
    pub(super) texts: Vec<String>,
    pub(super) published: Option<String>,
}

/// A hit as a model is shown it: never with an empty field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hit {
    pub(crate) url: String,
    pub(crate) title: String,
    pub(crate) text: String,
}

impl SearchProvider {
    /// Makes a provider of what the operator wrote. `lookup` reads an environment variable. Nothing is sent yet.
    pub fn build(
        config: SearchConfig,
        lookup: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, SearchConfigError> {
        Self::of(config, lookup).map_err(SearchConfigError)
    }

    fn of(config: SearchConfig, lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self, String> {
        let SearchConfig { kind, base_url, api_key_env, api_key_file, api_key } = config;
        let key = ApiKey::settle(api_key, api_key_env.as_deref(), api_key_file.as_deref(), lookup)?;
        let base = base_url.as_deref().map(str::trim).filter(|base| !base.is_empty());
        let url = match (kind, base) {
            (SearchKind::Searxng, None) => {
                return Err("`base_url` is needed: where is the SearXNG server?".to_owned());
            }
            (SearchKind::Searxng, Some(base)) => address(base, searxng::endpoint)?,
            (SearchKind::Brave, base) => address(base.unwrap_or(brave::BASE), brave::endpoint)?,
        };
        let mut headers = HeaderMap::new();
        headers.insert(USER_AGENT, HeaderValue::from_static(fetch::AGENT));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        match (kind, key) {
            (SearchKind::Brave, None) => {
                return Err("a key is needed: name it with `api_key_env` or `api_key_file`".to_owned());
            }
            (SearchKind::Brave, Some(key)) => {
                headers.insert(brave::TOKEN, secret(key.expose())?);
            }
            // For a proxy in front of the server.
            (SearchKind::Searxng, Some(key)) => {
                headers.insert(AUTHORIZATION, secret(&format!("Bearer {}", key.expose()))?);
            }
            (SearchKind::Searxng, None) => {}
        }
        model::install_crypto();
        let mut client =
            Client::builder().connect_timeout(CONNECT_TIMEOUT).redirect(Policy::none()).no_proxy();
        match model::proxy(None, &url, lookup)? {
            Some(proxy) => client = client.proxy(proxy),
            // Without TLS the machine's certificates are not needed, and there may be none.
            None if url.scheme() == "http" => client = client.tls_certs_only([]),
            None => {}
        }
        let client = client.build().map_err(|error| model::innermost(&error))?;
        Ok(Self { inner: Arc::new(Inner { kind, client, url, headers }) })
    }

    /// Asks. The time is for the caller to bound. What the agent's lists do not let through is left out in silence.
    pub(crate) async fn search(&self, query: &str, settings: &SearchSettings) -> Result<Vec<Hit>, Failure> {
        let Inner { kind, client, url, headers } = &*self.inner;
        let SearchSettings { allowed_domains, blocked_domains, user_location } = settings;
        let query = hinted(query, allowed_domains.as_deref());
        let location = user_location.as_ref();
        let (url, more) = match kind {
            SearchKind::Searxng => (searxng::ask(url.clone(), &query), HeaderMap::new()),
            SearchKind::Brave => (
                brave::ask(url.clone(), &query, location),
                location.map(brave::location_headers).unwrap_or_default(),
            ),
        };
        let request = client.get(url).headers(headers.clone()).headers(more);
        // The provider's address is not for everybody, so that what failed is said and not where.
        let silent = |_: reqwest::Error| unavailable("the search provider cannot be reached");
        let mut response = request.send().await.map_err(silent)?;
        check(*kind, response.status())?;
        let body = bounded(&mut response).await.map_err(silent)?;
        let read = match kind {
            SearchKind::Searxng => searxng::read(&body),
            SearchKind::Brave => brave::read(&body),
        };
        let found = read.map_err(|_| unavailable("the search provider's answer cannot be read"))?;
        let domains = Domains { allowed: allowed_domains.as_deref(), blocked: blocked_domains.as_deref() };
        Ok(hits(found, domains))
    }
}

impl std::fmt::Debug for SearchProvider {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("SearchProvider").field("kind", &self.inner.kind).finish_non_exhaustive()
    }
}

fn address(base: &str, endpoint: fn(&str) -> String) -> Result<Url, String> {
    // Parse errors are not shown: the text may hold a password.
    let url = Url::parse(base).map_err(|_| "`base_url` is no URL".to_owned())?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err("`base_url` must start with http:// or https://".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("`base_url` must not hold credentials".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("`base_url` must not have a query or a fragment".to_owned());
    }
    Url::parse(&endpoint(base)).map_err(|_| "`base_url` is no URL".to_owned())
}

fn secret(text: &str) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::from_str(text)
        .map_err(|_| "the key holds characters that no header takes".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

fn unavailable(detail: &str) -> Failure {
    Failure::new(Code::Unavailable, detail)
}

fn check(kind: SearchKind, status: StatusCode) -> Result<(), Failure> {
    match (kind, status.as_u16()) {
        (_, 200) => Ok(()),
        (_, 429) => {
            Err(Failure::new(Code::TooManyRequests, "the search provider limits our rate; try again later"))
        }
        (SearchKind::Brave, 422) => {
            Err(Failure::new(Code::InvalidToolInput, "the search provider refuses this query"))
        }
        (_, status) => {
            // For the operator, who alone can do something about it.
            tracing::warn!(
                status,
                ?kind,
                "the search provider refuses; SearXNG answers 403 unless its settings allow the format json"
            );
            Err(unavailable(&format!("the search provider answered {status}")))
        }
    }
}

async fn bounded(response: &mut Response) -> Result<Vec<u8>, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        body.extend_from_slice(&chunk);
        if body.len() > ANSWER_BYTES_MAX {
            break;
        }
    }
    Ok(body)
}

/// The query, with a word to the engine about the domains that are wanted alone: otherwise all that it finds may be
/// dropped. Left as it is where that would say too much.
fn hinted(query: &str, allowed: Option<&[String]>) -> String {
    let Some(allowed) = allowed.filter(|allowed| allowed.len() <= HINTED_DOMAINS_MAX) else {
        return query.to_owned();
    };
    let sites: Vec<String> =
        allowed.iter().map(|entry| format!("site:{}", entry.trim_end_matches('/'))).collect();
    let hinted = format!("{query} {}", sites.join(" OR "));
    if hinted.chars().count() <= QUERY_CHARS_MAX { hinted } else { query.to_owned() }
}

fn hits(found: Vec<Found>, domains: Domains<'_>) -> Vec<Hit> {
    let mut hits: Vec<Hit> = Vec::new();
    for Found { url, title, texts, published } in found {
        let Ok(parsed) = Url::parse(&url) else { continue };
        let is_page = matches!(parsed.scheme(), "http" | "https") && parsed.as_str().len() <= URL_BYTES_MAX;
        if !is_page || !domains.permit(&parsed) || hits.iter().any(|hit| hit.url == parsed.as_str()) {
            continue;
        }
        let url = String::from(parsed);
        let title = line(&title, TITLE_CHARS_MAX);
        let title = if title.is_empty() { url.clone() } else { title };
        let published = published.map(|when| line(&when, 40)).filter(|when| !when.is_empty());
        let published = published.map(|when| format!("Published: {when}"));
        let lines: Vec<String> = texts
            .iter()
            .map(|text| line(text, TEXT_CHARS_MAX))
            .filter(|text| !text.is_empty())
            .chain(published)
            .collect();
        let text: String = lines.join("\n").chars().take(TEXT_CHARS_MAX).collect();
        let text = if text.is_empty() { title.clone() } else { text };
        hits.push(Hit { url, title, text });
        if hits.len() == HITS_MAX {
            break;
        }
    }
    hits
}

fn line(html: &str, chars_max: usize) -> String {
    // Twice as much as is kept, because tags and entities go.
    let html: String = html.chars().take(chars_max.saturating_mul(2)).collect();
    html::plain(&html).chars().take(chars_max).collect()
}

#[cfg(test)]
mod tests {
    use protocol::web::{LocationTag, UserLocation};

    use super::*;

    fn hit(url: &str, title: &str, text: &str) -> Hit {
        Hit { url: url.to_owned(), title: title.to_owned(), text: text.to_owned() }
    }

    fn found(url: &str, title: &str, texts: &[&str]) -> Found {
        Found {
            url: url.to_owned(),
            title: title.to_owned(),
            texts: texts.iter().map(|text| (*text).to_owned()).collect(),
            published: None,
        }
    }

    #[test]
    fn hits_have_no_empty_field_and_no_markup() {
        let hits = hits(
            vec![
                found("https://a.example/x", "A &amp; <strong>B</strong>", &["1 &lt; 2<br>and more", "also"]),
                found("https://a.example/x", "again", &[]),
                found("ftp://a.example/", "no page", &[]),
                found("nonsense", "no page", &[]),
                found("https://b.example", "", &[""]),
            ],
            Domains { allowed: None, blocked: None },
        );
        assert_eq!(
            hits,
            [
                hit("https://a.example/x", "A & B", "1 < 2 and more\nalso"),
                hit("https://b.example/", "https://b.example/", "https://b.example/"),
            ]
        );
    }

    #[test]
    fn the_engine_hears_of_a_few_wanted_domains() {
        let entries = |count: usize| (0..count).map(|n| format!("d{n}.example/")).collect::<Vec<_>>();
        assert_eq!(hinted("q", None), "q");
        assert_eq!(hinted("q", Some(&entries(2))), "q site:d0.example OR site:d1.example");
        assert_eq!(hinted("q", Some(&entries(6))), "q");
        let long = "q".repeat(QUERY_CHARS_MAX);
        assert_eq!(hinted(&long, Some(&entries(1))), long);
    }

    #[test]
    fn a_configuration_is_refused_without_showing_what_it_holds() {
        let build = |config: SearchConfig| {
            SearchProvider::build(config, &|name| (name == "KEY").then(|| "secret".to_owned())).map(|_| ())
        };
        let of = |kind, base: Option<&str>| SearchConfig::new(kind, base.map(str::to_owned));
        assert!(build(of(SearchKind::Searxng, Some("http://127.0.0.1:8080/"))).is_ok());
        let keyed = SearchConfig { api_key_env: Some("KEY".to_owned()), ..of(SearchKind::Brave, None) };
        assert!(build(keyed.clone()).is_ok());
        assert!(!format!("{keyed:?}").contains("secret"));
        for (config, reason) in [
            (of(SearchKind::Searxng, None), "`base_url` is needed"),
            (of(SearchKind::Brave, None), "a key is needed"),
            (of(SearchKind::Searxng, Some("https://me:secret@x")), "credentials"),
            (of(SearchKind::Searxng, Some("nonsense")), "no URL"),
            (
                SearchConfig { api_key_env: Some("ABSENT".to_owned()), ..of(SearchKind::Brave, None) },
                "variable ABSENT is not set",
            ),
        ] {
            let error = build(config).expect_err("refused").to_string();
            assert!(error.contains(reason) && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_place_is_told_as_far_as_the_provider_understands_it() {
        let location = UserLocation {
            kind: LocationTag::Approximate,
            city: Some("Zürich".to_owned()),
            region: Some("Zurich".to_owned()),
            country: Some("LI".to_owned()),
            timezone: None,
        };
        let url = brave::ask(Url::parse("https://x.example/").expect("a URL"), "q", Some(&location));
        assert!(!url.query().expect("a query").contains("country"), "{url}");
        let headers = brave::location_headers(&location);
        assert_eq!(headers.len(), 2, "{headers:?}");
        assert_eq!(headers["x-loc-state-name"], "Zurich");
    }
}
