//! SearXNG's JSON. It knows nothing of where a user is.

use reqwest::Url;
use serde::Deserialize;

use super::provider::Found;

#[derive(Deserialize)]
struct Answer {
    results: Vec<SearxngResult>,
}

#[derive(Deserialize)]
struct SearxngResult {
    #[serde(default)]
    url: Option<String>,
    #[serde(default)]
    title: Option<String>,
    #[serde(default)]
    content: Option<String>,
    #[serde(default, rename = "publishedDate")]
    published: Option<String>,
}

/// Where to search, for a server at `base`.
pub(super) fn endpoint(base: &str) -> String {
    let base = base.trim_end_matches('/');
    format!("{}/search", base.strip_suffix("/search").unwrap_or(base))
}

pub(super) fn ask(mut url: Url, query: &str) -> Url {
    url.query_pairs_mut().append_pair("q", query).append_pair("format", "json");
    url
}

pub(super) fn read(body: &[u8]) -> Result<Vec<Found>, serde_json::Error> {
    let Answer { results } = serde_json::from_slice(body)?;
    let found = |SearxngResult { url, title, content, published }: SearxngResult| Found {
        url: url.unwrap_or_default(),
        title: title.unwrap_or_default(),
        texts: content.into_iter().collect(),
        published,
    };
    Ok(results.into_iter().map(found).collect())
}
