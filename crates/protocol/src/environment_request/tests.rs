use serde_json::json;

use super::*;

fn at(micros: i64) -> Timestamp {
    Timestamp::from_micros(micros)
}

fn parse(body: Value) -> Parsed<EnvironmentCreate> {
    EnvironmentCreate::parse(body, &Networking::default())
}

fn environment(body: Value) -> Environment {
    let create = parse(body).expect("parses");
    create.into_environment(EnvironmentId::from_text("env_1"), at(1))
}

fn refusal(config: Value) -> Invalid {
    parse(json!({"name": "e", "config": config})).expect_err("refused")
}

fn updated(current: &Environment, body: Value) -> Parsed<Option<Environment>> {
    EnvironmentUpdate::parse(body)?.apply(current, at(2))
}

fn limited(hosts: Value) -> Value {
    json!({"type": "cloud", "networking": {"type": "limited", "allowed_hosts": hosts}})
}

#[test]
fn a_new_environment_is_a_cloud_that_reaches_everything_and_installs_nothing() {
    let shown = serde_json::to_value(environment(json!({"name": "e"}))).expect("writes");
    assert_eq!(
        shown,
        json!({
            "type": "environment", "id": "env_1", "name": "e", "description": null, "metadata": {},
            "config": {"type": "cloud", "networking": {"type": "unrestricted"},
                       "packages": {"type": "packages", "apt": [], "cargo": [], "gem": [], "go": [], "npm": [], "pip": []}},
            "scope": "organization", "created_at": "1970-01-01T00:00:00.000001Z",
            "updated_at": "1970-01-01T00:00:00.000001Z", "archived_at": null,
        })
    );
}

#[test]
fn a_self_hosted_environment_has_no_other_settings() {
    let config = environment(json!({"name": "e", "config": {"type": "self_hosted"}})).config;
    assert_eq!(serde_json::to_value(config).expect("writes"), json!({"type": "self_hosted"}));
    let refused = refusal(json!({"type": "self_hosted", "networking": {"type": "unrestricted"}}));
    assert_eq!(refused.to_string(), "config.networking: unknown field");
}

#[test]
fn allowed_hosts_are_bare_names_or_wildcards() {
    for host in
        ["example.com", "*.example.com", "a_b.example", "xn--bcher-kva.example", "internal", "3com.com"]
    {
        assert!(parse(json!({"name": "e", "config": limited(json!([host]))})).is_ok(), "{host}");
    }
    let long = "a".repeat(64) + ".com";
    for host in [
        "",
        "https://example.com",
        "example.com:443",
        "example.com/x",
        "*",
        "*.com.",
        "*.com",
        "a.*.com",
        "-a.com",
        "a-.com",
        "a..com",
        "exa mple.com",
        "127.0.0.1",
        "[::1]",
        "bücher.example",
        "example.com.",
        long.as_str(),
    ] {
        assert_eq!(refusal(limited(json!([host]))).path, "config.networking.allowed_hosts[0]", "{host}");
    }
}

#[test]
fn packages_under_limited_networking_need_the_registries() {
    let config = |allow: bool| {
        json!({"type": "cloud", "packages": {"pip": ["x==1"]},
               "networking": {"type": "limited", "allow_package_managers": allow}})
    };
    assert!(parse(json!({"name": "e", "config": config(true)})).is_ok());
    assert_eq!(refusal(config(false)).path, "config.networking.allow_package_managers");
}

#[test]
fn packages_are_single_words() {
    for package in ["", "--index-url=x", "a b", "a\u{7}"] {
        let config = json!({"type": "cloud", "packages": {"pip": [package]}});
        assert_eq!(refusal(config).path, "config.packages.pip[0]");
    }
    assert_eq!(
        refusal(json!({"type": "cloud", "packages": {"brew": []}})).to_string(),
        "config.packages.brew: unknown field"
    );
}

#[test]
fn an_update_merges_field_by_field() {
    let current = environment(
        json!({"name": "e", "description": "d", "metadata": {"a": "1", "b": "2", "c": "3"}, "config": {
            "type": "cloud", "packages": {"pip": ["x"]},
            "networking": {"type": "limited", "allowed_hosts": ["a.com"], "allow_package_managers": true},
        }}),
    );
    let body = json!({"description": "", "metadata": {"a": null, "b": ""},
                      "config": {"type": "cloud", "networking": {"type": "limited", "allow_mcp_servers": true}}});
    let next = updated(&current, body).expect("accepted").expect("changed");
    assert_eq!(next.description.as_deref(), Some(""));
    assert_eq!(next.metadata, Metadata::from([("c".to_owned(), "3".to_owned())]));
    assert_eq!((next.created_at, next.updated_at), (at(1), at(2)));
    assert_eq!(
        serde_json::to_value(&next.config).expect("writes"),
        json!({"type": "cloud",
               "networking": {"type": "limited", "allowed_hosts": ["a.com"], "allow_mcp_servers": true, "allow_package_managers": true},
               "packages": {"type": "packages", "apt": [], "cargo": [], "gem": [], "go": [], "npm": [], "pip": ["x"]}})
    );
    let opened =
        updated(&current, json!({"config": {"type": "cloud", "networking": {"type": "unrestricted"}}}));
    let EnvironmentConfig::Cloud { networking, .. } = opened.expect("accepted").expect("changed").config
    else {
        panic!("the kind does not change")
    };
    assert_eq!(networking, Networking::Unrestricted {});
}

#[test]
fn packages_are_replaced_manager_by_manager() {
    let current = environment(
        json!({"name": "e", "config": {"type": "cloud", "packages": {"pip": ["x"], "apt": ["y"]}}}),
    );
    let body = json!({"config": {"type": "cloud", "packages": {"npm": ["z"], "apt": []}}});
    let EnvironmentConfig::Cloud { packages, .. } =
        updated(&current, body).expect("accepted").expect("changed").config
    else {
        panic!("the kind does not change")
    };
    assert_eq!(
        (packages.pip, packages.npm, packages.apt),
        (vec!["x".to_owned()], vec!["z".to_owned()], Vec::new())
    );
}

#[test]
fn the_rules_hold_for_the_result_of_an_update() {
    let current = environment(json!({"name": "e", "config": {"type": "cloud", "packages": {"pip": ["x"]}}}));
    let body = json!({"config": {"type": "cloud", "networking": {"type": "limited"}}});
    assert_eq!(
        updated(&current, body).expect_err("refused").path,
        "config.networking.allow_package_managers"
    );
}

#[test]
fn an_update_that_changes_nothing_is_told_apart() {
    let current = environment(json!({"name": "e", "metadata": {"a": "1"}}));
    for body in [
        json!({}),
        json!({"name": "e"}),
        json!({"config": {"type": "cloud"}}),
        json!({"metadata": {"b": null}}),
        json!({"config": null, "scope": null}),
    ] {
        assert_eq!(updated(&current, body), Ok(None));
    }
}

#[test]
fn refusals_of_an_update_carry_their_codes() {
    let mut current = environment(json!({"name": "e"}));
    assert_eq!(
        updated(&current, json!({"name": null})).expect_err("refused").to_string(),
        "name: cannot be cleared"
    );
    let refused = updated(&current, json!({"config": {"type": "self_hosted"}})).expect_err("refused");
    assert_eq!(refused.code, Some("invalid_config_type_change"));
    current.archived_at = Some(at(3));
    assert_eq!(updated(&current, json!({})).expect_err("refused").code, Some("environment_archived"));
}

#[test]
fn refusals_name_the_field() {
    for (body, path) in [
        (json!({}), "name"),
        (json!({"name": "n".repeat(257)}), "name"),
        (json!({"name": "e", "description": "d".repeat(1025)}), "description"),
        (json!({"name": "e", "scope": "account"}), "scope"),
        (json!({"name": "e", "config": {}}), "config.type"),
        (
            json!({"name": "e", "config": {"type": "cloud", "networking": {"type": "open"}}}),
            "config.networking.type",
        ),
        (json!({"name": "e", "config": {"type": "cloud", "cpu": 1}}), "config.cpu"),
        (json!({"name": "e", "metadata": {"k": 1}}), "metadata.k"),
        (json!({"name": "e", "colour": 1}), "colour"),
    ] {
        assert_eq!(parse(body).expect_err("refused").path, path);
    }
}

#[test]
fn who_says_nothing_about_networking_gets_the_operators_choice() {
    let choice = Networking::Limited {
        allowed_hosts: vec!["internal.example".to_owned()],
        allow_mcp_servers: false,
        allow_package_managers: false,
    };
    let networking = |body: Value| {
        let create = EnvironmentCreate::parse(body, &choice).expect("parses");
        match create.into_environment(EnvironmentId::from_text("env_1"), at(1)).config {
            EnvironmentConfig::Cloud { networking, packages: _ } => networking,
            EnvironmentConfig::SelfHosted {} => panic!("a cloud was asked for"),
        }
    };
    assert_eq!(networking(json!({"name": "e"})), choice);
    assert_eq!(networking(json!({"name": "e", "config": {"type": "cloud"}})), choice);
    let own = json!({"name": "e", "config": {"type": "cloud", "networking": {"type": "limited"}}});
    let nothing = Networking::Limited {
        allowed_hosts: Vec::new(),
        allow_mcp_servers: false,
        allow_package_managers: false,
    };
    assert_eq!(networking(own), nothing, "what the operator allows is not added to it");
    let packages = json!({"name": "e", "config": {"type": "cloud", "packages": {"pip": ["six"]}}});
    let refused = EnvironmentCreate::parse(packages, &choice).expect_err("nothing can be installed");
    assert_eq!(refused.path, "config.networking.allow_package_managers");
}
