use serde_json::json;

use super::*;

const NOW: i64 = 1_000_000;

fn at(micros: i64) -> Timestamp {
    Timestamp::from_micros(micros)
}

fn parse(auth: Value) -> Parsed<CredentialCreate> {
    CredentialCreate::parse(json!({ "auth": auth }), at(NOW))
}

fn made(auth: Value) -> (Credential, Secrets) {
    let ids = (CredentialId::from_text("vcrd_1"), VaultId::from_text("vlt_1"));
    parse(auth).expect("parses").into_credential(ids.0, ids.1, at(NOW))
}

fn refused(auth: Value) -> Invalid {
    parse(auth).expect_err("refused")
}

fn updated(current: &Credential, auth: Value) -> Parsed<Option<Credential>> {
    let mut update = CredentialUpdate::parse(json!({ "auth": auth }), at(NOW))?;
    let sent: Vec<_> = update.take_secrets().into_keys().collect();
    update.apply(current, &sent, at(NOW + 1))
}

fn revealed(secrets: &Secrets) -> Vec<(&str, &str)> {
    secrets.iter().map(|(field, secret)| (field.as_str(), secret.reveal())).collect()
}

/// `base` with these fields in the place of its own; a null takes one away.
fn with(base: &Value, changes: Value) -> Value {
    let mut changed = base.clone();
    for (name, value) in changes.as_object().expect("an object") {
        match value {
            Value::Null => changed.as_object_mut().expect("an object").remove(name),
            value => changed.as_object_mut().expect("an object").insert(name.clone(), value.clone()),
        };
    }
    changed
}

fn oauth() -> Value {
    json!({"type": "mcp_oauth", "mcp_server_url": "https://mcp.example.com/mcp", "access_token": "at-1"})
}

fn refresh() -> Value {
    json!({
        "refresh_token": "rt-1", "client_id": "c", "token_endpoint": "https://auth.example.com/token",
        "token_endpoint_auth": {"type": "client_secret_basic", "client_secret": "cs-1"},
        "scope": "read", "resource": "https://mcp.example.com",
    })
}

fn bearer() -> Value {
    json!({"type": "static_bearer", "mcp_server_url": "https://mcp.example.com", "token": "t-1"})
}

fn variable() -> Value {
    json!({
        "type": "environment_variable", "secret_name": "API_KEY", "secret_value": "v-1",
        "networking": {"type": "unrestricted"},
    })
}

#[test]
fn secrets_are_taken_out_of_what_is_shown() {
    let (credential, secrets) = made(with(&oauth(), json!({"refresh": refresh()})));
    assert_eq!(
        revealed(&secrets),
        [("access_token", "at-1"), ("refresh_token", "rt-1"), ("client_secret", "cs-1")]
    );
    assert_eq!(
        serde_json::to_value(credential).expect("writes"),
        json!({
            "type": "vault_credential", "id": "vcrd_1", "vault_id": "vlt_1", "display_name": null, "metadata": {},
            "auth": {
                "type": "mcp_oauth", "mcp_server_url": "https://mcp.example.com/mcp", "expires_at": null,
                "refresh": {
                    "client_id": "c", "token_endpoint": "https://auth.example.com/token",
                    "token_endpoint_auth": {"type": "client_secret_basic"},
                    "scope": "read", "resource": "https://mcp.example.com",
                },
            },
            "created_at": "1970-01-01T00:00:01.000000Z", "updated_at": "1970-01-01T00:00:01.000000Z", "archived_at": null,
        })
    );
    let (credential, secrets) = made(bearer());
    assert_eq!(revealed(&secrets), [("token", "t-1")]);
    assert_eq!(
        serde_json::to_value(credential.auth).expect("writes"),
        json!({"type": "static_bearer", "mcp_server_url": "https://mcp.example.com"})
    );
    let (credential, secrets) = made(variable());
    assert_eq!(revealed(&secrets), [("secret_value", "v-1")]);
    assert_eq!(
        serde_json::to_value(credential.auth).expect("writes"),
        json!({
            "type": "environment_variable", "secret_name": "API_KEY", "networking": {"type": "unrestricted"},
            "injection_location": {"header": true, "body": true},
        })
    );
}

#[test]
fn every_field_of_an_oauth_credential_has_its_bounds() {
    let cases = [
        (json!({"mcp_server_url": null}), "auth.mcp_server_url"),
        (json!({"mcp_server_url": ""}), "auth.mcp_server_url"),
        (json!({"mcp_server_url": "mcp.example.com"}), "auth.mcp_server_url"),
        (json!({"mcp_server_url": "ftp://mcp.example.com"}), "auth.mcp_server_url"),
        (json!({"mcp_server_url": "https://u:p@mcp.example.com"}), "auth.mcp_server_url"),
        (
            json!({"mcp_server_url": format!("https://a.example/{}", "x".repeat(2_047))}),
            "auth.mcp_server_url",
        ),
        (json!({"access_token": null}), "auth.access_token"),
        (json!({"access_token": ""}), "auth.access_token"),
        (json!({"access_token": "x".repeat(8_193)}), "auth.access_token"),
        (json!({"access_token": "two words"}), "auth.access_token"),
        (json!({"access_token": "line\nbreak"}), "auth.access_token"),
        (json!({"expires_at": "1970-01-01T00:00:01Z"}), "auth.expires_at"),
        (json!({"expires_at": "tomorrow"}), "auth.expires_at"),
        (json!({"expires_at": 7}), "auth.expires_at"),
        (json!({"token": "t"}), "auth.token"),
        (json!({"type": "oauth"}), "auth.type"),
        (json!({"type": null}), "auth.type"),
        (json!({"refresh": "x"}), "auth.refresh"),
    ];
    for (change, path) in cases {
        assert_eq!(refused(with(&oauth(), change.clone())).path, path, "{change}");
    }
    assert!(parse(with(&oauth(), json!({"access_token": "x".repeat(8_192)}))).is_ok());
    assert!(parse(with(&oauth(), json!({"expires_at": "1970-01-01T00:00:02+00:00"}))).is_ok());
}

#[test]
fn every_field_of_a_refresh_has_its_bounds() {
    let cases = [
        (json!({"refresh_token": null}), "refresh_token"),
        (json!({"refresh_token": "x".repeat(4_097)}), "refresh_token"),
        (json!({"client_id": null}), "client_id"),
        (json!({"client_id": "x".repeat(1_025)}), "client_id"),
        (json!({"token_endpoint": null}), "token_endpoint"),
        (json!({"token_endpoint": "auth.example.com"}), "token_endpoint"),
        (json!({"token_endpoint_auth": null}), "token_endpoint_auth"),
        (json!({"token_endpoint_auth": {"type": "private_key_jwt"}}), "token_endpoint_auth.type"),
        (json!({"token_endpoint_auth": {"type": "client_secret_post"}}), "token_endpoint_auth.client_secret"),
        (
            json!({"token_endpoint_auth": {"type": "client_secret_post", "client_secret": "x".repeat(513)}}),
            "token_endpoint_auth.client_secret",
        ),
        (
            json!({"token_endpoint_auth": {"type": "none", "client_secret": "x"}}),
            "token_endpoint_auth.client_secret",
        ),
        (json!({"scope": "x".repeat(8_193)}), "scope"),
        (json!({"resource": "x".repeat(2_048)}), "resource"),
        (json!({"surprise": 1}), "surprise"),
    ];
    for (change, path) in cases {
        let refused = refused(with(&oauth(), json!({"refresh": with(&refresh(), change.clone())})));
        assert_eq!(refused.path, format!("auth.refresh.{path}"), "{change}");
    }
}

#[test]
fn every_field_of_a_variable_has_its_bounds() {
    let limited = |hosts: Value| json!({"networking": {"type": "limited", "allowed_hosts": hosts}});
    let cases = [
        (json!({"secret_name": null}), "auth.secret_name"),
        (json!({"secret_name": "X".repeat(256)}), "auth.secret_name"),
        (json!({"secret_name": "1X"}), "auth.secret_name"),
        (json!({"secret_name": "A-B"}), "auth.secret_name"),
        (json!({"secret_name": "A=B"}), "auth.secret_name"),
        (json!({"secret_name": "PATH"}), "auth.secret_name"),
        (json!({"secret_name": "LD_PRELOAD"}), "auth.secret_name"),
        (json!({"secret_value": null}), "auth.secret_value"),
        (json!({"secret_value": "x".repeat(4_097)}), "auth.secret_value"),
        (json!({"networking": null}), "auth.networking"),
        (json!({"networking": {"type": "open"}}), "auth.networking.type"),
        (
            json!({"networking": {"type": "unrestricted", "allowed_hosts": []}}),
            "auth.networking.allowed_hosts",
        ),
        (json!({"networking": {"type": "limited"}}), "auth.networking.allowed_hosts"),
        (limited(json!([])), "auth.networking.allowed_hosts"),
        (limited(json!(vec!["a.example"; 17])), "auth.networking.allowed_hosts"),
        (json!({"injection_location": {}}), "auth.injection_location"),
        (json!({"injection_location": {"header": false, "body": false}}), "auth.injection_location"),
        (json!({"injection_location": {"header": true, "path": true}}), "auth.injection_location.path"),
    ];
    for (change, path) in cases {
        assert_eq!(refused(with(&variable(), change.clone())).path, path, "{change}");
    }
    for host in
        ["https://a.example", "a.example:443", "a.example/x", "::1", "[::1]", "*", "*.com.", "a..b", ""]
    {
        assert_eq!(
            refused(with(&variable(), limited(json!([host])))).path,
            "auth.networking.allowed_hosts[0]",
            "{host}"
        );
    }
    for host in ["api.example.com", "192.0.2.1", "*.example.com", "localhost"] {
        assert!(parse(with(&variable(), limited(json!([host])))).is_ok(), "{host}");
    }
}

#[test]
fn a_missing_place_means_no_and_a_null_place_is_refused() {
    let place = |given: Value| match made(with(&variable(), json!({"injection_location": given}))).0.auth {
        CredentialAuth::EnvironmentVariable { injection_location, .. } => {
            (injection_location.header, injection_location.body)
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(place(json!({"header": true})), (true, false));
    assert_eq!(place(json!({"body": true})), (false, true));
    let mut nulled = variable();
    nulled["injection_location"] = Value::Null;
    assert_eq!(refused(nulled).path, "auth.injection_location");
    let nulled = refused(with(&variable(), json!({"injection_location": {"header": null, "body": true}})));
    assert_eq!(nulled.path, "auth.injection_location.header");
}

#[test]
fn no_refusal_repeats_a_value() {
    let planted = "sk-planted-in-the-wrong-place";
    let mut bodies = vec![
        json!({"auth": planted}),
        json!({"auth": {"type": planted}}),
        json!({"auth": bearer(), "display_name": format!("{planted}{}", "x".repeat(300))}),
        json!({"auth": with(&bearer(), json!({"token": format!("{planted} ")}))}),
        json!({"auth": with(&bearer(), json!({"mcp_server_url": planted}))}),
        json!({"auth": with(&oauth(), json!({"expires_at": planted}))}),
        json!({"auth": with(&oauth(), json!({"refresh": with(&refresh(), json!({"token_endpoint_auth": {"type": planted}}))}))}),
        json!({"auth": with(&variable(), json!({"secret_name": planted}))}),
        json!({"auth": with(&variable(), json!({"networking": {"type": planted}}))}),
        json!({"auth": with(&variable(), json!({"networking": {"type": "limited", "allowed_hosts": [format!("{planted}/x")]}}))}),
    ];
    bodies.push(json!([planted]));
    for body in bodies {
        for refused in [
            CredentialCreate::parse(body.clone(), at(NOW)).err(),
            CredentialUpdate::parse(body.clone(), at(NOW)).err(),
        ]
        .into_iter()
        .flatten()
        {
            assert!(!format!("{refused:?} {refused}").contains(planted), "{refused}");
        }
    }
    let parsed = parse(with(&bearer(), json!({"token": planted}))).expect("parses");
    assert!(!format!("{parsed:?}").contains(planted));
}

#[test]
fn what_cannot_change_is_refused_and_the_type_must_be_the_stored_one() {
    let (current, _) = made(with(&oauth(), json!({"refresh": refresh()})));
    for (auth, path) in [
        (json!({"type": "static_bearer", "token": "t"}), "auth.type"),
        (
            json!({"type": "mcp_oauth", "mcp_server_url": "https://mcp.example.com/mcp"}),
            "auth.mcp_server_url",
        ),
        (json!({"type": "mcp_oauth", "refresh": {"client_id": "c"}}), "auth.refresh.client_id"),
        (
            json!({"type": "mcp_oauth", "refresh": {"token_endpoint": "https://a.example"}}),
            "auth.refresh.token_endpoint",
        ),
        (json!({"type": "mcp_oauth", "refresh": {"resource": "r"}}), "auth.refresh.resource"),
        (
            json!({"type": "mcp_oauth", "refresh": {"token_endpoint_auth": {"type": "none"}}}),
            "auth.refresh.token_endpoint_auth.type",
        ),
        (json!({"access_token": "x"}), "auth.type"),
    ] {
        assert_eq!(updated(&current, auth.clone()).expect_err("refused").path, path, "{auth}");
    }
    let (variable, _) = made(variable());
    let renamed = json!({"type": "environment_variable", "secret_name": "API_KEY"});
    assert_eq!(updated(&variable, renamed).expect_err("refused").path, "auth.secret_name");
}

#[test]
fn an_oauth_credential_keeps_its_expiry_until_it_is_named() {
    let (current, _) = made(with(&oauth(), json!({"expires_at": "2030-01-01T00:00:00Z"})));
    let expiry = |auth: Value| match updated(&current, auth).expect("accepted").expect("changed").auth {
        CredentialAuth::McpOauth { expires_at, .. } => expires_at.map(|at| at.to_string()),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        expiry(json!({"type": "mcp_oauth", "access_token": "at-2"})).as_deref(),
        Some("2030-01-01T00:00:00.000000Z")
    );
    let named = json!({"type": "mcp_oauth", "expires_at": "2031-01-01T00:00:00Z"});
    assert_eq!(expiry(named).as_deref(), Some("2031-01-01T00:00:00.000000Z"));
    assert_eq!(expiry(json!({"type": "mcp_oauth", "expires_at": null})), None);
    let past = json!({"type": "mcp_oauth", "expires_at": "1970-01-01T00:00:00Z"});
    assert_eq!(updated(&current, past).expect_err("past").path, "auth.expires_at");
}

#[test]
fn a_new_client_secret_leaves_the_stored_way_of_using_it() {
    let (current, _) = made(with(&oauth(), json!({"refresh": refresh()})));
    let auth = json!({"type": "mcp_oauth", "refresh": {
        "token_endpoint_auth": {"type": "client_secret_post", "client_secret": "cs-2"}, "scope": ""}});
    let changed = updated(&current, auth).expect("accepted").expect("changed");
    let CredentialAuth::McpOauth { refresh: Some(changed), .. } = changed.auth else { panic!("of its type") };
    assert_eq!(changed.token_endpoint_auth, TokenEndpointAuth::ClientSecretBasic {});
    assert_eq!(changed.scope, None);
    let public = with(&refresh(), json!({"token_endpoint_auth": {"type": "none"}}));
    let (public, _) = made(with(&oauth(), json!({ "refresh": public })));
    let auth = json!({"type": "mcp_oauth", "refresh": {"token_endpoint_auth": {"type": "client_secret_basic", "client_secret": "x"}}});
    assert!(updated(&public, auth).expect_err("refused").path.ends_with("client_secret"));
    let (plain, _) = made(oauth());
    let auth = json!({"type": "mcp_oauth", "refresh": {"refresh_token": "rt-2"}});
    assert_eq!(updated(&plain, auth).expect_err("refused").path, "auth.refresh");
}

#[test]
fn networking_is_replaced_whole_and_places_field_by_field() {
    let (current, _) = made(variable());
    let change = |auth: Value| updated(&current, with(&json!({"type": "environment_variable"}), auth));
    let changed = change(json!({"injection_location": {"body": false},
        "networking": {"type": "limited", "allowed_hosts": ["a.example"]}}));
    assert_eq!(
        serde_json::to_value(changed.expect("accepted").expect("changed").auth).expect("writes"),
        json!({
            "type": "environment_variable", "secret_name": "API_KEY",
            "networking": {"type": "limited", "allowed_hosts": ["a.example"]},
            "injection_location": {"header": true, "body": false},
        })
    );
    let none = change(json!({"injection_location": {"body": false, "header": false}}));
    assert_eq!(none.expect_err("nowhere").path, "auth.injection_location");
    assert_eq!(change(json!({})), Ok(None));
}

#[test]
fn a_secret_that_is_sent_counts_as_a_change() {
    let (current, _) = made(bearer());
    let changed = updated(&current, json!({"type": "static_bearer", "token": "t-1"})).expect("accepted");
    assert_eq!(changed.expect("changed").updated_at, at(NOW + 1));
    assert_eq!(updated(&current, json!({"type": "static_bearer"})), Ok(None));
}

#[test]
fn a_name_is_cleared_by_null_and_metadata_changes_key_by_key() {
    let create = json!({"auth": bearer(), "display_name": "d", "metadata": {"a": "1"}});
    let (current, _) = CredentialCreate::parse(create, at(NOW)).expect("parses").into_credential(
        CredentialId::from_text("vcrd_1"),
        VaultId::from_text("vlt_1"),
        at(NOW),
    );
    let update = CredentialUpdate::parse(json!({"display_name": null, "metadata": {"b": "2"}}), at(NOW));
    let changed = update.expect("parses").apply(&current, &[], at(2)).expect("accepted").expect("changed");
    assert_eq!((changed.display_name.as_deref(), changed.metadata.len()), (None, 2));
    assert!(CredentialUpdate::parse(json!({"display_name": ""}), at(NOW)).is_err());
    let archived = Credential { archived_at: Some(at(1)), ..current };
    let refused = CredentialUpdate::default().apply(&archived, &[], at(2)).expect_err("refused");
    assert_eq!(refused.code, Some(CREDENTIAL_ARCHIVED));
}
