//! What a model says: piece by piece while it speaks, then as a whole.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::{Stream, StreamExt as _};
use protocol::event::ModelUsage;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::failure::Failure;

/// A piece of an answer that is being given.
///
/// ```text
/// ( ThinkingStart ThinkingEnd | TextStart Text… TextEnd | ToolUseStart ToolUseEnd )*  Done
/// ```
#[derive(Clone, Debug)]
pub enum Delta {
    /// The model began to think. What it thinks is in [`Answer::raw`] only.
    ThinkingStart,
    /// It stopped thinking.
    ThinkingEnd,
    /// A text begins: its first characters have arrived and follow at once.
    TextStart {
        /// The block's index in [`Answer::blocks`].
        index: usize,
    },
    /// The text goes on. Never empty.
    Text(String),
    /// The text is complete.
    TextEnd,
    /// The model began to ask for a tool.
    ToolUseStart {
        /// The block's index in [`Answer::blocks`].
        index: usize,
        /// The tool.
        name: String,
    },
    /// The call is complete.
    ToolUseEnd,
    /// The answer is complete. Always last.
    Done(Answer),
}

/// A complete answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// What it says, in order. Never an empty text.
    pub blocks: Vec<Block>,
    /// The same as content blocks in the Messages format, to be kept and sent back byte for byte. Holds what
    /// [`Answer::blocks`] leaves out: thinking, signatures, blocks of unknown kinds.
    pub raw: Vec<Box<RawValue>>,
    /// Why it ended.
    pub stop: Stop,
    /// What it cost.
    pub usage: ModelUsage,
    /// The model that answered, as the provider names it.
    pub model: String,
}

/// A part of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Block {
    /// The model thought.
    Thinking,
    /// Text.
    Text(String),
    /// It asks for a tool.
    ToolUse {
        /// The provider's own id of the call. Unique in the conversation.
        provider_id: String,
        /// The tool.
        name: String,
        /// The input, an object.
        input: Map<String, Value>,
        /// Why the input is empty, if the model sent none that can be read: cut off by the length limit, broken
        /// JSON, or JSON that is no object. Such a call is not run; the model is told this.
        input_error: Option<String>,
    },
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The model is done.
    EndTurn,
    /// It waits for tools.
    ToolUse,
    /// It reached the limit of output tokens.
    MaxTokens,
    /// The conversation fills the model's context.
    ContextExceeded,
    /// The provider paused a long turn; the same conversation with this answer at its end goes on.
    PauseTurn,
    /// The model or its provider refuses.
    Refusal {
        /// What kind, where the provider says.
        category: Option<String>,
        /// Why, where the provider says.
        explanation: Option<String>,
    },
    /// It said a stop sequence.
    StopSequence,
}

/// An answer on its way. Nothing is sent before the first poll; dropping it closes the request at once.
#[must_use = "nothing is asked before the first poll"]
pub struct Asking {
    stream: Pin<Box<dyn Stream<Item = Result<Delta, Failure>> + Send>>,
}

impl Asking {
    pub(super) fn new(stream: impl Stream<Item = Result<Delta, Failure>> + Send + 'static) -> Self {
        Self { stream: Box::pin(stream) }
    }

    /// An answer that failed before it was asked for.
    pub(super) fn failed(failure: Failure) -> Self {
        Self::new(futures_util::stream::iter([Err(failure)]))
    }

    /// The next piece. After [`Delta::Done`] or a failure there is none. May be dropped and called again.
    pub async fn next(&mut self) -> Option<Result<Delta, Failure>> {
        self.stream.next().await
    }

    /// The complete answer, for those who do not watch it come.
    pub async fn answer(mut self) -> Result<Answer, Failure> {
        while let Some(delta) = self.next().await {
            if let Delta::Done(answer) = delta? {
                return Ok(answer);
            }
        }
        Err(Failure::disconnected())
    }
}

impl Stream for Asking {
    type Item = Result<Delta, Failure>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.stream.as_mut().poll_next(context)
    }
}

impl std::fmt::Debug for Asking {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Asking").finish_non_exhaustive()
    }
}

/// Reads a tool's input from the text that a model produced. Gives why it cannot be used, if so.
pub(super) fn tool_input(text: &str) -> Result<Map<String, Value>, String> {
    if text.trim().is_empty() {
        return Ok(Map::new());
    }
    match serde_json::from_str(text) {
        Ok(Value::Object(input)) => Ok(input),
        Ok(_) => Err("the input is not a JSON object".to_owned()),
        Err(error) if error.is_eof() => Err("the input was cut off before its end".to_owned()),
        Err(error) => Err(format!("the input is not valid JSON: {error}")),
    }
}
