//! A prompt as the body of a Messages request.
//!
//! The same prompt gives the same bytes. Cache breakpoints sit on the last tool and the last system block, which do
//! not move; the one that moves with the conversation is asked for at the top level, so that no message ever
//! changes after it was sent once.

use protocol::agent::{EffortLevel, Speed};
use protocol::content::Content;
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::super::config::Thinking;
use super::super::prompt::{Prompt, ToolResult};
use super::super::provider::Settings;
use super::super::turns::{EMPTY_ANSWER, EMPTY_MESSAGE, Turn, UserTurn, stand_in, turns, wrapped_system};

/// Stands for an error that says nothing.
const EMPTY_ERROR: &str = "Error";
/// Stands for an error that says nothing in words.
const SEE_BELOW: &str = "[see below]";

/// The body of the request that asks `model`, the provider's own name, what the prompt says.
pub(in super::super) fn body(model: &str, prompt: &Prompt, settings: &Settings) -> Vec<u8> {
    let breakpoint = settings.prompt_caching.then_some(Breakpoint { kind: "ephemeral" });
    let mid_conversation_system =
        settings.mid_conversation_system.unwrap_or_else(|| takes_system_turns(model));
    let mut tools: Vec<Tool<'_>> = prompt
        .tools
        .iter()
        .map(|tool| Tool {
            name: &tool.name,
            description: &tool.description,
            input_schema: &tool.input_schema,
            cache_control: None,
        })
        .collect();
    if let Some(last) = tools.last_mut() {
        last.cache_control = breakpoint;
    }
    let system = prompt.system.as_deref().filter(|text| !is_blank(text));
    let request = Request {
        model,
        max_tokens: settings.max_output_tokens,
        stream: true,
        cache_control: breakpoint,
        thinking: settings.thinking.map(ThinkingParam::from),
        output_config: effort(prompt, settings).map(|effort| OutputConfig { effort }),
        speed: (prompt.speed == Speed::Fast).then_some("fast"),
        inference_geo: prompt.inference_geo.as_deref(),
        tools,
        system: system
            .map(|text| SystemBlock { kind: "text", text, cache_control: breakpoint })
            .into_iter()
            .collect(),
        messages: messages(prompt, mid_conversation_system),
    };
    serde_json::to_vec(&request).expect("strings and JSON values always serialise")
}

/// The `anthropic-beta` header that the prompt needs.
pub(in super::super) fn beta_header(prompt: &Prompt) -> Option<&'static str> {
    (prompt.speed == Speed::Fast).then_some("fast-mode-2026-02-01")
}

#[derive(Serialize)]
struct Request<'a> {
    model: &'a str,
    max_tokens: u32,
    stream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_control: Option<Breakpoint>,
    #[serde(skip_serializing_if = "Option::is_none")]
    thinking: Option<ThinkingParam>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_config: Option<OutputConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    speed: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inference_geo: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<Tool<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    system: Vec<SystemBlock<'a>>,
    /// Last, so that whole bodies of one conversation share their beginning.
    messages: Vec<MessageParam<'a>>,
}

#[derive(Clone, Copy, Serialize)]
struct Breakpoint {
    #[serde(rename = "type")]
    kind: &'static str,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ThinkingParam {
    Disabled,
    Adaptive,
    Enabled { budget_tokens: u32 },
}

impl From<Thinking> for ThinkingParam {
    fn from(thinking: Thinking) -> Self {
        match thinking {
            Thinking::Off => Self::Disabled,
            Thinking::Adaptive => Self::Adaptive,
            Thinking::Budget { budget_tokens } => Self::Enabled { budget_tokens },
        }
    }
}

#[derive(Serialize)]
struct OutputConfig {
    effort: EffortLevel,
}

#[derive(Serialize)]
struct Tool<'a> {
    name: &'a str,
    description: &'a str,
    input_schema: &'a Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_control: Option<Breakpoint>,
}

#[derive(Serialize)]
struct SystemBlock<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    text: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_control: Option<Breakpoint>,
}

#[derive(Serialize)]
struct MessageParam<'a> {
    role: &'static str,
    content: Vec<BlockParam<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum BlockParam<'a> {
    /// A block of an answer, byte for byte.
    Raw(&'a RawValue),
    Content(&'a Content),
    Text {
        #[serde(rename = "type")]
        kind: &'static str,
        text: String,
    },
    ToolResult {
        #[serde(rename = "type")]
        kind: &'static str,
        tool_use_id: &'a str,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        content: Vec<BlockParam<'a>>,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        is_error: bool,
    },
}

impl BlockParam<'_> {
    fn text(text: impl Into<String>) -> Self {
        Self::Text { kind: "text", text: text.into() }
    }
}

fn messages(prompt: &Prompt, mid_conversation_system: bool) -> Vec<MessageParam<'_>> {
    let mut messages = Vec::new();
    for turn in turns(&prompt.messages) {
        match turn {
            Turn::User(turn) => user_messages(&turn, mid_conversation_system, &mut messages),
            Turn::Assistant(blocks) => {
                messages.push(MessageParam { role: "assistant", content: answer(blocks) })
            }
        }
    }
    messages
}

/// The user's message, and the operator's after it: a `system` message must follow a `user` message and be last or
/// followed by the `assistant`.
fn user_messages<'a>(
    turn: &UserTurn<'a>,
    mid_conversation_system: bool,
    messages: &mut Vec<MessageParam<'a>>,
) {
    let UserTurn { results, content, system } = turn;
    let (mut blocks, beside): (Vec<_>, Vec<_>) = results.iter().map(|result| tool_result(result)).unzip();
    // After the last result: results must come first in their message.
    blocks.extend(beside.into_iter().flatten());
    blocks.extend(content.iter().filter_map(|content| block(content)));
    let said_nothing = blocks.is_empty();
    let wrapped = system.iter().map(|text| BlockParam::text(wrapped_system(text)));
    if !mid_conversation_system || said_nothing {
        blocks.extend(wrapped);
        if blocks.is_empty() {
            blocks.push(BlockParam::text(EMPTY_MESSAGE));
        }
        messages.push(MessageParam { role: "user", content: blocks });
        return;
    }
    messages.push(MessageParam { role: "user", content: blocks });
    let content: Vec<_> =
        system.iter().filter(|text| !is_blank(text)).map(|text| BlockParam::text(*text)).collect();
    if !content.is_empty() {
        messages.push(MessageParam { role: "system", content });
    }
}

/// A result, and what the user's message says beside it: the service refuses an error that holds anything but text,
/// and one that holds nothing.
fn tool_result(result: &ToolResult) -> (BlockParam<'_>, Vec<BlockParam<'_>>) {
    let ToolResult { provider_call_id, content, is_error } = result;
    let blocks = content.iter().filter_map(|content| Some((is_text(content), block(content)?)));
    let (held, beside): (Vec<_>, Vec<_>) = blocks.partition(|(is_text, _)| *is_text || !is_error);
    let mut content: Vec<_> = held.into_iter().map(|(_, block)| block).collect();
    let mut beside: Vec<_> = beside.into_iter().map(|(_, block)| block).collect();
    if *is_error && content.is_empty() {
        content.push(BlockParam::text(if beside.is_empty() { EMPTY_ERROR } else { SEE_BELOW }));
    }
    if !beside.is_empty() {
        beside.insert(0, BlockParam::text(format!("What the call {provider_call_id} gave:")));
    }
    let kind = "tool_result";
    let result = BlockParam::ToolResult { kind, tool_use_id: provider_call_id, content, is_error: *is_error };
    (result, beside)
}

/// Whether the block for this content is one of text.
fn is_text(content: &Content) -> bool {
    matches!(content, Content::Text { .. }) || stand_in(content).is_some()
}

/// The block for a piece of content; blank text, which the service refuses, gives none.
fn block(content: &Content) -> Option<BlockParam<'_>> {
    match content {
        Content::Text { text } if is_blank(text) => None,
        Content::Text { .. }
        | Content::Image { .. }
        | Content::Document { .. }
        | Content::SearchResult { .. }
        | Content::Redacted {} => {
            Some(stand_in(content).map_or(BlockParam::Content(content), BlockParam::text))
        }
    }
}

/// An answer's blocks without thinking at their end: the service refuses an answer that ends so, which happens when
/// the limit of output tokens cuts an answer off.
fn answer(blocks: &[Box<RawValue>]) -> Vec<BlockParam<'_>> {
    #[derive(serde::Deserialize)]
    struct Tag<'a> {
        #[serde(rename = "type", borrow)]
        kind: std::borrow::Cow<'a, str>,
    }
    let is_thinking = |block: &RawValue| {
        serde_json::from_str::<Tag<'_>>(block.get()).is_ok_and(|tag| tag.kind.ends_with("thinking"))
    };
    let kept = blocks.iter().rposition(|block| !is_thinking(block)).map_or(0, |last| last + 1);
    if kept == 0 {
        return vec![BlockParam::text(EMPTY_ANSWER)];
    }
    blocks[..kept].iter().map(|block| BlockParam::Raw(block)).collect()
}

fn is_blank(text: &str) -> bool {
    text.trim().is_empty()
}

/// Every agent has an effort, so its default says nothing; sending it would fail on models that have no levels.
fn effort(prompt: &Prompt, settings: &Settings) -> Option<EffortLevel> {
    match settings.effort {
        Some(true) => prompt.effort,
        Some(false) => None,
        None => prompt.effort.filter(|level| *level != EffortLevel::default()),
    }
}

/// Whether the model takes `system` messages in mid-conversation, where the configuration does not say: the
/// service has them from Claude Opus 4.8 on. A name of another pattern is another service's, which may not.
fn takes_system_turns(model: &str) -> bool {
    let Some(rest) = model.strip_prefix("claude-") else { return false };
    let Some((family, version)) = rest.split_once('-') else { return false };
    if family.bytes().any(|byte| byte.is_ascii_digit()) {
        return false;
    }
    let mut numbers = version.split('-').map_while(|part| part.parse::<u32>().ok());
    // A number of eight digits is a date and no minor version.
    let (major, minor) =
        (numbers.next().unwrap_or(0), numbers.next().filter(|minor| *minor < 1000).unwrap_or(0));
    major >= 5 || (family == "opus" && major == 4 && minor >= 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_newer_models_take_system_turns() {
        for model in [
            "claude-opus-4-8",
            "claude-sonnet-5",
            "claude-haiku-5-5",
            "claude-fable-5-1",
            "claude-opus-4-8-20260528",
        ] {
            assert!(takes_system_turns(model), "{model}");
        }
        for model in [
            "claude-opus-4-7",
            "claude-sonnet-4-6",
            "claude-haiku-4-5-20251001",
            "claude-3-5-sonnet-latest",
            "claude-opus-4-20250514",
            "claude-mythos-preview",
            "glm-5",
            "claude",
        ] {
            assert!(!takes_system_turns(model), "{model}");
        }
    }
}
