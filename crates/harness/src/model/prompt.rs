//! What is asked of a model, in no provider's words.

use protocol::agent::{EffortLevel, Speed};
use protocol::content::Content;
use serde_json::Value;
use serde_json::value::RawValue;

/// Everything that one request to a model says.
///
/// The same prompt always gives the same bytes on the wire, and a prompt that continues another gives bytes that
/// continue the other's: providers cache by prefix.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// The model, as the agent names it. [`Providers`](super::Providers) maps it.
    pub model: String,
    /// The system prompt.
    pub system: Option<String>,
    /// The tools that the model may ask for.
    pub tools: Vec<ToolSpec>,
    /// The conversation, oldest first.
    pub messages: Vec<Message>,
    /// How hard to think; `None` leaves it to the provider.
    pub effort: Option<EffortLevel>,
    /// How fast to answer, where the provider has a choice.
    pub speed: Speed,
    /// Where to run, where the provider has a choice.
    pub inference_geo: Option<String>,
}

impl Prompt {
    /// An empty prompt for a model.
    pub fn new(model: impl Into<String>) -> Self {
        Self {
            model: model.into(),
            system: None,
            tools: Vec::new(),
            messages: Vec::new(),
            effort: None,
            speed: Speed::Standard,
            inference_geo: None,
        }
    }

    /// How many answers the conversation holds.
    pub(super) fn answers(&self) -> usize {
        self.messages.iter().filter(|message| matches!(message, Message::Assistant(_))).count()
    }
}

/// One entry of the conversation. Consecutive entries of the user become one turn on wires that want it so.
#[derive(Clone, Debug)]
pub enum Message {
    /// What the user or the tools said.
    User(Vec<UserBlock>),
    /// What the model answered: the blocks of [`Answer::raw`](super::Answer::raw), byte for byte.
    Assistant(Vec<Box<RawValue>>),
    /// What the operator adds in mid-conversation.
    System(String),
}

impl Message {
    /// A text of the user's.
    pub fn user(text: impl Into<String>) -> Self {
        Self::User(vec![UserBlock::Content(Content::text(text))])
    }

    /// An answer from the stored text of its blocks. Fails on text that is not JSON.
    pub fn assistant<'a>(blocks: impl IntoIterator<Item = &'a str>) -> Result<Self, serde_json::Error> {
        let blocks = blocks.into_iter().map(|block| RawValue::from_string(block.to_owned()));
        blocks.collect::<Result<_, _>>().map(Self::Assistant)
    }
}

/// A part of a user's entry.
#[derive(Clone, Debug, PartialEq)]
pub enum UserBlock {
    /// Text, a picture, a document, a search result.
    Content(Content),
    /// What came of a tool call.
    ToolResult(ToolResult),
}

/// What came of a tool call.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolResult {
    /// The call, by the provider's own id.
    pub provider_call_id: String,
    /// What the tool gave.
    pub content: Vec<Content>,
    /// Whether it failed.
    pub is_error: bool,
}

/// A tool that the model may ask for.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolSpec {
    /// Its name.
    pub name: String,
    /// What it does, for the model.
    pub description: String,
    /// The JSON schema of its input, an object.
    pub input_schema: Value,
}
