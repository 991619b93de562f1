//! Searching the web: asks the operator's search provider, in its own words.

mod brave;
mod config;
mod provider;
mod searxng;

pub use config::{SearchConfig, SearchConfigError, SearchKind};
pub use provider::SearchProvider;
pub(super) use provider::{Hit, QUERY_CHARS_MAX};
