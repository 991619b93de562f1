//! One scripted answer: what the model says, at which pace, and how the connection fares.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// One scripted answer. The JSON form is that of `POST /_script`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reply {
    /// What the model says, in order.
    pub blocks: Vec<Block>,
    /// Why it stops; by default `tool_use` if a tool is asked for, else `end_turn`.
    pub stop: Option<String>,
    /// What goes with a refusal.
    pub stop_details: Option<Value>,
    /// What it costs.
    pub usage: Usage,
    /// The pause before the first event.
    pub first_token_ms: u64,
    /// The pause before every further delta.
    pub token_ms: u64,
    /// How finely the answer is cut.
    pub chunks: Chunks,
    /// Whether pings come between the events.
    pub pings: bool,
    /// Wait for the release of this hold: after the headers, or where `hold_after` says.
    pub hold: Option<String>,
    /// Wait after this many text deltas instead of at the start.
    pub hold_after: Option<usize>,
    /// Close the connection after this many events.
    pub cut_after: Option<usize>,
    /// Further response headers, where it does not fail: figures of a limit, say.
    pub headers: BTreeMap<String, String>,
    /// Fail instead.
    pub error: Option<Error>,
    /// Send exactly this instead.
    pub raw: Option<Raw>,
}

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Block {
    /// Thinking, signed by the server.
    Thinking {
        /// The text.
        thinking: String,
    },
    /// Thinking that the provider sealed.
    RedactedThinking {
        /// The sealed bytes.
        redacted_thinking: String,
    },
    /// Text.
    Text {
        /// The text.
        text: String,
    },
    /// A tool call.
    Tool {
        /// The tool's name.
        tool: String,
        /// Its input.
        #[serde(default)]
        input: Value,
        /// The input's text instead, whatever it is: broken JSON, say.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        input_text: Option<String>,
    },
}

/// How finely an answer is cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Chunks {
    /// A delta per word.
    #[default]
    Words,
    /// A delta per word, and the body itself cut at odd places: inside lines and inside UTF-8.
    Bytes,
    /// A delta per block.
    Whole,
}

/// What an answer costs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Usage {
    /// Uncached input.
    pub input_tokens: u64,
    /// Output.
    pub output_tokens: u64,
    /// Input read from the cache.
    pub cache_read_input_tokens: u64,
    /// Input written to the cache.
    pub cache_creation_input_tokens: u64,
}

impl Default for Usage {
    fn default() -> Self {
        Self {
            input_tokens: 10,
            output_tokens: 5,
            cache_read_input_tokens: 0,
            cache_creation_input_tokens: 0,
        }
    }
}

/// A failure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Error {
    /// The HTTP status.
    #[serde(default = "Error::default_status")]
    pub status: u16,
    /// The error's type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its message.
    #[serde(default)]
    pub message: String,
    /// The `retry-after` header, in seconds.
    #[serde(default)]
    pub retry_after: Option<u64>,
    /// Further response headers.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Further fields of the error object: `code`, `details`.
    #[serde(default)]
    pub fields: BTreeMap<String, Value>,
    /// HTTP 200, the scripted blocks, then an `error` event.
    #[serde(default)]
    pub in_stream: bool,
    /// Add the request's own headers to the message, as a careless gateway would.
    #[serde(default)]
    pub echo_headers: bool,
}

impl Error {
    fn default_status() -> u16 {
        500
    }
}

/// A response given literally.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Raw {
    /// The HTTP status.
    #[serde(default = "Raw::default_status")]
    pub status: u16,
    /// The `content-type` header.
    #[serde(default = "Raw::default_content_type")]
    pub content_type: String,
    /// Further response headers.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: String,
}

impl Raw {
    fn default_status() -> u16 {
        200
    }

    fn default_content_type() -> String {
        "text/event-stream".into()
    }
}

impl Reply {
    /// An answer that says this.
    pub fn text(text: impl Into<String>) -> Self {
        Self::default().and_text(text)
    }

    /// An answer that starts by thinking this.
    pub fn thinking(thinking: impl Into<String>) -> Self {
        Self::default().and_thinking(thinking)
    }

    /// An answer that asks for a tool.
    pub fn tool(name: impl Into<String>, input: Value) -> Self {
        Self::default().and_tool(name, input)
    }

    /// A failure: `Reply::error(529, "overloaded_error")`.
    pub fn error(status: u16, kind: impl Into<String>) -> Self {
        let kind = kind.into();
        let error = Error {
            status,
            message: format!("scripted {kind}"),
            kind,
            retry_after: None,
            headers: BTreeMap::new(),
            fields: BTreeMap::new(),
            in_stream: false,
            echo_headers: false,
        };
        Self { error: Some(error), ..Self::default() }
    }

    /// A failure that comes as an event, after HTTP 200 and whatever blocks are added.
    pub fn error_in_stream(kind: impl Into<String>) -> Self {
        Self::error(200, kind).with_error(|error| error.in_stream = true)
    }

    /// A streamed response given literally.
    pub fn raw(body: impl Into<String>) -> Self {
        let raw = Raw {
            status: 200,
            content_type: Raw::default_content_type(),
            headers: BTreeMap::new(),
            body: body.into(),
        };
        Self { raw: Some(raw), ..Self::default() }
    }

    /// A refusal.
    pub fn refusal(category: Option<&str>, explanation: Option<&str>) -> Self {
        Self {
            stop: Some("refusal".into()),
            stop_details: Some(json!({"type": "refusal", "category": category, "explanation": explanation})),
            ..Self::default()
        }
    }

    /// Adds text.
    #[must_use]
    pub fn and_text(mut self, text: impl Into<String>) -> Self {
        self.blocks.push(Block::Text { text: text.into() });
        self
    }

    /// Adds thinking.
    #[must_use]
    pub fn and_thinking(mut self, thinking: impl Into<String>) -> Self {
        self.blocks.push(Block::Thinking { thinking: thinking.into() });
        self
    }

    /// Adds sealed thinking.
    #[must_use]
    pub fn and_redacted_thinking(mut self, data: impl Into<String>) -> Self {
        self.blocks.push(Block::RedactedThinking { redacted_thinking: data.into() });
        self
    }

    /// Adds a tool call.
    #[must_use]
    pub fn and_tool(mut self, name: impl Into<String>, input: Value) -> Self {
        self.blocks.push(Block::Tool { tool: name.into(), input, input_text: None });
        self
    }

    /// Adds a tool call whose input is this text, JSON or not.
    #[must_use]
    pub fn and_tool_text(mut self, name: impl Into<String>, input_text: impl Into<String>) -> Self {
        self.blocks.push(Block::Tool {
            tool: name.into(),
            input: Value::Null,
            input_text: Some(input_text.into()),
        });
        self
    }

    /// Stops for this reason.
    #[must_use]
    pub fn stop(mut self, reason: impl Into<String>) -> Self {
        self.stop = Some(reason.into());
        self
    }

    /// Costs this.
    #[must_use]
    pub fn usage(mut self, usage: Usage) -> Self {
        self.usage = usage;
        self
    }

    /// Waits for the release of a hold after the headers.
    #[must_use]
    pub fn hold(mut self, hold: impl Into<String>) -> Self {
        self.hold = Some(hold.into());
        self
    }

    /// Waits for the release of a hold after this many text deltas.
    #[must_use]
    pub fn hold_after(mut self, hold: impl Into<String>, text_deltas: usize) -> Self {
        self.hold = Some(hold.into());
        self.hold_after = Some(text_deltas);
        self
    }

    /// Closes the connection after this many events.
    #[must_use]
    pub fn cut_after(mut self, events: usize) -> Self {
        self.cut_after = Some(events);
        self
    }

    /// Cuts the answer this finely.
    #[must_use]
    pub fn chunks(mut self, chunks: Chunks) -> Self {
        self.chunks = chunks;
        self
    }

    /// Puts pings between the events.
    #[must_use]
    pub fn pings(mut self) -> Self {
        self.pings = true;
        self
    }

    /// Sets the pauses before the first event and before each further delta.
    #[must_use]
    pub fn pace(mut self, first_token_ms: u64, token_ms: u64) -> Self {
        self.first_token_ms = first_token_ms;
        self.token_ms = token_ms;
        self
    }

    /// Adds a response header.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.insert(name.into(), value.into());
        self
    }

    /// Changes the failure, if this is one.
    #[must_use]
    pub fn with_error(mut self, change: impl FnOnce(&mut Error)) -> Self {
        if let Some(error) = &mut self.error {
            change(error);
        }
        self
    }

    /// Why it stops.
    pub(super) fn stop_reason(&self) -> &str {
        let asks_for_tool = self.blocks.iter().any(|block| matches!(block, Block::Tool { .. }));
        self.stop.as_deref().unwrap_or(if asks_for_tool { "tool_use" } else { "end_turn" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_reads_from_the_documented_json() {
        let reply: Reply = serde_json::from_value(json!({
            "blocks": [{"thinking": "hm"}, {"text": "Hello"}, {"tool": "bash", "input": {"command": "ls"}}],
            "usage": {"input_tokens": 1},
            "chunks": "bytes",
            "pings": true,
            "hold": "h1",
            "hold_after": 1,
            "cut_after": 3,
        }))
        .expect("the documented form");
        let expected = Reply::thinking("hm")
            .and_text("Hello")
            .and_tool("bash", json!({"command": "ls"}))
            .usage(Usage { input_tokens: 1, ..Usage::default() })
            .chunks(Chunks::Bytes)
            .pings()
            .hold_after("h1", 1)
            .cut_after(3);
        assert_eq!(reply, expected);
        assert_eq!(reply.stop_reason(), "tool_use");
    }

    #[test]
    fn a_misspelt_field_is_refused() {
        assert!(serde_json::from_value::<Reply>(json!({"block": []})).is_err());
        assert!(serde_json::from_value::<Reply>(json!({"blocks": [{"txt": "a"}]})).is_err());
    }
}
