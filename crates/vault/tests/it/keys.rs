use std::os::unix::fs::PermissionsExt as _;

use protocol::secret::Secret;
use vault::{Error, KeyError, Source};

use crate::world::{World, bearer, credentials};

fn text(key: &str) -> Source {
    Source::Text(Secret::new(key.to_owned()))
}

/// A key of 64 digits, each time the same.
fn key(seed: u8) -> String {
    (0..32).map(|index| format!("{:02x}", index ^ seed)).collect()
}

#[tokio::test]
async fn the_key_file_is_made_for_its_owner_alone() {
    let world = World::new().await;
    let name = world.credentials.check().await.expect("made");
    let mode = std::fs::metadata(world.key_file()).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(world.other().check().await.expect("read"), name);
    let files: Vec<_> = std::fs::read_dir(world.dir.path())
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
        .filter(|name| name.contains("vault.key"))
        .collect();
    assert_eq!(files, ["vault.key"]);
}

#[tokio::test]
async fn a_key_file_that_others_may_read_is_refused() {
    let world = World::new().await;
    world.credentials.check().await.expect("made");
    for mode in [0o640, 0o604, 0o620, 0o666] {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(world.key_file(), permissions).expect("changed");
        let refused = world.other().check().await;
        assert!(matches!(refused, Err(Error::Key(KeyError::Exposed { .. }))), "{mode:o}");
    }
}

#[tokio::test]
async fn processes_that_start_at_once_end_with_one_key() {
    let world = World::new().await;
    let vault = world.vault().await;
    let all: Vec<_> = (0..8).map(|_| world.other()).collect();
    let names = futures_util::future::join_all(all.iter().map(vault::Credentials::check)).await;
    let names: std::collections::BTreeSet<_> = names.into_iter().map(|name| name.expect("made")).collect();
    assert_eq!(names.len(), 1);
    world.add(&vault, bearer("https://a.example", "hush")).await;
    for other in all {
        let found = other.for_mcp(&world.workspace, std::slice::from_ref(&vault), "https://a.example").await;
        let opened = other.open(&found.expect("works").expect("found")).await.expect("opens");
        assert_eq!(opened.expose(str::to_owned), "hush");
    }
}

#[tokio::test]
async fn a_lost_key_is_never_replaced_by_a_new_one() {
    let world = World::new().await;
    let vault = world.vault().await;
    world.add(&vault, bearer("https://a.example", "hush")).await;
    std::fs::remove_file(world.key_file()).expect("removed");
    let other = world.other();
    assert!(matches!(other.check().await, Err(Error::Key(KeyError::Other { .. }))));
    let found = other.for_mcp(&world.workspace, &[vault], "https://a.example").await;
    let opened = other.open(&found.expect("works").expect("found")).await;
    assert!(matches!(opened, Err(Error::Key(KeyError::Other { .. }))));
    assert!(!world.key_file().exists());
    // Who has it in memory goes on.
    let vault = world.vault().await;
    world.add(&vault, bearer("https://a.example", "hush")).await;
}

#[tokio::test]
async fn a_key_comes_from_a_text_or_a_command_too() {
    let world = World::new().await;
    let vault = world.vault().await;
    let store = world.store().clone();
    let by_text = credentials(store.clone(), text(&key(1)));
    let name = by_text.check().await.expect("read");
    let command = |command: String| credentials(store.clone(), Source::Command(command));
    assert_eq!(command(format!("echo {}", key(1))).check().await.expect("run"), name);
    assert_eq!(
        credentials(store.clone(), text(&format!(" {}\n{}, ", key(1), key(2)))).check().await.expect("read"),
        name
    );
    let create = serde_json::json!({"auth": bearer("https://a.example", "hush")});
    let create = protocol::credential_request::CredentialCreate::parse(create, store.now()).expect("parses");
    by_text.create(&world.workspace, &vault, create).await.expect("sealed");
    let refused = credentials(store.clone(), text(&key(2))).check().await;
    assert!(matches!(refused, Err(Error::Key(KeyError::Other { wanted })) if wanted == name));
}

#[tokio::test]
async fn what_is_no_key_is_refused_without_being_repeated() {
    let world = World::new().await;
    let store = world.store().clone();
    let planted = "planted-but-no-key";
    for given in [planted, &"00".repeat(32), "c2hvcnQ=", &vec![key(1); 9].join(" ")] {
        let error = credentials(store.clone(), text(given)).check().await.expect_err("refused");
        assert!(matches!(error, Error::Key(KeyError::Form(_))), "{given}: {error:?}");
        assert!(!format!("{error:?} {error}").contains(planted));
    }
    for command in ["exit 3", "true", "yes", "no-such-program-anywhere", "printf '\\377'"] {
        let error = credentials(store.clone(), Source::Command(command.to_owned())).check().await;
        assert!(matches!(error, Err(Error::Key(_))), "{command}");
    }
}
