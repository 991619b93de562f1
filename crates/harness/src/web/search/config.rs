//! What the operator says about the search provider: the `[search]` table of the configuration file.

use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;

use crate::model::ApiKey;

/// The search provider.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SearchConfig {
    /// The wire that it speaks.
    pub kind: SearchKind,
    /// Where it is. Needed for SearXNG; by default the public service for the others.
    #[serde(default)]
    pub base_url: Option<String>,
    /// The environment variable that holds the key.
    #[serde(default)]
    pub api_key_env: Option<String>,
    /// The file that holds the key.
    #[serde(default)]
    pub api_key_file: Option<PathBuf>,
    /// The key itself.
    #[serde(default)]
    pub api_key: Option<ApiKey>,
}

/// The wire that a search provider speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SearchKind {
    /// A SearXNG server, whose settings allow the format `json`.
    Searxng,
    /// The Brave Search API.
    Brave,
}

impl SearchConfig {
    /// A provider with nothing but its wire and its address.
    pub fn new(kind: SearchKind, base_url: Option<String>) -> Self {
        Self { kind, base_url, api_key_env: None, api_key_file: None, api_key: None }
    }
}

impl fmt::Debug for SearchConfig {
    /// Without keys, and without an address that may hold a password.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SearchConfig").field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// What is wrong with the configuration. Holds no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the search provider cannot be used as configured: {0}")]
pub struct SearchConfigError(pub(super) String);
