//! The settings of the two web tools, as agents keep them and the wire shows them.
//!
//! They are checked when they come in (`agent_request::web`) and obeyed where the tools run. Every field is shown, null
//! where it is not set.

use serde::{Deserialize, Serialize};

/// What `web_fetch` may fetch, and how much of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchSettings {
    /// Only these hosts and what is below them. Never together with `blocked_domains`.
    #[serde(default)]
    pub allowed_domains: Option<Vec<String>>,
    /// Not these hosts, nor what is below them.
    #[serde(default)]
    pub blocked_domains: Option<Vec<String>>,
    /// How much text one call gives, in tokens. Text only: a PDF is given whole or not at all.
    #[serde(default)]
    pub max_content_tokens: Option<u64>,
    /// Where a URL must have been seen before it may be fetched. `None` takes every source.
    #[serde(default)]
    pub url_sources: Option<UrlSources>,
}

/// What `web_search` may find, and for whom it searches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SearchSettings {
    /// Only these hosts, with what is below them; an entry may end with a path that the page's must begin with.
    #[serde(default)]
    pub allowed_domains: Option<Vec<String>>,
    /// Not these.
    #[serde(default)]
    pub blocked_domains: Option<Vec<String>>,
    /// About where the user is.
    #[serde(default)]
    pub user_location: Option<UserLocation>,
}

/// About where a user is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserLocation {
    /// Always `approximate`.
    #[serde(rename = "type")]
    pub kind: LocationTag,
    /// The city.
    pub city: Option<String>,
    /// The region or state.
    pub region: Option<String>,
    /// Two letters of ISO 3166-1, upper case.
    pub country: Option<String>,
    /// A name of the IANA database.
    pub timezone: Option<String>,
}

/// The tag of a [`UserLocation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LocationTag {
    /// The only tag there is.
    Approximate,
}

/// Which parts of a conversation give URLs that may be fetched. What is `None` was not set and gives all of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UrlSources {
    /// The user's messages.
    pub user_input: Option<UserInput>,
    /// What the client's own tools answered.
    pub client_tool_results: Option<ToolFilter>,
    /// What `web_search` and `web_fetch` answered.
    pub server_tool_results: Option<ToolFilter>,
}

/// Whether URLs in the user's messages may be fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum UserInput {
    /// They may.
    All {},
    /// They may not.
    None {},
}

/// Which tools' results give URLs that may be fetched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToolFilter {
    /// All.
    All {},
    /// None.
    None {},
    /// Only those of these tools.
    Only {
        /// At least one.
        tools: Vec<ToolReference>,
    },
    /// All but those of these tools.
    Except {
        /// At least one.
        tools: Vec<ToolReference>,
    },
}

/// A tool by its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolReference {
    /// Always `tool_reference`.
    #[serde(rename = "type")]
    pub kind: ToolReferenceTag,
    /// Compared letter by letter.
    pub name: String,
}

/// The tag of a [`ToolReference`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolReferenceTag {
    /// The only tag there is.
    ToolReference,
}

impl ToolFilter {
    /// Whether the results of the tool of that name count.
    pub fn takes(&self, name: &str) -> bool {
        let names = |tools: &[ToolReference]| tools.iter().any(|tool| tool.name == name);
        match self {
            Self::All {} => true,
            Self::None {} => false,
            Self::Only { tools } => names(tools),
            Self::Except { tools } => !names(tools),
        }
    }

    /// The tools that it names.
    pub fn tools(&self) -> &[ToolReference] {
        match self {
            Self::All {} | Self::None {} => &[],
            Self::Only { tools } | Self::Except { tools } => tools,
        }
    }
}

impl UrlSources {
    /// Whether URLs in the user's messages count.
    pub fn takes_user_input(&self) -> bool {
        self.user_input != Some(UserInput::None {})
    }

    /// Whether the results of the client's tool of that name count.
    pub fn takes_client_tool(&self, name: &str) -> bool {
        self.client_tool_results.as_ref().is_none_or(|filter| filter.takes(name))
    }

    /// Whether the results of the server's tool of that name count.
    pub fn takes_server_tool(&self, name: &str) -> bool {
        self.server_tool_results.as_ref().is_none_or(|filter| filter.takes(name))
    }

    /// Whether no source is left.
    pub fn takes_nothing(&self) -> bool {
        let none = Some(ToolFilter::None {});
        !self.takes_user_input() && self.client_tool_results == none && self.server_tool_results == none
    }
}
