//! The tools that the model is offered, in the model's words. What the built-in ones do is in crate `tools`.

use std::time::Duration;

use protocol::agent::{AgentSpec, BuiltinTool, PermissionPolicy, Tool};
use protocol::environment::{EnvironmentConfig, Networking};
use protocol::resource::{Repository, Resource};
use serde_json::{Value, json};

use crate::mcp_servers::Offer;
use crate::model::ToolSpec;

/// What an agent with built-in tools is told of the place they work in.
pub(crate) fn place(environment: &EnvironmentConfig, has_mcp_servers: bool) -> String {
    let network = match environment {
        EnvironmentConfig::Cloud { networking: Networking::Unrestricted {}, packages: _ } => {
            "It reaches the public internet over HTTP and HTTPS, through a proxy that is set up for the usual programs."
                .to_owned()
        }
        EnvironmentConfig::Cloud {
            networking: Networking::Limited { allowed_hosts, allow_mcp_servers, allow_package_managers },
            packages: _,
        } => reachable(allowed_hosts, *allow_mcp_servers && has_mcp_servers, *allow_package_managers),
        EnvironmentConfig::SelfHosted {} => NO_NETWORK.to_owned(),
    };
    format!(
        "Your tools run in a private Linux sandbox. {network} The working directory is /workspace. Files that the user is \
         to receive go to /mnt/session/outputs/; everything else is lost when the sandbox ends."
    )
}

/// What it is told of the repositories that are there. The same for the whole life of a session.
pub(crate) fn repositories(resources: &[Resource]) -> String {
    let named = resources.iter().filter_map(Resource::repository).map(|repository| {
        let Repository { url, mount_path, .. } = repository;
        format!("\n- {mount_path}: {url}")
    });
    let named: String = named.collect();
    match named.is_empty() {
        true => String::new(),
        false => format!(
            "\n\nThese Git repositories are checked out, unless fetching them failed; fetch, pull and push work with their \
             remote `origin` as it is set up, without a password:{named}"
        ),
    }
}

const NO_NETWORK: &str = "It has no network access.";
/// More hosts than this are not named: the list can be long, and the proxy says what is not allowed.
const HOSTS_NAMED_MAX: usize = 50;

fn reachable(allowed_hosts: &[String], allow_mcp_servers: bool, allow_package_managers: bool) -> String {
    let mut reachable: Vec<&str> = allowed_hosts.iter().take(HOSTS_NAMED_MAX).map(String::as_str).collect();
    if allowed_hosts.len() > HOSTS_NAMED_MAX {
        reachable.push("and more");
    }
    if allow_mcp_servers {
        reachable.push("the hosts of your MCP servers");
    }
    if allow_package_managers {
        reachable.push("the public package registries");
    }
    match reachable.as_slice() {
        [] => NO_NETWORK.to_owned(),
        hosts => format!(
            "Over HTTP and HTTPS, through a proxy that is set up for the usual programs, it reaches only: {}.",
            hosts.join(", ")
        ),
    }
}

/// The longest that one bash call may take, whatever it asks for. Longer work belongs in a background job.
const BASH_TIMEOUT: Duration = Duration::from_secs(600);
/// The longest that a call of a file tool may take (the official runner's limit).
const FILE_TOOL_TIMEOUT: Duration = Duration::from_secs(150);

/// How long a call of this tool may take.
pub(crate) fn timeout_of(name: &str) -> Duration {
    match BuiltinTool::from_name(name) {
        Some(BuiltinTool::Bash) => BASH_TIMEOUT,
        _ => FILE_TOOL_TIMEOUT,
    }
}

/// Which of the web tools this server has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct WebTools {
    pub(crate) has_fetch: bool,
    pub(crate) has_search: bool,
}

/// The policy of a tool that is enabled and that this server has.
pub(crate) fn policy_of(spec: &AgentSpec, tool: BuiltinTool, web: WebTools) -> Option<PermissionPolicy> {
    let is_there = match tool {
        BuiltinTool::WebFetch => web.has_fetch,
        BuiltinTool::WebSearch => web.has_search,
        BuiltinTool::Bash
        | BuiltinTool::Read
        | BuiltinTool::Write
        | BuiltinTool::Edit
        | BuiltinTool::Glob
        | BuiltinTool::Grep => true,
    };
    spec.policy_of(tool).filter(|_| is_there)
}

/// Whether the agent has any tool that works in a sandbox.
pub(crate) fn uses_sandbox(spec: &AgentSpec) -> bool {
    BuiltinTool::ALL.into_iter().any(|tool| !tool.is_web() && spec.policy_of(tool).is_some())
}

/// The tools of an agent: the built-in ones that are enabled, then its own, then those of its MCP servers, each in a fixed
/// order.
pub(crate) fn specs(spec: &AgentSpec, web: WebTools, offer: &Offer) -> Vec<ToolSpec> {
    let builtin =
        BuiltinTool::ALL.into_iter().filter(|tool| policy_of(spec, *tool, web).is_some()).map(builtin_spec);
    let custom = spec.tools.iter().filter_map(|entry| match entry {
        Tool::Custom(tool) => Some(ToolSpec {
            name: tool.name.clone(),
            description: tool.description.clone(),
            input_schema: Value::Object(tool.input_schema.clone()),
        }),
        Tool::Toolset { .. } | Tool::Mcp(_) => None,
    });
    builtin.chain(custom).chain(offer.specs().iter().cloned()).collect()
}

fn builtin_spec(tool: BuiltinTool) -> ToolSpec {
    let (description, properties, required): (&str, Value, &[&str]) = match tool {
        BuiltinTool::Bash => (
            "Runs a command in a persistent bash shell: the working directory, variables and background jobs last \
             from call to call. Standard output and error come back together; only the last 100 KiB are kept.",
            json!({
                "command": {"type": "string", "description": "The command to run."},
                "timeout_ms": {"type": "integer", "description": "Kill the command and the shell after this many milliseconds (default 120000, at most 600000)."},
                "restart": {"type": "boolean", "description": "Start a fresh shell instead of running a command."},
            }),
            &[],
        ),
        BuiltinTool::Read => (
            "Reads a file: text as it is, images and PDFs as such.",
            json!({
                "file_path": {"type": "string", "description": "The file, absolute or relative to the working directory."},
                "view_range": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2, "description": "First and last line, from 1; a last line of -1 means the end. Needed for files over 256 KiB."},
            }),
            &["file_path"],
        ),
        BuiltinTool::Write => (
            "Writes a file, replacing what was there; makes missing folders.",
            json!({
                "file_path": {"type": "string", "description": "The file, absolute or relative to the working directory."},
                "content": {"type": "string", "description": "The whole new content."},
            }),
            &["file_path", "content"],
        ),
        BuiltinTool::Edit => (
            "Replaces text in a file. The old text must occur exactly once, unless all occurrences are to be replaced.",
            json!({
                "file_path": {"type": "string", "description": "The file, absolute or relative to the working directory."},
                "old_string": {"type": "string", "description": "The text to replace, exactly as in the file."},
                "new_string": {"type": "string", "description": "The text to put there."},
                "replace_all": {"type": "boolean", "description": "Replace every occurrence."},
            }),
            &["file_path", "old_string", "new_string"],
        ),
        BuiltinTool::Glob => (
            "Finds files by name, newest first, at most 200.",
            json!({
                "pattern": {"type": "string", "description": "A glob such as **/*.rs."},
                "path": {"type": "string", "description": "Where to look; the working directory if absent."},
            }),
            &["pattern"],
        ),
        BuiltinTool::Grep => (
            "Finds lines by regular expression and gives them as path:line:text.",
            json!({
                "pattern": {"type": "string", "description": "A regular expression as ripgrep understands it."},
                "path": {"type": "string", "description": "Where to look; the working directory if absent."},
            }),
            &["pattern"],
        ),
        BuiltinTool::WebFetch => (
            "Fetches a web page and gives its text as Markdown; text files as they are, PDFs as such. Only URLs that \
             stand in a user's message, in a custom tool's result or in an earlier web_search or web_fetch result can \
             be fetched. Pages that need scripts or a login are not shown.",
            json!({
                "url": {"type": "string", "description": "The whole URL, with http:// or https://."},
            }),
            &["url"],
        ),
        BuiltinTool::WebSearch => (
            "Searches the web and gives up to ten results, each with its URL, title and an extract.",
            json!({
                "query": {"type": "string", "description": "What to search for, at most 400 characters."},
            }),
            &["query"],
        ),
    };
    ToolSpec {
        name: tool.name().to_owned(),
        description: description.to_owned(),
        input_schema: json!({"type": "object", "properties": properties, "required": required}),
    }
}
