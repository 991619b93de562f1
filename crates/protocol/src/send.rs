//! What clients send: parsing of events in a request.
//!
//! Only the shape is checked here. Whether a session accepts an event now is decided by `session::admit`.

use serde_json::Value;

use crate::content::{Citations, Content, Source, TextBlock, TextTag};
use crate::event::{Body, Verdict};
use crate::id::{EventId, ThreadId};
use crate::parse::{Fields, Invalid, Parsed, boolean, id_text, list, one_of, text};

/// How many events one request may carry (as many as `initial_events` of a new session).
pub const EVENTS_MAX: usize = 50;
/// How many content blocks one event may carry (the reference states it for `system.message`).
const BLOCKS_MAX: usize = 1000;
const DENY_MESSAGE_CHARS_MAX: usize = 10_000;

const SENDABLE: [&str; 7] = [
    "user.message",
    "user.interrupt",
    "user.tool_confirmation",
    "user.custom_tool_result",
    "user.tool_result",
    "user.define_outcome",
    "system.message",
];

/// The body of a send request: `{"events": [...]}`.
pub fn parse_send(body: Value) -> Parsed<Vec<Body>> {
    let mut fields = Fields::new(body, "")?;
    let events = fields.required("events", list(1..=EVENTS_MAX, parse_event))?;
    fields.finish()?;
    Ok(events)
}

/// The `initial_events` of a new session: at most 50, and of those that this server has only `user.message`.
pub fn parse_initial(value: Value, path: &str) -> Parsed<Vec<Body>> {
    list(0..=EVENTS_MAX, |value, path| match parse_event(value, path)? {
        body @ Body::UserMessage { .. } => Ok(body),
        other => Err(Invalid::new(
            format!("{path}.type"),
            format!("must be `user.message` in initial_events, not `{}`", other.kind()),
        )),
    })(value, path)
}

/// One event as a client sends it.
pub fn parse_event(value: Value, path: &str) -> Parsed<Body> {
    let mut fields = Fields::new(value, path)?;
    let body = match fields.tag(&SENDABLE)? {
        "user.message" => {
            Body::UserMessage { content: fields.required("content", list(1..=BLOCKS_MAX, message_block))? }
        }
        "user.interrupt" => Body::UserInterrupt {
            session_thread_id: fields.optional("session_thread_id", id_text)?.map(ThreadId::from_text),
        },
        "user.tool_confirmation" => confirmation(&mut fields)?,
        "user.custom_tool_result" => Body::UserCustomToolResult {
            custom_tool_use_id: EventId::from_text(fields.required("custom_tool_use_id", id_text)?),
            content: fields.optional("content", list(0..=BLOCKS_MAX, result_block))?.unwrap_or_default(),
            is_error: fields.optional("is_error", boolean)?,
        },
        "user.tool_result" => {
            return Err(fields
                .invalid("type", "`user.tool_result` is only for sessions in a self_hosted environment"));
        }
        "user.define_outcome" => {
            return Err(Invalid::unbuilt(fields.path_of("type"), "`user.define_outcome` (outcomes)"));
        }
        "system.message" => {
            Body::SystemMessage { content: fields.required("content", list(1..=BLOCKS_MAX, text_only))? }
        }
        _ => unreachable!("tag() gives only what SENDABLE lists"),
    };
    fields.finish()?;
    Ok(body)
}

fn confirmation(fields: &mut Fields) -> Parsed<Body> {
    let tool_use_id = EventId::from_text(fields.required("tool_use_id", id_text)?);
    let result = match fields.required("result", one_of(&["allow", "deny"]))? {
        "allow" => Verdict::Allow,
        _ => Verdict::Deny,
    };
    let deny_message = fields.optional("deny_message", text(0..=DENY_MESSAGE_CHARS_MAX))?;
    if deny_message.is_some() && result == Verdict::Allow {
        return Err(fields.invalid("deny_message", "is only allowed with result `deny`"));
    }
    Ok(Body::UserToolConfirmation { tool_use_id, result, deny_message })
}

fn text_only(value: Value, path: &str) -> Parsed<Content> {
    block(value, path, &["text"])
}

fn message_block(value: Value, path: &str) -> Parsed<Content> {
    block(value, path, &["text", "image", "document"])
}

fn result_block(value: Value, path: &str) -> Parsed<Content> {
    block(value, path, &["text", "image", "document", "search_result"])
}

fn block(value: Value, path: &str, allowed: &[&'static str]) -> Parsed<Content> {
    let mut fields = Fields::new(value, path)?;
    let content = match fields.tag(allowed)? {
        "text" => Content::Text { text: fields.required("text", text(1..=usize::MAX))? },
        "image" => Content::Image {
            source: fields
                .required("source", |value, path| source(value, path, &["base64", "url", "file"]))?,
        },
        "document" => Content::Document {
            source: fields
                .required("source", |value, path| source(value, path, &["base64", "text", "url", "file"]))?,
            title: fields.optional("title", text(0..=usize::MAX))?,
            context: fields.optional("context", text(0..=usize::MAX))?,
        },
        _ => Content::SearchResult {
            source: fields.required("source", text(0..=usize::MAX))?,
            title: fields.required("title", text(0..=usize::MAX))?,
            content: fields.required("content", list(0..=BLOCKS_MAX, text_block))?,
            citations: fields.required("citations", citations)?,
        },
    };
    fields.finish()?;
    Ok(content)
}

fn text_block(value: Value, path: &str) -> Parsed<TextBlock> {
    match block(value, path, &["text"])? {
        Content::Text { text } => Ok(TextBlock { kind: TextTag::Text, text }),
        _ => unreachable!("only text is allowed"),
    }
}

fn citations(value: Value, path: &str) -> Parsed<Citations> {
    let mut fields = Fields::new(value, path)?;
    let enabled = fields.required("enabled", boolean)?;
    fields.finish()?;
    Ok(Citations { enabled })
}

fn source(value: Value, path: &str, allowed: &[&'static str]) -> Parsed<Source> {
    let mut fields = Fields::new(value, path)?;
    let source = match fields.tag(allowed)? {
        "base64" => Source::Base64 {
            media_type: fields.required("media_type", text(1..=255))?,
            data: fields.required("data", base64_text)?,
        },
        "text" => Source::Text {
            media_type: fields.required("media_type", one_of(&["text/plain"]))?.to_owned(),
            data: fields.required("data", text(0..=usize::MAX))?,
        },
        "url" => Source::Url { url: fields.required("url", text(1..=8192))? },
        _ => return Err(Invalid::unbuilt(fields.path_of("type"), "a `file` source (files)")),
    };
    fields.finish()?;
    Ok(source)
}

/// Text that could be base64. The provider decodes it; here only what cannot be is refused.
fn base64_text(value: Value, path: &str) -> Parsed<String> {
    let data = text(1..=usize::MAX)(value, path)?;
    let is_base64 =
        data.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'='));
    if is_base64 { Ok(data) } else { Err(Invalid::new(path, "must be base64")) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refusal(event: Value) -> String {
        parse_send(json!({"events": [event]})).expect_err("refused").to_string()
    }

    #[test]
    fn each_kind_that_this_server_has_is_parsed() {
        let events = json!({"events": [
            {"type": "user.message", "content": [{"type": "text", "text": "hi"}]},
            {"type": "user.interrupt"},
            {"type": "user.tool_confirmation", "tool_use_id": "sevt_1", "result": "deny", "deny_message": "no"},
            {"type": "user.custom_tool_result", "custom_tool_use_id": "sevt_2"},
            {"type": "system.message", "content": [{"type": "text", "text": "be brief"}]},
        ]});
        let kinds: Vec<_> =
            parse_send(events).expect("parses").iter().map(|body| body.kind().to_owned()).collect();
        assert_eq!(
            kinds,
            [
                "user.message",
                "user.interrupt",
                "user.tool_confirmation",
                "user.custom_tool_result",
                "system.message"
            ]
        );
    }

    #[test]
    fn refusals_name_the_field() {
        assert_eq!(refusal(json!({"type": "user.message"})), "events[0].content: is required");
        assert_eq!(
            refusal(json!({"type": "user.message", "content": []})),
            "events[0].content: must have at least 1 item(s), not 0"
        );
        assert!(
            refusal(json!({"type": "user.message", "content": [{"type": "redacted"}]}))
                .starts_with("events[0].content[0].type: must be one of")
        );
        assert_eq!(refusal(json!({"type": "user.interrupt", "now": true})), "events[0].now: unknown field");
        assert_eq!(
            refusal(
                json!({"type": "user.tool_confirmation", "tool_use_id": "a", "result": "allow", "deny_message": "x"})
            ),
            "events[0].deny_message: is only allowed with result `deny`"
        );
        assert!(refusal(json!({"type": "user.define_outcome"})).contains("not supported"));
        assert!(parse_send(json!({"events": []})).is_err());
    }

    #[test]
    fn a_new_session_starts_only_with_messages() {
        let refused =
            parse_initial(json!([{"type": "user.interrupt"}]), "initial_events").expect_err("refused");
        assert_eq!(refused.path, "initial_events[0].type");
    }
}
