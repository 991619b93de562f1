//! A brain that is told to stop: what it finishes, what it hands over, and how long that may take.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use harness::faults::{Faults, Point};
use protocol::agent::PermissionPolicy;
use protocol::event::Body;
use protocol::id::SessionId;
use serde_json::json;
use testkit::hands::FakeHands;
use tokio_util::sync::CancellationToken;

use crate::world::{World, scripted};

/// Tells the brain to stop at the n-th point that it reaches.
struct StopAt {
    left: AtomicUsize,
    shutdown: CancellationToken,
}

impl StopAt {
    fn new(n: usize, shutdown: &CancellationToken) -> Arc<Self> {
        Arc::new(Self { left: AtomicUsize::new(n), shutdown: shutdown.clone() })
    }
}

#[async_trait]
impl Faults for StopAt {
    async fn reached(&self, _: Point) {
        if self.left.fetch_sub(1, Ordering::SeqCst) == 0 {
            self.shutdown.cancel();
        }
    }
}

fn bash(command: &str) -> serde_json::Value {
    json!({"tool": "bash", "input": {"command": command}})
}

const EXPECTED: &str = "user: go\nagent: let me see\nbash: {\"command\":\"one\"}\nbash: {\"command\":\"two\"}\n\
    result: ran one\nresult: ran two\nagent: done\nidle: end_turn";

/// Plays the scenario with a brain that is told to stop at the n-th point, then with one that is not. `false` if the
/// first came to the end.
async fn stops_at(n: usize) -> bool {
    let dir = tempfile::tempdir().expect("a folder");
    let hands = Arc::new(FakeHands::default());
    let models = scripted(json!([
        {"blocks": [{"thinking": "hm"}, {"text": "let me see"}, bash("one"), bash("two")]},
        {"blocks": [{"text": "done"}]},
    ]));
    let world = World::open(dir.path(), models, Arc::clone(&hands)).await;
    let session = world.session(PermissionPolicy::AlwaysAllow {}, "go").await;
    let shutdown = CancellationToken::new();
    let brain = world.brain(Some(StopAt::new(n, &shutdown)));
    let resting = until_idle(&world, &session);
    let has_stopped = tokio::select! {
        () = brain.run(shutdown.clone()) => true,
        () = resting => false,
    };
    world.wake(&session).await;
    assert_eq!(world.told(&session).await, EXPECTED, "told to stop at point {n}");
    let commands: Vec<String> = hands.runs().into_iter().map(|(_, command)| command).collect();
    assert_eq!(commands, ["one", "two"], "each ran once; told to stop at point {n}");
    let failed = failed_requests(&world, &session).await;
    assert_eq!(failed, 0, "no answer was thrown away; told to stop at point {n}");
    has_stopped
}

async fn until_idle(world: &World, session: &SessionId) {
    let mut changed = world.store.changed(session);
    loop {
        let log = world.log(session).await;
        if log.iter().any(|event| matches!(event.body, Body::StatusIdle { .. })) {
            return;
        }
        changed.wait().await;
    }
}

async fn failed_requests(world: &World, session: &SessionId) -> usize {
    let log = world.log(session).await;
    log.iter().filter(|event| matches!(event.body, Body::ModelRequestEnd { is_error: true, .. })).count()
}

#[tokio::test]
async fn a_brain_that_is_told_to_stop_at_any_point_throws_no_answer_away() {
    let mut points = 0;
    while stops_at(points).await {
        points += 1;
    }
    assert!(points > 10, "only {points} points");
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_handed_over() {
    let dir = tempfile::tempdir().expect("a folder");
    let never = json!([{"blocks": [{"text": "late"}], "first_token": {"kind": "fixed", "ms": 1e9}}]);
    let world = World::open(dir.path(), scripted(never), Arc::default()).await;
    let session = world.session(PermissionPolicy::AlwaysAllow {}, "go").await;
    let shutdown = CancellationToken::new();
    let brain = world.brain_with(|options| {
        options.finish_time_max = Duration::from_millis(1);
        // Claimed, before and after the append of the start, then before the model.
        options.faults = StopAt::new(3, &shutdown);
    });
    brain.run(shutdown).await;
    assert!(world.state(&session).await.request.is_some(), "the next holder closes it");
    let lease = world.store.try_claim(&session, "next").await.expect("works");
    world.store.release(lease.expect("free")).await.expect("works");
}
