//! Providers, ready to be asked: which one answers for a model, and with which settings.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::sync::futures::Notified;
use tokio::time::Instant;

use super::answer::Asking;
use super::config::{
    ATTEMPTS_MAX_DEFAULT, ConfigError, Kind, MAX_OUTPUT_TOKENS_DEFAULT, PACE_WAIT_MAX_DEFAULT,
    ProviderConfig, RETRY_BASE_DEFAULT, Thinking,
};
use super::connect::endpoint;
use super::drive::drive;
use super::failure::{Failure, FailureKind, redact};
use super::http::Endpoint;
use super::key::ApiKey;
use super::pace::{OnPause, SharedPace};
use super::prompt::Prompt;
use super::scripted::{Script, Stage};
use super::{anthropic, openai};

/// No wait between two tries is longer, unless the provider asks for it.
const RETRY_WAIT_MAX: Duration = Duration::from_secs(60);

/// How long a provider may take to list its models.
const LIST_TIME_MAX: Duration = Duration::from_secs(10);

/// The longest list of models that is read; the longest known ones are a tenth of it.
const LIST_BYTES_MAX: usize = 4 * 1024 * 1024;

/// All providers, in the order in which they are asked for a model.
#[derive(Clone, Debug, Default)]
pub struct Providers {
    providers: Vec<Provider>,
}

/// A provider of models.
#[derive(Clone)]
pub struct Provider {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    patterns: Vec<String>,
    model_map: std::collections::BTreeMap<String, String>,
    settings: Settings,
    retry: Retry,
    pace: Arc<SharedPace>,
    pace_wait_max: Duration,
    wire: Wire,
}

enum Wire {
    Anthropic(Arc<Endpoint>),
    OpenAi(Arc<Endpoint>),
    Scripted(Stage),
}

/// What changes a request's body.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    pub(super) max_output_tokens: u32,
    /// Whether the limit was stated; chat completions have one only then.
    pub(super) states_output_limit: bool,
    pub(super) context_tokens: Option<u64>,
    pub(super) thinking: Option<Thinking>,
    pub(super) effort: Option<bool>,
    pub(super) prompt_caching: bool,
    pub(super) mid_conversation_system: Option<bool>,
    /// The public service, not somebody who speaks like it.
    pub(super) is_openai_itself: bool,
}

impl Settings {
    pub(super) fn output_limit(&self) -> Option<u32> {
        self.states_output_limit.then_some(self.max_output_tokens)
    }
}

/// How often a request is tried, and how long is waited in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Tries, the first included.
    pub attempts_max: u32,
    /// The wait after the first failure.
    pub base: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts_max: ATTEMPTS_MAX_DEFAULT, base: RETRY_BASE_DEFAULT }
    }
}

impl Retry {
    /// The wait after `failures` failures in a row. What the provider asks for is the least; `jitter`, from 0 to 1,
    /// spreads those who failed together.
    pub fn wait(&self, failures: u32, retry_after: Option<Duration>, jitter: f64) -> Duration {
        let doubled = self.base.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1).min(16)));
        let spread = doubled.min(RETRY_WAIT_MAX).mul_f64(0.75 + 0.25 * jitter.clamp(0.0, 1.0));
        retry_after.map_or(spread, |asked| asked.max(spread))
    }
}

/// A model that the configuration names, for a list of models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The name to use in an agent.
    pub id: String,
    /// The provider that answers for it.
    pub provider: String,
    /// The size of its context, where the configuration says.
    pub context_tokens: Option<u64>,
    /// Its longest answer, where the configuration says.
    pub max_output_tokens: Option<u32>,
}

impl Providers {
    /// The providers of a configuration. `lookup` reads an environment variable.
    pub fn build(
        configs: Vec<ProviderConfig>,
        lookup: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let retry = retry_from(&lookup)?;
        let providers = configs.into_iter().map(|config| Provider::build(config, retry, &lookup));
        Ok(Self { providers: providers.collect::<Result<_, _>>()? })
    }

    /// The providers of a machine without a configuration file: those whose usual variables are set.
    ///
    /// `ANTHROPIC_API_KEY`, `ANTHROPIC_BASE_URL`: `claude*`. `OPENAI_API_KEY`, `OPENAI_BASE_URL`: OpenAI's own names,
    /// and with a base URL, which is mostly a local server, every other name, too.
    /// `POSTHOUSE_MODEL_ATTEMPTS_MAX`, `POSTHOUSE_MODEL_RETRY_BASE_MS`: retries.
    pub fn from_env(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let lookup = |name: &str| lookup(name).filter(|value| !value.trim().is_empty());
        let mut configs = Vec::new();
        let (key, base_url) = (lookup("ANTHROPIC_API_KEY"), lookup("ANTHROPIC_BASE_URL"));
        if key.is_some() || base_url.is_some() {
            let mut config = ProviderConfig::new("anthropic", Kind::Anthropic, ["claude*"]);
            config.api_key = key.as_deref().and_then(ApiKey::new);
            config.base_url = base_url;
            configs.push(config);
        }
        let (key, base_url) = (lookup("OPENAI_API_KEY"), lookup("OPENAI_BASE_URL"));
        if key.is_some() || base_url.is_some() {
            let mut config =
                ProviderConfig::new("openai", Kind::OpenAi, ["gpt*", "o1*", "o3*", "o4*", "chatgpt*"]);
            config.api_key = key.as_deref().and_then(ApiKey::new);
            if base_url.is_some() {
                config.models.push("*".to_owned());
            }
            config.base_url = base_url;
            configs.push(config);
        }
        Self::build(configs, lookup)
    }

    /// Adds a provider that plays a script for the models that match. Panics if no pattern is given.
    #[must_use]
    pub fn with_scripted(
        mut self,
        name: impl Into<String>,
        models: impl IntoIterator<Item = impl Into<String>>,
        script: Script,
    ) -> Self {
        let mut config = ProviderConfig::new(name, Kind::Scripted, models);
        config.script = Some(script);
        let provider = Provider::build(config, Retry::default(), &|_: &str| None);
        self.providers.push(provider.expect("a script and at least one name are all that it needs"));
        self
    }

    /// These providers, then the others': the first that matches a name answers for it.
    #[must_use]
    pub fn then(mut self, others: Self) -> Self {
        self.providers.extend(others.providers);
        self
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.providers.is_empty()
    }

    /// All providers, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Provider> {
        self.providers.iter()
    }

    /// The provider that answers for a model.
    pub fn resolve(&self, model: &str) -> Option<&Provider> {
        self.providers.iter().find(|provider| provider.answers_for(model))
    }

    /// Asks the model that the prompt names.
    pub fn ask(&self, prompt: &Prompt) -> Asking {
        match self.resolve(&prompt.model) {
            Some(provider) => provider.ask(prompt),
            None => Asking::failed(Failure::new(FailureKind::Unconfigured, &prompt.model)),
        }
    }

    /// Sets what is to happen when a provider refuses and this process pauses it: the other processes of the account
    /// are to be told. The first that is set stays.
    pub fn set_on_pause(&self, on_pause: &OnPause) {
        for provider in &self.providers {
            provider.inner.pace.set_on_pause(Arc::clone(on_pause));
        }
    }

    /// Another process was refused by the provider of that name: nothing leaves for so long. A name that is not
    /// configured here is not ours to care for.
    pub fn pause(&self, provider: &str, wait: Duration) {
        for known in self.providers.iter().filter(|known| known.name() == provider) {
            known.inner.pace.pause(wait);
        }
    }

    /// The models that the configuration names one by one. Patterns name none.
    pub fn list(&self) -> Vec<Listed> {
        let mut listed: Vec<Listed> = Vec::new();
        for Provider { inner } in &self.providers {
            let named = inner.patterns.iter().filter(|pattern| !pattern.contains('*'));
            for id in named.chain(inner.model_map.keys()) {
                // The first that matches answers, so a second entry of the name would be wrong.
                let answers = self.resolve(id).is_some_and(|provider| Arc::ptr_eq(&provider.inner, inner));
                if answers && !listed.iter().any(|model| model.id == *id) {
                    listed.push(Listed {
                        id: id.clone(),
                        provider: inner.name.clone(),
                        context_tokens: inner.settings.context_tokens,
                        max_output_tokens: inner.settings.output_limit(),
                    });
                }
            }
        }
        listed
    }
}

impl Provider {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The names that it answers for: patterns, and the aliases of its model map.
    pub fn patterns(&self) -> impl Iterator<Item = &str> {
        self.inner.patterns.iter().chain(self.inner.model_map.keys()).map(String::as_str)
    }

    /// How often to try.
    pub fn retry(&self) -> Retry {
        self.inner.retry
    }

    /// Whether its limits let a request to this model leave now; else, when to ask again. `brains` is how many processes
    /// share the limits; `draw`, from 0 to 1, spreads those who wait for the same moment.
    pub(crate) fn look(&self, model: &str, brains: u32, draw: f64) -> Result<(), Instant> {
        self.inner.pace.look(self.own_name(model), brains, draw)
    }

    /// The same, and counts the request, which is to be sent at once.
    pub(crate) fn leave(&self, model: &str, brains: u32, draw: f64) -> Result<(), Instant> {
        self.inner.pace.leave(self.own_name(model), brains, draw)
    }

    /// Waits until something is heard of its limits: from when this is called, not from when it is polled.
    pub(crate) fn pace_changed(&self) -> Notified<'_> {
        self.inner.pace.changed()
    }

    /// The longest that a request waits for its limits.
    pub(crate) fn pace_wait_max(&self) -> Duration {
        self.inner.pace_wait_max
    }

    /// What the provider calls a model.
    fn own_name<'a>(&'a self, model: &'a str) -> &'a str {
        self.inner.model_map.get(model).map_or(model, String::as_str)
    }

    /// The size of its models' context, where the configuration says.
    pub fn context_tokens(&self) -> Option<u64> {
        self.inner.settings.context_tokens
    }

    /// Whether its models take system messages in mid-conversation, natively or as marked text. They do, unless the
    /// configuration says otherwise.
    pub fn takes_system_messages(&self) -> bool {
        self.inner.settings.mid_conversation_system != Some(false)
    }

    /// Asks for an answer. Nothing is sent before the first poll.
    pub fn ask(&self, prompt: &Prompt) -> Asking {
        let Inner { settings, wire, .. } = &*self.inner;
        let model = self.own_name(&prompt.model);
        match wire {
            Wire::Anthropic(endpoint) => {
                let mut headers = HeaderMap::new();
                if let Some(beta) = anthropic::beta_header(prompt) {
                    headers.insert(HeaderName::from_static("anthropic-beta"), HeaderValue::from_static(beta));
                }
                let body = anthropic::body(model, prompt, settings);
                drive(Arc::clone(endpoint), model, body, headers, anthropic::MessageReader::default())
            }
            Wire::OpenAi(endpoint) => {
                let body = openai::body(model, prompt, settings);
                drive(
                    Arc::clone(endpoint),
                    model,
                    body,
                    HeaderMap::new(),
                    openai::CompletionReader::new(prompt),
                )
            }
            Wire::Scripted(stage) => stage.ask(model, prompt),
        }
    }

    /// Whether it answers for every name, so that what it serves is not known from its patterns.
    pub fn takes_any_name(&self) -> bool {
        self.inner.patterns.iter().any(|pattern| pattern == "*")
    }

    /// The names in the provider's own list (`GET …/models`), in its order. A script has none.
    pub async fn models(&self) -> Result<Vec<String>, Failure> {
        let endpoint = match &self.inner.wire {
            Wire::Anthropic(endpoint) | Wire::OpenAi(endpoint) => endpoint,
            Wire::Scripted(_) => return Ok(Vec::new()),
        };
        match tokio::time::timeout(LIST_TIME_MAX, list(endpoint)).await {
            Ok(listed) => listed,
            Err(_) => Err(Failure::new(FailureKind::Timeout, "the list of models did not come in time")),
        }
    }

    fn answers_for(&self, model: &str) -> bool {
        self.inner.model_map.contains_key(model)
            || self.inner.patterns.iter().any(|pattern| matches(pattern, model))
    }

    fn build(
        mut config: ProviderConfig,
        retry: Retry,
        lookup: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let name = config.name.clone();
        let wrong = |problem: String| ConfigError { provider: name.clone(), problem };
        if config.models.is_empty() && config.model_map.is_empty() {
            return Err(wrong("it answers for no model: `models` and `model_map` are empty".to_owned()));
        }
        let pace = Arc::new(SharedPace::new(name.clone()));
        let pace_wait_max = config.pace_wait_max.unwrap_or(PACE_WAIT_MAX_DEFAULT);
        let connect = |config: &mut ProviderConfig| endpoint(config, Arc::clone(&pace), lookup).map(Arc::new);
        let wire = match config.kind {
            Kind::Scripted => Wire::Scripted(Stage::new(script(&mut config).map_err(wrong)?)),
            Kind::Anthropic => Wire::Anthropic(connect(&mut config).map_err(wrong)?),
            Kind::OpenAi => Wire::OpenAi(connect(&mut config).map_err(wrong)?),
        };
        let settings = settings(&config, &wire).map_err(wrong)?;
        let retry = Retry {
            attempts_max: config.attempts_max.unwrap_or(retry.attempts_max).max(1),
            base: config.retry_base_ms.map_or(retry.base, Duration::from_millis),
        };
        let ProviderConfig { name, models: patterns, model_map, .. } = config;
        let inner = Inner { name, patterns, model_map, settings, retry, pace, pace_wait_max, wire };
        Ok(Self { inner: Arc::new(inner) })
    }
}

impl fmt::Debug for Provider {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Provider")
            .field("name", &self.inner.name)
            .field("models", &self.inner.patterns)
            .finish_non_exhaustive()
    }
}

async fn list(endpoint: &Endpoint) -> Result<Vec<String>, Failure> {
    #[derive(serde::Deserialize)]
    struct Page {
        data: Vec<Model>,
    }
    #[derive(serde::Deserialize)]
    struct Model {
        id: String,
    }
    let broken = |error: reqwest::Error| {
        // The innermost cause says what happened; the outer ones say the address, which is not for everybody.
        let mut cause: &dyn std::error::Error = &error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        Failure::new(FailureKind::Connection, &redact(&cause.to_string(), &endpoint.secrets))
    };
    let path = endpoint.url.path();
    let base = path.strip_suffix("/chat/completions").or_else(|| path.strip_suffix("/messages"));
    let mut url = endpoint.url.clone();
    url.set_path(&format!("{}/models", base.unwrap_or(path)));
    let request = endpoint.client.get(url).headers(endpoint.headers.clone());
    let mut response = request.send().await.map_err(broken)?;
    if response.status() != reqwest::StatusCode::OK {
        let detail = format!("the list of models was answered with status {}", response.status().as_u16());
        return Err(Failure::new(FailureKind::Malformed, &detail));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(broken)? {
        body.extend_from_slice(&chunk);
        if body.len() > LIST_BYTES_MAX {
            return Err(endpoint.malformed("the list of models is too long"));
        }
    }
    let page: Page =
        serde_json::from_slice(&body).map_err(|_| endpoint.malformed("the list of models is not one"))?;
    Ok(page.data.into_iter().map(|model| model.id).collect())
}

fn retry_from(lookup: &impl Fn(&str) -> Option<String>) -> Result<Retry, ConfigError> {
    let number = |name: &str| match lookup(name) {
        Some(value) => value.trim().parse::<u32>().map(Some).map_err(|_| ConfigError {
            provider: name.to_owned(),
            problem: "expected a whole number".to_owned(),
        }),
        None => Ok(None),
    };
    let base_ms = number("POSTHOUSE_MODEL_RETRY_BASE_MS")?;
    Ok(Retry {
        attempts_max: number("POSTHOUSE_MODEL_ATTEMPTS_MAX")?.unwrap_or(ATTEMPTS_MAX_DEFAULT),
        base: base_ms.map_or(RETRY_BASE_DEFAULT, |base_ms| Duration::from_millis(base_ms.into())),
    })
}

fn settings(config: &ProviderConfig, wire: &Wire) -> Result<Settings, String> {
    let max_output_tokens = config.max_output_tokens.unwrap_or(MAX_OUTPUT_TOKENS_DEFAULT);
    if max_output_tokens == 0 {
        return Err("`max_output_tokens` must be at least 1".to_owned());
    }
    if let Some(Thinking::Budget { budget_tokens }) = config.thinking
        && (budget_tokens < 1024 || budget_tokens >= max_output_tokens)
    {
        return Err(format!(
            "`thinking.budget_tokens` must be at least 1024 and less than {max_output_tokens}"
        ));
    }
    let is_openai_itself = match wire {
        Wire::OpenAi(endpoint) => endpoint.url.host_str() == Some("api.openai.com"),
        Wire::Anthropic(_) | Wire::Scripted(_) => false,
    };
    Ok(Settings {
        max_output_tokens,
        states_output_limit: config.max_output_tokens.is_some(),
        context_tokens: config.context_tokens,
        thinking: config.thinking,
        effort: config.effort,
        prompt_caching: config.prompt_caching.unwrap_or(true),
        mid_conversation_system: config.mid_conversation_system,
        is_openai_itself,
    })
}

fn script(config: &mut ProviderConfig) -> Result<Script, String> {
    match (config.script.take(), &config.script_file) {
        (Some(script), None) => Ok(script),
        (None, Some(path)) => {
            let text = std::fs::read_to_string(path)
                .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
            serde_json::from_str(&text).map_err(|error| format!("{} is no script: {error}", path.display()))
        }
        (None, None) => Err("a scripted provider needs `script` or `script_file`".to_owned()),
        (Some(_), Some(_)) => Err("`script` and `script_file` exclude each other".to_owned()),
    }
}

/// Whether the name fits the pattern, in which `*` stands for anything.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut left) = name.strip_prefix(start) else { return false };
    let mut pieces: Vec<&str> = rest.split('*').collect();
    let end = pieces.pop().unwrap_or_default();
    for piece in pieces {
        let Some(found) = left.find(piece) else { return false };
        left = &left[found + piece.len()..];
    }
    left.ends_with(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, name, expected) in [
            ("claude*", "claude-opus-5", true),
            ("claude*", "gpt-5", false),
            ("*", "", true),
            ("o1", "o1-mini", false),
            ("*-mini", "o1-mini", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*bc*c", "abc", false),
            ("a*a", "a", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn waits_double_up_to_a_minute_and_never_undercut_the_provider() {
        let retry = Retry { attempts_max: 6, base: Duration::from_secs(1) };
        assert_eq!(retry.wait(1, None, 1.0), Duration::from_secs(1));
        assert_eq!(retry.wait(3, None, 1.0), Duration::from_secs(4));
        assert_eq!(retry.wait(3, None, 0.0), Duration::from_secs(3));
        assert_eq!(retry.wait(99, None, 1.0), Duration::from_secs(60));
        assert_eq!(retry.wait(1, Some(Duration::from_secs(90)), 1.0), Duration::from_secs(90));
    }
}
