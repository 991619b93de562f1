//! What the providers refuse. Each rule answers 400 and names the place, as they do.
//!
//! The rules are those that a wrong history breaks in practice: roles, the pairing of tool calls and results, what
//! must come back with thinking, and the shape of tools. It is no full schema.

use std::collections::HashSet;

use serde_json::Value;

use super::anthropic::signature;
use super::state::State;

type Verdict = Result<(), String>;

/// Checks a request to the Messages API.
pub(super) fn anthropic(state: &State, model: &str, body: &Value) -> Verdict {
    if body["max_tokens"].as_u64().is_none_or(|tokens| tokens == 0) {
        return Err("max_tokens: Field required".into());
    }
    if let Some(budget) = body["thinking"].get("budget_tokens") {
        let budget = budget.as_u64().unwrap_or_default();
        if budget < 1024 || budget >= body["max_tokens"].as_u64().unwrap_or_default() {
            return Err("thinking.budget_tokens: must be at least 1024 and less than max_tokens".into());
        }
    }
    if count_breakpoints(body) > 4 {
        return Err("a maximum of 4 blocks with cache_control may be provided".into());
    }
    anthropic_system(&body["system"])?;
    anthropic_tools(&body["tools"])?;
    anthropic_messages(state, model, non_empty_array(&body["messages"], "messages")?)
}

/// Checks a request for a chat completion.
pub(super) fn openai(body: &Value) -> Verdict {
    openai_tools(&body["tools"])?;
    let messages = non_empty_array(&body["messages"], "messages")?;
    // The calls of the last assistant message that no tool message has answered yet.
    let mut open_calls: Vec<&str> = Vec::new();
    let mut in_results = false;
    for (index, message) in messages.iter().enumerate() {
        let place = format!("messages[{index}]");
        let role = message["role"].as_str().unwrap_or_default();
        if role != "tool" && !open_calls.is_empty() {
            return Err(format!(
                "An assistant message with 'tool_calls' must be followed by tool messages responding to each \
                 'tool_call_id'. The following tool_call_ids did not have response messages: {}",
                open_calls.join(", ")
            ));
        }
        match role {
            "system" | "developer" | "user" => openai_content(&message["content"], &place, role == "user")?,
            "assistant" => {
                open_calls = openai_calls(&message["tool_calls"], &place)?;
                in_results = !open_calls.is_empty();
                if !message["content"].is_null() || open_calls.is_empty() {
                    openai_content(&message["content"], &place, false)?;
                }
                continue;
            }
            "tool" => {
                openai_content(&message["content"], &place, false)?;
                let id = message["tool_call_id"].as_str().unwrap_or_default();
                let Some(open) = open_calls.iter().position(|call| *call == id).filter(|_| in_results) else {
                    return Err(format!(
                        "{place}: messages with role 'tool' must be a response to a preceding message with 'tool_calls' ({id})"
                    ));
                };
                open_calls.remove(open);
                continue;
            }
            other => return Err(format!("{place}.role: unknown role '{other}'")),
        }
        in_results = false;
    }
    if open_calls.is_empty() {
        Ok(())
    } else {
        Err(format!("tool_calls without a response: {}", open_calls.join(", ")))
    }
}

fn anthropic_messages(state: &State, model: &str, messages: &[Value]) -> Verdict {
    if messages[0]["role"] != "user" {
        return Err("messages.0: first message must use the user role".into());
    }
    let mut call_ids_seen = HashSet::new();
    // Consecutive messages of one role count as one turn, as the service combines them.
    let mut index = 0;
    let mut open_calls: Vec<String> = Vec::new();
    while index < messages.len() {
        let role = messages[index]["role"].as_str().unwrap_or_default();
        let place = format!("messages.{index}");
        let mut turn: Vec<Value> = Vec::new();
        let first = index;
        while index < messages.len() && messages[index]["role"] == role {
            turn.extend(blocks(
                &messages[index]["content"],
                &format!("messages.{index}"),
                index + 1 == messages.len() && role == "assistant",
            )?);
            index += 1;
        }
        match role {
            "user" => {
                check_results(&turn, &open_calls, &place)?;
                open_calls.clear();
            }
            "assistant" => {
                unanswered(&open_calls, &place)?;
                open_calls = check_answer(state, model, &turn, &place, &mut call_ids_seen)?;
            }
            "system" => {
                unanswered(&open_calls, &place)?;
                if first == 0 || messages[first - 1]["role"] != "user" {
                    return Err(format!("{place}: a system message must directly follow a user message"));
                }
                if index < messages.len() && messages[index]["role"] != "assistant" {
                    return Err(format!(
                        "{place}: a system message must be last or be followed by an assistant message"
                    ));
                }
                if turn.iter().any(|block| block["type"] != "text") {
                    return Err(format!("{place}: system messages hold text only"));
                }
            }
            other => {
                return Err(format!(
                    "{place}.role: Input should be 'user', 'assistant' or 'system', not '{other}'"
                ));
            }
        }
    }
    unanswered(&open_calls, "messages")
}

fn unanswered(open_calls: &[String], place: &str) -> Verdict {
    if open_calls.is_empty() {
        return Ok(());
    }
    Err(format!(
        "{place}: `tool_use` ids were found without `tool_result` blocks immediately after: {}",
        open_calls.join(", ")
    ))
}

fn blocks(content: &Value, place: &str, may_be_empty: bool) -> Result<Vec<Value>, String> {
    let blocks = match content {
        Value::String(text) => vec![serde_json::json!({"type": "text", "text": text})],
        Value::Array(blocks) => blocks.clone(),
        _ => return Err(format!("{place}.content: Field required")),
    };
    if blocks.is_empty() && !may_be_empty {
        return Err(format!(
            "{place}: all messages must have non-empty content except for the optional final assistant message"
        ));
    }
    for block in &blocks {
        if block["type"] == "text" && block["text"].as_str().is_none_or(|text| text.trim().is_empty()) {
            return Err(format!("{place}: text content blocks must contain non-whitespace text"));
        }
    }
    Ok(blocks)
}

fn check_results(turn: &[Value], open_calls: &[String], place: &str) -> Verdict {
    let mut answered = HashSet::new();
    let mut after_other = false;
    for block in turn {
        match block["type"].as_str().unwrap_or_default() {
            "tool_result" => {
                let id = block["tool_use_id"].as_str().unwrap_or_default();
                if after_other {
                    return Err(format!("{place}: `tool_result` blocks must come first in their message"));
                }
                if !open_calls.iter().any(|call| call == id) {
                    return Err(format!(
                        "{place}: unexpected `tool_use_id` found in `tool_result` blocks: {id}. Each `tool_result` block \
                         must have a corresponding `tool_use` block in the previous message"
                    ));
                }
                check_error(block, place)?;
                if !answered.insert(id.to_owned()) {
                    return Err(format!(
                        "{place}: each tool_use must have a single result. Found multiple for {id}"
                    ));
                }
            }
            "text" | "image" | "document" | "search_result" => after_other = true,
            other => return Err(format!("{place}: '{other}' blocks do not belong in a user message")),
        }
    }
    let open: Vec<String> = open_calls.iter().filter(|call| !answered.contains(*call)).cloned().collect();
    unanswered(&open, place)
}

/// A result that is an error holds text, and nothing but text.
fn check_error(result: &Value, place: &str) -> Verdict {
    if result["is_error"] != true {
        return Ok(());
    }
    match &result["content"] {
        Value::String(text) if !text.is_empty() => Ok(()),
        Value::Array(blocks) if !blocks.is_empty() => {
            if blocks.iter().all(|block| block["type"] == "text") {
                return Ok(());
            }
            Err(format!("{place}: all content must be type \"text\" if \"is_error\" is true"))
        }
        _ => Err(format!("{place}: content cannot be empty if `is_error` is true")),
    }
}

fn check_answer(
    state: &State,
    model: &str,
    turn: &[Value],
    place: &str,
    call_ids_seen: &mut HashSet<String>,
) -> Result<Vec<String>, String> {
    let mut calls = Vec::new();
    let mut thinking = Vec::new();
    for block in turn {
        match block["type"].as_str().unwrap_or_default() {
            "text" => {}
            "thinking" => {
                let text = block["thinking"].as_str().unwrap_or_default();
                if block["signature"] != signature(text) {
                    return Err(format!("{place}: Invalid `signature` in `thinking` block"));
                }
                thinking.push(text.to_owned());
            }
            "redacted_thinking" if block["data"].is_string() => {}
            "tool_use" => {
                let id = block["id"].as_str().unwrap_or_default();
                if id.is_empty()
                    || !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
                {
                    return Err(format!(
                        "{place}: tool_use.id: String should match pattern '^[a-zA-Z0-9_-]+$'"
                    ));
                }
                if !call_ids_seen.insert(id.to_owned()) {
                    return Err(format!("{place}: `tool_use` ids must be unique: {id}"));
                }
                if !block["input"].is_object() {
                    return Err(format!("{place}: tool_use.input: Input should be a valid dictionary"));
                }
                calls.push(id.to_owned());
            }
            other => return Err(format!("{place}: '{other}' blocks do not belong in an assistant message")),
        }
    }
    for call in &calls {
        if let Some(missing) = state.thinking_of(model, call).iter().find(|text| !thinking.contains(text)) {
            return Err(format!("{place}: the thinking that came with {call} is missing: {missing:?}"));
        }
    }
    Ok(calls)
}

fn anthropic_system(system: &Value) -> Verdict {
    match system {
        Value::Null | Value::String(_) => Ok(()),
        Value::Array(blocks) => {
            let empty = |block: &&Value| block["text"].as_str().is_none_or(|text| text.trim().is_empty());
            if blocks.iter().any(|block| empty(&block)) {
                return Err("system: text content blocks must be non-empty".into());
            }
            Ok(())
        }
        _ => Err("system: Input should be a string or a list of text blocks".into()),
    }
}

fn anthropic_tools(tools: &Value) -> Verdict {
    let mut names = HashSet::new();
    for (index, tool) in tools.as_array().into_iter().flatten().enumerate() {
        tool_name(&tool["name"], &format!("tools.{index}.name"), &mut names)?;
        if tool["input_schema"]["type"] != "object" {
            return Err(format!("tools.{index}.input_schema.type: Field required"));
        }
    }
    Ok(())
}

fn openai_tools(tools: &Value) -> Verdict {
    let mut names = HashSet::new();
    for (index, tool) in tools.as_array().into_iter().flatten().enumerate() {
        if tool["type"] != "function" {
            return Err(format!("tools[{index}].type: must be 'function'"));
        }
        tool_name(&tool["function"]["name"], &format!("tools[{index}].function.name"), &mut names)?;
        if tool["function"]["parameters"]["type"] != "object" {
            return Err(format!("tools[{index}].function.parameters: schema must be of type 'object'"));
        }
    }
    Ok(())
}

fn tool_name<'a>(name: &'a Value, place: &str, names: &mut HashSet<&'a str>) -> Verdict {
    const NAME_CHARS_MAX: usize = 128;
    let name = name.as_str().unwrap_or_default();
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if name.is_empty() || name.len() > NAME_CHARS_MAX || !name.bytes().all(legal) {
        return Err(format!("{place}: String should match pattern '^[a-zA-Z0-9_-]{{1,128}}$'"));
    }
    if !names.insert(name) {
        return Err(format!("{place}: tool names must be unique: {name}"));
    }
    Ok(())
}

fn openai_content(content: &Value, place: &str, images_allowed: bool) -> Verdict {
    let parts = match content {
        Value::String(_) => return Ok(()),
        Value::Array(parts) if !parts.is_empty() => parts,
        _ => return Err(format!("{place}.content: expected a string or an array of parts")),
    };
    for part in parts {
        match part["type"].as_str().unwrap_or_default() {
            "text" if part["text"].is_string() => {}
            "image_url" if images_allowed && part["image_url"]["url"].is_string() => {}
            "file" if images_allowed && part["file"].is_object() => {}
            other => return Err(format!("{place}.content: a '{other}' part is not allowed here")),
        }
    }
    Ok(())
}

fn openai_calls<'a>(calls: &'a Value, place: &str) -> Result<Vec<&'a str>, String> {
    let mut ids = Vec::new();
    for call in calls.as_array().into_iter().flatten() {
        let function = &call["function"];
        let (Some(id), Some(_), Some(_)) =
            (call["id"].as_str(), function["name"].as_str(), function["arguments"].as_str())
        else {
            return Err(format!("{place}.tool_calls: id, function.name and function.arguments are required"));
        };
        if call["type"] != "function" {
            return Err(format!("{place}.tool_calls: type must be 'function'"));
        }
        ids.push(id);
    }
    Ok(ids)
}

fn non_empty_array<'a>(value: &'a Value, place: &str) -> Result<&'a [Value], String> {
    match value.as_array() {
        Some(items) if !items.is_empty() => Ok(items),
        Some(_) => Err(format!("{place}: at least one message is required")),
        None => Err(format!("{place}: Field required")),
    }
}

fn count_breakpoints(value: &Value) -> usize {
    match value {
        Value::Object(fields) => {
            usize::from(fields.get("cache_control").is_some_and(Value::is_object))
                + fields
                    .iter()
                    .filter(|(name, _)| *name != "input_schema" && *name != "input")
                    .map(|(_, value)| count_breakpoints(value))
                    .sum::<usize>()
        }
        Value::Array(items) => items.iter().map(count_breakpoints).sum(),
        _ => 0,
    }
}
