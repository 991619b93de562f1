//! The events of a Messages stream, put together to an answer.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};

use protocol::event::ModelUsage;
use protocol::sse::Frame;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value};

use super::super::answer::{Answer, Block, Delta, Stop, tool_input};
use super::super::drive::{Reader, Trouble};

/// Reads the stream of one message.
#[derive(Debug, Default)]
pub(in super::super) struct MessageReader {
    model: String,
    usage: ModelUsage,
    /// By the stream's own index. Blocks come one after the other, but nothing here depends on it.
    open: BTreeMap<usize, Open>,
    blocks: Vec<Block>,
    raw: Vec<Box<RawValue>>,
    stop: Option<Stop>,
}

/// A block that is being told.
#[derive(Debug)]
struct Open {
    /// The fields as the start gave them; those that deltas fill are replaced at the end. Fields nobody here knows
    /// survive.
    fields: BTreeMap<String, Box<RawValue>>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Text {
        text: String,
        citations: Vec<Box<RawValue>>,
        /// Where it is in `blocks`, once it was announced.
        index: Option<usize>,
    },
    Thinking {
        thinking: String,
        signature: String,
    },
    RedactedThinking,
    ToolUse {
        input: String,
        index: usize,
    },
    /// What this server never asks for, say a search by the provider: kept and sent back.
    Other {
        input: String,
    },
}

impl Reader for MessageReader {
    fn read(&mut self, frame: &Frame, deltas: &mut VecDeque<Delta>) -> Result<Option<Answer>, Trouble> {
        #[derive(Deserialize)]
        struct Tag<'a> {
            #[serde(rename = "type", borrow)]
            kind: Cow<'a, str>,
        }
        let data = frame.data.as_str();
        let tag: Tag<'_> = serde_json::from_str(data).map_err(|error| malformed("an event", &error))?;
        match tag.kind.as_ref() {
            "message_start" => self.message_start(parse(data)?),
            "content_block_start" => self.block_start(parse(data)?, deltas)?,
            "content_block_delta" => self.block_delta(parse(data)?, deltas)?,
            "content_block_stop" => {
                let BlockStop { index } = parse(data)?;
                let open = self.open.remove(&index).ok_or_else(|| no_such_block(index))?;
                self.block_stop(open, deltas)?;
            }
            "message_delta" => self.message_delta(parse(data)?),
            "message_stop" => return self.finish(deltas).map(Some),
            "error" => {
                let ErrorEvent { error } = parse(data)?;
                return Err(Trouble::Reported(error));
            }
            // `ping`, and events that were added to the wire since.
            _ => {}
        }
        Ok(None)
    }

    fn end(&mut self, deltas: &mut VecDeque<Delta>) -> Option<Answer> {
        // The stop reason comes after the last block: with it nothing but the closing event is missing.
        if self.stop.is_none() || !self.open.is_empty() {
            return None;
        }
        self.finish(deltas).ok()
    }

    fn usage(&self) -> ModelUsage {
        self.usage
    }
}

#[derive(Deserialize)]
struct MessageStart {
    message: StartedMessage,
}

#[derive(Deserialize)]
struct StartedMessage {
    #[serde(default)]
    model: String,
    #[serde(default)]
    usage: UsageUpdate,
}

/// Cumulative; what is absent keeps its last value.
#[derive(Default, Deserialize)]
#[serde(default)]
struct UsageUpdate {
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
    cache_read_input_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct BlockStart {
    index: usize,
    content_block: BTreeMap<String, Box<RawValue>>,
}

#[derive(Deserialize)]
struct BlockDelta {
    index: usize,
    delta: DeltaBody,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum DeltaBody {
    TextDelta {
        text: String,
    },
    InputJsonDelta {
        partial_json: String,
    },
    ThinkingDelta {
        thinking: String,
    },
    SignatureDelta {
        signature: String,
    },
    CitationsDelta {
        citation: Value,
    },
    #[serde(other)]
    Unknown,
}

#[derive(Deserialize)]
struct BlockStop {
    index: usize,
}

#[derive(Deserialize)]
struct MessageDelta {
    #[serde(default)]
    delta: StopDelta,
    #[serde(default)]
    usage: Option<UsageUpdate>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct StopDelta {
    stop_reason: Option<String>,
    stop_details: Option<StopDetails>,
}

#[derive(Deserialize)]
struct StopDetails {
    #[serde(default)]
    category: Option<String>,
    #[serde(default)]
    explanation: Option<String>,
}

#[derive(Deserialize)]
struct ErrorEvent {
    error: Value,
}

impl MessageReader {
    fn message_start(&mut self, MessageStart { message }: MessageStart) {
        self.model = message.model;
        self.update_usage(message.usage);
    }

    fn update_usage(&mut self, update: UsageUpdate) {
        let UsageUpdate { input_tokens, output_tokens, cache_creation_input_tokens, cache_read_input_tokens } =
            update;
        let usage = &mut self.usage;
        for (total, update) in [
            (&mut usage.input_tokens, input_tokens),
            (&mut usage.output_tokens, output_tokens),
            (&mut usage.cache_creation_input_tokens, cache_creation_input_tokens),
            (&mut usage.cache_read_input_tokens, cache_read_input_tokens),
        ] {
            *total = update.unwrap_or(*total);
        }
    }

    fn block_start(&mut self, start: BlockStart, deltas: &mut VecDeque<Delta>) -> Result<(), Trouble> {
        let BlockStart { index, content_block: fields } = start;
        let text = |name: &str| -> String {
            fields.get(name).and_then(|value| serde_json::from_str(value.get()).ok()).unwrap_or_default()
        };
        let mut first_text = String::new();
        let kind = match text("type").as_str() {
            "text" => {
                first_text = text("text");
                Kind::Text { text: String::new(), citations: Vec::new(), index: None }
            }
            "thinking" => {
                deltas.push_back(Delta::ThinkingStart);
                self.blocks.push(Block::Thinking);
                Kind::Thinking { thinking: text("thinking"), signature: text("signature") }
            }
            "redacted_thinking" => {
                deltas.push_back(Delta::ThinkingStart);
                self.blocks.push(Block::Thinking);
                Kind::RedactedThinking
            }
            "tool_use" => {
                let (provider_id, name) = (text("id"), text("name"));
                let index = self.blocks.len();
                deltas.push_back(Delta::ToolUseStart { index, name: name.clone() });
                self.blocks.push(Block::ToolUse { provider_id, name, input: Map::new(), input_error: None });
                Kind::ToolUse { input: String::new(), index }
            }
            _ => Kind::Other { input: String::new() },
        };
        if self.open.insert(index, Open { fields, kind }).is_some() {
            return Err(Trouble::Malformed(format!("block {index} starts twice")));
        }
        self.block_delta(BlockDelta { index, delta: DeltaBody::TextDelta { text: first_text } }, deltas)
    }

    fn block_delta(&mut self, delta: BlockDelta, deltas: &mut VecDeque<Delta>) -> Result<(), Trouble> {
        let BlockDelta { index, delta } = delta;
        let open = self.open.get_mut(&index).ok_or_else(|| no_such_block(index))?;
        match (&mut open.kind, delta) {
            (Kind::Text { text, index, .. }, DeltaBody::TextDelta { text: piece }) => {
                text.push_str(&piece);
                match *index {
                    Some(_) if piece.is_empty() => {}
                    Some(_) => deltas.push_back(Delta::Text(piece)),
                    // White space alone may be all there is, and such a text is none: it is not announced.
                    None if text.trim().is_empty() => {}
                    None => {
                        let announced = self.blocks.len();
                        self.blocks.push(Block::Text(String::new()));
                        *index = Some(announced);
                        deltas.push_back(Delta::TextStart { index: announced });
                        deltas.push_back(Delta::Text(text.clone()));
                    }
                }
            }
            (Kind::Text { citations, .. }, DeltaBody::CitationsDelta { citation }) => {
                citations.push(to_raw_value(&citation).map_err(|error| malformed("a citation", &error))?);
            }
            (Kind::Thinking { thinking, .. }, DeltaBody::ThinkingDelta { thinking: piece }) => {
                thinking.push_str(&piece)
            }
            (Kind::Thinking { signature, .. }, DeltaBody::SignatureDelta { signature: whole }) => {
                *signature = whole
            }
            (
                Kind::ToolUse { input, .. } | Kind::Other { input },
                DeltaBody::InputJsonDelta { partial_json },
            ) => {
                input.push_str(&partial_json);
            }
            // A delta that does not fit its block, or one that was added to the wire since: nothing to add it to.
            (
                Kind::Text { .. }
                | Kind::Thinking { .. }
                | Kind::RedactedThinking
                | Kind::ToolUse { .. }
                | Kind::Other { .. },
                DeltaBody::TextDelta { .. }
                | DeltaBody::InputJsonDelta { .. }
                | DeltaBody::ThinkingDelta { .. }
                | DeltaBody::SignatureDelta { .. }
                | DeltaBody::CitationsDelta { .. }
                | DeltaBody::Unknown,
            ) => {}
        }
        Ok(())
    }

    fn block_stop(&mut self, open: Open, deltas: &mut VecDeque<Delta>) -> Result<(), Trouble> {
        let Open { mut fields, kind } = open;
        match kind {
            Kind::Text { text, citations, index } => {
                let Some(index) = index else { return Ok(()) };
                deltas.push_back(Delta::TextEnd);
                fields.insert("text".into(), raw(&text)?);
                if !citations.is_empty() {
                    fields.insert("citations".into(), raw(&citations)?);
                }
                self.blocks[index] = Block::Text(text);
            }
            Kind::Thinking { thinking, signature } => {
                deltas.push_back(Delta::ThinkingEnd);
                fields.insert("thinking".into(), raw(&thinking)?);
                fields.insert("signature".into(), raw(&signature)?);
            }
            Kind::RedactedThinking => deltas.push_back(Delta::ThinkingEnd),
            Kind::ToolUse { input: told, index } => {
                deltas.push_back(Delta::ToolUseEnd);
                // An input that was there from the start counts if no delta came.
                let from_start = fields.get("input").map_or("", |input| input.get());
                let source = if told.trim().is_empty() { from_start } else { told.trim() };
                let (parsed, error) = match tool_input(source) {
                    Ok(parsed) => (parsed, None),
                    Err(error) => (Map::new(), Some(error)),
                };
                let text = if error.is_some() || source.is_empty() { "{}" } else { source };
                fields.insert(
                    "input".into(),
                    RawValue::from_string(text.to_owned()).map_err(|error| malformed("an input", &error))?,
                );
                if let Block::ToolUse { input, input_error, .. } = &mut self.blocks[index] {
                    *input = parsed;
                    *input_error = error;
                }
            }
            Kind::Other { input } => {
                if !input.is_empty() {
                    fields.insert(
                        "input".into(),
                        RawValue::from_string(input).map_err(|error| malformed("an input", &error))?,
                    );
                }
            }
        }
        self.raw.push(raw(&fields)?);
        Ok(())
    }

    fn message_delta(&mut self, MessageDelta { delta, usage }: MessageDelta) {
        if let Some(usage) = usage {
            self.update_usage(usage);
        }
        let StopDelta { stop_reason, stop_details } = delta;
        let Some(stop_reason) = stop_reason else { return };
        self.stop = Some(match stop_reason.as_str() {
            "end_turn" => Stop::EndTurn,
            "tool_use" => Stop::ToolUse,
            "max_tokens" => Stop::MaxTokens,
            "model_context_window_exceeded" => Stop::ContextExceeded,
            "pause_turn" => Stop::PauseTurn,
            "stop_sequence" => Stop::StopSequence,
            "refusal" => {
                let (category, explanation) =
                    stop_details.map_or((None, None), |details| (details.category, details.explanation));
                Stop::Refusal { category, explanation }
            }
            // Added to the wire since: what the blocks say is the best guess.
            _ => self.stop_by_blocks(),
        });
    }

    fn stop_by_blocks(&self) -> Stop {
        let asks_for_tool = self.blocks.iter().any(|block| matches!(block, Block::ToolUse { .. }));
        if asks_for_tool { Stop::ToolUse } else { Stop::EndTurn }
    }

    fn finish(&mut self, deltas: &mut VecDeque<Delta>) -> Result<Answer, Trouble> {
        for open in std::mem::take(&mut self.open).into_values() {
            self.block_stop(open, deltas)?;
        }
        let stop = self.stop.take().unwrap_or_else(|| self.stop_by_blocks());
        Ok(Answer {
            blocks: std::mem::take(&mut self.blocks),
            raw: std::mem::take(&mut self.raw),
            stop,
            usage: self.usage,
            model: std::mem::take(&mut self.model),
        })
    }
}

fn parse<T: DeserializeOwned>(data: &str) -> Result<T, Trouble> {
    serde_json::from_str(data).map_err(|error| malformed("an event", &error))
}

fn raw(value: &impl serde::Serialize) -> Result<Box<RawValue>, Trouble> {
    to_raw_value(value).map_err(|error| malformed("a block", &error))
}

/// Says where the JSON breaks, never what it holds.
fn malformed(what: &str, error: &serde_json::Error) -> Trouble {
    Trouble::Malformed(format!("{what} is not what the format says, at column {}", error.column()))
}

fn no_such_block(index: usize) -> Trouble {
    Trouble::Malformed(format!("block {index} goes on without a start"))
}
