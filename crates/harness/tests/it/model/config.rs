//! What the operator writes, and what a machine without a configuration file gets.

use std::time::Duration;

use harness::model::{Kind, Listed, ProviderConfig, Providers, Retry, Thinking};
use serde_json::{Value, json};

fn provider(json: Value) -> ProviderConfig {
    serde_json::from_value(json).expect("a provider")
}

fn env(pairs: &'static [(&'static str, &'static str)]) -> impl Fn(&str) -> Option<String> {
    |name| pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
}

fn resolved(providers: &Providers, model: &str) -> Option<String> {
    providers.resolve(model).map(|provider| provider.name().to_owned())
}

#[test]
fn every_setting_is_read() {
    let config = provider(json!({
        "name": "local", "kind": "openai", "base_url": "http://localhost:1/v1", "api_key": "k", "models": ["qwen*"],
        "model_map": {"small": "qwen-0.6b"}, "max_output_tokens": 4096, "context_tokens": 32768, "thinking": "adaptive",
        "effort": true, "prompt_caching": false, "mid_conversation_system": true, "connect_timeout": "500ms",
        "idle_timeout": "2m", "attempts_max": 3, "retry_base_ms": 5, "extra_headers": {"x-a": "b"}, "proxy": "http://p:1",
    }));
    assert_eq!(config.kind, Kind::OpenAi);
    assert_eq!(config.thinking, Some(Thinking::Adaptive));
    assert_eq!(
        (config.connect_timeout, config.idle_timeout),
        (Some(Duration::from_millis(500)), Some(Duration::from_secs(120)))
    );
    let providers = Providers::build(vec![config], |_| None).expect("a good configuration");
    let provider = providers.resolve("small").expect("an alias");
    assert_eq!(provider.retry(), Retry { attempts_max: 3, base: Duration::from_millis(5) });
    assert_eq!(provider.context_tokens(), Some(32768));
}

#[test]
fn thinking_and_durations_are_written_in_words_or_numbers() {
    let thinking = |value: Value| {
        serde_json::from_value::<ProviderConfig>(json!({"name": "a", "kind": "anthropic", "thinking": value}))
            .map(|config| config.thinking)
            .ok()
    };
    assert_eq!(thinking(json!("off")), Some(Some(Thinking::Off)));
    assert_eq!(
        thinking(json!({"budget_tokens": 2048})),
        Some(Some(Thinking::Budget { budget_tokens: 2048 }))
    );
    assert_eq!(thinking(json!("sometimes")), None);
    let wait = |value: Value| {
        serde_json::from_value::<ProviderConfig>(
            json!({"name": "a", "kind": "anthropic", "idle_timeout": value}),
        )
        .map(|config| config.idle_timeout)
        .ok()
    };
    assert_eq!(wait(json!(1.5)), Some(Some(Duration::from_millis(1500))));
    assert_eq!(wait(json!("30 s")), Some(Some(Duration::from_secs(30))));
    for refused in [json!("soon"), json!(0), json!(-1), json!("3h")] {
        assert_eq!(wait(refused), None);
    }
}

#[test]
fn mistakes_are_named_and_hold_no_key() {
    let base = json!({"name": "p", "kind": "anthropic", "models": ["*"]});
    for (extra, expected) in [
        (json!({"models": []}), "it answers for no model"),
        (json!({"api_key": "secret", "api_key_env": "K"}), "exclude each other"),
        (json!({"api_key": " "}), "`api_key` is empty"),
        (json!({"api_key": "secret\nline"}), "characters that no header takes"),
        (json!({"api_key_env": "MISSING"}), "the environment variable MISSING is not set"),
        (json!({"api_key_file": "/nonexistent/secret-file"}), "cannot read /nonexistent/"),
        (json!({"base_url": "https://me:secret@host"}), "must not hold credentials"),
        (json!({"thinking": {"budget_tokens": 32000}}), "less than 32000"),
        (json!({"max_output_tokens": 0}), "at least 1"),
        (json!({"extra_headers": {"bad name": "secret"}}), "is no header"),
        (json!({"proxy": "::secret::"}), "the proxy's address is no URL"),
    ] {
        let mut config = base.clone();
        config.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        let error = Providers::build(vec![provider(config)], |_| None).expect_err("a mistake").to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!error.replace("secret-file", "").contains("secret"), "{error}");
    }
    let misspelt = json!({"name": "p", "kind": "anthropic", "modles": ["*"]});
    assert!(serde_json::from_value::<ProviderConfig>(misspelt).is_err());
}

#[test]
fn the_first_provider_that_matches_answers() {
    let configs = vec![
        provider(json!({"name": "special", "kind": "anthropic", "models": ["claude-opus-5"]})),
        provider(json!({"name": "mapped", "kind": "openai", "model_map": {"claude-x": "x"}})),
        provider(
            json!({"name": "rest", "kind": "anthropic", "models": ["claude-*", "claude-opus-5"], "max_output_tokens": 8}),
        ),
    ];
    let providers = Providers::build(configs, |_| None).expect("a good configuration");
    assert_eq!(resolved(&providers, "claude-opus-5").as_deref(), Some("special"));
    assert_eq!(resolved(&providers, "claude-x").as_deref(), Some("mapped"));
    assert_eq!(resolved(&providers, "claude-y").as_deref(), Some("rest"));
    assert_eq!(resolved(&providers, "gpt-5"), None);
    let listed = |id: &str, provider: &str| Listed {
        id: id.into(),
        provider: provider.into(),
        context_tokens: None,
        max_output_tokens: None,
    };
    assert_eq!(providers.list(), [listed("claude-opus-5", "special"), listed("claude-x", "mapped")]);
}

#[test]
fn the_usual_variables_are_enough() {
    let nothing = Providers::from_env(env(&[])).expect("nothing is fine");
    assert!(nothing.is_empty());

    let keys = env(&[("ANTHROPIC_API_KEY", "a-key"), ("OPENAI_API_KEY", "o-key"), ("OPENAI_BASE_URL", "")]);
    let providers = Providers::from_env(keys).expect("a good environment");
    assert_eq!(resolved(&providers, "claude-opus-5").as_deref(), Some("anthropic"));
    for model in ["gpt-5", "o1", "o3-mini", "o4-mini", "chatgpt-4o-latest"] {
        assert_eq!(resolved(&providers, model).as_deref(), Some("openai"));
    }
    assert_eq!(resolved(&providers, "qwen3"), None);

    let local = env(&[
        ("OPENAI_BASE_URL", "http://localhost:1/v1"),
        ("POSTHOUSE_MODEL_ATTEMPTS_MAX", "2"),
        ("POSTHOUSE_MODEL_RETRY_BASE_MS", "7"),
    ]);
    let providers = Providers::from_env(local).expect("a good environment");
    let provider = providers.resolve("qwen3").expect("a local server takes every name");
    assert_eq!(provider.retry(), Retry { attempts_max: 2, base: Duration::from_millis(7) });

    let error = Providers::from_env(env(&[("POSTHOUSE_MODEL_ATTEMPTS_MAX", "many")])).expect_err("no number");
    assert_eq!(error.to_string(), "provider \"POSTHOUSE_MODEL_ATTEMPTS_MAX\": expected a whole number");
}
