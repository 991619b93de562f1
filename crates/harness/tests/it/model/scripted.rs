//! The model that plays a script in process.

use harness::model::{Block, Kind, Message, ProviderConfig, Providers, Script, Stop};
use protocol::content::Content;
use serde_json::json;

use super::{ask, prompt, result, watch};

fn script(json: serde_json::Value) -> Script {
    serde_json::from_value(json).expect("a script")
}

fn providers(script: Script) -> Providers {
    Providers::default().with_scripted("script", ["demo"], script)
}

#[tokio::test]
async fn the_reply_follows_from_the_number_of_answers_in_the_prompt() {
    let replies = json!([{"blocks": [{"text": "Let me look."}, {"tool": "bash", "input": {"command": "ls"}}]}, {"blocks": [{"text": "Done."}]}]);
    let providers = providers(script(json!({"replies": replies})));
    let mut prompt = prompt("demo", "hi");
    for _ in 0..2 {
        let (words, answer) = watch(providers.ask(&prompt)).await;
        assert_eq!(words, ["text 0", "\"Let \"", "\"me \"", "\"look.\"", "/text", "tool 1 bash", "/tool"]);
        let answer = answer.expect("an answer");
        assert_eq!(answer.stop, Stop::ToolUse);
        assert!(
            matches!(&answer.blocks[1], Block::ToolUse { provider_id, .. } if provider_id == "toolu_scripted_0_1")
        );
    }
    let answer = ask(&providers, &prompt).await.expect("an answer");
    prompt.messages.push(Message::Assistant(answer.raw));
    prompt.messages.push(Message::User(vec![result(
        "toolu_scripted_0_1",
        vec![Content::text("a b")],
        false,
    )]));
    assert_eq!(ask(&providers, &prompt).await.expect("an answer").blocks, [Block::Text("Done.".into())]);
}

#[tokio::test]
async fn a_script_that_is_over_says_so_or_starts_again() {
    let mut prompt = prompt("demo", "hi");
    prompt.messages.push(Message::assistant([r#"{"type":"text","text":"a"}"#]).expect("JSON"));
    prompt.messages.push(Message::user("more"));
    let replies = json!([{"blocks": [{"text": "a"}]}]);
    let said = ask(&providers(script(json!({"replies": replies}))), &prompt).await.expect("an answer");
    assert_eq!(said.blocks, [Block::Text("The scripted model has nothing more to say.".into())]);
    let repeated = ask(&providers(script(json!({"replies": replies, "on_end": "repeat"}))), &prompt)
        .await
        .expect("an answer");
    assert_eq!(repeated.blocks, [Block::Text("a".into())]);
}

#[tokio::test(start_paused = true)]
async fn latencies_are_those_that_the_script_states() {
    let script = script(json!({
        "seed": 7,
        "first_token": {"kind": "lognormal", "median_ms": 800, "p95_ms": 2400},
        "replies": [{"blocks": [{"text": "one two three"}], "first_token": {"kind": "fixed", "ms": 250}, "token_ms": 10}],
        "on_end": "repeat",
    }));
    let started = tokio::time::Instant::now();
    ask(&providers(script), &prompt("demo", "hi")).await.expect("an answer");
    assert_eq!(started.elapsed().as_millis(), 280);
}

#[test]
fn a_script_comes_from_the_configuration() {
    let config = json!({"name": "s", "kind": "scripted", "models": ["demo"], "script": {"replies": [{"blocks": [{"text": "a"}]}]}});
    let config: ProviderConfig = serde_json::from_value(config).expect("a provider");
    assert!(Providers::build(vec![config], |_| None).is_ok());
    let nothing = ProviderConfig::new("s", Kind::Scripted, ["demo"]);
    let error = Providers::build(vec![nothing], |_| None).expect_err("no script");
    assert_eq!(error.to_string(), "provider \"s\": a scripted provider needs `script` or `script_file`");
}
