//! The chunks of a chat completion, put together to an answer.
//!
//! Servers differ in what they leave out: indexes, ids, usage, the final marker, nulls for what is absent. What can
//! be understood is accepted; what the answer needs and nobody sent (an id for a call) is made here.

use std::collections::{HashSet, VecDeque};

use protocol::event::ModelUsage;
use protocol::sse::Frame;
use serde::Deserialize;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value, json};

use super::super::answer::{Answer, Block, Delta, Stop, tool_input};
use super::super::drive::{Reader, Trouble};
use super::super::prompt::{Message, Prompt};

/// More calls than this in one answer are a model that lost its way.
const CALLS_MAX: usize = 128;

/// Reads the stream of one completion.
#[derive(Debug)]
pub(in super::super) struct CompletionReader {
    /// Ids of calls that the conversation has used, so that none comes twice.
    used_ids: HashSet<String>,
    /// How many answers came before: part of the ids made here.
    answers_before: usize,
    model: String,
    usage: ModelUsage,
    parts: Vec<Part>,
    /// What is announced and not ended.
    open: Open,
    /// White space that came before any text: announced with the text, dropped without.
    held_back: String,
    refusal: String,
    finish_reason: Option<String>,
}

#[derive(Debug)]
enum Part {
    Thinking,
    Text(String),
    Call(Call),
}

#[derive(Debug, Default)]
struct Call {
    /// The stream's own index, where it gives one.
    index: Option<u64>,
    id: String,
    name: String,
    arguments: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    Nothing,
    Thinking,
    Text,
    Call,
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    choices: Option<Vec<Choice>>,
    #[serde(default)]
    usage: Option<Usage>,
    #[serde(default)]
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    delta: Option<ChoiceDelta>,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ChoiceDelta {
    content: Value,
    /// DeepSeek's name for it, and llama.cpp's and vLLM's.
    reasoning_content: Value,
    /// OpenRouter's, Ollama's and newer vLLM's.
    reasoning: Value,
    refusal: Value,
    tool_calls: Option<Vec<CallDelta>>,
}

#[derive(Deserialize)]
struct CallDelta {
    #[serde(default)]
    index: Option<u64>,
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    function: Option<FunctionDelta>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct FunctionDelta {
    name: Option<String>,
    /// A piece of text; some servers send the whole object.
    arguments: Value,
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Usage {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PromptDetails {
    cached_tokens: Option<u64>,
    cache_write_tokens: Option<u64>,
}

impl CompletionReader {
    /// A reader for the answer to this prompt.
    pub(in super::super) fn new(prompt: &Prompt) -> Self {
        Self {
            used_ids: used_ids(prompt),
            answers_before: prompt.answers(),
            model: String::new(),
            usage: ModelUsage::default(),
            parts: Vec::new(),
            open: Open::Nothing,
            held_back: String::new(),
            refusal: String::new(),
            finish_reason: None,
        }
    }
}

impl Reader for CompletionReader {
    fn read(&mut self, frame: &Frame, deltas: &mut VecDeque<Delta>) -> Result<Option<Answer>, Trouble> {
        let data = frame.data.trim();
        if data.starts_with("[DONE]") {
            if self.finish_reason.is_none() && self.parts.is_empty() {
                return Err(Trouble::Malformed("the stream ended without an answer".to_owned()));
            }
            return self.finish(deltas).map(Some);
        }
        if data.is_empty() {
            return Ok(None);
        }
        let chunk: Chunk = serde_json::from_str(data).map_err(|error| {
            Trouble::Malformed(format!("a chunk is not what the format says, at column {}", error.column()))
        })?;
        let Chunk { model, choices, usage, error } = chunk;
        if let Some(error) = error.filter(|error| !error.is_null()) {
            return Err(Trouble::Reported(error));
        }
        if frame.event.as_deref() == Some("error") {
            return Err(Trouble::Reported(serde_json::from_str(data).unwrap_or_default()));
        }
        if let Some(model) = model {
            self.model = model;
        }
        if let Some(usage) = usage {
            self.set_usage(usage);
        }
        // One answer is asked for, so there is one choice.
        let Some(Choice { delta, finish_reason }) = choices.into_iter().flatten().next() else {
            return Ok(None);
        };
        if let Some(delta) = delta {
            self.delta(delta, deltas)?;
        }
        self.finish_reason = finish_reason.filter(|reason| !reason.is_empty()).or(self.finish_reason.take());
        Ok(None)
    }

    fn end(&mut self, deltas: &mut VecDeque<Delta>) -> Option<Answer> {
        self.finish_reason.as_ref()?;
        self.finish(deltas).ok()
    }

    fn usage(&self) -> ModelUsage {
        self.usage
    }
}

impl CompletionReader {
    fn set_usage(&mut self, usage: Usage) {
        let Usage { prompt_tokens, completion_tokens, prompt_tokens_details } = usage;
        let PromptDetails { cached_tokens, cache_write_tokens } = prompt_tokens_details.unwrap_or_default();
        let (cached, written) = (cached_tokens.unwrap_or(0), cache_write_tokens.unwrap_or(0));
        self.usage = ModelUsage {
            // This wire counts cached input as input; ours does not.
            input_tokens: prompt_tokens.unwrap_or(0).saturating_sub(cached).saturating_sub(written),
            output_tokens: completion_tokens.unwrap_or(0),
            cache_creation_input_tokens: written,
            cache_read_input_tokens: cached,
        };
    }

    fn delta(&mut self, delta: ChoiceDelta, deltas: &mut VecDeque<Delta>) -> Result<(), Trouble> {
        let ChoiceDelta { content, reasoning_content, reasoning, refusal, tool_calls } = delta;
        let is_thinking = [&reasoning_content, &reasoning]
            .iter()
            .any(|value| value.as_str().is_some_and(|text| !text.is_empty()));
        if is_thinking && self.open != Open::Thinking {
            self.close(deltas);
            self.open = Open::Thinking;
            self.parts.push(Part::Thinking);
            deltas.push_back(Delta::ThinkingStart);
        }
        if let Some(text) = content.as_str().filter(|text| !text.is_empty()) {
            self.text(text, deltas);
        }
        if let Some(text) = refusal.as_str() {
            self.refusal.push_str(text);
        }
        for call in tool_calls.into_iter().flatten() {
            self.call(call, deltas)?;
        }
        Ok(())
    }

    fn text(&mut self, text: &str, deltas: &mut VecDeque<Delta>) {
        if self.open == Open::Text
            && let Some(Part::Text(so_far)) = self.parts.last_mut()
        {
            so_far.push_str(text);
            deltas.push_back(Delta::Text(text.to_owned()));
            return;
        }
        self.held_back.push_str(text);
        if self.held_back.trim().is_empty() {
            return;
        }
        self.close(deltas);
        self.open = Open::Text;
        let text = std::mem::take(&mut self.held_back);
        deltas.push_back(Delta::TextStart { index: self.parts.len() });
        deltas.push_back(Delta::Text(text.clone()));
        self.parts.push(Part::Text(text));
    }

    fn call(&mut self, delta: CallDelta, deltas: &mut VecDeque<Delta>) -> Result<(), Trouble> {
        let CallDelta { index, id, function } = delta;
        let FunctionDelta { name, arguments } = function.unwrap_or_default();
        let id = id.filter(|id| !id.is_empty());
        let name = name.filter(|name| !name.is_empty());
        let known = self.known_call(index, id.as_deref(), name.as_deref());
        let call = match known {
            Some(position) => match &mut self.parts[position] {
                Part::Call(call) => call,
                Part::Thinking | Part::Text(_) => return Ok(()),
            },
            None => {
                if self.parts.len() >= CALLS_MAX {
                    return Err(Trouble::Malformed(format!("the answer has more than {CALLS_MAX} parts")));
                }
                self.close(deltas);
                self.open = Open::Call;
                let name = name.clone().unwrap_or_default();
                deltas.push_back(Delta::ToolUseStart { index: self.parts.len(), name });
                self.parts.push(Part::Call(Call { index, ..Call::default() }));
                match self.parts.last_mut() {
                    Some(Part::Call(call)) => call,
                    Some(Part::Thinking | Part::Text(_)) | None => return Ok(()),
                }
            }
        };
        if call.id.is_empty() {
            call.id = id.unwrap_or_default();
        }
        if call.name.is_empty() {
            call.name = name.unwrap_or_default();
        }
        match arguments {
            Value::String(piece) => call.arguments.push_str(&piece),
            Value::Null => {}
            whole => call.arguments = whole.to_string(),
        }
        Ok(())
    }

    /// The call that a delta goes on with; `None` if it begins one. The index decides, except that some servers
    /// give every call index 0 and tell them apart by id, and some give no index at all and send calls whole.
    fn known_call(&self, index: Option<u64>, id: Option<&str>, name: Option<&str>) -> Option<usize> {
        let mut calls = self.parts.iter().enumerate().filter_map(|(position, part)| match part {
            Part::Call(call) => Some((position, call)),
            Part::Thinking | Part::Text(_) => None,
        });
        let (position, call) = match index {
            Some(_) => calls.rev().find(|(_, call)| call.index == index)?,
            None => calls.next_back()?,
        };
        let is_another = match id {
            Some(id) => !call.id.is_empty() && call.id != id,
            None => index.is_none() && name.is_some() && !call.name.is_empty(),
        };
        (!is_another).then_some(position)
    }

    /// Ends what is open. Calls go on until the end: their deltas may interleave.
    fn close(&mut self, deltas: &mut VecDeque<Delta>) {
        match std::mem::replace(&mut self.open, Open::Nothing) {
            Open::Nothing => {}
            Open::Thinking => deltas.push_back(Delta::ThinkingEnd),
            Open::Text => deltas.push_back(Delta::TextEnd),
            Open::Call => deltas.push_back(Delta::ToolUseEnd),
        }
    }

    fn finish(&mut self, deltas: &mut VecDeque<Delta>) -> Result<Answer, Trouble> {
        self.close(deltas);
        let mut blocks = Vec::new();
        let mut raw = Vec::new();
        for (position, part) in std::mem::take(&mut self.parts).into_iter().enumerate() {
            match part {
                Part::Thinking => blocks.push(Block::Thinking),
                Part::Text(text) => {
                    raw.push(raw_block(&json!({"type": "text", "text": text}))?);
                    blocks.push(Block::Text(text));
                }
                Part::Call(Call { index: _, id, name, arguments }) => {
                    let provider_id = self.unused_id(&id, position);
                    let (input, input_error) = match tool_input(&arguments) {
                        Ok(input) => (input, None),
                        Err(error) => (Map::new(), Some(error)),
                    };
                    raw.push(raw_call(
                        &provider_id,
                        &name,
                        if input_error.is_some() { "" } else { &arguments },
                    )?);
                    blocks.push(Block::ToolUse { provider_id, name, input, input_error });
                }
            }
        }
        Ok(Answer {
            stop: self.stop(&blocks),
            blocks,
            raw,
            usage: self.usage,
            model: std::mem::take(&mut self.model),
        })
    }

    fn stop(&mut self, blocks: &[Block]) -> Stop {
        let refusal = std::mem::take(&mut self.refusal);
        if !refusal.is_empty() {
            return Stop::Refusal { category: None, explanation: Some(refusal) };
        }
        let asks_for_tool = blocks.iter().any(|block| matches!(block, Block::ToolUse { .. }));
        match self.finish_reason.as_deref() {
            Some("length") => Stop::MaxTokens,
            Some("content_filter") => Stop::Refusal { category: None, explanation: None },
            // Many servers say `stop` after tool calls, too.
            _ if asks_for_tool => Stop::ToolUse,
            _ => Stop::EndTurn,
        }
    }

    /// The server's id in the letters that every wire takes, or one of ours if that is missing or was used before.
    /// Counts instead of chance: the same prompt and answer give the same ids.
    fn unused_id(&mut self, id: &str, position: usize) -> String {
        let legal = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '_' | '-') { c } else { '_' };
        let mut id: String = id.chars().map(legal).take(64).collect();
        let mut copy = 0;
        while id.is_empty() || self.used_ids.contains(&id) {
            id = format!("call_{}_{position}_{copy}", self.answers_before);
            copy += 1;
        }
        self.used_ids.insert(id.clone());
        id
    }
}

fn raw_call(id: &str, name: &str, arguments: &str) -> Result<Box<RawValue>, Trouble> {
    #[derive(serde::Serialize)]
    struct ToolUse<'a> {
        #[serde(rename = "type")]
        kind: &'static str,
        id: &'a str,
        name: &'a str,
        input: Box<RawValue>,
    }
    let text = if arguments.trim().is_empty() { "{}" } else { arguments.trim() };
    let input = RawValue::from_string(text.to_owned())
        .map_err(|_| Trouble::Malformed("a tool's input".to_owned()))?;
    raw_block(&ToolUse { kind: "tool_use", id, name, input })
}

fn raw_block(block: &impl serde::Serialize) -> Result<Box<RawValue>, Trouble> {
    to_raw_value(block).map_err(|_| Trouble::Malformed("a block".to_owned()))
}

fn used_ids(prompt: &Prompt) -> HashSet<String> {
    #[derive(Deserialize)]
    struct Id {
        id: Option<String>,
    }
    let answers = prompt.messages.iter().filter_map(|message| match message {
        Message::Assistant(blocks) => Some(blocks),
        Message::User(_) | Message::System(_) => None,
    });
    answers.flatten().filter_map(|block| serde_json::from_str::<Id>(block.get()).ok()?.id).collect()
}
