//! A reply in the format of the Messages API, streamed and whole.

use serde_json::{Value, json};

use super::play::{Event, Kind, deltas, input_deltas, with_pings};
use super::reply::{Block, Error, Reply};

/// The signature this server puts under thinking, and expects back.
pub(super) fn signature(thinking: &str) -> String {
    let hash = thinking.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("sig{hash:016x}")
}

/// The id of the tool call in block `block` of the answer to request `request`.
pub(super) fn call_id(model: &str, request: usize, block: usize) -> String {
    let model: String = model.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    format!("toolu_{model}_{request}_{block}")
}

/// The error body.
pub(super) fn error_body(error: &Error, message: &str, request_id: &str) -> Value {
    let mut inner = json!({"type": error.kind, "message": message});
    for (name, value) in &error.fields {
        inner[name] = value.clone();
    }
    json!({"type": "error", "error": inner, "request_id": request_id})
}

/// The whole answer, for `stream: false`.
pub(super) fn message(reply: &Reply, model: &str, request: usize) -> Value {
    let mut message = envelope(reply, model, request);
    let blocks = reply.blocks.iter().enumerate().map(|(index, block)| match block {
        Block::Thinking { thinking } => {
            json!({"type": "thinking", "thinking": thinking, "signature": signature(thinking)})
        }
        Block::RedactedThinking { redacted_thinking } => {
            json!({"type": "redacted_thinking", "data": redacted_thinking})
        }
        Block::Text { text } => json!({"type": "text", "text": text}),
        Block::Tool { tool, input, input_text } => {
            let input = input_text
                .as_deref()
                .and_then(|text| serde_json::from_str(text).ok())
                .unwrap_or(input.clone());
            json!({"type": "tool_use", "id": call_id(model, request, index), "name": tool, "input": input})
        }
    });
    message["content"] = blocks.collect();
    message["stop_reason"] = json!(reply.stop_reason());
    message["stop_details"] = json!(reply.stop_details);
    message["usage"]["output_tokens"] = json!(reply.usage.output_tokens);
    message
}

/// The streamed answer.
pub(super) fn events(reply: &Reply, model: &str, request: usize) -> Vec<Event> {
    let mut events = vec![event(
        Kind::Frame,
        json!({"type": "message_start", "message": envelope(reply, model, request)}),
    )];
    for (index, block) in reply.blocks.iter().enumerate() {
        block_events(reply, block, &call_id(model, request, index), index, &mut events);
    }
    if let Some(error) = reply.error.as_ref().filter(|error| error.in_stream) {
        let body = error_body(error, &error.message, "req_scripted");
        events.push(Event { kind: Kind::Frame, frame: format!("event: error\ndata: {body}\n\n") });
    } else {
        let delta = json!({"stop_reason": reply.stop_reason(), "stop_sequence": null, "stop_details": reply.stop_details});
        let usage = json!({"output_tokens": reply.usage.output_tokens});
        events.push(event(Kind::Frame, json!({"type": "message_delta", "delta": delta, "usage": usage})));
        events.push(event(Kind::Frame, json!({"type": "message_stop"})));
    }
    with_pings(events, reply, "event: ping\ndata: {\"type\": \"ping\"}\n\n")
}

fn envelope(reply: &Reply, model: &str, request: usize) -> Value {
    json!({
        "id": format!("msg_{request}"),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": null,
        "stop_sequence": null,
        "stop_details": null,
        "usage": {
            "input_tokens": reply.usage.input_tokens,
            "cache_creation_input_tokens": reply.usage.cache_creation_input_tokens,
            "cache_read_input_tokens": reply.usage.cache_read_input_tokens,
            "cache_creation": {
                "ephemeral_5m_input_tokens": reply.usage.cache_creation_input_tokens,
                "ephemeral_1h_input_tokens": 0,
            },
            "output_tokens": 1,
            "service_tier": "standard",
        },
    })
}

fn block_events(reply: &Reply, block: &Block, call_id: &str, index: usize, events: &mut Vec<Event>) {
    let start = match block {
        Block::Thinking { .. } => json!({"type": "thinking", "thinking": "", "signature": ""}),
        Block::RedactedThinking { redacted_thinking } => {
            json!({"type": "redacted_thinking", "data": redacted_thinking})
        }
        Block::Text { .. } => json!({"type": "text", "text": ""}),
        Block::Tool { tool, .. } => json!({"type": "tool_use", "id": call_id, "name": tool, "input": {}}),
    };
    events.push(event(
        Kind::Frame,
        json!({"type": "content_block_start", "index": index, "content_block": start}),
    ));
    let mut delta = |kind, delta| {
        events.push(event(kind, json!({"type": "content_block_delta", "index": index, "delta": delta})));
    };
    match block {
        Block::Thinking { thinking } => {
            for piece in deltas(thinking, reply.chunks) {
                delta(Kind::Delta, json!({"type": "thinking_delta", "thinking": piece}));
            }
            delta(Kind::Frame, json!({"type": "signature_delta", "signature": signature(thinking)}));
        }
        Block::RedactedThinking { redacted_thinking: _ } => {}
        Block::Text { text } => {
            for piece in deltas(text, reply.chunks) {
                delta(Kind::TextDelta, json!({"type": "text_delta", "text": piece}));
            }
        }
        Block::Tool { tool: _, input, input_text } => {
            delta(Kind::Frame, json!({"type": "input_json_delta", "partial_json": ""}));
            let text = input_text.clone().unwrap_or_else(|| input.to_string());
            for piece in input_deltas(&text, reply.chunks) {
                delta(Kind::Delta, json!({"type": "input_json_delta", "partial_json": piece}));
            }
        }
    }
    events.push(event(Kind::Frame, json!({"type": "content_block_stop", "index": index})));
}

fn event(kind: Kind, data: Value) -> Event {
    let name = data["type"].as_str().unwrap_or_default();
    Event { kind, frame: format!("event: {name}\ndata: {data}\n\n") }
}
