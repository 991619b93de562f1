//! A prompt as the body of a chat completion request.
//!
//! Answers are kept in the Messages format whatever model gave them; here they turn back into assistant messages
//! with `tool_calls`. Thinking is left out: this wire has no place for it.

use protocol::agent::{EffortLevel, Speed};
use protocol::content::{Content, Source};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::super::prompt::{Prompt, ToolResult};
use super::super::provider::Settings;
use super::super::turns::{EMPTY_ANSWER, EMPTY_MESSAGE, Turn, UserTurn, stand_in, turns, wrapped_system};

/// The body of the request that asks `model`, the provider's own name, what the prompt says.
pub(in super::super) fn body(model: &str, prompt: &Prompt, settings: &Settings) -> Vec<u8> {
    let request = Request {
        model,
        stream: true,
        stream_options: StreamOptions { include_usage: true },
        max_completion_tokens: settings.output_limit().filter(|_| settings.is_openai_itself),
        max_tokens: settings.output_limit().filter(|_| !settings.is_openai_itself),
        reasoning_effort: prompt.effort.filter(|_| settings.effort == Some(true)),
        service_tier: (prompt.speed == Speed::Fast && settings.is_openai_itself).then_some("priority"),
        tools: prompt.tools.iter().map(Tool::from).collect(),
        messages: messages(prompt, settings.mid_conversation_system.unwrap_or(settings.is_openai_itself)),
    };
    serde_json::to_vec(&request).expect("strings and JSON values always serialise")
}

#[derive(Serialize)]
struct Request<'a> {
    model: &'a str,
    stream: bool,
    stream_options: StreamOptions,
    /// What OpenAI's own reasoning models want; `max_tokens` is what everybody else knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_completion_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_effort: Option<EffortLevel>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_tier: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<Tool<'a>>,
    /// Last, so that whole bodies of one conversation share their beginning.
    messages: Vec<MessageParam<'a>>,
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

#[derive(Serialize)]
struct Tool<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    function: FunctionSpec<'a>,
}

#[derive(Serialize)]
struct FunctionSpec<'a> {
    name: &'a str,
    description: &'a str,
    parameters: &'a Value,
}

impl<'a> From<&'a super::super::prompt::ToolSpec> for Tool<'a> {
    fn from(tool: &'a super::super::prompt::ToolSpec) -> Self {
        let function =
            FunctionSpec { name: &tool.name, description: &tool.description, parameters: &tool.input_schema };
        Self { kind: "function", function }
    }
}

#[derive(Serialize)]
#[serde(tag = "role", rename_all = "lowercase")]
enum MessageParam<'a> {
    System {
        content: &'a str,
    },
    User {
        content: UserContent<'a>,
    },
    Assistant {
        content: Option<String>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        tool_calls: Vec<ToolCall>,
    },
    Tool {
        tool_call_id: &'a str,
        content: String,
    },
}

#[derive(Serialize)]
#[serde(untagged)]
enum UserContent<'a> {
    /// The form that every server and every chat template knows.
    Text(String),
    Parts(Vec<Part<'a>>),
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Part<'a> {
    Text { text: String },
    ImageUrl { image_url: ImageUrl<'a> },
    File { file: FileData<'a> },
}

#[derive(Serialize)]
struct ImageUrl<'a> {
    #[serde(serialize_with = "data_uri")]
    url: &'a Source,
}

#[derive(Serialize)]
struct FileData<'a> {
    filename: &'a str,
    #[serde(serialize_with = "data_uri")]
    file_data: &'a Source,
}

#[derive(Serialize)]
struct ToolCall {
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    function: FunctionCall,
}

#[derive(Serialize)]
struct FunctionCall {
    name: String,
    arguments: String,
}

fn messages(prompt: &Prompt, mid_conversation_system: bool) -> Vec<MessageParam<'_>> {
    let system = prompt.system.as_deref().filter(|text| !is_blank(text));
    let mut messages: Vec<_> = system.map(|content| MessageParam::System { content }).into_iter().collect();
    for turn in turns(&prompt.messages) {
        match turn {
            Turn::User(turn) => user_messages(&turn, mid_conversation_system, &mut messages),
            Turn::Assistant(blocks) => messages.push(answer(blocks)),
        }
    }
    messages
}

/// Results first, one message each; then one message of the user, with the pictures that results cannot hold; then
/// the operator.
fn user_messages<'a>(
    turn: &UserTurn<'a>,
    mid_conversation_system: bool,
    messages: &mut Vec<MessageParam<'a>>,
) {
    let UserTurn { results, content, system } = turn;
    let mut parts = Vec::new();
    for result in results {
        let (message, pictures) = tool_message(result);
        messages.push(message);
        parts.extend(pictures);
    }
    parts.extend(content.iter().filter_map(|content| part(content)));
    let system: Vec<&'a str> = system.iter().copied().filter(|text| !is_blank(text)).collect();
    if !mid_conversation_system {
        parts.extend(system.iter().map(|text| Part::Text { text: wrapped_system(text) }));
    }
    if parts.is_empty() && results.is_empty() && (system.is_empty() || !mid_conversation_system) {
        parts.push(Part::Text { text: EMPTY_MESSAGE.to_owned() });
    }
    if !parts.is_empty() {
        messages.push(MessageParam::User { content: user_content(parts) });
    }
    if mid_conversation_system {
        messages.extend(system.into_iter().map(|content| MessageParam::System { content }));
    }
}

fn user_content(parts: Vec<Part<'_>>) -> UserContent<'_> {
    if !parts.iter().all(|part| matches!(part, Part::Text { .. })) {
        return UserContent::Parts(parts);
    }
    let texts = parts.into_iter().filter_map(|part| match part {
        Part::Text { text } => Some(text),
        Part::ImageUrl { .. } | Part::File { .. } => None,
    });
    UserContent::Text(texts.collect::<Vec<_>>().join("\n\n"))
}

/// The message of a result, which is text only, and what goes into the user's message instead.
fn tool_message(result: &ToolResult) -> (MessageParam<'_>, Vec<Part<'_>>) {
    let ToolResult { provider_call_id, content, is_error } = result;
    let mut texts = Vec::new();
    let mut pictures = Vec::new();
    for content in content {
        match part(content) {
            Some(Part::Text { text }) => texts.push(text),
            Some(picture @ (Part::ImageUrl { .. } | Part::File { .. })) => {
                texts.push("[see the next message]".to_owned());
                if pictures.is_empty() {
                    pictures.push(Part::Text { text: format!("What the call {provider_call_id} gave:") });
                }
                pictures.push(picture);
            }
            None => {}
        }
    }
    let text = texts.join("\n\n");
    let content = match (is_error, text.is_empty()) {
        (true, true) => "Error".to_owned(),
        (true, false) => format!("Error: {text}"),
        (false, true) => "(no output)".to_owned(),
        (false, false) => text,
    };
    (MessageParam::Tool { tool_call_id: provider_call_id, content }, pictures)
}

fn part(content: &Content) -> Option<Part<'_>> {
    if let Some(text) = stand_in(content) {
        return Some(Part::Text { text });
    }
    Some(match content {
        Content::Text { text } if is_blank(text) => return None,
        Content::Text { text } => Part::Text { text: text.clone() },
        Content::Image { source } => Part::ImageUrl { image_url: ImageUrl { url: source } },
        Content::Document { source, title, context } => {
            let head =
                [title.as_deref(), context.as_deref()].into_iter().flatten().collect::<Vec<_>>().join("\n");
            match source {
                Source::Text { media_type: _, data } => {
                    Part::Text { text: format!("<document>\n{head}\n{data}\n</document>") }
                }
                Source::Url { url } => Part::Text { text: format!("<document>\n{head}\n{url}\n</document>") },
                Source::Base64 { .. } => {
                    let filename = title.as_deref().unwrap_or("document.pdf");
                    Part::File { file: FileData { filename, file_data: source } }
                }
                Source::File { .. } => return None,
            }
        }
        Content::SearchResult { source, title, content, citations: _ } => {
            let texts: Vec<&str> = content.iter().map(|block| block.text.as_str()).collect();
            Part::Text {
                text: format!("<search_result>\n{title}\n{source}\n{}\n</search_result>", texts.join("\n")),
            }
        }
        Content::Redacted {} => return None,
    })
}

fn answer(blocks: &[Box<RawValue>]) -> MessageParam<'static> {
    let mut text = String::new();
    let mut tool_calls = Vec::new();
    for block in blocks {
        match serde_json::from_str(block.get()) {
            Ok(KnownBlock::Text { text: more }) => text.push_str(&more),
            Ok(KnownBlock::ToolUse { id, name, input }) => {
                let function = FunctionCall { name, arguments: input.get().to_owned() };
                tool_calls.push(ToolCall { id, kind: "function", function });
            }
            Ok(KnownBlock::Other) | Err(_) => {}
        }
    }
    if text.is_empty() && tool_calls.is_empty() {
        EMPTY_ANSWER.clone_into(&mut text);
    }
    MessageParam::Assistant { content: (!text.is_empty()).then_some(text), tool_calls }
}

/// The blocks of answers that this wire has a form for.
enum KnownBlock {
    Text { text: String },
    ToolUse { id: String, name: String, input: Box<RawValue> },
    Other,
}

/// By hand, because a derived tagged enum cannot keep the input's bytes.
impl<'de> Deserialize<'de> for KnownBlock {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Fields {
            #[serde(rename = "type")]
            kind: String,
            text: Option<String>,
            id: Option<String>,
            name: Option<String>,
            input: Option<Box<RawValue>>,
        }
        let Fields { kind, text, id, name, input } = Fields::deserialize(deserializer)?;
        Ok(match (kind.as_str(), text, id, name, input) {
            ("text", Some(text), ..) => Self::Text { text },
            ("tool_use", _, Some(id), Some(name), Some(input)) => Self::ToolUse { id, name, input },
            _ => Self::Other,
        })
    }
}

fn data_uri<S: serde::Serializer>(source: &&Source, serializer: S) -> Result<S::Ok, S::Error> {
    match source {
        Source::Base64 { media_type, data } => {
            serializer.collect_str(&format_args!("data:{media_type};base64,{data}"))
        }
        Source::Url { url } => serializer.serialize_str(url),
        Source::Text { data, .. } => serializer.serialize_str(data),
        Source::File { file_id } => serializer.serialize_str(file_id),
    }
}

fn is_blank(text: &str) -> bool {
    text.trim().is_empty()
}
