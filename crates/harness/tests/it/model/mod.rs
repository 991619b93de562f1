//! Models over real connections: both wires against the scripted model server, the script in process.

mod answers;
mod config;
mod failures;
mod requests;
mod scripted;
mod tolerance;

use std::time::Duration;

use harness::model::{
    Answer, Asking, Delta, Failure, Kind, Message, Prompt, ProviderConfig, Providers, ToolResult, ToolSpec,
    UserBlock,
};
use protocol::content::Content;
use serde_json::json;
use testkit::model::Server;

/// The two wires over HTTP.
const WIRES: [Kind; 2] = [Kind::Anthropic, Kind::OpenAi];

/// A provider of this kind at the scripted server, for every model name.
fn config(server: &Server, kind: Kind) -> ProviderConfig {
    let mut config = ProviderConfig::new("scripted server", kind, ["*"]);
    config.base_url = Some(if kind == Kind::Anthropic { server.url() } else { server.openai_url() });
    config.api_key = harness::model::ApiKey::new("secret-test-key");
    config.idle_timeout = Some(Duration::from_secs(20));
    config
}

fn build(config: ProviderConfig) -> Providers {
    Providers::build(vec![config], |_| None).expect("a good configuration")
}

fn providers(server: &Server, kind: Kind) -> Providers {
    build(config(server, kind))
}

/// A prompt with one message of the user's and one tool.
fn prompt(model: &str, text: &str) -> Prompt {
    let mut prompt = Prompt::new(model);
    prompt.system = Some("You are a test.".to_owned());
    prompt.tools = vec![ToolSpec {
        name: "bash".to_owned(),
        description: "Runs a command.".to_owned(),
        input_schema: json!({"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}),
    }];
    prompt.messages = vec![Message::user(text)];
    prompt
}

fn result(call: &str, content: Vec<Content>, is_error: bool) -> UserBlock {
    UserBlock::ToolResult(ToolResult { provider_call_id: call.to_owned(), content, is_error })
}

async fn ask(providers: &Providers, prompt: &Prompt) -> Result<Answer, Failure> {
    providers.ask(prompt).answer().await
}

/// All deltas as short words, the answer at the end.
async fn watch(mut asking: Asking) -> (Vec<String>, Result<Answer, Failure>) {
    let mut words = Vec::new();
    loop {
        match asking.next().await.expect("an end") {
            Ok(Delta::ThinkingStart) => words.push("thinking".to_owned()),
            Ok(Delta::ThinkingEnd) => words.push("/thinking".to_owned()),
            Ok(Delta::TextStart { index }) => words.push(format!("text {index}")),
            Ok(Delta::Text(text)) => words.push(format!("{text:?}")),
            Ok(Delta::TextEnd) => words.push("/text".to_owned()),
            Ok(Delta::ToolUseStart { index, name }) => words.push(format!("tool {index} {name}")),
            Ok(Delta::ToolUseEnd) => words.push("/tool".to_owned()),
            Ok(Delta::Done(answer)) => {
                assert!(asking.next().await.is_none(), "nothing comes after the answer");
                return (words, Ok(answer));
            }
            Err(failure) => {
                assert!(asking.next().await.is_none(), "nothing comes after a failure");
                return (words, Err(failure));
            }
        }
    }
}

fn texts(answer: &Answer) -> Vec<&str> {
    answer.raw.iter().map(|block| block.get()).collect()
}
