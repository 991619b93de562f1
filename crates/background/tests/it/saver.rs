//! What the saver puts away, what it leaves alone, and what it leaves behind wherever it dies.

use std::collections::HashSet;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use background::{SNAPSHOTS, Saver, SaverOptions};
use blobs::Blobs;
use protocol::content::Content;
use protocol::event::{Body, Snapshot};
use protocol::id::SessionId;
use protocol::time::Timestamp;
use sandbox::{Error, Provider as _, SandboxId};
use session::Draft;
use session::state::{State, Wish};
use store::{ManualClock, Store};
use tokio_util::sync::CancellationToken;

use crate::bucket::Bucket;
use crate::reaper::World;

const HOUR: Duration = Duration::from_secs(3600);

struct Saving {
    world: World,
    blobs: Blobs,
    scratch: PathBuf,
}

impl Saving {
    async fn new() -> Self {
        Self::of(World::new().await)
    }

    fn of(world: World) -> Self {
        let blobs = Blobs::in_folder(&world.dir.path().join("blobs")).expect("a folder");
        let scratch = world.dir.path().join("snapshots");
        Self { world, blobs, scratch }
    }

    fn options(&self) -> SaverOptions {
        SaverOptions {
            idle: Some(Duration::from_secs(600)),
            keep: 24 * HOUR,
            session_bytes_max: 1 << 20,
            total_bytes_max: 1 << 20,
            scratch: self.scratch.clone(),
            holder: "saver".to_owned(),
        }
    }

    fn saver(&self) -> Saver {
        self.saver_with(self.options())
    }

    fn saver_with(&self, options: SaverOptions) -> Saver {
        Saver::new(self.world.store.clone(), self.world.hands.clone(), self.blobs.clone(), options)
    }

    /// A session that rests, with a sandbox that nobody has used for an hour.
    async fn idle(&self, name: &str) -> SessionId {
        let session = self.world.owned(name).await;
        self.world.hands.set_idle(&SandboxId::parse(name).expect("an id"), HOUR);
        session
    }

    async fn state(&self, session: &SessionId) -> State {
        self.world.store.look(session).await.expect("works").expect("is there").state
    }

    /// Whether somebody is at the session.
    async fn is_held(&self, session: &SessionId) -> bool {
        match self.world.store.try_claim(session, "test").await.expect("works") {
            None => true,
            Some(lease) => {
                self.world.store.release(lease).await.expect("released");
                false
            }
        }
    }

    /// The session's state once it has a snapshot.
    async fn until_saved(&self, session: &SessionId) -> State {
        let mut changed = self.world.store.changed(session);
        let saved = async {
            loop {
                let state = self.state(session).await;
                if state.snapshot.is_some() {
                    return state;
                }
                changed.wait().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), saved).await.expect("it is saved")
    }

    async fn keys(&self) -> Vec<String> {
        let mut keys: Vec<_> = self
            .blobs
            .list(SNAPSHOTS, std::time::UNIX_EPOCH)
            .await
            .expect("lists")
            .into_iter()
            .map(|blob| blob.key)
            .collect();
        keys.sort();
        keys
    }

    async fn say(&self, session: &SessionId) {
        let said = vec![Body::UserMessage { content: vec![Content::text("hello".to_owned())] }];
        self.world.store.send_events(&self.world.workspace, session, said).await.expect("sent");
    }
}

fn files(folder: &Path) -> usize {
    std::fs::read_dir(folder).map_or(0, Iterator::count)
}

#[tokio::test]
async fn an_idle_sandbox_is_saved_and_destroyed_and_the_log_says_where_it_is() {
    let saving = Saving::new().await;
    let session = saving.idle("sbox-a").await;
    let busy = saving.world.owned("sbox-b").await;
    saving.world.hands.leave_out(2);
    saving.saver().put_away_idle().await;
    let state = saving.state(&session).await;
    let snapshot = state.snapshot.clone().expect("on record");
    assert_eq!((state.sandbox, saving.keys().await), (None, vec![snapshot.key.clone()]));
    assert_eq!(saving.world.living().await, ["sbox-b"], "a sandbox in use is left alone");
    assert_eq!(saving.state(&busy).await.snapshot, None);
    assert_eq!(files(&saving.scratch), 0);
    assert_eq!(snapshot.left_out, 2);
    let into = saving.scratch.join("back");
    let fetched = saving.blobs.get(&snapshot.key, &into).await.expect("there");
    assert_eq!((fetched.size_bytes, fetched.sha256), (snapshot.size_bytes, snapshot.sha256));
    assert_eq!(std::fs::read_to_string(into).expect("there"), "snapshot of sbox-a");
    // The session can be driven at once.
    let lease = saving.world.store.try_claim(&session, "brain").await.expect("works").expect("free");
    saving.world.store.release(lease).await.expect("released");
}

#[tokio::test]
async fn a_sandbox_whose_session_is_at_work_or_held_is_left_alone() {
    let saving = Saving::new().await;
    let working = saving.idle("sbox-a").await;
    saving.say(&working).await;
    let held = saving.idle("sbox-b").await;
    let lease = saving.world.store.try_claim(&held, "brain").await.expect("works").expect("free");
    saving.saver().put_away_idle().await;
    assert_eq!(saving.world.living().await, ["sbox-a", "sbox-b"]);
    assert!(saving.keys().await.is_empty());
    saving.world.store.release(lease).await.expect("released");
}

#[tokio::test]
async fn a_client_that_comes_back_while_its_sandbox_is_saved_does_not_wait() {
    let saving = Saving::new().await;
    let session = saving.idle("sbox-a").await;
    saving.world.hands.hang_saves();
    let saver = saving.saver();
    let saves = saver.put_away_idle();
    let comes_back = async {
        tokio::task::yield_now().await;
        saving.say(&session).await;
    };
    // Saving never ends by itself here.
    let both = async { tokio::join!(saves, comes_back) };
    tokio::time::timeout(Duration::from_secs(20), both).await.expect("it lets go");
    let lease = saving.world.store.try_claim(&session, "brain").await.expect("works").expect("it is free");
    assert_eq!(saving.world.living().await, ["sbox-a"]);
    assert_eq!(saving.state(&session).await.snapshot, None);
    saving.world.store.release(lease).await.expect("released");
}

#[tokio::test]
async fn what_cannot_be_saved_lives_on() {
    let saving = Saving::new().await;
    let session = saving.idle("sbox-a").await;
    let full = Error::Unavailable { reason: "No space left on device".to_owned() };
    saving.world.hands.fail_saves(Some(full));
    saving.saver().put_away_idle().await;
    saving.world.hands.fail_saves(None);
    saving.saver_with(SaverOptions { session_bytes_max: 3, ..saving.options() }).put_away_idle().await;
    std::fs::write(saving.world.dir.path().join("file"), "").expect("written");
    let elsewhere = saving.world.dir.path().join("file/scratch");
    saving.saver_with(SaverOptions { scratch: elsewhere, ..saving.options() }).put_away_idle().await;
    assert_eq!(saving.world.living().await, ["sbox-a"]);
    let state = saving.state(&session).await;
    assert_eq!((state.snapshot, state.sandbox.is_some()), (None, true));
    assert_eq!((saving.keys().await.len(), files(&saving.scratch)), (0, 0));
}

/// Drops a future when it has been polled so often; whether it was done before.
async fn cut_after(polls: usize, work: impl Future<Output = ()>) -> bool {
    let mut work = pin!(work);
    let mut left = polls;
    std::future::poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(false);
        }
        left -= 1;
        work.as_mut().poll(context).map(|()| true)
    })
    .await
}

#[tokio::test]
async fn wherever_the_saver_dies_the_workspace_is_in_a_sandbox_or_in_a_snapshot() {
    let mut polls = 0;
    loop {
        let mut saving = Saving::new().await;
        let session = saving.idle("sbox-a").await;
        let saver = saving.saver();
        let finished = cut_after(polls, saver.put_away_idle()).await;
        drop(saver);
        // The process is gone; the next one voids its lease.
        let dir = saving.world.dir.path().to_owned();
        saving.world.store.clone().close().await;
        saving.world.store = Store::open(&dir, store::Options::default()).expect("opens");
        let state = saving.state(&session).await;
        let (living, keys) = (saving.world.living().await, saving.keys().await);
        match (&state.sandbox, &state.snapshot) {
            (Some(_), None) => assert_eq!(living, ["sbox-a"], "after {polls} polls"),
            (None, Some(snapshot)) => {
                assert_eq!(keys, std::slice::from_ref(&snapshot.key), "after {polls} polls")
            }
            other => panic!("after {polls} polls: {other:?}"),
        }
        // Whatever is left over goes, and the work is done.
        saving.saver().put_away_idle().await;
        saving.world.reaper().reap(Duration::ZERO).await;
        saving.saver().tidy(Duration::ZERO).await;
        let snapshot = saving.state(&session).await.snapshot.expect("on record");
        assert_eq!((saving.keys().await, saving.world.living().await.len()), (vec![snapshot.key], 0));
        assert_eq!(files(&saving.scratch), 0, "after {polls} polls");
        if finished {
            break;
        }
        polls += 1;
    }
    assert!(polls > 5, "it was cut {polls} times");
}

#[tokio::test]
async fn old_snapshots_are_dropped_and_their_blobs_removed() {
    let saving = Saving::new().await;
    let session = saving.idle("sbox-a").await;
    saving.saver().put_away_idle().await;
    saving.saver().tidy(Duration::ZERO).await;
    assert!(saving.state(&session).await.snapshot.is_some(), "it is not old yet");
    let saver = saving.saver_with(SaverOptions { keep: Duration::ZERO, ..saving.options() });
    saver.tidy(Duration::ZERO).await;
    assert_eq!(saving.state(&session).await.snapshot, None);
    saver.tidy(Duration::ZERO).await;
    assert!(saving.keys().await.is_empty());
}

#[tokio::test]
async fn when_there_is_too_much_the_oldest_goes_first() {
    let saving = Saving::new().await;
    let mut sessions = Vec::new();
    for name in ["sbox-1", "sbox-2", "sbox-3"] {
        sessions.push(saving.idle(name).await);
        saving.saver().put_away_idle().await;
    }
    let one = saving.state(&sessions[0]).await.snapshot.expect("on record").size_bytes;
    let saver = saving.saver_with(SaverOptions { total_bytes_max: 2 * one, ..saving.options() });
    saver.tidy(Duration::ZERO).await;
    let mut kept = Vec::new();
    for session in &sessions {
        kept.push(saving.state(session).await.snapshot.is_some());
    }
    assert_eq!(kept, [false, true, true]);
}

#[tokio::test]
async fn a_blob_goes_with_the_last_session_that_has_it() {
    let saving = Saving::new().await;
    let first = saving.idle("sbox-a").await;
    saving.saver().put_away_idle().await;
    let snapshot: Snapshot = saving.state(&first).await.snapshot.expect("on record");
    // Another session's workspace begins with it.
    let second = saving.world.session().await;
    let lease = saving.world.store.try_claim(&second, "test").await.expect("works").expect("free");
    let head = saving.state(&second).await.head;
    let body = Body::Snapshot { snapshot: snapshot.clone(), put_away: true };
    let drafts = vec![Draft::New { id: saving.world.store.ids().make(), body }];
    saving.world.store.append(&lease.token, head, drafts).await.expect("appended");
    saving.world.store.release(lease).await.expect("released");

    saving.world.delete(&first).await;
    let saver = saving.saver();
    saver.tidy(Duration::ZERO).await;
    saver.tidy(Duration::ZERO).await;
    assert_eq!(saving.keys().await, [snapshot.key]);
    saving.world.archive(&second).await;
    // It must have been nobody's for a while.
    saver.tidy(HOUR).await;
    assert_eq!(saving.keys().await.len(), 1);
    saver.tidy(Duration::ZERO).await;
    assert!(saving.keys().await.is_empty());
}

/// A session that rests, with a sandbox, of which a client wants a snapshot.
async fn wanted(saving: &Saving) -> SessionId {
    wanted_of(saving, "sbox-a").await
}

async fn wanted_of(saving: &Saving, name: &str) -> SessionId {
    let session = saving.world.owned(name).await;
    saving.world.store.want_snapshot(&saving.world.workspace, &session).await.expect("it rests");
    session
}

#[tokio::test]
async fn a_client_that_wants_a_snapshot_gets_it_and_the_sandbox_goes_on() {
    let saving = Saving::new().await;
    let session = wanted(&saving).await;
    let never = SaverOptions { idle: None, ..saving.options() };
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(saving.saver_with(never).run(shutdown.clone()));
    let state = saving.until_saved(&session).await;
    shutdown.cancel();
    running.await.expect("it ends in peace");
    assert_eq!((state.wish, state.sandbox.is_some()), (None, true));
    assert_eq!(saving.world.living().await, ["sbox-a"]);
    assert_eq!(saving.keys().await, [state.snapshot.expect("saved").key]);
}

#[tokio::test]
async fn a_wish_of_a_session_that_works_again_waits_until_it_rests() {
    let saving = Saving::new().await;
    let session = wanted(&saving).await;
    let lease = saving.world.store.try_claim(&session, "brain").await.expect("works").expect("free");
    let saver = saving.saver();
    let mut asked: HashSet<SessionId> = saver.find_asked().await.into_iter().collect();
    saver.save_asked(&mut asked).await;
    assert_eq!((asked.len(), saving.keys().await.len()), (1, 0));
    saving.world.store.release(lease).await.expect("released");
    saver.save_asked(&mut asked).await;
    assert_eq!((asked.len(), saving.keys().await.len()), (0, 1));
}

#[tokio::test]
async fn a_client_hears_why_there_is_no_snapshot_and_nothing_of_the_servers_inside() {
    let saving = Saving::new().await;
    let session = wanted(&saving).await;
    let small = SaverOptions { session_bytes_max: 3, ..saving.options() };
    let why = async || match saving.state(&session).await.wish {
        Some(Wish::Failed { reason, .. }) => reason,
        other => panic!("it cannot be saved: {other:?}"),
    };
    saving.saver_with(small).save_asked(&mut HashSet::from([session.clone()])).await;
    assert_eq!(why().await, "its snapshot of 18 bytes is larger than the 3 that one session may keep");
    let full = Error::Unavailable { reason: "/var/inside: No space left on device".to_owned() };
    saving.world.hands.fail_saves(Some(full));
    saving.world.store.want_snapshot(&saving.world.workspace, &session).await.expect("it rests");
    saving.saver().save_asked(&mut HashSet::from([session.clone()])).await;
    assert_eq!(why().await, "the server could not save it; its log says why");
    assert_eq!(saving.world.living().await, ["sbox-a"]);
}

#[tokio::test]
async fn wherever_the_saver_dies_a_wish_is_seen_to_by_the_next() {
    let mut polls = 0;
    loop {
        let mut saving = Saving::new().await;
        let session = wanted(&saving).await;
        let saver = saving.saver();
        let mut asked = HashSet::from([session.clone()]);
        let finished = cut_after(polls, saver.save_asked(&mut asked)).await;
        drop(saver);
        let dir = saving.world.dir.path().to_owned();
        saving.world.store.clone().close().await;
        saving.world.store = Store::open(&dir, store::Options::default()).expect("opens");
        let saver = saving.saver();
        let mut asked: HashSet<SessionId> = saver.find_asked().await.into_iter().collect();
        saver.save_asked(&mut asked).await;
        let state = saving.state(&session).await;
        assert_eq!((state.wish, state.sandbox.is_some()), (None, true), "after {polls} polls");
        saver.tidy(Duration::ZERO).await;
        saver.tidy(Duration::ZERO).await;
        assert_eq!(saving.keys().await, [state.snapshot.expect("saved").key], "after {polls} polls");
        assert_eq!(files(&saving.scratch), 0, "after {polls} polls");
        if finished {
            break;
        }
        polls += 1;
    }
    assert!(polls > 5, "it was cut {polls} times");
}

#[tokio::test]
async fn a_save_that_hangs_holds_up_no_other_and_no_client() {
    let saving = Saving::new().await;
    let hung = SandboxId::parse("sbox-hung").expect("an id");
    let holder = saving.idle("sbox-hung").await;
    saving.world.hands.hang_saves_of(&hung);
    let stuck = saving.idle("sbox-stuck").await;
    let bucket = Bucket::stuck_on(stuck.as_str()).await;
    let saver = Saver::new(
        saving.world.store.clone(),
        saving.world.hands.clone(),
        bucket.blobs.clone(),
        SaverOptions { idle: Some(Duration::from_secs(2)), ..saving.options() },
    );
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(saver.run(shutdown.clone()));
    // Both are being saved.
    let both = async {
        while !(saving.is_held(&holder).await && saving.is_held(&stuck).await) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), both).await.expect("both at once");
    saving.world.hands.set_idle(&SandboxId::parse("sbox-asked").expect("an id"), Duration::ZERO);
    let asked = wanted_of(&saving, "sbox-asked").await;
    assert!(saving.until_saved(&asked).await.sandbox.is_some(), "it goes on");
    let idle = saving.idle("sbox-idle").await;
    assert_eq!(saving.until_saved(&idle).await.sandbox, None);
    shutdown.cancel();
    running.await.expect("it ends in peace");
    assert_eq!(saving.world.living().await, ["sbox-asked", "sbox-hung", "sbox-stuck"]);
}

#[tokio::test(start_paused = true)]
async fn a_blob_store_that_does_not_answer_is_given_up() {
    let world = World::with(|_| Store::in_memory(store::Options::default())).await;
    let saving = Saving::of(world);
    let session = saving.idle("sbox-a").await;
    let bucket = Bucket::stuck_on(session.as_str()).await;
    let (store, hands) = (saving.world.store.clone(), saving.world.hands.clone());
    let saver = Saver::new(store, hands, bucket.blobs.clone(), saving.options());
    let begun = tokio::time::Instant::now();
    saver.put_away_idle().await;
    assert!(begun.elapsed() < Duration::from_secs(310), "{:?}", begun.elapsed());
    assert_eq!(saving.world.living().await, ["sbox-a"]);
    assert_eq!((saving.state(&session).await.snapshot, files(&saving.scratch)), (None, 0));
}

#[tokio::test]
async fn a_wish_that_no_machine_can_see_to_is_told_to_have_failed_after_ten_minutes() {
    let clock = Arc::new(ManualClock::new(Timestamp::from_micros(1_000_000)));
    let options = store::Options { clock: clock.clone(), ..store::Options::default() };
    let world = World::with(|_| Store::in_memory(options)).await;
    let saving = Saving::of(world);
    let session = wanted(&saving).await;
    let sandbox = SandboxId::parse("sbox-a").expect("an id");
    saving.world.hands.destroy(&sandbox).await.expect("destroyed");
    clock.advance(Duration::from_secs(600));
    assert_eq!(saving.saver().find_asked().await, []);
    assert!(matches!(saving.state(&session).await.wish, Some(Wish::Pending { .. })));
    clock.advance(Duration::from_secs(1));
    assert_eq!(saving.saver().find_asked().await, []);
    match saving.state(&session).await.wish {
        Some(Wish::Failed { reason, .. }) => assert_eq!(reason, "no machine that is there has its sandbox"),
        other => panic!("nobody has it: {other:?}"),
    }
}
