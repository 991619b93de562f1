use serde_json::json;

use super::*;

fn at(micros: i64) -> Timestamp {
    Timestamp::from_micros(micros)
}

fn vault(body: Value) -> Vault {
    VaultCreate::parse(body).expect("parses").into_vault(VaultId::from_text("vlt_1"), at(1))
}

fn updated(current: &Vault, body: Value) -> Parsed<Option<Vault>> {
    VaultUpdate::parse(body)?.apply(current, at(2))
}

#[test]
fn a_new_vault_shows_every_key() {
    assert_eq!(
        serde_json::to_value(vault(json!({"display_name": "v"}))).expect("writes"),
        json!({
            "type": "vault", "id": "vlt_1", "display_name": "v", "metadata": {},
            "created_at": "1970-01-01T00:00:00.000001Z", "updated_at": "1970-01-01T00:00:00.000001Z",
            "archived_at": null,
        })
    );
}

#[test]
fn what_breaks_a_rule_is_named() {
    for (body, path) in [
        (json!({}), "display_name"),
        (json!({"display_name": null}), "display_name"),
        (json!({"display_name": ""}), "display_name"),
        (json!({"display_name": "x".repeat(256)}), "display_name"),
        (json!({"display_name": "v", "metadata": {"k": 1}}), "metadata.k"),
        (json!({"display_name": "v", "name": "v"}), "name"),
    ] {
        assert_eq!(VaultCreate::parse(body.clone()).expect_err("refused").path, path, "{body}");
    }
    assert!(VaultCreate::parse(json!({"display_name": "ö".repeat(255)})).is_ok());
}

#[test]
fn an_update_keeps_what_is_null_or_left_out() {
    let current = vault(json!({"display_name": "v", "metadata": {"a": "1", "b": "2"}}));
    for body in [json!({}), json!({"display_name": null, "metadata": null}), json!({"display_name": "v"})] {
        assert_eq!(updated(&current, body.clone()), Ok(None), "{body}");
    }
    let changed = updated(&current, json!({"display_name": "w", "metadata": {"a": null, "c": "3"}}));
    let changed = changed.expect("accepted").expect("changed");
    assert_eq!(changed.display_name, "w");
    assert_eq!(serde_json::to_value(&changed.metadata).expect("writes"), json!({"b": "2", "c": "3"}));
    assert_eq!((changed.created_at, changed.updated_at), (at(1), at(2)));
}

#[test]
fn an_archived_vault_is_not_changed() {
    let archived = Vault { archived_at: Some(at(1)), ..vault(json!({"display_name": "v"})) };
    let refused = updated(&archived, json!({})).expect_err("refused");
    assert_eq!(refused.code, Some(VAULT_ARCHIVED));
}
