use serde_json::json;

use super::*;
use crate::agent::EffortLevel;
use crate::agent_request::AgentCreate;
use crate::time::Timestamp;

fn agent() -> Agent {
    let body = json!({"name": "a", "model": {"id": "m", "effort": "low"}, "system": "s",
                      "tools": [{"type": "agent_toolset_20260401"}]});
    AgentCreate::parse(body)
        .expect("parses")
        .into_agent(AgentId::from_text("agent_1"), Timestamp::from_micros(1))
}

fn snapshot(choice: Value) -> SessionAgent {
    let create = SessionCreate::parse(json!({"agent": choice, "environment_id": "env_1"})).expect("parses");
    create.agent.snapshot(&agent()).expect("it goes together")
}

fn refusal(body: Value) -> Invalid {
    SessionCreate::parse(body).expect_err("refused")
}

fn update_refusal(body: Value) -> Invalid {
    SessionUpdate::parse(body).expect_err("refused")
}

#[test]
fn an_agent_is_named_in_three_ways() {
    for (choice, version) in [
        (json!("agent_1"), None),
        (json!({"type": "agent", "id": "agent_1", "version": 3}), Some(3)),
        (json!({"type": "agent_with_overrides", "id": "agent_1", "version": null}), None),
    ] {
        let create =
            SessionCreate::parse(json!({"agent": choice, "environment_id": "env_1"})).expect("parses");
        assert_eq!((create.agent.id.as_str(), create.agent.version), ("agent_1", version));
        assert_eq!(create.agent.snapshot(&agent()).expect("it goes together").spec, agent().spec);
    }
}

#[test]
fn overrides_replace_whole_parts_and_keep_the_rest() {
    let snapshot = snapshot(
        json!({"type": "agent_with_overrides", "id": "agent_1", "model": {"id": "m", "effort": "max"},
                                   "system": null, "tools": [], "skills": null, "mcp_servers": []}),
    );
    assert_eq!(snapshot.spec.name, "a");
    assert_eq!((snapshot.spec.system, snapshot.spec.tools), (None, Vec::new()));
    assert_eq!(snapshot.spec.model.effort.level, EffortLevel::High, "effort is ignored in an override");
}

#[test]
fn a_session_cannot_run_without_a_model() {
    let choice = json!({"type": "agent_with_overrides", "id": "agent_1", "model": null});
    let refused = refusal(json!({"agent": choice, "environment_id": "env_1"}));
    assert_eq!((refused.path.as_str(), refused.code), ("agent.model", Some("agent_model_required")));
}

#[test]
fn empty_lists_of_what_is_not_built_are_taken() {
    let body = json!({"agent": "agent_1", "environment_id": "env_1", "resources": [], "vault_ids": [], "budget": null,
                      "initial_events": [], "title": null, "metadata": {"k": "v"}});
    let create = SessionCreate::parse(body).expect("parses");
    assert_eq!((create.title, create.initial_events), (None, Vec::new()));
}

#[test]
fn vaults_keep_their_order() {
    let body = json!({"agent": "agent_1", "environment_id": "env_1", "vault_ids": ["vlt_2", "vlt_1"]});
    let ids = SessionCreate::parse(body).expect("parses").vault_ids;
    assert_eq!(ids, ["vlt_2", "vlt_1"].map(VaultId::from_text));
}

#[test]
fn refusals_of_a_new_session_name_the_field() {
    let fifty_one: Vec<Value> = (0..51)
        .map(|_| json!({"type": "user.message", "content": [{"type": "text", "text": "x"}]}))
        .collect();
    for (change, path) in [
        (json!({"agent": null}), "agent"),
        (json!({"agent": ""}), "agent"),
        (json!({"agent": {"type": "agent"}}), "agent.id"),
        (json!({"agent": {"type": "agent", "id": "a", "version": 0}}), "agent.version"),
        (json!({"agent": {"type": "agent", "id": "a", "system": "s"}}), "agent.system"),
        (json!({"agent": {"type": "agent_with_overrides", "id": "a", "name": "n"}}), "agent.name"),
        (json!({"agent": {"type": "agent_with_overrides", "id": "a", "skills": [{}]}}), "agent.skills"),
        (json!({"environment_id": "e".repeat(129)}), "environment_id"),
        (json!({"title": "t".repeat(501)}), "title"),
        (json!({"budget": {"type": "limit"}}), "budget"),
        (json!({"resources": [{"type": "file", "file_id": "f"}]}), "resources[0].type"),
        (json!({"vault_ids": "vlt_1"}), "vault_ids"),
        (json!({"vault_ids": [3]}), "vault_ids[0]"),
        (json!({"vault_ids": ["vlt_1", "vlt_2", "vlt_1"]}), "vault_ids[2]"),
        (json!({"vault_ids": vec!["v"; 51]}), "vault_ids"),
        (json!({"initial_events": fifty_one}), "initial_events"),
        (
            json!({"initial_events": [{"type": "system.message", "content": [{"type": "text", "text": "x"}]}]}),
            "initial_events[0].type",
        ),
        (json!({"colour": 1}), "colour"),
    ] {
        let mut body = json!({"agent": "agent_1", "environment_id": "env_1"});
        body.as_object_mut().expect("object").extend(change.as_object().expect("object").clone());
        assert_eq!(refusal(body).path, path);
    }
    assert_eq!(refusal(json!({"agent": "agent_1"})).to_string(), "environment_id: is required");
}

#[test]
fn an_update_names_what_changes() {
    let update = SessionUpdate::parse(
        json!({"title": null, "metadata": {"a": null, "b": "1"}, "agent": {"tools": []}}),
    )
    .expect("parses");
    assert_eq!(update.title, Patch::Clear);
    assert_eq!(update.agent.tools, Some(Vec::new()));
    assert_eq!(update.metadata.len(), 2);
    assert_eq!(
        SessionUpdate::parse(json!({"budget": null, "metadata": null, "agent": {}})),
        Ok(SessionUpdate::default())
    );
}

#[test]
fn overrides_and_updates_keep_servers_and_toolsets_together() {
    let servers = json!([{"type": "url", "name": "n", "url": "https://x/mcp"}]);
    let toolsets = json!([{"type": "mcp_toolset", "mcp_server_name": "n"}]);
    let choice = |rest: Value| {
        let mut choice = json!({"type": "agent_with_overrides", "id": "agent_1"});
        choice.as_object_mut().expect("an object").extend(rest.as_object().expect("an object").clone());
        let create =
            SessionCreate::parse(json!({"agent": choice, "environment_id": "env_1"})).expect("parses");
        create.agent.snapshot(&agent())
    };
    let both = choice(json!({"mcp_servers": servers, "tools": toolsets})).expect("a pair");
    assert_eq!(both.spec.mcp_servers[0].name, "n");
    assert_eq!(
        choice(json!({"tools": toolsets})).expect_err("no server").path,
        "agent.tools[0].mcp_server_name"
    );
    let change = |rest: Value| SessionUpdate::parse(json!({"agent": rest})).expect("parses").agent;
    let refused = change(json!({"mcp_servers": []})).apply(&both.spec).expect_err("a toolset is left");
    assert_eq!(refused.path, "agent.tools[0].mcp_server_name");
    assert!(change(json!({"mcp_servers": [], "tools": []})).apply(&both.spec).is_ok());
}

#[test]
fn refusals_of_an_update_name_the_field() {
    for (body, path) in [
        (json!({"vault_ids": []}), "vault_ids"),
        (json!({"vault_ids": null}), "vault_ids"),
        (json!({"budget": {"type": "limit"}}), "budget"),
        (json!({"title": ""}), "title"),
        (json!({"agent": {"model": "m"}}), "agent.model"),
        (json!({"agent": {"mcp_servers": [{}]}}), "agent.mcp_servers[0].type"),
        (json!({"agent": "agent_2"}), "agent"),
        (json!({"status": "idle"}), "status"),
    ] {
        assert_eq!(update_refusal(body).path, path);
    }
    assert!(update_refusal(json!({"vault_ids": ["v"]})).rule.contains("reserved"));
}
