use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use store::VaultKeys;
use vault::{Book, Error, KeyError, Rotation, Source, rotate};

use crate::world::{World, bearer, soon};

async fn rotated(world: &World) -> Result<Rotation, Error> {
    // As the command line does it: beside whoever serves the directory.
    let keys = VaultKeys::open(world.dir.path()).expect("opens");
    rotate(&mut Book::Directory(Box::new(keys)), &Source::File(world.key_file())).await
}

fn key_count(world: &World) -> usize {
    std::fs::read_to_string(world.key_file()).expect("a file").lines().count()
}

#[tokio::test]
async fn everything_opens_after_a_rotation_and_nothing_needs_the_old_key() {
    let world = World::new().await;
    let vault = world.vault().await;
    let url = "https://a.example";
    world.add(&vault, bearer(url, "hush")).await;
    let before = world.credentials.check().await.expect("works");
    let done = rotated(&world).await.expect("rotated");
    assert_ne!(done.master, before);
    assert_eq!((done.rewrapped, done.leaves_old_keys, key_count(&world)), (1, false, 1));
    let vaults = [vault];
    for credentials in [world.other(), world.credentials.clone()] {
        let found = credentials.for_mcp(&world.workspace, &vaults, url).await.expect("works").expect("found");
        let opened = credentials.open(&found).await.expect("opens");
        assert_eq!(opened.expose(str::to_owned), "hush");
    }
    let keys = world.store().vault_keys().await.expect("works");
    assert!(keys.iter().all(|key| key.master == done.master));
}

#[tokio::test]
async fn a_server_that_knew_only_the_old_key_goes_on_with_new_workspaces() {
    let world = World::new().await;
    let vault = world.vault().await;
    world.add(&vault, bearer("https://a.example", "hush")).await;
    rotated(&world).await.expect("rotated");
    let workspace = world.store().create_workspace().await.expect("made");
    let elsewhere = World { workspace, ..world };
    let vault = elsewhere.vault().await;
    elsewhere.add(&vault, bearer("https://a.example", "of-another-workspace")).await;
    assert_eq!(elsewhere.token(&[vault], "https://a.example").await.as_deref(), Some("of-another-workspace"));
    let masters: std::collections::BTreeSet<_> =
        elsewhere.store().vault_keys().await.expect("works").into_iter().map(|key| key.master).collect();
    assert_eq!(masters.len(), 1);
}

#[tokio::test]
async fn secrets_are_sealed_and_opened_while_keys_are_changed_again_and_again() {
    let world = Arc::new(World::new().await);
    let is_over = Arc::new(AtomicBool::new(false));
    let workers: Vec<_> = (0..4)
        .map(|number| {
            let (world, is_over) = (Arc::clone(&world), Arc::clone(&is_over));
            tokio::spawn(async move {
                let mut rounds = 0;
                while !is_over.load(Ordering::Relaxed) || rounds == 0 {
                    // A process that has just started, in a workspace of its own.
                    let workspace = world.store().create_workspace().await.expect("made");
                    let fresh = World {
                        credentials: world.other(),
                        workspace,
                        dir: tempfile::tempdir().expect("a folder"),
                    };
                    let vault = fresh.vault().await;
                    let token = format!("{number}-{rounds}");
                    fresh.add(&vault, bearer("https://a.example", &token)).await;
                    let vaults = [vault];
                    let other = World {
                        credentials: world.other(),
                        workspace: fresh.workspace.clone(),
                        dir: tempfile::tempdir().expect("a folder"),
                    };
                    assert_eq!(other.token(&vaults, "https://a.example").await, Some(token));
                    rounds += 1;
                }
            })
        })
        .collect();
    for _ in 0..12 {
        soon(rotated(&world)).await.expect("rotated");
    }
    is_over.store(true, Ordering::Relaxed);
    for worker in workers {
        soon(worker).await.expect("nothing failed");
    }
}

/// Each state that a rotation can be killed in is one that the next can finish, and that servers can work with.
#[tokio::test]
async fn a_rotation_that_was_killed_anywhere_is_finished_by_the_next() {
    for stage in 0..4 {
        let world = World::new().await;
        let vault = world.vault().await;
        let url = "https://a.example";
        world.add(&vault, bearer(url, "hush")).await;
        let vaults = [vault];
        let old = std::fs::read_to_string(world.key_file()).expect("a file");
        let old_row = world.store().vault_key(&world.workspace).await.expect("works").expect("there");
        let done = rotated(&world).await.expect("rotated");
        let new = std::fs::read_to_string(world.key_file()).expect("a file");
        let new_row = world.store().vault_key(&world.workspace).await.expect("works").expect("there");
        // Back to the moment of the kill.
        let store = world.store();
        match stage {
            // The new key is in the file, and nothing else has happened.
            0 => {
                store.set_vault_master(&old_row.master).await.expect("works");
                assert!(store.rewrap_vault_key(&new_row, &old_row).await.expect("works"));
            }
            // The database names it.
            1 => assert!(store.rewrap_vault_key(&new_row, &old_row).await.expect("works")),
            // All is wrapped by it.
            2 => {}
            // The file was written beside, and not put in its place.
            _ => std::fs::write(world.dir.path().join("vault.key.1.new"), "half of a k").expect("written"),
        }
        if stage < 3 {
            std::fs::write(world.key_file(), format!("{new}{old}")).expect("written");
        }
        let other = World {
            credentials: world.other(),
            workspace: world.workspace.clone(),
            dir: tempfile::tempdir().expect("a folder"),
        };
        assert_eq!(other.token(&vaults, url).await.as_deref(), Some("hush"), "killed at {stage}");
        let again = rotated(&world).await.expect("finished");
        assert_eq!(again.master == done.master, stage < 3, "killed at {stage}");
        assert_eq!(key_count(&world), 1);
        let other = World {
            credentials: world.other(),
            workspace: world.workspace.clone(),
            dir: tempfile::tempdir().expect("a folder"),
        };
        assert_eq!(other.token(&vaults, url).await.as_deref(), Some("hush"), "killed at {stage}");
    }
}

#[tokio::test]
async fn who_has_not_the_key_in_use_changes_nothing() {
    let world = World::new().await;
    let vault = world.vault().await;
    world.add(&vault, bearer("https://a.example", "hush")).await;
    let kept = std::fs::read(world.key_file()).expect("a file");
    std::fs::remove_file(world.key_file()).expect("removed");
    assert!(matches!(rotated(&world).await, Err(Error::Key(KeyError::Other { .. }))));
    let master = world.store().vault_master().await.expect("works");
    std::fs::write(world.key_file(), kept).expect("written");
    std::fs::set_permissions(world.key_file(), std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .expect("set");
    assert_eq!(world.other().check().await.expect("works"), master.expect("named"));
}

#[tokio::test]
async fn two_rotations_at_once_are_one_after_the_other_or_refused() {
    let world = World::new().await;
    let vault = world.vault().await;
    world.add(&vault, bearer("https://a.example", "hush")).await;
    let outcomes = futures_util::future::join_all((0..4).map(|_| rotated(&world))).await;
    assert!(outcomes.iter().any(Result::is_ok));
    let other = World {
        credentials: world.other(),
        workspace: world.workspace.clone(),
        dir: tempfile::tempdir().expect("a folder"),
    };
    assert_eq!(other.token(&[vault], "https://a.example").await.as_deref(), Some("hush"));
}
