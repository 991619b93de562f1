//! The Brave Search API.

use protocol::web::UserLocation;
use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;

use super::provider::Found;

pub(super) const BASE: &str = "https://api.search.brave.com/res/v1";
/// The header with the key.
pub(super) const TOKEN: HeaderName = HeaderName::from_static("x-subscription-token");
/// The most that one request gives. More than is shown, as the agent's lists may drop some.
const COUNT: &str = "20";
/// The countries that the service takes; with another one it refuses the request.
const COUNTRIES: &str = "AR AU AT BE BR CA CL DK FI FR DE GR HK IN ID IT JP KR MY MX NL NZ NO CN PL PT PH RU SA ZA ES SE \
CH TW TR GB US";

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    web: Option<Results>,
}

#[derive(Deserialize)]
struct Results {
    #[serde(default)]
    results: Vec<BraveResult>,
}

#[derive(Deserialize)]
struct BraveResult {
    #[serde(default)]
    url: Option<String>,
    #[serde(default)]
    title: Option<String>,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    extra_snippets: Option<Vec<String>>,
    #[serde(default)]
    page_age: Option<String>,
}

/// Where to search, for a service at `base`.
pub(super) fn endpoint(base: &str) -> String {
    let base = base.trim_end_matches('/');
    format!("{}/web/search", base.strip_suffix("/web/search").unwrap_or(base))
}

pub(super) fn ask(mut url: Url, query: &str, location: Option<&UserLocation>) -> Url {
    url.query_pairs_mut()
        .append_pair("q", query)
        .append_pair("count", COUNT)
        .append_pair("result_filter", "web")
        .append_pair("text_decorations", "false");
    let country = location.and_then(|location| location.country.as_deref());
    if let Some(country) = country.filter(|country| COUNTRIES.split(' ').any(|known| known == *country)) {
        url.query_pairs_mut().append_pair("country", country);
    }
    url
}

/// What the service is told of the user's place. What no header can hold is left out.
pub(super) fn location_headers(location: &UserLocation) -> HeaderMap {
    let UserLocation { kind: _, city, region, country, timezone } = location;
    let named = [
        ("x-loc-city", city),
        ("x-loc-state-name", region),
        ("x-loc-country", country),
        ("x-loc-timezone", timezone),
    ];
    let headers = named.into_iter().filter_map(|(name, value)| {
        let value = value.as_deref().filter(|value| value.is_ascii())?;
        Some((HeaderName::from_static(name), HeaderValue::from_str(value).ok()?))
    });
    headers.collect()
}

pub(super) fn read(body: &[u8]) -> Result<Vec<Found>, serde_json::Error> {
    let Answer { web } = serde_json::from_slice(body)?;
    let found = |BraveResult { url, title, description, extra_snippets, page_age }: BraveResult| Found {
        url: url.unwrap_or_default(),
        title: title.unwrap_or_default(),
        texts: description.into_iter().chain(extra_snippets.unwrap_or_default()).collect(),
        published: page_age,
    };
    Ok(web.map(|web| web.results).unwrap_or_default().into_iter().map(found).collect())
}
