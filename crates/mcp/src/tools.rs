//! The tools that a server lists, brought into a shape that every model takes.
//!
//! A model's provider refuses a whole request for one bad tool. So what would make it do that is mended or left out here.

use std::collections::HashSet;

use serde_json::{Map, Value};

use crate::limits::{DESCRIPTION_CHARS_MAX, LIST_BYTES_MAX, NAME_CHARS_MAX, SCHEMA_BYTES_MAX, TOOLS_MAX};

/// A tool of a server.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// The server's own name for it, 1 to 128 characters, there once.
    pub name: String,
    /// What the server says of it, at most 8,192 characters. A stranger's words.
    pub description: String,
    /// The schema of its input: always of an object, at most 64 KiB of JSON.
    pub input_schema: Map<String, Value>,
    /// Whether the server says that calling it changes nothing, or nothing more the second time.
    pub repeatable: bool,
}

/// Takes in the pages of a list, within its bounds.
#[derive(Default)]
pub(crate) struct List {
    tools: Vec<Tool>,
    names: HashSet<String>,
    bytes: usize,
}

impl List {
    /// Takes in one tool. `Err` says why the whole list is refused.
    pub(crate) fn add(&mut self, tool: rmcp::model::Tool) -> Result<(), String> {
        if self.names.len() >= TOOLS_MAX {
            return Err(format!("the server lists more than {TOOLS_MAX} tools"));
        }
        let name = tool.name.into_owned();
        if name.is_empty() || name.chars().count() > NAME_CHARS_MAX {
            tracing::warn!("an MCP tool is left out: its name is empty or too long");
            return Ok(());
        }
        if !self.names.insert(name.clone()) {
            tracing::warn!(tool = name, "an MCP tool is left out: the server lists it twice");
            return Ok(());
        }
        let input_schema = match schema(tool.input_schema.as_ref().clone()) {
            Ok(schema) => schema,
            Err(why) => {
                tracing::warn!(tool = name, why, "an MCP tool is left out");
                return Ok(());
            }
        };
        let description =
            tool.description.map(std::borrow::Cow::into_owned).or(tool.title).unwrap_or_default();
        let description = cut(description, DESCRIPTION_CHARS_MAX);
        self.bytes += name.len() + description.len() + size(&input_schema);
        if self.bytes > LIST_BYTES_MAX {
            return Err(format!("the server's list of tools is larger than {LIST_BYTES_MAX} bytes"));
        }
        let repeatable = tool.annotations.is_some_and(|hints| {
            hints.read_only_hint.unwrap_or(false) || hints.idempotent_hint.unwrap_or(false)
        });
        self.tools.push(Tool { name, description, input_schema, repeatable });
        Ok(())
    }

    /// All of them, in the order of their names.
    pub(crate) fn finish(mut self) -> Vec<Tool> {
        self.tools.sort_by(|a, b| a.name.cmp(&b.name));
        self.tools
    }
}

fn size(schema: &Map<String, Value>) -> usize {
    serde_json::to_vec(schema).map_or(usize::MAX, |json| json.len())
}

/// A schema as models' providers want one: of an object, without alternatives at its top, with plain names.
fn schema(mut schema: Map<String, Value>) -> Result<Map<String, Value>, &'static str> {
    if size(&schema) > SCHEMA_BYTES_MAX {
        return Err("its input schema is too large");
    }
    match schema.get("type") {
        None => drop(schema.insert("type".to_owned(), "object".into())),
        Some(Value::String(kind)) if kind == "object" => {}
        Some(_) => return Err("its input schema is not of an object"),
    }
    // The model sees one branch less strictly than the server does, and hears from the server if that matters.
    for alternatives in ["oneOf", "anyOf", "allOf"] {
        schema.remove(alternatives);
    }
    match schema.get("properties") {
        None => drop(schema.insert("properties".to_owned(), Value::Object(Map::new()))),
        Some(Value::Object(properties)) if properties.keys().all(|name| is_property(name)) => {}
        Some(_) => return Err("a property of its input has a name that models do not take"),
    }
    Ok(schema)
}

fn is_property(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    (1..=64).contains(&name.len()) && name.bytes().all(is_allowed)
}

pub(crate) fn cut(text: String, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        None => text,
        Some((end, _)) => {
            let last = text[..end].char_indices().next_back().map_or(0, |(index, _)| index);
            format!("{}…", &text[..last])
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn listed(tools: Value) -> Result<Vec<Tool>, String> {
        let tools: Vec<rmcp::model::Tool> = serde_json::from_value(tools).expect("tools");
        let mut list = List::default();
        tools.into_iter().try_for_each(|tool| list.add(tool))?;
        Ok(list.finish())
    }

    #[test]
    fn tools_come_sorted_once_and_with_schemas_that_models_take() {
        let tools = listed(json!([
            {"name": "z", "inputSchema": {"oneOf": [{}]}},
            {"name": "a", "description": "first", "inputSchema": {"type": "object"}, "annotations": {"readOnlyHint": true}},
            {"name": "a", "description": "second", "inputSchema": {"type": "object"}},
            {"name": "bad", "inputSchema": {"type": "object", "properties": {"no good": {}}}},
            {"name": "array", "inputSchema": {"type": "array"}},
            {"name": "", "inputSchema": {}},
        ]))
        .expect("a list");
        let shown: Vec<(&str, &str, bool)> =
            tools.iter().map(|tool| (&*tool.name, &*tool.description, tool.repeatable)).collect();
        assert_eq!(shown, [("a", "first", true), ("z", "", false)]);
        assert_eq!(Value::Object(tools[1].input_schema.clone()), json!({"type": "object", "properties": {}}));
    }

    #[test]
    fn a_flood_of_tools_is_refused_and_a_long_description_cut() {
        let flood: Vec<Value> =
            (0..=TOOLS_MAX).map(|number| json!({"name": format!("t{number}"), "inputSchema": {}})).collect();
        assert!(listed(flood.into()).expect_err("too many").contains("more than 1024 tools"));
        let long = json!([{"name": "t", "description": "x".repeat(9_000), "inputSchema": {}}]);
        assert_eq!(listed(long).expect("a list")[0].description.chars().count(), DESCRIPTION_CHARS_MAX);
        let large = json!([{"name": "t", "inputSchema": {"x": "x".repeat(70_000)}}]);
        assert_eq!(listed(large).expect("a list"), []);
    }
}
