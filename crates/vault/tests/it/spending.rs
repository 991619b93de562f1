use protocol::credential_request::SecretField;
use serde_json::json;
use store::KeptCredential;
use vault::Error;

use crate::world::{World, bearer, variable};

#[tokio::test]
async fn the_first_vault_with_a_match_wins() {
    let world = World::new().await;
    let (first, second) = (world.vault().await, world.vault().await);
    world.add(&second, bearer("https://a.example/mcp", "of-second")).await;
    let url = "HTTPS://A.example:443/mcp/";
    let both = [first.clone(), second.clone()];
    assert_eq!(world.token(&both, url).await.as_deref(), Some("of-second"));
    let ours = world.add(&first, bearer("https://a.example/mcp/", "of-first")).await;
    assert_eq!(world.token(&both, url).await.as_deref(), Some("of-first"));
    assert_eq!(world.token(&[second, first], url).await.as_deref(), Some("of-second"));
    assert_eq!(world.token(&both, "https://a.example/other").await, None);
    assert_eq!(world.token(&both, "nonsense").await, None);
    world.archive(&ours).await;
    assert_eq!(world.token(&both, url).await.as_deref(), Some("of-second"));
}

#[tokio::test]
async fn each_variable_is_the_first_vaults() {
    let world = World::new().await;
    let (first, second) = (world.vault().await, world.vault().await);
    world.add(&first, variable("A", "a1")).await;
    world.add(&second, variable("A", "a2")).await;
    world.add(&second, variable("B", "b2")).await;
    let found = world.credentials.for_environment(&world.workspace, &[first, second]).await.expect("works");
    let mut values = Vec::new();
    for spendable in &found {
        let (name, _, place) = spendable.variable().expect("a variable");
        assert!(place.header && place.body);
        let opened = world.credentials.open(spendable).await.expect("opens");
        values.push((name.to_owned(), opened.expose(str::to_owned)));
    }
    values.sort();
    assert_eq!(values, [("A".to_owned(), "a1".to_owned()), ("B".to_owned(), "b2".to_owned())]);
}

#[tokio::test]
async fn a_new_secret_is_spent_at_once_and_an_archived_one_never_again() {
    let world = World::new().await;
    let vault = world.vault().await;
    let url = "https://a.example";
    let credential = world.add(&vault, bearer(url, "one")).await;
    let vaults = [vault];
    let before =
        world.credentials.for_mcp(&world.workspace, &vaults, url).await.expect("works").expect("found");
    world.change(&credential, json!({"auth": {"type": "static_bearer", "token": "two"}})).await;
    assert_eq!(world.token(&vaults, url).await.as_deref(), Some("two"));
    let again = world.credentials.again(&before).await.expect("works").expect("there");
    assert!(!again.is_same_secret(&before));
    world.archive(&credential).await;
    assert_eq!(world.token(&vaults, url).await, None);
    assert!(world.credentials.again(&before).await.expect("works").is_none());
}

#[tokio::test]
async fn the_header_is_made_here_and_does_not_print_itself() {
    let world = World::new().await;
    let vault = world.vault().await;
    world.add(&vault, bearer("https://a.example", "hush")).await;
    let found = world.credentials.for_mcp(&world.workspace, &[vault], "https://a.example").await;
    let opened = world.credentials.open(&found.expect("works").expect("found")).await.expect("opens");
    let header = opened.authorization();
    assert_eq!(header.as_bytes(), b"Bearer hush");
    assert!(header.is_sensitive() && !format!("{header:?} {opened:?}").contains("hush"));
}

#[tokio::test]
async fn what_is_moved_in_the_database_does_not_open() {
    let world = World::new().await;
    let vault = world.vault().await;
    let rich = world.add(&vault, bearer("https://rich.example", "rich")).await;
    let poor = world.add(&vault, bearer("https://poor.example", "poor")).await;
    let store = world.store();
    let kept = store.get_credential(&world.workspace, &vault, &rich.id).await.expect("works").expect("there");
    let field = SecretField::Token.as_str();
    let stolen = kept.sealed[field].clone();
    let swap = move |kept: &KeptCredential| {
        let mut changed = kept.clone();
        changed.sealed.insert(field.to_owned(), stolen);
        Ok(Some(changed))
    };
    store.change_credential(&world.workspace, &vault, &poor.id, Box::new(swap)).await.expect("swapped");
    let found = world.credentials.for_mcp(&world.workspace, &[vault], "https://poor.example").await;
    let opened = world.credentials.open(&found.expect("works").expect("found")).await;
    assert!(matches!(opened, Err(Error::Sealed(id)) if id == poor.id));
}
