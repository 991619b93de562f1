//! When a session's sandbox is made: ahead of the first call or at it, and what becomes of one that no call needs.

use std::sync::Arc;

use async_trait::async_trait;
use harness::Brain;
use harness::faults::{Faults, Point};
use harness::model::{ApiKey, Kind, ProviderConfig, Providers};
use protocol::agent::{PermissionPolicy, Tool};
use protocol::event::Body;
use protocol::hands::Policy;
use protocol::id::{EnvironmentId, SessionId};
use sandbox::Error;
use serde_json::json;
use session::record::Record;
use store::WaitsFor;
use testkit::hands::FakeHands;
use testkit::model::{Reply, Server};
use tokio_util::sync::CancellationToken;

use crate::world::{MODEL, World, scripted};

const ALLOW: PermissionPolicy = PermissionPolicy::AlwaysAllow {};

struct Scene {
    world: World,
    server: Server,
    _dir: tempfile::TempDir,
}

impl Scene {
    /// A model behind real HTTP that gives these replies.
    async fn set(replies: impl IntoIterator<Item = Reply>) -> Self {
        let (dir, server) = (tempfile::tempdir().expect("a folder"), Server::start().await);
        server.script(MODEL, replies);
        let mut config = ProviderConfig::new("gateway", Kind::OpenAi, ["*"]);
        config.base_url = Some(server.openai_url());
        config.api_key = ApiKey::new("secret-test-key");
        let models = Arc::new(Providers::build(vec![config], |_| None).expect("a good configuration"));
        let world = World::open(dir.path(), models, Arc::default()).await;
        Self { world, server, _dir: dir }
    }

    fn hands(&self) -> &FakeHands {
        &self.world.hands
    }

    async fn session(&self, change: impl FnOnce(&mut Record)) -> SessionId {
        self.world.session_like(self.world.workspace.clone(), ALLOW, "go", change).await
    }
}

fn bash(command: &str) -> Reply {
    Reply::tool("bash", json!({"command": command}))
}

/// How one session differs from another.
type Change = fn(&mut Record);

fn policy(policy: Policy) -> impl FnOnce(&mut Record) {
    move |record| record.hands.policy = policy
}

fn unavailable() -> Error {
    Error::Unavailable { reason: "nobody is there".to_owned() }
}

#[tokio::test]
async fn a_sandbox_that_hangs_does_not_delay_the_answer() {
    let scene = Scene::set([Reply::text("hello").hold("it")]).await;
    scene.hands().hold_provisions();
    let session = scene.session(|_| {}).await;
    tokio::join!(scene.world.wake(&session), async {
        scene.hands().until_asked(1).await;
        scene.server.release("it");
    });
    assert_eq!(scene.world.told(&session).await, "user: go\nagent: hello\nidle: end_turn");
}

#[tokio::test]
async fn the_first_call_runs_in_the_sandbox_that_was_made_ahead() {
    let scene = Scene::set([bash("one").hold("it"), Reply::text("done")]).await;
    let session = scene.session(|_| {}).await;
    tokio::join!(scene.world.wake(&session), async {
        scene.hands().until_living(1).await;
        assert_eq!(scene.world.state(&session).await.sandbox, None, "it is recorded when it is needed");
        scene.server.release("it");
    });
    assert!(scene.world.told(&session).await.contains("result: ran one"));
    let asked = scene.hands().asked();
    assert_eq!(asked.len(), 1, "no other was asked for");
    let recorded = scene.world.state(&session).await.sandbox.expect("on record");
    assert_eq!(asked[0].as_str(), recorded.as_str());
    assert_eq!(scene.hands().living(), 1);
}

#[tokio::test]
async fn one_that_no_call_needed_is_gone_when_the_session_rests() {
    let scene = Scene::set([Reply::text("hello").hold("it")]).await;
    let session = scene.session(|_| {}).await;
    tokio::join!(scene.world.wake(&session), async {
        scene.hands().until_living(1).await;
        scene.server.release("it");
    });
    scene.hands().until_living(0).await;
    assert_eq!(scene.world.state(&session).await.sandbox, None);
}

#[tokio::test]
async fn one_that_could_not_be_made_is_made_anew_and_nobody_hears_of_it() {
    let scene = Scene::set([bash("one").hold("it"), Reply::text("done")]).await;
    scene.hands().fail_next_provision(unavailable());
    let session = scene.session(|_| {}).await;
    tokio::join!(scene.world.wake(&session), async {
        scene.hands().until_asked(1).await;
        scene.server.release("it");
    });
    let told = scene.world.told(&session).await;
    assert!(told.contains("result: ran one") && !told.contains("error"), "{told}");
    assert_eq!(scene.hands().asked().len(), 2);
    let recorded = scene.world.state(&session).await.sandbox.expect("on record");
    assert_eq!(scene.hands().asked()[1].as_str(), recorded.as_str());
}

#[tokio::test]
async fn it_is_made_ahead_only_for_those_who_want_it() {
    let without_tools = |record: &mut Record| {
        record.agent.spec.tools.retain(|tool| matches!(tool, Tool::Custom(_)));
    };
    let lazy = |record: &mut Record| record.hands.policy = Policy::Lazy;
    let pool = |record: &mut Record| record.hands.policy = Policy::Pool { size: 1 };
    let (lazy, pool): (Change, Change) = (lazy, pool);
    for (who, change) in [("lazy", lazy), ("pool", pool), ("no tool that needs one", without_tools)] {
        // Longer than a sandbox ahead would let the request go first.
        let scene = Scene::set([Reply::text("hello").pace(50, 0)]).await;
        let session = scene.session(change).await;
        scene.world.wake(&session).await;
        assert_eq!(scene.hands().asked(), [], "{who}");
    }
    let scene = Scene::set([bash("one").pace(50, 0), Reply::text("done")]).await;
    let session = scene.session(policy(Policy::Lazy)).await;
    scene.world.wake(&session).await;
    assert_eq!(scene.hands().asked().len(), 1, "at the first call");
}

#[tokio::test]
async fn a_call_that_waits_for_its_sandbox_shows_it_and_an_interrupt_ends_the_wait() {
    let scene = Scene::set([bash("one")]).await;
    scene.hands().hold_provisions();
    let session = scene.session(policy(Policy::Lazy)).await;
    let world = &scene.world;
    tokio::join!(world.wake(&session), async {
        loop {
            let seen = world.store.get_session(&world.workspace, &session).await.expect("reads");
            let waiting = seen.expect("is there").waiting;
            if waiting.is_some_and(|waiting| waiting.reason == WaitsFor::Sandbox) {
                break;
            }
            tokio::task::yield_now().await;
        }
        world.send(&session, vec![Body::UserInterrupt { session_thread_id: None }]).await;
    });
    assert!(world.told(&session).await.ends_with("Please retry.\nidle: end_turn"));
    let seen = world.store.get_session(&world.workspace, &session).await.expect("reads").expect("is there");
    assert_eq!(seen.waiting, None);
    scene.hands().answer_provisions();
    // What the interrupted call had asked for is given up, and not made later.
    let id = scene.hands().asked().remove(0);
    let late = sandbox::Provider::provision(scene.hands(), &id, 9, &sandbox::Resources::default()).await;
    assert!(matches!(late, Err(Error::Gone { .. })), "{late:?}");
    assert_eq!(scene.hands().living(), 0);
}

#[tokio::test]
async fn without_room_the_model_is_told_what_is_lacking() {
    let scene = Scene::set([bash("one"), Reply::text("sorry")]).await;
    let reason = "no room for another sandbox on this machine: 3 live, limit 3, 0 wait".to_owned();
    scene.hands().fail_next_provision(Error::Busy { reason: reason.clone() });
    let session = scene.session(policy(Policy::Lazy)).await;
    scene.world.wake(&session).await;
    let told = scene.world.told(&session).await;
    assert!(told.contains(&format!("error: hand: too busy: {reason}\nagent: sorry")), "{told}");
    assert_eq!(scene.world.state(&session).await.sandbox, None, "the next call may find room");
}

/// Looks into the log before each call.
struct LooksBeforeCalls {
    world: World,
    session: SessionId,
    looked: std::sync::atomic::AtomicUsize,
}

#[async_trait]
impl Faults for LooksBeforeCalls {
    async fn reached(&self, point: Point) {
        if point == Point::BeforeCall {
            let recorded =
                self.world.state(&self.session).await.sandbox.expect("recorded before anything runs");
            assert!(self.world.hands.ids().iter().any(|id| id.as_str() == recorded.as_str()));
            self.looked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }
    }
}

#[tokio::test]
async fn nothing_runs_in_a_sandbox_that_is_not_in_the_log() {
    let scene = Scene::set([bash("one").pace(20, 0), bash("two"), Reply::text("done")]).await;
    let session = scene.session(|_| {}).await;
    let looks = Arc::new(LooksBeforeCalls {
        world: scene.world.clone(),
        session: session.clone(),
        looked: std::sync::atomic::AtomicUsize::new(0),
    });
    let brain = scene.world.brain(Some(Arc::clone(&looks) as Arc<dyn Faults>));
    brain.wake(&session, &CancellationToken::new()).await.expect("the store works");
    assert!(scene.world.told(&session).await.ends_with("agent: done\nidle: end_turn"));
    assert_eq!(looks.looked.load(std::sync::atomic::Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_brain_tells_its_hands_which_sandboxes_to_keep_ready() {
    let dir = tempfile::tempdir().expect("a folder");
    let world = World::open(dir.path(), scripted(json!([])), Arc::default()).await;
    let environment = json!({
        "type": "environment", "id": EnvironmentId::from_text("env_pooled"), "name": "pooled",
        "description": null, "config": {"type": "self_hosted"}, "scope": null,
        "metadata": {"posthouse.policy": "pool", "posthouse.pool_size": "3"},
        "created_at": world.store.now(), "updated_at": world.store.now(), "archived_at": null,
    });
    let environment = serde_json::from_value(environment).expect("an environment");
    world.store.create_environment(&world.workspace, environment).await.expect("made");
    let shutdown = CancellationToken::new();
    let brain: Arc<Brain> = world.brain(None);
    tokio::join!(brain.run(shutdown.clone()), async {
        world.hands.until_pools().await;
        shutdown.cancel();
    });
    let pools = world.hands.pools();
    assert_eq!(pools.iter().map(|pool| pool.count).collect::<Vec<_>>(), [3]);
}
