//! What the operator says about providers. Read by the command line from the configuration file, or made from the
//! usual environment variables; this file touches neither and asks a lookup function instead.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{self, Deserializer};

use super::key::ApiKey;
use super::scripted::Script;

/// The limit of output tokens for a provider of the Messages format that states none: that format requires one.
pub(super) const MAX_OUTPUT_TOKENS_DEFAULT: u32 = 32_000;

/// Tries of one request before the turn is given up.
pub(super) const ATTEMPTS_MAX_DEFAULT: u32 = 6;

/// The wait after the first failure; it doubles with each further one.
pub(super) const RETRY_BASE_DEFAULT: Duration = Duration::from_secs(1);

/// Long enough for a name to resolve and a handshake over any link that still deserves the name.
pub(super) const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// The longest silence. Hosted services ping every few seconds; a local server that reads a long prompt says
/// nothing for minutes.
pub(super) const IDLE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(300);

/// The longest wait for a provider's limits: the window of most is a minute.
pub(super) const PACE_WAIT_MAX_DEFAULT: Duration = Duration::from_secs(60);

/// One provider: a `[[provider]]` table of the configuration file. The first whose patterns match a model answers
/// for it.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProviderConfig {
    /// A name for people: in messages and logs.
    pub name: String,
    /// The wire that it speaks.
    pub kind: Kind,
    /// Where it is. By default the public service of its kind.
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
    /// The models it answers for; `*` stands for anything.
    #[serde(default)]
    pub models: Vec<String>,
    /// Names of ours and what the provider calls them. These models are its own, whatever the patterns say.
    #[serde(default)]
    pub model_map: BTreeMap<String, String>,
    /// The limit of output tokens.
    #[serde(default)]
    pub max_output_tokens: Option<u32>,
    /// The size of its models' context.
    #[serde(default)]
    pub context_tokens: Option<u64>,
    /// Whether its models think before they answer. By default that is left to the provider.
    #[serde(default)]
    pub thinking: Option<Thinking>,
    /// Whether the agent's effort is sent. By default, in the Messages format, if the agent states another than
    /// the default; in chat completions it is not.
    #[serde(default)]
    pub effort: Option<bool>,
    /// Whether cache breakpoints are sent. By default they are, in the Messages format.
    #[serde(default)]
    pub prompt_caching: Option<bool>,
    /// Whether it takes the operator's messages in mid-conversation as such. Where not, they are marked text in what
    /// the user says. By default known by the model's name or the provider's address.
    #[serde(default)]
    pub mid_conversation_system: Option<bool>,
    /// The longest wait for a connection: seconds, or a number with `ms`, `s` or `m`.
    #[serde(default, deserialize_with = "duration")]
    pub connect_timeout: Option<Duration>,
    /// The longest silence in an exchange.
    #[serde(default, deserialize_with = "duration")]
    pub idle_timeout: Option<Duration>,
    /// The longest that a request waits because the provider's limits are used up. Then it fails as rate limited and
    /// is tried again like any other.
    #[serde(default, deserialize_with = "duration")]
    pub pace_wait_max: Option<Duration>,
    /// Whether what responses say of limits is believed. It is, unless a gateway gets it wrong.
    #[serde(default)]
    pub rate_headers: Option<bool>,
    /// Tries of one request before the turn is given up.
    #[serde(default)]
    pub attempts_max: Option<u32>,
    /// The wait after the first failure.
    #[serde(default)]
    pub retry_base_ms: Option<u64>,
    /// Sent with every request. Their values are treated as secrets.
    #[serde(default)]
    pub extra_headers: BTreeMap<String, String>,
    /// The HTTP proxy to go through. By default what `HTTPS_PROXY` and `NO_PROXY` say, for addresses with TLS.
    #[serde(default)]
    pub proxy: Option<String>,
    /// The file that a scripted provider plays, JSON.
    #[serde(default)]
    pub script_file: Option<PathBuf>,
    /// What a scripted provider plays.
    #[serde(default)]
    pub script: Option<Script>,
}

impl ProviderConfig {
    /// A provider with nothing but its name, its wire and its models.
    pub fn new(
        name: impl Into<String>,
        kind: Kind,
        models: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        Self {
            name: name.into(),
            kind,
            base_url: None,
            api_key_env: None,
            api_key_file: None,
            api_key: None,
            models: models.into_iter().map(Into::into).collect(),
            model_map: BTreeMap::new(),
            max_output_tokens: None,
            context_tokens: None,
            thinking: None,
            effort: None,
            prompt_caching: None,
            mid_conversation_system: None,
            connect_timeout: None,
            idle_timeout: None,
            pace_wait_max: None,
            rate_headers: None,
            attempts_max: None,
            retry_base_ms: None,
            extra_headers: BTreeMap::new(),
            proxy: None,
            script_file: None,
            script: None,
        }
    }

    /// The same without all that only a request needs: for a process that tells clients which models there are and asks
    /// none. What it answers is nothing.
    #[must_use]
    pub fn named_only(self) -> Self {
        Self {
            kind: Kind::Scripted,
            base_url: None,
            api_key_env: None,
            api_key_file: None,
            api_key: None,
            extra_headers: BTreeMap::new(),
            proxy: None,
            script_file: None,
            script: Some(Script::default()),
            ..self
        }
    }
}

impl fmt::Debug for ProviderConfig {
    /// Names and addresses only; an address that holds a password is refused later, so it is not shown either.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ProviderConfig")
            .field("name", &self.name)
            .field("kind", &self.kind)
            .field("models", &self.models)
            .finish_non_exhaustive()
    }
}

/// The wire that a provider speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Anthropic's Messages.
    Anthropic,
    /// OpenAI's chat completions.
    OpenAi,
    /// None: it plays a script.
    Scripted,
}

/// Whether and how long models think.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase", untagged)]
pub enum Thinking {
    /// They do not.
    #[serde(deserialize_with = "word_off")]
    Off,
    /// They decide.
    #[serde(deserialize_with = "word_adaptive")]
    Adaptive,
    /// Up to a budget.
    Budget {
        /// In tokens, at least 1,024 and less than the limit of output tokens.
        budget_tokens: u32,
    },
}

/// What is wrong with the configuration. Holds no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("provider {provider:?}: {problem}")]
pub struct ConfigError {
    /// The provider's name, or the environment variable's.
    pub provider: String,
    /// What is wrong.
    pub problem: String,
}

fn word_off<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
    word(deserializer, "off")
}

fn word_adaptive<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
    word(deserializer, "adaptive")
}

fn word<'de, D: Deserializer<'de>>(deserializer: D, expected: &'static str) -> Result<(), D::Error> {
    let found = String::deserialize(deserializer)?;
    if found == expected {
        Ok(())
    } else {
        Err(de::Error::invalid_value(de::Unexpected::Str(&found), &expected))
    }
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Seconds(f64),
        Text(String),
    }
    let refused = || de::Error::custom("expected seconds, or a number with `ms`, `s` or `m`");
    let seconds = match Written::deserialize(deserializer)? {
        Written::Seconds(seconds) => seconds,
        Written::Text(text) => {
            let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
            let (number, unit) = text.split_at(end);
            let number: f64 = number.parse().map_err(|_| refused())?;
            match unit.trim() {
                "ms" => number / 1000.0,
                "" | "s" => number,
                "m" => number * 60.0,
                _ => return Err(refused()),
            }
        }
    };
    let duration = Duration::try_from_secs_f64(seconds).map_err(|_| refused())?;
    if duration.is_zero() { Err(refused()) } else { Ok(Some(duration)) }
}
