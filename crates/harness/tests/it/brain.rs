//! What a brain does, over a real store: calls, interrupts, lost sandboxes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use harness::faults::{Faults, Point};
use protocol::agent::PermissionPolicy;
use protocol::event::Body;
use protocol::id::SessionId;
use serde_json::json;
use testkit::hands::FakeHands;
use tokio_util::sync::CancellationToken;

use crate::world::{World, message, scripted};

const ALLOW: PermissionPolicy = PermissionPolicy::AlwaysAllow {};

fn bash(command: &str) -> serde_json::Value {
    json!({"tool": "bash", "input": {"command": command}})
}

#[tokio::test]
async fn a_turn_with_calls_runs_each_once_in_one_sandbox() {
    let dir = tempfile::tempdir().expect("a folder");
    let models = scripted(json!([
        {"blocks": [{"text": "let me see"}, bash("one"), bash("two")]},
        {"blocks": [{"text": "done"}]},
    ]));
    let world = World::open(dir.path(), models, Arc::default()).await;
    let session = world.session(ALLOW, "go").await;
    world.wake(&session).await;
    assert_eq!(
        world.told(&session).await,
        "user: go\nagent: let me see\nbash: {\"command\":\"one\"}\nbash: {\"command\":\"two\"}\n\
         result: ran one\nresult: ran two\nagent: done\nidle: end_turn"
    );
    assert_eq!(world.hands.living(), 1);
}

#[tokio::test]
async fn a_session_that_uses_no_tool_gets_no_sandbox() {
    let dir = tempfile::tempdir().expect("a folder");
    let world =
        World::open(dir.path(), scripted(json!([{"blocks": [{"text": "hello"}]}])), Arc::default()).await;
    let session = world.session(ALLOW, "hi").await;
    world.wake(&session).await;
    assert_eq!(world.hands.living(), 0);
    assert_eq!(world.state(&session).await.sandbox, None);
}

#[tokio::test]
async fn a_killed_sandbox_is_a_tool_error_and_the_next_call_gets_a_new_one() {
    let dir = tempfile::tempdir().expect("a folder");
    let models = scripted(json!([
        {"blocks": [bash("hold forever")]},
        {"blocks": [bash("again")]},
        {"blocks": [{"text": "done"}]},
    ]));
    let world = World::open(dir.path(), models, Arc::default()).await;
    let session = world.session(ALLOW, "go").await;
    tokio::join!(world.wake(&session), async {
        world.hands.until_runs(1).await;
        world.hands.kill_all();
    });
    let told = world.told(&session).await;
    assert!(told.contains("error: hand: the sandbox is gone (it was killed)"), "{told}");
    assert!(told.contains("result: ran again"), "{told}");
    assert_eq!(world.hands.living(), 1);
}

#[tokio::test]
async fn an_interrupt_cuts_off_a_running_call() {
    let dir = tempfile::tempdir().expect("a folder");
    let models = scripted(json!([{"blocks": [bash("hold forever")]}]));
    let world = World::open(dir.path(), models, Arc::default()).await;
    let session = world.session(ALLOW, "go").await;
    tokio::join!(world.wake(&session), async {
        world.hands.until_runs(1).await;
        world.send(&session, vec![Body::UserInterrupt { session_thread_id: None }]).await;
    });
    let told = world.told(&session).await;
    assert!(
        told.ends_with(
            "error: Tool execution was interrupted before completion. Please retry.\nidle: end_turn"
        ),
        "{told}"
    );
}

#[tokio::test]
async fn a_brain_that_shuts_down_hands_its_session_over_in_mid_call() {
    let dir = tempfile::tempdir().expect("a folder");
    let models = scripted(json!([{"blocks": [bash("hold it")]}, {"blocks": [{"text": "done"}]}]));
    let world = World::open(dir.path(), models, Arc::default()).await;
    let session = world.session(ALLOW, "go").await;
    let shutdown = CancellationToken::new();
    let brain = world.brain(None);
    tokio::join!(async { assert!(brain.wake(&session, &shutdown).await.expect("the store works")) }, async {
        world.hands.until_runs(1).await;
        shutdown.cancel();
    });
    world.hands.release("it");
    world.wake(&session).await;
    assert!(world.told(&session).await.ends_with("result: ran hold it\nagent: done\nidle: end_turn"));
    assert_eq!(world.hands.runs().len(), 1, "the command ran once");
}

#[tokio::test]
async fn a_model_that_nobody_serves_ends_the_turn_and_says_so() {
    let dir = tempfile::tempdir().expect("a folder");
    let models =
        Arc::new(harness::model::Providers::build(Vec::new(), |_| None).expect("nothing to configure"));
    let world = World::open(dir.path(), models, Arc::default()).await;
    let session = world.session(ALLOW, "hi").await;
    world.wake(&session).await;
    let told = world.told(&session).await;
    assert!(told.contains("failed: model: no provider is configured for the model"), "{told}");
    assert!(told.ends_with("idle: retries_exhausted"), "{told}");
}

#[tokio::test]
async fn many_sessions_are_driven_at_once() {
    let dir = tempfile::tempdir().expect("a folder");
    let models = scripted(json!([{"blocks": [bash("hold all")]}, {"blocks": [{"text": "done"}]}]));
    let hands = Arc::new(FakeHands::default());
    let world = World::open(dir.path(), models, Arc::clone(&hands)).await;
    let mut sessions = Vec::new();
    for _ in 0..20 {
        sessions.push(world.session(ALLOW, "go").await);
    }
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(world.brain(None).run(shutdown.clone()));
    hands.until_runs(20).await;
    hands.release("all");
    for session in &sessions {
        let mut changed = world.store.changed(session);
        while world.state(session).await.wants_brain() {
            changed.wait().await;
        }
        assert!(world.told(session).await.ends_with("agent: done\nidle: end_turn"));
    }
    // A message for a session at rest wakes it again.
    world.send(&sessions[0], vec![message("more")]).await;
    let mut changed = world.store.changed(&sessions[0]);
    while world.state(&sessions[0]).await.wants_brain() {
        changed.wait().await;
    }
    shutdown.cancel();
    running.await.expect("the brain ends in peace");
}

/// Sends an interrupt when the brain first reaches a point, and lets it go on.
struct InterruptAt {
    point: Point,
    is_sent: AtomicBool,
    world: World,
    session: SessionId,
}

#[async_trait]
impl Faults for InterruptAt {
    async fn reached(&self, point: Point) {
        if point == self.point && !self.is_sent.swap(true, Ordering::SeqCst) {
            self.world.send(&self.session, vec![Body::UserInterrupt { session_thread_id: None }]).await;
        }
    }
}

#[tokio::test]
async fn an_interrupt_is_never_overlooked_wherever_it_comes() {
    for point in [
        Point::Claimed,
        Point::BeforeAppend,
        Point::Appended,
        Point::BeforeModel,
        Point::ModelAnswered,
        Point::Provisioned,
        Point::BeforeCall,
    ] {
        let dir = tempfile::tempdir().expect("a folder");
        let models =
            scripted(json!([{"blocks": [bash("hold forever")]}, {"blocks": [{"text": "never said"}]}]));
        let world = World::open(dir.path(), models, Arc::default()).await;
        let session = world.session(ALLOW, "go").await;
        let other = world.clone();
        let faults =
            InterruptAt { is_sent: AtomicBool::new(false), point, world: other, session: session.clone() };
        let brain = world.brain(Some(Arc::new(faults)));
        let shutdown = CancellationToken::new();
        let woken = tokio::time::timeout(Duration::from_secs(20), brain.wake(&session, &shutdown)).await;
        assert!(woken.is_ok(), "{point:?}: the call runs on although an interrupt waits");
        let told = world.told(&session).await;
        assert!(told.ends_with("idle: end_turn") && !told.contains("never said"), "{point:?}: {told}");
    }
}
