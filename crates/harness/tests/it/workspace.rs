//! What a session's next sandbox begins with.

use std::sync::Arc;

use blobs::Blobs;
use harness::Snapshots;
use protocol::event::{Body, Snapshot};
use protocol::id::SessionId;
use serde_json::json;
use session::Draft;
use tempfile::TempDir;
use testkit::hands::sha256;
use tokio_util::sync::CancellationToken;

use crate::brain::{ALLOW, bash};
use crate::world::{World, message, scripted};

struct Saved {
    world: World,
    snapshots: Snapshots,
    session: SessionId,
    _dir: TempDir,
}

impl Saved {
    /// A session whose first turn ran in a sandbox that was then put away as a blob with this text.
    async fn new(turns: serde_json::Value, text: &str) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let world = World::open(dir.path(), scripted(turns), Arc::default()).await;
        let blobs = Blobs::in_folder(&dir.path().join("blobs")).expect("a folder");
        let snapshots = Snapshots { blobs, scratch: dir.path().join("snapshots") };
        let session = world.session(ALLOW, "go").await;
        world.wake(&session).await;
        let saved = Self { world, snapshots, session, _dir: dir };
        saved.put_away(text, 0).await;
        saved
    }

    async fn put_away(&self, text: &str, left_out: u64) {
        let file = self._dir.path().join("snapshot");
        std::fs::write(&file, text).expect("written");
        self.snapshots.blobs.put("snapshots/one", &file).await.expect("put");
        let now = self.world.store.now();
        let snapshot = Snapshot {
            key: "snapshots/one".to_owned(),
            size_bytes: text.len() as u64,
            sha256: sha256(text.as_bytes()),
            base: "host".to_owned(),
            saved_at: now,
            begun_at: now,
            left_out,
        };
        let lease = self.world.store.try_claim(&self.session, "saver").await.expect("works").expect("free");
        let head = self.world.state(&self.session).await.head;
        let body = Body::Snapshot { snapshot, put_away: true };
        let drafts = vec![Draft::New { id: self.world.store.ids().make(), body }];
        self.world.store.append(&lease.token, head, drafts).await.expect("appended");
        self.world.store.release(lease).await.expect("released");
        self.world.hands.kill_all();
    }

    /// The next turn; gives what is told of the session then.
    async fn go_on(&self, snapshots: Option<Snapshots>) -> String {
        self.world.send(&self.session, vec![message("more")]).await;
        let brain = self.world.brain_with(|options| options.snapshots = snapshots);
        brain.wake(&self.session, &CancellationToken::new()).await.expect("the store works");
        assert_eq!(
            std::fs::read_dir(&self.snapshots.scratch).map_or(0, Iterator::count),
            0,
            "a file is left"
        );
        self.world.told(&self.session).await
    }
}

fn turns(second: &[&str]) -> serde_json::Value {
    let mut turns = vec![json!({"blocks": [bash("first")]}), json!({"blocks": [{"text": "done"}]})];
    turns.extend(second.iter().map(|command| json!({"blocks": [bash(command)]})));
    turns.push(json!({"blocks": [{"text": "done"}]}));
    json!(turns)
}

#[tokio::test]
async fn the_first_call_after_a_rest_says_once_that_files_are_there_and_processes_are_not() {
    let saved = Saved::new(turns(&["second", "third"]), "snapshot of the first").await;
    let told = saved.go_on(Some(saved.snapshots.clone())).await;
    let (before, after) = told.split_once("result: ran second").expect("it ran");
    let word = "this sandbox was put away while it was idle, and restored before this call";
    assert!(!before.contains(word) && after.contains(word), "{told}");
    assert_eq!(told.matches(word).count(), 1, "{told}");
    assert!(after.split_once(word).expect("there").1.contains("result: ran third"), "{told}");
    assert!(!saved.world.state(&saved.session).await.untold_restoration);
}

#[tokio::test]
async fn the_model_is_told_what_a_snapshot_could_not_hold() {
    let saved = Saved::new(turns(&["second"]), "snapshot of the first").await;
    saved.put_away("snapshot of the first", 3).await;
    let told = saved.go_on(Some(saved.snapshots.clone())).await;
    assert!(told.contains("But 3 of them could not be saved and are missing"), "{told}");
}

#[tokio::test]
async fn the_next_call_begins_with_what_was_saved() {
    let saved = Saved::new(turns(&["second"]), "snapshot of the first").await;
    let told = saved.go_on(Some(saved.snapshots.clone())).await;
    assert!(told.contains("result: ran second"), "{told}");
    assert_eq!(saved.world.hands.restored(), ["the first"]);
    let state = saved.world.state(&saved.session).await;
    assert!(state.sandbox.is_some() && state.snapshot.is_some(), "the snapshot is still the last one");
}

#[tokio::test]
async fn a_snapshot_that_was_dropped_meanwhile_is_told_before_anything_runs_without_it() {
    let saved = Saved::new(turns(&["second", "third"]), "snapshot of the first").await;
    let store = &saved.world.store;
    let lease = store.try_claim(&saved.session, "saver").await.expect("works").expect("free");
    let head = saved.world.state(&saved.session).await.head;
    let (key, reason) = ("snapshots/one".to_owned(), "it was kept for 30 days".to_owned());
    let body = Body::SnapshotLost { key, reason, told: false };
    store
        .append(&lease.token, head, vec![Draft::New { id: store.ids().make(), body }])
        .await
        .expect("appended");
    store.release(lease).await.expect("released");
    let told = saved.go_on(Some(saved.snapshots.clone())).await;
    assert!(told.contains("error: hand: the saved workspace is lost: it was kept for 30 days"), "{told}");
    assert!(!told.contains("ran second") && told.contains("result: ran third"), "{told}");
}

#[tokio::test]
async fn a_corrupt_or_missing_snapshot_is_told_and_the_call_after_it_gets_an_empty_workspace() {
    for missing in [false, true] {
        let saved = Saved::new(turns(&["second", "third"]), "nonsense").await;
        if missing {
            saved.snapshots.blobs.delete("snapshots/one").await.expect("deleted");
        }
        let told = saved.go_on(Some(saved.snapshots.clone())).await;
        assert!(told.contains("error: hand: the workspace that was saved at "), "{told}");
        let why = if missing {
            "is lost: it is missing. This call was not run"
        } else {
            "is lost: the snapshot is corrupt"
        };
        assert!(told.contains(why), "{told}");
        assert!(!told.contains("ran second"), "{told}");
        assert!(told.contains("result: ran third"), "{told}");
        let state = saved.world.state(&saved.session).await;
        assert_eq!((state.snapshot, saved.world.hands.restored().len()), (None, 0));
    }
}

#[tokio::test]
async fn a_snapshot_that_is_not_the_one_on_record_is_corrupt_though_it_is_as_long_and_whole() {
    let saved = Saved::new(turns(&["second", "third"]), "snapshot of the first").await;
    let file = saved._dir.path().join("other");
    std::fs::write(&file, "snapshot of the other").expect("written");
    saved.snapshots.blobs.put("snapshots/one", &file).await.expect("put");
    let told = saved.go_on(Some(saved.snapshots.clone())).await;
    assert!(told.contains("is lost: the snapshot is corrupt: its digest is not the one on record"), "{told}");
    assert!(!told.contains("ran second") && told.contains("result: ran third"), "{told}");
    assert_eq!(saved.world.hands.restored().len(), 0);
}

#[tokio::test]
async fn after_a_sudden_death_the_model_is_told_what_is_left_and_gets_it() {
    let saved = Saved::new(turns(&["hold forever", "third"]), "snapshot of the first").await;
    let (told, ()) = tokio::join!(saved.go_on(Some(saved.snapshots.clone())), async {
        saved.world.hands.until_runs(2).await;
        saved.world.hands.kill_all();
    });
    assert!(told.contains("The next call gets the workspace as it was saved at "), "{told}");
    assert!(told.contains("result: ran third"), "{told}");
    assert_eq!(saved.world.hands.restored(), ["the first", "the first"]);
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_had_now_is_not_lost() {
    let saved = Saved::new(turns(&["second"]), "snapshot of the first").await;
    let told = saved.go_on(None).await;
    assert!(told.contains("error: hand: too busy: this server keeps no snapshots"), "{told}");
    assert!(saved.world.state(&saved.session).await.snapshot.is_some());
    assert_eq!(saved.world.hands.living(), 0, "nothing runs in an empty workspace");
}

#[tokio::test]
async fn a_snapshot_of_another_base_is_lost() {
    let saved = Saved::new(turns(&["second"]), "snapshot of the first").await;
    let mut snapshot = saved.world.state(&saved.session).await.snapshot.expect("on record");
    snapshot.base = "image x".to_owned();
    let lease = saved.world.store.try_claim(&saved.session, "saver").await.expect("works").expect("free");
    let head = saved.world.state(&saved.session).await.head;
    let body = Body::Snapshot { snapshot, put_away: true };
    let drafts = vec![Draft::New { id: saved.world.store.ids().make(), body }];
    saved.world.store.append(&lease.token, head, drafts).await.expect("appended");
    saved.world.store.release(lease).await.expect("released");
    let told = saved.go_on(Some(saved.snapshots.clone())).await;
    assert!(told.contains("it was saved on image x, and this would be built on host"), "{told}");
}
