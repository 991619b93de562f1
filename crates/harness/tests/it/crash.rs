//! Die after each append and each act, restart on the same store: the log ends up meaning the same.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use harness::faults::{Faults, Point};
use protocol::agent::PermissionPolicy;
use protocol::event::Body;
use protocol::id::SessionId;
use serde_json::{Value, json};
use session::state::{Queued, State};
use testkit::hands::FakeHands;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::world::{World, scripted};

/// Stops the brain at the n-th point that it reaches, for ever.
pub(crate) struct DieAt {
    left: AtomicUsize,
    pub(crate) died: Notify,
    at: std::sync::Mutex<Option<Point>>,
}

impl DieAt {
    pub(crate) fn new(n: usize) -> Arc<Self> {
        Arc::new(Self { left: AtomicUsize::new(n), died: Notify::new(), at: std::sync::Mutex::new(None) })
    }
}

#[async_trait]
impl Faults for DieAt {
    async fn reached(&self, point: Point) {
        if self.left.fetch_sub(1, Ordering::SeqCst) == 0 {
            *self.at.lock().expect("not poisoned") = Some(point);
            self.died.notify_one();
            std::future::pending::<()>().await;
        }
    }
}

fn replies() -> Value {
    let bash = |command: &str| json!({"tool": "bash", "input": {"command": command}});
    json!([
        {"blocks": [{"thinking": "hm"}, {"text": "let me see"}, bash("one"), bash("two")]},
        {"blocks": [bash("three")]},
        {"blocks": [{"text": "done"}]},
    ])
}

const EXPECTED: &str = "user: go\nagent: let me see\nbash: {\"command\":\"one\"}\nbash: {\"command\":\"two\"}\n\
    result: ran one\nresult: ran two\nbash: {\"command\":\"three\"}\nresult: ran three\nagent: done\nidle: end_turn";

/// Runs the scenario with a brain that dies at the n-th point, then with one that lives. `false` if the first came
/// to the end without reaching that point.
async fn dies_at(n: usize, first_token_ms: u64) -> bool {
    let dir = tempfile::tempdir().expect("a folder");
    let hands = Arc::new(FakeHands::default());
    let mut replies = replies();
    for reply in replies.as_array_mut().expect("an array") {
        reply["first_token"] = json!({"kind": "fixed", "ms": first_token_ms});
    }
    let models = scripted(replies);
    let world = World::open(dir.path(), Arc::clone(&models), Arc::clone(&hands)).await;
    let session = world.session(PermissionPolicy::AlwaysAllow {}, "go").await;
    let faults = DieAt::new(n);
    let brain = world.brain(Some(Arc::clone(&faults) as Arc<dyn Faults>));
    let shutdown = CancellationToken::new();
    let has_died = tokio::select! {
        woken = brain.wake(&session, &shutdown) => { woken.expect("the store works"); false }
        () = faults.died.notified() => true,
    };
    drop(brain);
    world.store.clone().close().await;
    drop(world);
    let point = *faults.at.lock().expect("not poisoned");

    let world = World::open(dir.path(), models, Arc::clone(&hands)).await;
    world.wake(&session).await;
    assert_eq!(world.told(&session).await, EXPECTED, "after a death at point {n}, {point:?}");
    let commands: Vec<String> = hands.runs().into_iter().map(|(_, command)| command).collect();
    assert_eq!(commands, ["one", "two", "three"], "each ran once; death at point {n}, {point:?}");
    let recorded = world.state(&session).await.sandbox.expect("it has one");
    let hands_ids = hands.ids();
    assert!(hands_ids.iter().any(|id| id.as_str() == recorded.as_str()), "it lives; death at {n}, {point:?}");
    assert!(hands_ids.len() <= 2, "at most the dead brain's is left for the reaper; death at {n}, {point:?}");
    assert!(hands.are_outputs_collected(), "deliverables; death at point {n}, {point:?}");
    check_log(&world, &session).await;
    has_died
}

/// Spans are closed, ids are unique, times grow, and the fold of the log is the projection.
pub(crate) async fn check_log(world: &World, session: &SessionId) {
    let log = world.log(session).await;
    let mut open = None;
    for event in &log {
        match &event.body {
            Body::ModelRequestStart {} => assert_eq!(open.replace(event.id.clone()), None),
            Body::ModelRequestEnd { model_request_start_id, .. } => {
                assert_eq!(open.take().as_ref(), Some(model_request_start_id));
            }
            _ => {}
        }
    }
    assert_eq!(open, None);
    assert!(log.windows(2).all(|pair| pair[0].processed_at < pair[1].processed_at));
    let ids: std::collections::HashSet<_> = log.iter().map(|event| &event.id).collect();
    assert_eq!(ids.len(), log.len());
    let kept = world.state(session).await;
    let mut folded = State::new(kept.thread_id.clone(), kept.agent_name.clone(), kept.created_at);
    for event in &log {
        folded.apply(&event.id, &event.body, event.processed_at.expect("in the log"));
    }
    folded.queued = Queued::default();
    assert_eq!(folded, kept);
}

#[tokio::test]
async fn a_brain_may_die_at_any_point_and_the_next_one_comes_to_the_same_end() {
    // Without a pause the first call comes before a sandbox is begun ahead of it, with one after that.
    for first_token_ms in [0, 10] {
        let mut n = 0;
        while dies_at(n, first_token_ms).await {
            n += 1;
        }
        assert!(n > 15, "the scenario has only {n} points: is the harness still instrumented?");
    }
}

#[tokio::test]
async fn a_session_that_kills_brain_after_brain_ends_in_a_visible_error_and_may_be_prompted_again() {
    for (points, killer) in [(3, "the request"), (9, "the call")] {
        let dir = tempfile::tempdir().expect("a folder");
        let hands = Arc::new(FakeHands::default());
        let models = scripted(replies());
        let world = World::open(dir.path(), Arc::clone(&models), Arc::clone(&hands)).await;
        let session = world.session(PermissionPolicy::AlwaysAllow {}, "go").await;
        world.store.clone().close().await;
        drop(world);
        // The first gets to where the others die, too.
        let dies_at = std::iter::once(points).chain(std::iter::repeat(1));
        let mut deaths = 0;
        let world = loop {
            let world = World::open(dir.path(), Arc::clone(&models), Arc::clone(&hands)).await;
            let faults = DieAt::new(dies_at.clone().nth(deaths).expect("endless"));
            let brain = world.brain(Some(Arc::clone(&faults) as Arc<dyn Faults>));
            let shutdown = CancellationToken::new();
            tokio::select! {
                woken = brain.wake(&session, &shutdown) => {
                    assert!(woken.expect("the store works"));
                    break world;
                }
                () = faults.died.notified() => {}
            }
            drop(brain);
            world.store.clone().close().await;
            drop(world);
            deaths += 1;
            assert!(deaths < 20, "it goes round for ever by {killer}");
        };
        assert_eq!(deaths, 5, "{killer}");
        let told = world.told(&session).await;
        let expected = "failed: harness: the brain died 5 times in a row while driving this session\n\
            idle: retries_exhausted";
        assert!(told.ends_with(expected), "{killer}: {told}");
        check_log(&world, &session).await;
        let before = hands.runs().len();
        world.send(&session, vec![crate::world::message("again")]).await;
        world.wake(&session).await;
        let told = world.told(&session).await;
        assert!(told.ends_with("agent: done\nidle: end_turn"), "{killer}: {told}");
        assert!(hands.runs().len() <= before + 3, "{killer}: nothing ran twice");
        check_log(&world, &session).await;
    }
}

#[tokio::test]
async fn brains_may_die_one_after_the_other() {
    let dir = tempfile::tempdir().expect("a folder");
    let hands = Arc::new(FakeHands::default());
    let models = scripted(replies());
    let world = World::open(dir.path(), Arc::clone(&models), Arc::clone(&hands)).await;
    let session = world.session(PermissionPolicy::AlwaysAllow {}, "go").await;
    world.store.clone().close().await;
    drop(world);
    let mut deaths = 0;
    loop {
        let world = World::open(dir.path(), Arc::clone(&models), Arc::clone(&hands)).await;
        // Each lives long enough to get one answer recorded, and not much longer.
        let faults = DieAt::new(8 + deaths % 4);
        let brain = world.brain(Some(Arc::clone(&faults) as Arc<dyn Faults>));
        let shutdown = CancellationToken::new();
        let has_died = tokio::select! {
            woken = brain.wake(&session, &shutdown) => { woken.expect("the store works"); false }
            () = faults.died.notified() => true,
        };
        drop(brain);
        if !has_died {
            assert_eq!(world.told(&session).await, EXPECTED);
            check_log(&world, &session).await;
            break;
        }
        world.store.clone().close().await;
        drop(world);
        deaths += 1;
        assert!(deaths < 100, "no progress");
    }
    assert_eq!(hands.runs().len(), 3);
}
