//! A reply in the format of OpenAI's chat completions, streamed and whole.

use serde_json::{Value, json};

use super::anthropic::call_id;
use super::play::{Event, Kind, deltas, input_deltas, with_pings};
use super::reply::{Block, Error, Reply};

/// The error body.
pub(super) fn error_body(error: &Error, message: &str) -> Value {
    let mut inner = json!({"message": message, "type": error.kind, "param": null, "code": null});
    for (name, value) in &error.fields {
        inner[name] = value.clone();
    }
    json!({"error": inner})
}

/// The whole answer, for `stream: false`.
pub(super) fn completion(reply: &Reply, model: &str, request: usize) -> Value {
    let mut message = json!({"role": "assistant", "content": null});
    let mut calls = Vec::new();
    for (index, block) in reply.blocks.iter().enumerate() {
        match block {
            Block::Thinking { thinking } => message["reasoning_content"] = json!(thinking),
            Block::RedactedThinking { redacted_thinking: _ } => {}
            Block::Text { text } => {
                let before = message["content"].as_str().unwrap_or_default();
                message["content"] = json!(format!("{before}{text}"));
            }
            Block::Tool { tool, input, input_text } => {
                let arguments = input_text.clone().unwrap_or_else(|| input.to_string());
                let function = json!({"name": tool, "arguments": arguments});
                calls.push(
                    json!({"id": call_id(model, request, index), "type": "function", "function": function}),
                );
            }
        }
    }
    if !calls.is_empty() {
        message["tool_calls"] = json!(calls);
    }
    let choice =
        json!({"index": 0, "message": message, "finish_reason": finish_reason(reply), "logprobs": null});
    json!({
        "id": format!("chatcmpl-{request}"),
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [choice],
        "usage": usage(reply),
    })
}

/// The streamed answer.
pub(super) fn events(reply: &Reply, model: &str, request: usize, include_usage: bool) -> Vec<Event> {
    let chunk = |kind, choices: Value, usage: Value| {
        let mut data = json!({
            "id": format!("chatcmpl-{request}"),
            "object": "chat.completion.chunk",
            "created": 0,
            "model": model,
            "choices": choices,
        });
        if include_usage {
            data["usage"] = usage;
        }
        Event { kind, frame: format!("data: {data}\n\n") }
    };
    let delta = |kind, delta: Value| {
        chunk(
            kind,
            json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": null}]),
            Value::Null,
        )
    };
    let mut events = vec![delta(Kind::Frame, json!({"role": "assistant", "content": "", "refusal": null}))];
    let mut calls = 0;
    for (index, block) in reply.blocks.iter().enumerate() {
        match block {
            Block::Thinking { thinking } => {
                for piece in deltas(thinking, reply.chunks) {
                    events.push(delta(Kind::Delta, json!({"reasoning_content": piece})));
                }
            }
            Block::RedactedThinking { redacted_thinking: _ } => {}
            Block::Text { text } => {
                for piece in deltas(text, reply.chunks) {
                    events.push(delta(Kind::TextDelta, json!({"content": piece})));
                }
            }
            Block::Tool { tool, input, input_text } => {
                let id = call_id(model, request, index);
                let function = json!({"name": tool, "arguments": ""});
                let call = json!({"index": calls, "id": id, "type": "function", "function": function});
                events.push(delta(Kind::Frame, json!({"tool_calls": [call]})));
                let text = input_text.clone().unwrap_or_else(|| input.to_string());
                for piece in input_deltas(&text, reply.chunks) {
                    let call = json!({"index": calls, "function": {"arguments": piece}});
                    events.push(delta(Kind::Delta, json!({"tool_calls": [call]})));
                }
                calls += 1;
            }
        }
    }
    if let Some(error) = reply.error.as_ref().filter(|error| error.in_stream) {
        events.push(Event {
            kind: Kind::Frame,
            frame: format!("data: {}\n\n", error_body(error, &error.message)),
        });
    } else {
        let last =
            json!([{"index": 0, "delta": {}, "logprobs": null, "finish_reason": finish_reason(reply)}]);
        events.push(chunk(Kind::Frame, last, Value::Null));
        if include_usage {
            events.push(chunk(Kind::Frame, json!([]), usage(reply)));
        }
        events.push(Event { kind: Kind::Frame, frame: "data: [DONE]\n\n".into() });
    }
    with_pings(events, reply, ": keep-alive\n\n")
}

fn finish_reason(reply: &Reply) -> &str {
    match reply.stop_reason() {
        "end_turn" | "stop_sequence" => "stop",
        "tool_use" => "tool_calls",
        "max_tokens" => "length",
        "refusal" => "content_filter",
        other => other,
    }
}

fn usage(reply: &Reply) -> Value {
    let usage = &reply.usage;
    let prompt = usage.input_tokens + usage.cache_read_input_tokens;
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": usage.output_tokens,
        "total_tokens": prompt + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cache_read_input_tokens},
    })
}
