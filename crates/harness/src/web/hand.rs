//! The hand of the web tools: what the server needs to run them, and the bounds on time and number.

use std::sync::Arc;
use std::time::Duration;

use egress::{Client, Guard};
use protocol::content::{Citations, Content, TextBlock, TextTag};
use protocol::web::{FetchSettings, SearchSettings};
use reqwest::Url;
use tokio::sync::Semaphore;

use super::domains::Domains;
use super::failure::{Code, Failure};
use super::search::{Hit, QUERY_CHARS_MAX, SearchProvider};
use super::{fetch, page};
use crate::model::install_crypto;

/// How many calls run at once in one process. A page in hand takes some tens of MiB at worst.
const CALLS_MAX: usize = 64;

/// How long a connection may take to be made, its name's resolution included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// How long calls may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// A fetch, redirects and conversion included. A person would have given up long before.
    pub fetch_max: Duration,
    /// A search. A SearXNG server waits some seconds for its engines.
    pub search_max: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self { fetch_max: Duration::from_secs(45), search_max: Duration::from_secs(30) }
    }
}

/// Fetches and searches. Keeps nothing.
pub struct Web {
    client: Client,
    search: Option<SearchProvider>,
    times: Times,
    places: Semaphore,
}

impl Web {
    /// A hand that fetches what this guard lets it reach: what is public, and what the operator allows. Without a search
    /// provider `web_search` is not offered to models.
    pub fn new(guard: Arc<Guard>, search: Option<SearchProvider>) -> reqwest::Result<Self> {
        install_crypto();
        let client =
            egress::client_without_redirects(guard, |client| client.connect_timeout(CONNECT_TIMEOUT))?;
        Ok(Self { client, search, times: Times::default(), places: Semaphore::new(CALLS_MAX) })
    }

    /// The same with other bounds on time.
    #[must_use]
    pub fn with_times(self, times: Times) -> Self {
        Self { times, ..self }
    }

    /// Whether there is a search provider.
    pub fn can_search(&self) -> bool {
        self.search.is_some()
    }

    /// Fetches a page. Whether its address may be asked for at all is the caller's to say.
    pub(crate) async fn fetch(&self, url: Url, settings: &FetchSettings) -> Result<Vec<Content>, Failure> {
        let _place = self.places.acquire().await.expect("the semaphore is never closed");
        let limit = self.times.fetch_max;
        let fetching = async {
            let page = fetch::fetch(&self.client, url, domains(settings)).await?;
            let tokens_max = settings.max_content_tokens;
            // Busy for as long as the page is large. If nobody waits any more it ends by itself.
            let converted = tokio::task::spawn_blocking(move || page::content(page, tokens_max)).await;
            converted.unwrap_or_else(|_| {
                tracing::error!("the conversion of a page panicked");
                Err(Failure::new(Code::Unavailable, "the page could not be converted to text"))
            })
        };
        tokio::time::timeout(limit, fetching).await.unwrap_or_else(|_| {
            let detail = format!("it took longer than {} s", limit.as_secs_f64());
            Err(Failure::new(Code::UrlNotAccessible, detail))
        })
    }

    /// Searches the web.
    pub(crate) async fn search(
        &self,
        query: &str,
        settings: &SearchSettings,
    ) -> Result<Vec<Content>, Failure> {
        let Some(provider) = &self.search else {
            return Err(Failure::new(Code::Unavailable, "this server has no search provider"));
        };
        if query.trim().is_empty() {
            return Err(Failure::new(Code::InvalidToolInput, "`query` must not be empty"));
        }
        let length = query.chars().count();
        if length > QUERY_CHARS_MAX {
            let detail =
                format!("the query has {length} characters, and at most {QUERY_CHARS_MAX} are taken");
            return Err(Failure::new(Code::QueryTooLong, detail));
        }
        let _place = self.places.acquire().await.expect("the semaphore is never closed");
        let searched = tokio::time::timeout(self.times.search_max, provider.search(query, settings)).await;
        let hits = searched
            .unwrap_or_else(|_| Err(Failure::new(Code::Unavailable, "the search provider took too long")))?;
        if hits.is_empty() {
            return Ok(vec![Content::text("no results")]);
        }
        Ok(hits.into_iter().map(block).collect())
    }
}

pub(super) fn domains(settings: &FetchSettings) -> Domains<'_> {
    Domains { allowed: settings.allowed_domains.as_deref(), blocked: settings.blocked_domains.as_deref() }
}

fn block(hit: Hit) -> Content {
    let Hit { url, title, text } = hit;
    Content::SearchResult {
        source: url,
        title,
        content: vec![TextBlock { kind: TextTag::Text, text }],
        // The Messages API wants all of a request's search results alike, and clients' own are mostly not cited.
        citations: Citations { enabled: false },
    }
}
