use serde_json::{Map, json};

use super::*;
use crate::agent::{BuiltinTool, PermissionPolicy};
use crate::web::FetchSettings;

fn at(micros: i64) -> Timestamp {
    Timestamp::from_micros(micros)
}

fn agent(body: Value) -> Agent {
    AgentCreate::parse(body).expect("parses").into_agent(AgentId::from_text("agent_1"), at(1))
}

fn refusal(body: Value) -> String {
    AgentCreate::parse(body).expect_err("refused").to_string()
}

fn with_tools(tools: Value) -> Value {
    json!({"name": "a", "model": "m", "tools": tools})
}

fn updated(current: &Agent, body: Value) -> Parsed<Option<Agent>> {
    AgentUpdate::parse(body)?.apply(current, at(2))
}

#[test]
fn a_new_agent_shows_every_key_with_its_defaults() {
    let shown = serde_json::to_value(agent(json!({"name": "a", "model": "m"}))).expect("writes");
    assert_eq!(
        shown,
        json!({
            "type": "agent", "id": "agent_1", "version": 1, "name": "a", "description": null,
            "model": {"id": "m", "effort": {"type": "high"}, "speed": "standard", "inference_geo": null},
            "system": null, "tools": [], "mcp_servers": [], "skills": [], "multiagent": null,
            "execution_identity": {"type": "service_account"}, "metadata": {},
            "created_at": "1970-01-01T00:00:00.000001Z", "updated_at": "1970-01-01T00:00:00.000001Z",
            "archived_at": null,
        })
    );
}

#[test]
fn tools_are_shown_resolved() {
    let tools = json!([
        {"type": "agent_toolset_20260401", "default_config": {"permission_policy": {"type": "always_ask"}},
         "configs": [{"name": "bash", "enabled": false}, {"name": "web_fetch", "enabled": false, "type": "web_fetch"}]},
        {"type": "custom", "name": "weather", "description": "d",
         "input_schema": {"type": "object", "properties": {"a.b-c_1": {}}, "additionalProperties": false, "title": "T"}},
    ]);
    let shown = serde_json::to_value(agent(with_tools(tools)).spec.tools).expect("writes");
    assert_eq!(
        shown,
        json!([
            {"type": "agent_toolset_20260401",
             "default_config": {"enabled": true, "permission_policy": {"type": "always_ask"}},
             "configs": [
                {"type": "bash", "name": "bash", "enabled": false, "permission_policy": {"type": "always_ask"}},
                {"type": "web_fetch", "name": "web_fetch", "enabled": false, "permission_policy": {"type": "always_ask"},
                 "allowed_domains": null, "blocked_domains": null, "max_content_tokens": null, "url_sources": null},
             ]},
            {"type": "custom", "name": "weather", "description": "d",
             "input_schema": {"type": "object", "properties": {"a.b-c_1": {}}, "additionalProperties": false, "title": "T"}},
        ])
    );
    let again = AgentCreate::parse(with_tools(shown.clone())).expect("what is shown can be sent back");
    assert_eq!(serde_json::to_value(again.spec.tools).expect("writes"), shown);
}

#[test]
fn effort_is_a_string_or_an_object() {
    for effort in [json!("max"), json!({"type": "max"})] {
        let agent = agent(json!({"name": "a", "model": {"id": "m", "effort": effort, "speed": "fast"}}));
        assert_eq!(agent.spec.model.effort.level, EffortLevel::Max);
        assert_eq!(agent.spec.model.speed, Speed::Fast);
    }
}

#[test]
fn a_bare_toolset_enables_all_tools() {
    let agent = agent(with_tools(json!([{"type": "agent_toolset_20260401"}])));
    assert_eq!(agent.spec.policy_of(BuiltinTool::WebFetch), Some(PermissionPolicy::AlwaysAllow {}));
    assert_eq!(agent.spec.fetch_settings(), FetchSettings::default());
    assert_eq!(agent.spec.policy_of(BuiltinTool::Bash), Some(PermissionPolicy::AlwaysAllow {}));
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    for (body, path) in [
        (json!({"skills": [{"type": "custom", "skill_id": "s"}]}), "skills"),
        (json!({"multiagent": {"type": "coordinator", "agents": []}}), "multiagent"),
        (json!({"execution_identity": {"type": "aws_role", "role_arn": "r"}}), "execution_identity.type"),
    ] {
        let mut whole = json!({"name": "a", "model": "m"});
        whole.as_object_mut().expect("object").extend(body.as_object().expect("object").clone());
        let refusal = AgentCreate::parse(whole).expect_err("refused");
        assert_eq!(refusal.path, path);
        assert!(refusal.rule.contains("not supported by this server"), "{refusal}");
    }
}

fn with_mcp(servers: Value, tools: Value) -> Value {
    json!({"name": "a", "model": "m", "mcp_servers": servers, "tools": tools})
}

fn server(name: &str) -> Value {
    json!({"type": "url", "name": name, "url": format!("https://{name}.example/mcp")})
}

#[test]
fn mcp_servers_and_their_toolsets_are_shown_with_everything_filled_in() {
    let toolset = json!({"type": "mcp_toolset", "mcp_server_name": "linear", "configs": [
        {"name": "search", "permission_policy": {"type": "always_allow"}}, {"name": "drop", "enabled": false}]});
    let agent = agent(with_mcp(json!([server("linear")]), json!([toolset])));
    assert_eq!(
        serde_json::to_value(&agent.spec.mcp_servers).expect("writes"),
        json!([{"type": "url", "name": "linear", "url": "https://linear.example/mcp"}])
    );
    let ask = json!({"type": "always_ask"});
    let shown = serde_json::to_value(&agent.spec.tools).expect("writes");
    assert_eq!(
        shown,
        json!([{"type": "mcp_toolset", "mcp_server_name": "linear",
                "default_config": {"enabled": true, "permission_policy": ask}, "configs": [
            {"name": "search", "enabled": true, "permission_policy": {"type": "always_allow"}},
            {"name": "drop", "enabled": false, "permission_policy": ask}]}])
    );
    let toolset = agent.spec.mcp_toolset("linear").expect("it has one");
    assert_eq!(toolset.policy_of("search"), Some(PermissionPolicy::AlwaysAllow {}));
    assert_eq!(toolset.policy_of("drop"), None);
    assert_eq!(toolset.policy_of("whatever"), Some(PermissionPolicy::AlwaysAsk {}));
    let again =
        AgentCreate::parse(with_mcp(json!([server("linear")]), shown.clone())).expect("can be sent back");
    assert_eq!(serde_json::to_value(again.spec.tools).expect("writes"), shown);
}

#[test]
fn mcp_servers_and_toolsets_come_in_pairs() {
    let toolset = |name: &str| json!({"type": "mcp_toolset", "mcp_server_name": name});
    for (body, path) in [
        (with_mcp(json!([server("a")]), json!([])), "mcp_servers[0]"),
        (with_mcp(json!([]), json!([toolset("a")])), "tools[0].mcp_server_name"),
        (with_mcp(json!([server("a"), server("a")]), json!([toolset("a")])), "mcp_servers[1].name"),
        (with_mcp(json!([server("a")]), json!([toolset("a"), toolset("a")])), "tools[1].mcp_server_name"),
    ] {
        assert_eq!(AgentCreate::parse(body).expect_err("refused").path, path);
    }
    let current = agent(with_mcp(json!([server("a")]), json!([toolset("a")])));
    let update =
        |body: Value| AgentUpdate::parse(body).expect("parses").apply(&current, Timestamp::from_micros(1));
    assert_eq!(update(json!({"tools": []})).expect_err("a server is left").path, "mcp_servers[0]");
    assert_eq!(
        update(json!({"mcp_servers": []})).expect_err("a toolset is left").path,
        "tools[0].mcp_server_name"
    );
    let cleared = update(json!({"mcp_servers": null, "tools": null})).expect("both go").expect("a change");
    assert!(cleared.spec.mcp_servers.is_empty());
}

#[test]
fn the_address_of_an_mcp_server_holds_no_secret_and_is_of_the_web() {
    let long = format!("https://x/{}", "y".repeat(2_048));
    for url in ["", "x", "ftp://x/y", "https://user:pass@x/", "https://x/#part", "https://", long.as_str()] {
        let body = with_mcp(json!([{"type": "url", "name": "n", "url": url}]), json!([]));
        assert_eq!(AgentCreate::parse(body).expect_err("refused").path, "mcp_servers[0].url", "{url}");
    }
    let many: Vec<Value> = (0..21).map(|number| server(&format!("s{number}"))).collect();
    assert_eq!(
        AgentCreate::parse(with_mcp(many.into(), json!([]))).expect_err("refused").path,
        "mcp_servers"
    );
}

#[test]
fn refusals_name_the_field_and_the_rule() {
    for (body, message) in [
        (json!([]), "request body: must be an object, not an array"),
        (json!({"model": "m"}), "name: is required"),
        (json!({"name": "a"}), "model: is required"),
        (json!({"name": "", "model": "m"}), "name: must be 1 to 256 characters, not 0"),
        (json!({"name": "a", "model": ""}), "model: must be 1 to 256 characters, not 0"),
        (json!({"name": "a", "model": 7}), "model: must be a model's name or an object, not a number"),
        (json!({"name": "a", "model": {"effort": "low"}}), "model.id: is required"),
        (json!({"name": "a", "model": "m", "colour": 1}), "colour: unknown field"),
        (json!({"name": "a", "model": "m", "tools": {}}), "tools: must be an array, not an object"),
        (
            with_tools(json!([{"type": "agent_toolset_20260401"}, {"type": "agent_toolset_20260401"}])),
            "tools[1]: only one `agent_toolset_20260401` is allowed",
        ),
        (
            with_tools(
                json!([{"type": "agent_toolset_20260401", "configs": [{"name": "bash"}, {"name": "bash"}]}]),
            ),
            "tools[0].configs[1].name: `bash` is configured twice",
        ),
    ] {
        assert_eq!(refusal(body), message);
    }
    assert!(
        refusal(json!({"name": "a", "model": {"id": "m", "effort": "huge"}}))
            .starts_with("model.effort: must be one of")
    );
    assert!(
        refusal(json!({"name": "a", "model": {"id": "m", "inference_geo": "mars"}}))
            .starts_with("model.inference_geo: ")
    );
}

fn with_web(tool: &str, settings: Value) -> Value {
    let mut config = json!({"name": tool});
    config.as_object_mut().expect("object").extend(settings.as_object().expect("object").clone());
    let weather =
        json!({"type": "custom", "name": "weather", "description": "d", "input_schema": {"type": "object"}});
    with_tools(json!([{"type": "agent_toolset_20260401", "configs": [config]}, weather]))
}

/// What is shown of a web tool's settings.
fn shown_web(tool: &str, settings: Value) -> Value {
    let spec = agent(with_web(tool, settings)).spec;
    let again: AgentSpec =
        serde_json::from_value(serde_json::to_value(&spec).expect("writes")).expect("reads");
    assert_eq!(again, spec, "it is stored as it is shown");
    let mut config = serde_json::to_value(&spec.tools).expect("writes")[0]["configs"][0].take();
    for name in ["type", "name", "enabled", "permission_policy"] {
        assert!(config.as_object_mut().expect("object").remove(name).is_some(), "{name}");
    }
    config
}

#[test]
fn settings_of_the_web_tools_are_shown_in_full() {
    let tools = json!([{"type": "tool_reference", "name": "weather"}]);
    assert_eq!(
        shown_web(
            "web_fetch",
            json!({"allowed_domains": ["Docs.Example.com/"], "max_content_tokens": 5000,
                   "url_sources": {"user_input": "none", "client_tool_results": {"type": "only", "tools": tools}}})
        ),
        json!({"allowed_domains": ["Docs.Example.com/"], "blocked_domains": null, "max_content_tokens": 5000,
               "url_sources": {"user_input": {"type": "none"},
                               "client_tool_results": {"type": "only", "tools": tools},
                               "server_tool_results": null}})
    );
    assert_eq!(
        shown_web(
            "web_search",
            json!({"blocked_domains": ["example.com/ads"],
                                       "user_location": {"type": "approximate", "country": "DE", "timezone": "Europe/Berlin"}})
        ),
        json!({"allowed_domains": null, "blocked_domains": ["example.com/ads"],
               "user_location": {"type": "approximate", "city": null, "region": null, "country": "DE",
                                 "timezone": "Europe/Berlin"}})
    );
    let nothing = json!({"allowed_domains": null, "blocked_domains": null, "user_location": null});
    assert_eq!(shown_web("web_search", json!({})), nothing);
    assert_eq!(shown_web("web_search", nothing.clone()), nothing);
}

#[test]
fn settings_of_the_web_tools_have_their_rules() {
    let reference = |name: &str| json!({"type": "tool_reference", "name": name});
    let only = |names: &[&str]| json!({"type": "only", "tools": names.iter().map(|name| reference(name)).collect::<Vec<_>>()});
    let location = |change: Value| {
        let mut location = json!({"type": "approximate"});
        location.as_object_mut().expect("object").extend(change.as_object().expect("object").clone());
        json!({ "user_location": location })
    };
    let many: Vec<String> = (0..65).map(|n| format!("d{n}.example")).collect();
    for (tool, settings, path, rule) in [
        (
            "web_fetch",
            json!({"allowed_domains": []}),
            "allowed_domains",
            "Empty list of domains is ambiguous. Provide at least one domain or null.",
        ),
        (
            "web_search",
            json!({"blocked_domains": []}),
            "blocked_domains",
            "Empty list of domains is ambiguous. Provide at least one domain or null.",
        ),
        (
            "web_fetch",
            json!({"allowed_domains": ["a.example"], "blocked_domains": ["b.example"]}),
            "allowed_domains",
            "Only one of allowed_domains or blocked_domains may be set.",
        ),
        (
            "web_fetch",
            json!({"allowed_domains": "a.example"}),
            "allowed_domains",
            "must be an array, not a string",
        ),
        (
            "web_fetch",
            json!({"allowed_domains": many}),
            "allowed_domains",
            "must have at most 64 items, not 65",
        ),
        (
            "web_fetch",
            json!({"allowed_domains": ["https://a.example"]}),
            "allowed_domains.0",
            "must not have a scheme: write `example.com`",
        ),
        (
            "web_fetch",
            json!({"blocked_domains": ["a.example", 7]}),
            "blocked_domains.1",
            "must be a string, not a number",
        ),
        (
            "web_fetch",
            json!({"blocked_domains": ["a.example", ""]}),
            "blocked_domains.1",
            "must be 1 to 255 characters, not 0",
        ),
        (
            "web_fetch",
            json!({"allowed_domains": ["a.example", "A.example/"]}),
            "allowed_domains.1",
            "is the same domain as entry 0",
        ),
        (
            "web_fetch",
            json!({"allowed_domains": ["a.example/docs"]}),
            "allowed_domains.0",
            "must not have a path",
        ),
        (
            "web_search",
            json!({"allowed_domains": ["a.example/x?y"]}),
            "allowed_domains.0",
            "must not have `?` in its path",
        ),
        (
            "web_fetch",
            json!({"max_content_tokens": 0}),
            "max_content_tokens",
            "must be a whole number of at least 1",
        ),
        ("web_search", json!({"max_content_tokens": 1}), "max_content_tokens", "unknown field"),
        ("web_fetch", json!({"user_location": null}), "user_location", "unknown field"),
        ("bash", json!({"allowed_domains": null}), "allowed_domains", "unknown field"),
        ("web_search", json!({"user_location": {}}), "user_location.type", "is required"),
        (
            "web_search",
            location(json!({"country": "de"})),
            "user_location.country",
            "must be an ISO 3166-1 alpha-2 country code in upper case, such as `DE`",
        ),
        (
            "web_search",
            location(json!({"country": "XX"})),
            "user_location.country",
            "must be an ISO 3166-1 alpha-2 country code in upper case, such as `DE`",
        ),
        (
            "web_search",
            location(json!({"timezone": "Mars/Olympus"})),
            "user_location.timezone",
            "must be an IANA time zone, such as `Europe/Berlin`",
        ),
        (
            "web_search",
            location(json!({"timezone": "europe/berlin"})),
            "user_location.timezone",
            "must be written `Europe/Berlin`",
        ),
        ("web_search", location(json!({"street": "x"})), "user_location.street", "unknown field"),
        (
            "web_fetch",
            json!({"url_sources": {"user_input": "some"}}),
            "url_sources.user_input",
            "must be one of `all`, `none`, not `some`",
        ),
        (
            "web_fetch",
            json!({"url_sources": {"user_input": only(&["weather"])}}),
            "url_sources.user_input.type",
            "must be one of `all`, `none`, not `only`",
        ),
        (
            "web_fetch",
            json!({"url_sources": {"user_input": "none", "client_tool_results": "none",
                                             "server_tool_results": {"type": "none"}}}),
            "url_sources",
            "at least one source must be left: all three are `none`. Disable `web_fetch` instead",
        ),
        (
            "web_fetch",
            json!({"url_sources": {"client_tool_results": only(&["bash"])}}),
            "url_sources.client_tool_results.tools[0].name",
            "`bash` is not a custom tool of this agent",
        ),
        (
            "web_fetch",
            json!({"url_sources": {"server_tool_results": only(&["web_search", "weather"])}}),
            "url_sources.server_tool_results.tools[1].name",
            "must be `web_search` or `web_fetch`",
        ),
        (
            "web_fetch",
            json!({"url_sources": {"server_tool_results": only(&["web_fetch", "web_fetch"])}}),
            "url_sources.server_tool_results.tools[1].name",
            "`web_fetch` is named twice",
        ),
        (
            "web_fetch",
            json!({"url_sources": {"server_tool_results": {"type": "except", "tools": []}}}),
            "url_sources.server_tool_results.tools",
            "must have at least 1 item(s), not 0",
        ),
        (
            "web_fetch",
            json!({"url_sources": {"server_tool_results": {"type": "only"}}}),
            "url_sources.server_tool_results.tools",
            "is required",
        ),
        (
            "web_fetch",
            json!({"url_sources": {"bash_results": "all"}}),
            "url_sources.bash_results",
            "unknown field",
        ),
    ] {
        let refused = refusal(with_web(tool, settings));
        assert_eq!(refused, format!("tools[0].configs[0].{path}: {rule}"));
    }
}

#[test]
fn custom_tools_have_their_rules() {
    let tool = |change: Value| {
        let mut tool =
            json!({"type": "custom", "name": "t", "description": "d", "input_schema": {"type": "object"}});
        tool.as_object_mut().expect("object").extend(change.as_object().expect("object").clone());
        tool
    };
    for (change, path) in [
        (json!({"name": "bash"}), "tools[0].name"),
        (json!({"name": "mcp__x"}), "tools[0].name"),
        (json!({"name": "a b"}), "tools[0].name"),
        (json!({"name": "n".repeat(129)}), "tools[0].name"),
        (json!({"description": ""}), "tools[0].description"),
        (json!({"input_schema": {}}), "tools[0].input_schema.type"),
        (json!({"input_schema": {"type": "string"}}), "tools[0].input_schema.type"),
        (json!({"input_schema": {"type": "object", "anyOf": []}}), "tools[0].input_schema.anyOf"),
        (
            json!({"input_schema": {"type": "object", "properties": {"a": {"items": [{"$ref": "#"}]}}}}),
            "tools[0].input_schema",
        ),
        (
            json!({"input_schema": {"type": "object", "properties": {"a b": {}}}}),
            "tools[0].input_schema.properties.a b",
        ),
        (json!({"input_schema": {"type": "object", "required": [1]}}), "tools[0].input_schema.required"),
        (json!({"permission_policy": {"type": "always_ask"}}), "tools[0].permission_policy"),
    ] {
        let refusal = AgentCreate::parse(with_tools(json!([tool(change)]))).expect_err("refused");
        assert_eq!(refusal.path, path, "{refusal}");
    }
    let twice =
        AgentCreate::parse(with_tools(json!([tool(json!({})), tool(json!({}))]))).expect_err("refused");
    assert_eq!(twice.to_string(), "tools[1].name: another tool is already called `t`");
}

#[test]
fn tools_are_counted_over_all_toolsets() {
    let mut tools: Vec<Value> = (0..248)
        .map(|n| json!({"type": "custom", "name": format!("t{n}"), "description": "d", "input_schema": {"type": "object"}}))
        .collect();
    tools.push(json!({"type": "agent_toolset_20260401"}));
    assert!(AgentCreate::parse(with_tools(json!(tools))).is_ok());
    tools.push(
        json!({"type": "custom", "name": "one_more", "description": "d", "input_schema": {"type": "object"}}),
    );
    assert_eq!(
        refusal(with_tools(json!(tools))),
        "tools: must have at most 256 tools over all toolsets, not 257"
    );
}

#[test]
fn tools_are_bounded_in_size_together() {
    let tool = |name: &str, chars: usize| json!({"type": "custom", "name": name, "description": "d".repeat(chars), "input_schema": {"type": "object"}});
    assert!(AgentCreate::parse(with_tools(json!([tool("a", 500_000), tool("b", 500_000)]))).is_ok());
    let refused = refusal(with_tools(json!([tool("a", 600_000), tool("b", 600_000)])));
    assert!(refused.starts_with("tools: must be at most 1048576 bytes of JSON together"), "{refused}");
}

#[test]
fn an_update_that_changes_nothing_makes_no_version() {
    let current = agent(json!({"name": "a", "model": "m", "metadata": {"k": "v"}}));
    for body in [
        json!({}),
        json!({"version": 1}),
        json!({"name": "a", "model": "m", "metadata": {"k": "v", "absent": null}}),
        json!({"description": "", "system": null, "tools": [], "mcp_servers": null, "skills": [], "multiagent": null}),
        json!({"execution_identity": {"type": "service_account"}}),
    ] {
        assert_eq!(updated(&current, body), Ok(None));
    }
}

#[test]
fn an_update_keeps_what_it_does_not_name() {
    let current = agent(
        json!({"name": "a", "model": "m", "description": "d", "system": "s", "metadata": {"k": "v", "l": "w"}}),
    );
    let next = updated(&current, json!({"description": null, "metadata": {"k": null, "m": "x"}}));
    let next = next.expect("accepted").expect("changed");
    assert_eq!((next.version, next.created_at, next.updated_at), (2, at(1), at(2)));
    assert_eq!((next.spec.description.as_deref(), next.spec.system.as_deref()), (None, Some("s")));
    assert_eq!(
        next.metadata,
        Metadata::from([("l".to_owned(), "w".to_owned()), ("m".to_owned(), "x".to_owned())])
    );
}

#[test]
fn a_model_is_replaced_whole_but_the_same_model_keeps_its_effort() {
    let current = agent(
        json!({"name": "a", "model": {"id": "m", "effort": "low", "speed": "fast", "inference_geo": "us"}}),
    );
    let same = updated(&current, json!({"model": "m"})).expect("accepted").expect("changed").spec.model;
    assert_eq!(
        (same.effort.level, same.speed, same.inference_geo),
        (EffortLevel::Low, Speed::Standard, None)
    );
    let other =
        updated(&current, json!({"model": {"id": "n"}})).expect("accepted").expect("changed").spec.model;
    assert_eq!(other.effort.level, EffortLevel::High);
}

#[test]
fn an_update_of_another_version_is_refused_even_if_nothing_would_change() {
    let current = agent(json!({"name": "a", "model": "m"}));
    let refusal = updated(&current, json!({"version": 2, "name": "a"})).expect_err("refused");
    assert_eq!(refusal.code, Some(VERSION_MISMATCH));
}

#[test]
fn what_cannot_be_cleared_or_changed_is_refused() {
    let mut current = agent(json!({"name": "a", "model": "m"}));
    assert_eq!(
        updated(&current, json!({"name": null})).expect_err("refused").to_string(),
        "name: cannot be cleared"
    );
    assert_eq!(
        updated(&current, json!({"model": null})).expect_err("refused").to_string(),
        "model: cannot be cleared"
    );
    assert_eq!(updated(&current, json!({"version": 0})).expect_err("refused").path, "version");
    let many: Map<String, Value> = (0..17).map(|n| (n.to_string(), json!("v"))).collect();
    assert_eq!(
        updated(&current, json!({"metadata": many})).expect_err("refused").code,
        Some("invalid_metadata")
    );
    current.archived_at = Some(at(9));
    assert_eq!(updated(&current, json!({})).expect_err("refused").path, "agent_id");
}
