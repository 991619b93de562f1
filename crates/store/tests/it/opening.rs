//! The data directory of the embedded store: its lock, its format, restarts, and what happens when SQLite fails.

use std::os::unix::fs::PermissionsExt;

use protocol::position::Position;
use rusqlite::Connection;
use session::Draft;
use store::{AppendError, ChangeError, Error, From, Keys, OpenError, Options, Slice, Store, hash_key};
use tempfile::TempDir;

use crate::world::{START, World, event, id_of, message, positions, said, soon, words};

fn database(world: &World) -> Connection {
    Connection::open(world.dir.path().join("posthouse.db")).expect("opens")
}

#[tokio::test]
async fn a_second_server_is_told_who_has_the_directory() {
    let world = World::on_sqlite();
    let second = Store::open(world.dir.path(), Options::default());
    let Err(OpenError::InUse { path, pid }) = second else { panic!("in use") };
    assert_eq!((path.as_path(), pid), (world.dir.path(), std::process::id().to_string()));
}

#[tokio::test]
async fn the_directory_is_free_once_the_store_is_closed_or_dropped() {
    let dir = TempDir::new().expect("a directory can be made");
    for _ in 0..3 {
        let store = Store::open(dir.path(), Options::default()).expect("free");
        let clone = store.clone();
        store.close().await;
        let next = Store::open(dir.path(), Options::default()).expect("free, though a clone is left");
        drop((clone, next));
    }
}

#[tokio::test]
async fn a_database_of_a_later_version_is_left_alone() {
    let world = World::on_sqlite();
    let conn = database(&world);
    let World { store, dir, .. } = world;
    store.close().await;
    conn.pragma_update(None, "user_version", 99).expect("written");
    let refused = Store::open(dir.path(), Options::default());
    assert!(matches!(refused, Err(OpenError::Newer { found: 99, known: 4 })));
}

#[tokio::test]
async fn what_is_no_database_is_left_alone() {
    let dir = TempDir::new().expect("a directory can be made");
    let file = dir.path().join("posthouse.db");
    let content = "Dear diary, ".repeat(1_000);
    std::fs::write(&file, &content).expect("written");
    let refused = Store::open(dir.path(), Options::default());
    assert!(matches!(refused, Err(OpenError::Store(Error::Corrupt(_)))));
    assert_eq!(std::fs::read_to_string(&file).expect("there"), content);
}

#[tokio::test]
async fn a_new_data_directory_is_private() {
    let dir = TempDir::new().expect("a directory can be made");
    let inner = dir.path().join("a/b");
    let store = Store::open(&inner, Options::default()).expect("made");
    let mode = std::fs::metadata(&inner).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    store.close().await;
}

#[tokio::test]
async fn a_restart_finds_what_was_there() {
    let world = World::on_sqlite();
    let (id, lease) = world.leased().await;
    world.append(&lease, world.says(3)).await;
    world.send(&id, vec![message("hello")]).await;
    let (view, log) = (world.view(&id).await, world.log(&id).await);
    let world = world.restarted().await;
    assert_eq!(world.view(&id).await, view);
    assert_eq!(world.log(&id).await, log);
    let lease = world.lease(&id).await;
    let after = world.append(&lease, vec![Draft::Take(view.inbox[0].id.clone())]).await;
    assert_eq!(after.state.head, Position(4));
    let mut follower = world.follow(&id, From::After(Position(3))).await;
    assert_eq!(words(&mut follower, 1).await, ["4 user.message"]);
    world.check_rebuild().await;
}

#[tokio::test]
async fn a_restart_voids_leases_and_finds_who_wants_a_brain() {
    let world = World::on_sqlite();
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(world.session().await);
    }
    for id in &ids[1..] {
        world.send(id, vec![message("hello")]).await;
    }
    let held = soon(world.claim("dead")).await.expect("works");
    assert_eq!(held.token.session, ids[1]);
    // The clock stands still: the lease has not lapsed.
    let world = world.restarted().await;
    for id in &ids[1..] {
        let lease = soon(world.claim("next")).await.expect("works");
        assert_eq!(lease.token.session, *id);
    }
    let stale = world.store.append(&held.token, START, world.says(1)).await;
    assert!(matches!(stale, Err(AppendError::Fenced)));
}

#[tokio::test]
async fn a_token_from_before_a_restart_is_fenced_though_nobody_claimed() {
    let world = World::on_sqlite();
    let (id, held) = world.leased().await;
    let world = world.restarted().await;
    let stale = world.store.append(&held.token, START, world.says(1)).await;
    assert!(matches!(stale, Err(AppendError::Fenced)));
    assert_eq!(world.lease(&id).await.token.epoch, held.token.epoch + 1);
}

#[tokio::test]
async fn keys_are_managed_beside_a_running_server() {
    let world = World::on_sqlite();
    let workspace = world.store.ensure_workspace().await.expect("works");
    let mut keys = Keys::open(world.dir.path(), Options::default()).expect("opens");
    assert_eq!(keys.ensure_workspace().expect("works"), workspace);
    let hash = hash_key("ph-secret");
    let key = keys.create_key(&workspace, "laptop", hash).expect("kept");
    assert!(matches!(keys.create_key(&workspace, "again", hash), Err(ChangeError::Exists)));
    assert_eq!(world.store.find_key(hash).await.expect("works"), Some(key.clone()));
    assert_eq!(keys.list_keys(&workspace).expect("works"), std::slice::from_ref(&key));
    keys.revoke_key(&workspace, &key.id).expect("revoked");
    assert_eq!(world.store.find_key(hash).await.expect("works"), None);
    let (_, lease) = world.leased().await;
    world.append(&lease, world.says(1)).await;
}

#[tokio::test]
async fn keys_may_be_made_before_the_first_server() {
    let dir = TempDir::new().expect("a directory can be made");
    let mut keys = Keys::open(dir.path(), Options::default()).expect("made");
    let workspace = keys.ensure_workspace().expect("works");
    keys.create_key(&workspace, "laptop", hash_key("ph-secret")).expect("kept");
    let store = Store::open(dir.path(), Options::default()).expect("opens");
    assert!(store.find_key(hash_key("ph-secret")).await.expect("works").is_some());
}

#[tokio::test]
async fn a_key_is_nowhere_in_the_directory() {
    let world = World::on_sqlite();
    let secret = "ph-a-very-secret-key";
    world.store.create_key(&world.workspace, "laptop", hash_key(secret)).await.expect("kept");
    for file in std::fs::read_dir(world.dir.path()).expect("there") {
        let content = std::fs::read(file.expect("there").path()).expect("readable");
        assert!(!content.windows(secret.len()).any(|window| window == secret.as_bytes()));
    }
}

#[tokio::test]
async fn the_events_of_a_deleted_session_are_removed_from_the_database() {
    let world = World::on_sqlite();
    let (id, lease) = world.leased().await;
    world.append(&lease, world.says(2_000)).await;
    world.store.delete_session(&world.workspace, &id).await.expect("deleted");
    let conn = database(&world);
    let left = || -> i64 {
        let count = "SELECT (SELECT count(*) FROM event) + (SELECT count(*) FROM doomed)";
        conn.query_row(count, [], |row| row.get(0)).expect("counted")
    };
    // Removed in the background, some with each flush: give it something to do now and then.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while left() > 0 {
        assert!(std::time::Instant::now() < deadline, "still {} left", left());
        world.session().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flush_that_fails_has_not_happened_and_the_store_goes_on() {
    let world = World::on_sqlite();
    let (bad, bad_lease) = world.leased().await;
    let (good, good_lease) = world.leased().await;
    let trigger = "CREATE TRIGGER fail BEFORE INSERT ON event WHEN NEW.body LIKE '%poison%'
                   BEGIN SELECT RAISE(ABORT, 'poisoned'); END";
    database(&world).execute_batch(trigger).expect("made");
    let mut drafts = world.says(2);
    drafts.push(world.draft(said("poison")));
    let (failed, beside) = tokio::join!(
        world.store.append(&bad_lease.token, START, drafts),
        world.store.append(&good_lease.token, START, world.says(2)),
    );
    let Err(AppendError::Store(error)) = failed else { panic!("failed") };
    assert!(!error.may_have_happened());
    assert!(world.log(&bad).await.is_empty());
    // Whether it shared the flush or not: what was acknowledged is there, and nothing else is.
    assert_eq!(world.log(&good).await.len(), if beside.is_ok() { 2 } else { 0 });
    for lease in [&bad_lease, &good_lease] {
        world.append(lease, world.says(2)).await;
    }
    assert_eq!(positions(&world.log(&bad).await), [1, 2]);
    world.check_rebuild().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_waits_for_another_process_that_writes() {
    let world = World::on_sqlite();
    let (id, lease) = world.leased().await;
    let other = database(&world);
    other.execute_batch("BEGIN IMMEDIATE").expect("begun");
    let append = tokio::spawn({
        let (store, token, drafts) = (world.store.clone(), lease.token.clone(), world.says(1));
        async move { store.append(&token, START, drafts).await }
    });
    // Reading goes on meanwhile.
    assert!(world.slice(&id, Slice::default()).await.is_empty());
    assert!(!append.is_finished());
    other.execute_batch("COMMIT").expect("committed");
    soon(append).await.expect("no panic").expect("appended");
}

#[tokio::test]
async fn a_large_inbox_is_read_again_when_it_is_needed() {
    let world = World::on_sqlite();
    let (id, lease) = world.leased().await;
    let large = "x".repeat(200_000);
    let first = world.send(&id, vec![message(&large), message("small")]).await;
    let second = world.send(&id, vec![message(&large)]).await;
    let view = world.append(&lease, vec![Draft::Take(id_of(&first[1]))]).await;
    let waiting: Vec<_> = view.inbox.iter().map(|event| event.id.clone()).collect();
    assert_eq!(waiting, [id_of(&first[0]), id_of(&second[0])]);
    assert_eq!(world.view(&id).await, view);
    let view = world.append(&lease, waiting.into_iter().map(Draft::Take).collect()).await;
    assert!(view.inbox.is_empty());
    assert_eq!(event(&world.log(&id).await[2]).body, message(&large));
    world.check_rebuild().await;
}

#[tokio::test]
async fn a_store_beside_a_server_reads_what_is_there_and_changes_nothing() {
    let world = World::on_sqlite();
    let (id, lease) = world.leased().await;
    let beside = Store::open_beside(world.dir.path(), Options::default()).expect("the lock is not needed");
    // The first event of each kind comes after it was opened.
    world.append(&lease, world.says(3)).await;
    world.send(&id, vec![message("hello")]).await;
    assert_eq!(beside.look(&id).await.expect("reads"), Some(world.view(&id).await));
    let slice = Slice { private: true, ..Slice::default() };
    let events = beside.get_events(&id, slice.clone()).await.expect("reads");
    assert_eq!(events, world.store.get_events(&id, slice).await.expect("reads"));
    assert_eq!(beside.sessions_after(None, 10).await.expect("reads"), std::slice::from_ref(&id));
    let refused = beside.put_rebuilt(&id).await;
    assert!(matches!(refused, Err(Error::Closed)), "{refused:?}");
    beside.close().await;
    world.append(&lease, world.says(1)).await;
}

#[tokio::test]
async fn a_format_is_brought_up_to_date_once_and_an_old_one_is_not_read() {
    let dir = TempDir::new().expect("a directory can be made");
    let conn = Connection::open(dir.path().join("posthouse.db")).expect("opens");
    conn.execute_batch(include_str!("../../src/sqlite/migrations/0001_first.sql")).expect("runs");
    conn.pragma_update(None, "user_version", 1).expect("written");
    let refused = Store::open_beside(dir.path(), Options::default());
    assert!(matches!(refused, Err(OpenError::Older { found: 1, .. })));
    let (found, reached) = store::migrate_directory(dir.path()).expect("works");
    assert_eq!(found, 1);
    assert_eq!(store::migrate_directory(dir.path()).expect("works"), (reached, reached));
    assert!(Store::open_beside(dir.path(), Options::default()).is_ok());
}
