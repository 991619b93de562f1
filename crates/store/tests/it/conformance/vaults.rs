use std::time::Duration;

use protocol::credential::{Credential, CredentialKey};
use protocol::id::{CredentialId, VaultId};
use protocol::vault::Vault;
use serde_json::json;
use store::{
    Added, CREDENTIALS_MAX, ChangeError, CredentialQuery, Cursor, KeptCredential, Sealed, VaultKey,
    VaultQuery, Wanted,
};

use crate::world::World;

fn vault(world: &World) -> Vault {
    let now = world.store.now();
    let vault = json!({
        "type": "vault", "id": world.id::<VaultId>(), "display_name": "v", "metadata": {}, "created_at": now,
        "updated_at": now, "archived_at": null,
    });
    serde_json::from_value(vault).expect("a vault")
}

async fn make_vault(world: &World) -> Vault {
    world.store.create_vault(&world.workspace, vault(world)).await.expect("made")
}

fn bearer(world: &World, vault: &Vault, url: &str) -> KeptCredential {
    kept(world, vault, json!({"type": "static_bearer", "mcp_server_url": url}))
}

fn variable(world: &World, vault: &Vault, name: &str) -> KeptCredential {
    let auth = json!({
        "type": "environment_variable", "secret_name": name, "networking": {"type": "unrestricted"},
        "injection_location": {"header": true, "body": true},
    });
    kept(world, vault, auth)
}

fn kept(world: &World, vault: &Vault, auth: serde_json::Value) -> KeptCredential {
    let now = world.store.now();
    let credential = json!({
        "type": "vault_credential", "id": world.id::<CredentialId>(), "vault_id": vault.id, "auth": auth,
        "display_name": "c", "metadata": {}, "created_at": now, "updated_at": now, "archived_at": null,
    });
    KeptCredential {
        credential: serde_json::from_value(credential).expect("a credential"),
        sealed: Sealed::from([("token".to_owned(), "sealed".to_owned())]),
    }
}

async fn add(world: &World, kept: KeptCredential) -> Result<KeptCredential, ChangeError> {
    world.store.create_credential(&world.workspace, kept).await
}

async fn get(world: &World, kept: &KeptCredential) -> Option<KeptCredential> {
    let Credential { vault_id, id, .. } = &kept.credential;
    world.store.get_credential(&world.workspace, vault_id, id).await.expect("works")
}

fn of_server(url: &str) -> Wanted {
    Wanted::Key(CredentialKey::of_server(url).expect("an address"))
}

async fn spendable(world: &World, vaults: &[&Vault], wanted: Wanted) -> Vec<CredentialId> {
    let ids: Vec<VaultId> = vaults.iter().map(|vault| vault.id.clone()).collect();
    let found = world.store.spendable(&world.workspace, &ids, wanted).await.expect("works");
    found.into_iter().map(|kept| kept.credential.id).collect()
}

pub(crate) async fn a_vault_is_kept_changed_and_listed(world: &World) {
    let (store, workspace) = (&world.store, &world.workspace);
    let first = make_vault(world).await;
    assert!(store.create_vault(workspace, first.clone()).await.is_err());
    world.clock.advance(Duration::from_secs(1));
    let second = make_vault(world).await;
    assert_eq!(store.get_vault(workspace, &first.id).await.expect("works"), Some(first.clone()));
    let change = |current: &Vault| Ok(Some(Vault { display_name: "w".to_owned(), ..current.clone() }));
    let renamed = store.change_vault(workspace, &first.id, Box::new(change)).await.expect("changed");
    assert_eq!(store.get_vault(workspace, &first.id).await.expect("works"), Some(renamed.clone()));
    let listed = store.list_vaults(workspace, VaultQuery::default()).await.expect("works");
    assert_eq!(listed, [second.clone(), renamed.clone()]);
    let after = Some(Cursor::new(second.created_at, second.id.as_str()));
    let rest = store.list_vaults(workspace, VaultQuery { after, ..VaultQuery::default() }).await;
    assert_eq!(rest.expect("works"), [renamed]);
}

pub(crate) async fn a_vault_is_seen_by_its_workspace_only(world: &World) {
    let (store, other) = (&world.store, &world.id());
    let vault = make_vault(world).await;
    let kept = add(world, bearer(world, &vault, "https://a.example")).await.expect("kept");
    let (id, credential) = (&vault.id, &kept.credential.id);
    assert_eq!(store.get_vault(other, id).await.expect("works"), None);
    assert!(store.list_vaults(other, VaultQuery::default()).await.expect("works").is_empty());
    let changed = store.change_vault(other, id, Box::new(|_| Ok(None))).await;
    assert!(matches!(changed, Err(ChangeError::NotFound)));
    assert!(matches!(store.archive_vault(other, id).await, Err(ChangeError::NotFound)));
    assert!(matches!(store.delete_vault(other, id).await, Err(ChangeError::NotFound)));
    assert_eq!(store.get_credential(other, id, credential).await.expect("works"), None);
    assert!(store.list_credentials(other, id, CredentialQuery::default()).await.expect("works").is_none());
    let changed = store.change_credential(other, id, credential, Box::new(|_| Ok(None))).await;
    assert!(matches!(changed, Err(ChangeError::NotFound)));
    assert!(matches!(store.delete_credential(other, id, credential).await, Err(ChangeError::NotFound)));
    let new = bearer(world, &vault, "https://b.example");
    assert!(matches!(store.create_credential(other, new).await, Err(ChangeError::NotFound)));
    let wanted = of_server("https://a.example");
    let found = store.spendable(other, std::slice::from_ref(id), wanted).await.expect("works");
    assert!(found.is_empty());
    assert_eq!(get(world, &kept).await, Some(kept));
}

pub(crate) async fn a_credential_belongs_to_its_vault(world: &World) {
    let (vault, other) = (make_vault(world).await, make_vault(world).await);
    let kept = add(world, bearer(world, &vault, "https://a.example")).await.expect("kept");
    let (store, workspace, id) = (&world.store, &world.workspace, &kept.credential.id);
    assert_eq!(store.get_credential(workspace, &other.id, id).await.expect("works"), None);
    let changed = store.change_credential(workspace, &other.id, id, Box::new(|_| Ok(None))).await;
    assert!(matches!(changed, Err(ChangeError::NotFound)));
    assert!(matches!(store.delete_credential(workspace, &other.id, id).await, Err(ChangeError::NotFound)));
    store.delete_credential(workspace, &vault.id, id).await.expect("deleted");
    assert_eq!(get(world, &kept).await, None);
}

pub(crate) async fn a_credential_is_changed_with_its_secrets(world: &World) {
    let vault = make_vault(world).await;
    let kept = add(world, bearer(world, &vault, "https://a.example")).await.expect("kept");
    let (store, workspace, id) = (&world.store, &world.workspace, &kept.credential.id);
    world.clock.advance(Duration::from_secs(1));
    let now = store.now();
    let change = move |kept: &KeptCredential| {
        let mut changed = kept.clone();
        changed.credential.display_name = None;
        changed.credential.updated_at = now;
        changed.sealed.insert("token".to_owned(), "sealed anew".to_owned());
        Ok(Some(changed))
    };
    let changed = store.change_credential(workspace, &vault.id, id, Box::new(change)).await.expect("changed");
    assert_eq!(changed.credential.updated_at, now);
    assert_eq!(get(world, &kept).await, Some(changed));
}

pub(crate) async fn a_key_is_taken_until_its_credential_is_archived(world: &World) {
    let (store, workspace) = (&world.store, &world.workspace);
    let (vault, other) = (make_vault(world).await, make_vault(world).await);
    let first = add(world, bearer(world, &vault, "https://A.example/mcp/")).await.expect("kept");
    let oauth = json!({"type": "mcp_oauth", "mcp_server_url": "https://a.example:443/mcp", "expires_at": null, "refresh": null});
    let again = || kept(world, &vault, oauth.clone());
    assert!(matches!(add(world, again()).await, Err(ChangeError::Exists)));
    add(world, bearer(world, &other, "https://a.example/mcp")).await.expect("another vault");
    add(world, variable(world, &vault, "A")).await.expect("another key");
    assert!(matches!(add(world, variable(world, &vault, "A")).await, Err(ChangeError::Exists)));
    let now = store.now();
    let archive = move |kept: &KeptCredential| {
        let credential = Credential { archived_at: Some(now), ..kept.credential.clone() };
        Ok(Some(KeptCredential { credential, sealed: Sealed::new() }))
    };
    let id = &first.credential.id;
    store.change_credential(workspace, &vault.id, id, Box::new(archive)).await.expect("archived");
    let archived = get(world, &first).await.expect("there");
    assert_eq!((archived.credential.archived_at, archived.sealed), (Some(now), Sealed::new()));
    add(world, again()).await.expect("free again");
}

pub(crate) async fn a_vault_holds_so_many_and_no_more(world: &World) {
    let vault = make_vault(world).await;
    let all = (0..CREDENTIALS_MAX + 5).map(|n| add(world, variable(world, &vault, &format!("V{n}"))));
    let mut kept = 0;
    for added in futures_util::future::join_all(all).await {
        match added {
            Ok(_) => kept += 1,
            Err(ChangeError::Refused(_)) => {}
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(kept, CREDENTIALS_MAX);
    let query = CredentialQuery { limit: 100, ..CredentialQuery::default() };
    let listed = world.store.list_credentials(&world.workspace, &vault.id, query).await.expect("works");
    let listed = listed.expect("there");
    assert_eq!(listed.len(), CREDENTIALS_MAX);
    let first = &listed[0].id;
    world.store.delete_credential(&world.workspace, &vault.id, first).await.expect("deleted");
    add(world, variable(world, &vault, "ANOTHER")).await.expect("room again");
}

pub(crate) async fn archiving_a_vault_purges_what_it_holds(world: &World) {
    let (store, workspace) = (&world.store, &world.workspace);
    let vault = make_vault(world).await;
    let kept = add(world, bearer(world, &vault, "https://a.example")).await.expect("kept");
    let query = || CredentialQuery { include_archived: true, ..CredentialQuery::default() };
    world.clock.advance(Duration::from_secs(1));
    let now = store.now();
    let archived = store.archive_vault(workspace, &vault.id).await.expect("archived");
    assert_eq!((archived.archived_at, archived.updated_at), (Some(now), now));
    world.clock.advance(Duration::from_secs(1));
    assert_eq!(store.archive_vault(workspace, &vault.id).await.expect("again"), archived);
    assert_eq!(store.get_vault(workspace, &vault.id).await.expect("works"), Some(archived));
    let purged = get(world, &kept).await.expect("the row stays");
    assert_eq!((purged.credential.archived_at, purged.credential.updated_at), (Some(now), now));
    assert_eq!(
        (purged.sealed, purged.credential.auth.clone()),
        (Sealed::new(), kept.credential.auth.clone())
    );
    let listed = store.list_credentials(workspace, &vault.id, query()).await.expect("works");
    assert_eq!(listed.expect("there"), [purged.credential]);
    let shown =
        store.list_credentials(workspace, &vault.id, CredentialQuery::default()).await.expect("works");
    assert_eq!(shown, Some(Vec::new()));
    assert!(store.list_vaults(workspace, VaultQuery::default()).await.expect("works").is_empty());
    assert!(spendable(world, &[&vault], of_server("https://a.example")).await.is_empty());
    let refused = add(world, bearer(world, &vault, "https://b.example")).await;
    assert!(matches!(refused, Err(ChangeError::Refused(_))));
}

pub(crate) async fn a_credential_that_joins_while_its_vault_is_archived_is_archived_with_it(world: &World) {
    let vault = make_vault(world).await;
    let (a, b) = (variable(world, &vault, "A"), variable(world, &vault, "B"));
    let (first, archived, second) =
        tokio::join!(add(world, a), world.store.archive_vault(&world.workspace, &vault.id), add(world, b));
    archived.expect("archived");
    for joined in [first, second].into_iter().flatten() {
        let now = get(world, &joined).await.expect("there");
        assert!(now.credential.archived_at.is_some() && now.sealed.is_empty());
    }
}

pub(crate) async fn deleting_a_vault_deletes_what_it_holds(world: &World) {
    let (store, workspace) = (&world.store, &world.workspace);
    let (vault, other) = (make_vault(world).await, make_vault(world).await);
    let kept = add(world, bearer(world, &vault, "https://a.example")).await.expect("kept");
    let stays = add(world, bearer(world, &other, "https://a.example")).await.expect("kept");
    store.delete_vault(workspace, &vault.id).await.expect("deleted");
    assert!(matches!(store.delete_vault(workspace, &vault.id).await, Err(ChangeError::NotFound)));
    assert_eq!((get(world, &kept).await, get(world, &stays).await), (None, Some(stays)));
    let refused = add(world, bearer(world, &vault, "https://b.example")).await;
    assert!(matches!(refused, Err(ChangeError::NotFound)));
}

pub(crate) async fn credentials_are_found_in_the_order_of_the_vaults(world: &World) {
    let (first, second, third) = (make_vault(world).await, make_vault(world).await, make_vault(world).await);
    let mut ids = Vec::new();
    for vault in [&first, &second] {
        for kept in [
            bearer(world, vault, "https://a.example"),
            variable(world, vault, "B"),
            variable(world, vault, "A"),
        ] {
            ids.push(add(world, kept).await.expect("kept").credential.id);
        }
    }
    let server = || of_server("HTTPS://A.example/");
    assert_eq!(spendable(world, &[&first, &second], server()).await, [ids[0].clone(), ids[3].clone()]);
    assert_eq!(spendable(world, &[&second, &first], server()).await, [ids[3].clone(), ids[0].clone()]);
    assert!(spendable(world, &[&third], server()).await.is_empty());
    assert!(spendable(world, &[], server()).await.is_empty());
    assert!(spendable(world, &[&first], of_server("https://a.example/x")).await.is_empty());
    let variables = spendable(world, &[&second, &first], Wanted::Variables).await;
    assert_eq!(variables, [ids[5].clone(), ids[4].clone(), ids[2].clone(), ids[1].clone()]);
    let variable = Wanted::Key(CredentialKey::of_variable("A"));
    assert_eq!(spendable(world, &[&first], variable).await, [ids[2].clone()]);
}

pub(crate) async fn one_at_a_time_renews_a_token(world: &World) {
    let vault = make_vault(world).await;
    let kept = add(world, bearer(world, &vault, "https://a.example")).await.expect("kept");
    let (store, id, time) = (&world.store, &kept.credential.id, Duration::from_secs(30));
    assert!(store.claim_refresh(id, "one", time).await.expect("works"));
    assert!(store.claim_refresh(id, "one", time).await.expect("works"));
    assert!(!store.claim_refresh(id, "two", time).await.expect("works"));
    store.release_refresh(id, "two").await.expect("works");
    assert!(!store.claim_refresh(id, "two", time).await.expect("works"));
    store.release_refresh(id, "one").await.expect("works");
    assert!(store.claim_refresh(id, "two", time).await.expect("works"));
    world.clock.advance(time);
    assert!(store.claim_refresh(id, "three", time).await.expect("works"));
    store.archive_vault(&world.workspace, &vault.id).await.expect("archived");
    assert!(!store.claim_refresh(id, "three", time).await.expect("works"));
    assert!(!store.claim_refresh(&world.id(), "one", time).await.expect("works"));
}

pub(crate) async fn a_workspace_has_one_key_wrapped_by_the_one_master_key(world: &World) {
    let store = &world.store;
    let key = |workspace: &protocol::id::WorkspaceId, master: &str, wrapped: &str| VaultKey {
        workspace: workspace.clone(),
        master: master.to_owned(),
        wrapped: wrapped.to_owned(),
    };
    let workspace = &world.workspace;
    assert_eq!(store.vault_master().await.expect("works"), None);
    assert_eq!(store.vault_key(workspace).await.expect("works"), None);
    let (one, two) = (key(workspace, "m1", "1"), key(workspace, "m1", "2"));
    let (a, b) = tokio::join!(store.add_vault_key(one), store.add_vault_key(two));
    let (Added::Kept(a), Added::Kept(b)) = (a.expect("works"), b.expect("works")) else { panic!("kept") };
    assert_eq!(a, b);
    assert_eq!(store.vault_key(workspace).await.expect("works"), Some(a.clone()));
    assert_eq!(store.vault_master().await.expect("works").as_deref(), Some("m1"));
    let other = world.id();
    let moved = store.add_vault_key(key(&other, "m2", "3")).await.expect("works");
    assert_eq!(moved, Added::Moved("m1".to_owned()));
    store.set_vault_master("m2").await.expect("works");
    let moved = store.add_vault_key(key(&other, "m1", "3")).await.expect("works");
    assert_eq!(moved, Added::Moved("m2".to_owned()));
    let rewrapped = key(workspace, "m2", "4");
    assert!(store.rewrap_vault_key(&a, &rewrapped).await.expect("works"));
    assert!(!store.rewrap_vault_key(&a, &key(workspace, "m2", "5")).await.expect("works"));
    assert_eq!(store.vault_keys().await.expect("works"), [rewrapped]);
}
