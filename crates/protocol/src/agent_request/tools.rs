//! The tools of an agent: which there may be, and what each looks like once everything is filled in.

use serde_json::{Map, Value};

use super::{mcp, web};
use crate::agent::{BuiltinTool, CustomTool, PermissionPolicy, Tool, ToolConfig, ToolDefaults};
use crate::parse::{Fields, Invalid, Parsed, boolean, clipped, kind_of, list, object, one_of, text};

/// How many tools an agent may have over all its toolsets. An earlier text of the reference says 128.
const TOOLS_MAX: usize = 256;
/// How large the tools of an agent may be as JSON. Not stated by the reference. Every session keeps a copy, and a list
/// shows up to a thousand of them.
const TOOLS_BYTES_MAX: usize = 1 << 20;
pub(super) const TOOL_NAME_CHARS_MAX: usize = 128;
const PROPERTY_NAME_CHARS_MAX: usize = 64;

/// The `tools` of an agent, an override or a session's update: checked as a whole, because it is replaced as a whole.
pub fn tools(value: Value, path: &str) -> Parsed<Vec<Tool>> {
    let tools = list(0..=TOOLS_MAX, tool)(value, path)?;
    let mut names: Vec<&str> = Vec::new();
    let mut count = 0;
    let mut has_toolset = false;
    for (index, tool) in tools.iter().enumerate() {
        match tool {
            Tool::Toolset { .. } if has_toolset => {
                return Err(Invalid::new(
                    format!("{path}[{index}]"),
                    "only one `agent_toolset_20260401` is allowed",
                ));
            }
            Tool::Toolset { .. } => {
                has_toolset = true;
                count += BuiltinTool::ALL.len();
            }
            // How many tools the server has is not known here. The offer to the model has a bound of its own.
            Tool::Mcp(toolset) => {
                let name = &toolset.mcp_server_name;
                let is_earlier =
                    |tool: &Tool| matches!(tool, Tool::Mcp(earlier) if earlier.mcp_server_name == *name);
                if tools[..index].iter().any(is_earlier) {
                    let rule = format!("another toolset is already of the server `{}`", clipped(name));
                    return Err(Invalid::new(format!("{path}[{index}].mcp_server_name"), rule));
                }
            }
            Tool::Custom(tool) if names.contains(&tool.name.as_str()) => {
                let rule = format!("another tool is already called `{}`", tool.name);
                return Err(Invalid::new(format!("{path}[{index}].name"), rule));
            }
            Tool::Custom(tool) => {
                names.push(&tool.name);
                count += 1;
            }
        }
    }
    if count > TOOLS_MAX {
        let rule = format!("must have at most {TOOLS_MAX} tools over all toolsets, not {count}");
        return Err(Invalid::new(path, rule));
    }
    web::check_client_tools(&tools, path)?;
    let size_bytes = serde_json::to_vec(&tools).expect("tools are plain data").len();
    if size_bytes > TOOLS_BYTES_MAX {
        let rule = format!("must be at most {TOOLS_BYTES_MAX} bytes of JSON together, not {size_bytes}");
        return Err(Invalid::new(path, rule));
    }
    Ok(tools)
}

fn tool(value: Value, path: &str) -> Parsed<Tool> {
    let mut fields = Fields::new(value, path)?;
    let tool = match fields.tag(&["agent_toolset_20260401", "custom", "mcp_toolset"])? {
        "agent_toolset_20260401" => toolset(&mut fields)?,
        "custom" => Tool::Custom(custom_tool(&mut fields)?),
        _ => Tool::Mcp(mcp::toolset(&mut fields)?),
    };
    fields.finish()?;
    Ok(tool)
}

fn toolset(fields: &mut Fields) -> Parsed<Tool> {
    let default_config = default_config(fields, PermissionPolicy::AlwaysAllow {})?;
    let path = fields.path_of("configs");
    let configs = fields
        .optional(
            "configs",
            list(0..=BuiltinTool::ALL.len(), |value, path| tool_config(value, path, &default_config)),
        )?
        .unwrap_or_default();
    for (index, config) in configs.iter().enumerate() {
        if configs[..index].iter().any(|earlier| earlier.name == config.name) {
            let rule = format!("`{}` is configured twice", config.name.name());
            return Err(Invalid::new(format!("{path}[{index}].name"), rule));
        }
    }
    Ok(Tool::Toolset { default_config, configs })
}

/// What holds for tools without an entry of their own, in a toolset of a kind whose policy is `usual`.
pub(super) fn default_config(fields: &mut Fields, usual: PermissionPolicy) -> Parsed<ToolDefaults> {
    let given = fields.optional("default_config", |value, path| {
        let mut fields = Fields::new(value, path)?;
        let defaults = ToolDefaults {
            enabled: fields.optional("enabled", boolean)?.unwrap_or(true),
            permission_policy: fields.optional("permission_policy", permission_policy)?.unwrap_or(usual),
        };
        fields.finish()?;
        Ok(defaults)
    })?;
    Ok(given.unwrap_or(ToolDefaults { enabled: true, permission_policy: usual }))
}

fn tool_config(value: Value, path: &str, defaults: &ToolDefaults) -> Parsed<ToolConfig> {
    let mut fields = Fields::new(value, path)?;
    let names = BuiltinTool::ALL.map(BuiltinTool::name);
    let name = fields.required("name", one_of(&names))?;
    fields.optional("type", one_of(&[name]))?;
    let tool = BuiltinTool::from_name(name).expect("one_of gives only names of built-in tools");
    let enabled = fields.optional("enabled", boolean)?.unwrap_or(defaults.enabled);
    let permission_policy =
        fields.optional("permission_policy", permission_policy)?.unwrap_or(defaults.permission_policy);
    let settings = web::settings(tool, &mut fields)?;
    fields.finish()?;
    Ok(ToolConfig { kind: tool, name: tool, enabled, permission_policy, settings })
}

pub(super) fn permission_policy(value: Value, path: &str) -> Parsed<PermissionPolicy> {
    let mut fields = Fields::new(value, path)?;
    let policy = match fields.tag(&["always_allow", "always_ask", "auto"])? {
        "always_allow" => PermissionPolicy::AlwaysAllow {},
        "always_ask" => PermissionPolicy::AlwaysAsk {},
        _ => PermissionPolicy::Auto {},
    };
    fields.finish()?;
    Ok(policy)
}

fn custom_tool(fields: &mut Fields) -> Parsed<CustomTool> {
    Ok(CustomTool {
        name: fields.required("name", tool_name)?,
        description: fields.required("description", text(1..=usize::MAX))?,
        input_schema: fields.required("input_schema", input_schema)?,
    })
}

fn tool_name(value: Value, path: &str) -> Parsed<String> {
    let name = text(1..=TOOL_NAME_CHARS_MAX)(value, path)?;
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')) {
        return Err(Invalid::new(path, "must be letters, digits, `_` and `-` only"));
    }
    if BuiltinTool::from_name(&name).is_some() {
        return Err(Invalid::new(path, format!("`{name}` is the name of a built-in tool")));
    }
    if name.starts_with("mcp__") {
        return Err(Invalid::new(path, "must not start with `mcp__`"));
    }
    Ok(name)
}

/// A JSON Schema of an object. All its keys are kept and shown as they came.
fn input_schema(value: Value, path: &str) -> Parsed<Map<String, Value>> {
    if has_reference(&value) {
        return Err(Invalid::new(path, "must not contain `$ref`"));
    }
    let schema = object(value, path)?;
    match schema.get("type").and_then(Value::as_str) {
        Some("object") => {}
        _ => return Err(Invalid::new(format!("{path}.type"), "must be `object`")),
    }
    for name in ["oneOf", "anyOf", "allOf"] {
        if schema.contains_key(name) {
            return Err(Invalid::new(
                format!("{path}.{name}"),
                "is not allowed at the top of an input schema",
            ));
        }
    }
    match schema.get("properties") {
        None | Some(Value::Null) => {}
        Some(Value::Object(properties)) => {
            properties.keys().try_for_each(|name| property_name(name, path))?
        }
        Some(other) => {
            let rule = format!("must be an object, not {}", kind_of(other));
            return Err(Invalid::new(format!("{path}.properties"), rule));
        }
    }
    match schema.get("required") {
        None | Some(Value::Null) => {}
        Some(Value::Array(names)) if names.iter().all(Value::is_string) => {}
        Some(_) => return Err(Invalid::new(format!("{path}.required"), "must be an array of strings")),
    }
    Ok(schema)
}

fn property_name(name: &str, path: &str) -> Parsed<()> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    if (1..=PROPERTY_NAME_CHARS_MAX).contains(&name.len()) && name.bytes().all(is_allowed) {
        return Ok(());
    }
    let rule = format!("names must be 1 to {PROPERTY_NAME_CHARS_MAX} letters, digits, `_`, `.` and `-`");
    Err(Invalid::new(format!("{path}.properties.{}", clipped(name)), rule))
}

/// The recursion is bounded by the JSON reader, which refuses deep nesting.
fn has_reference(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.contains_key("$ref") || map.values().any(has_reference),
        Value::Array(items) => items.iter().any(has_reference),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}
