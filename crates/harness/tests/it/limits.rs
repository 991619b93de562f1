//! Limits on model requests: our own, and the provider's as its headers tell, over real connections.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use harness::ModelLimits;
use harness::model::{ApiKey, Kind, OnPause, ProviderConfig, Providers};
use protocol::agent::PermissionPolicy;
use protocol::event::Body;
use protocol::id::{SessionId, WorkspaceId};
use store::{Store, WaitsFor};
use testkit::model::{Reply, Server};
use tokio_util::sync::CancellationToken;

use crate::world::{MODEL, World, message};

const ALLOW: PermissionPolicy = PermissionPolicy::AlwaysAllow {};

/// A provider at the scripted server, which is tried once.
fn models(server: &Server, change: impl FnOnce(&mut ProviderConfig)) -> Arc<Providers> {
    let mut config = ProviderConfig::new("gateway", Kind::OpenAi, ["*"]);
    config.base_url = Some(server.openai_url());
    config.api_key = ApiKey::new("secret-test-key");
    config.attempts_max = Some(1);
    change(&mut config);
    Arc::new(Providers::build(vec![config], |_| None).expect("a good configuration"))
}

/// An answer after which so many requests remain for so long.
fn with_remaining(remaining: u32, reset: &str) -> Reply {
    Reply::text("hello")
        .header("x-ratelimit-remaining-requests", remaining.to_string())
        .header("x-ratelimit-reset-requests", reset)
}

/// Returns when the session shows that it waits for the model.
async fn until_it_waits(world: &World, workspace: &WorkspaceId, session: &SessionId) {
    loop {
        let seen = world.store.get_session(workspace, session).await.expect("reads").expect("is there");
        if seen.waiting.is_some_and(|waiting| waiting.reason == WaitsFor::Model) {
            return;
        }
        tokio::task::yield_now().await;
    }
}

async fn waits(world: &World, workspace: &WorkspaceId, session: &SessionId) -> bool {
    let seen = world.store.get_session(workspace, session).await.expect("reads").expect("is there");
    seen.waiting.is_some()
}

#[tokio::test]
async fn over_the_limit_a_request_waits_visibly_until_another_answer_has_ended() {
    let (dir, server) = (tempfile::tempdir().expect("a folder"), Server::start().await);
    server.script(MODEL, [Reply::text("first").hold("it"), Reply::text("second")]);
    let world = World::open(dir.path(), models(&server, |_| {}), Arc::default()).await;
    let other = WorkspaceId::from_text("wrkspc_other");
    let sessions = [world.session(ALLOW, "go").await, world.session_of(other.clone(), ALLOW, "go").await];
    let limits = ModelLimits { in_flight_max: Some(1), in_flight_per_workspace_max: None };
    let brain = world.brain_with(|options| options.model_limits = limits);
    let shutdown = CancellationToken::new();
    let wake = async |session| assert!(brain.wake(session, &shutdown).await.expect("the store works"));
    tokio::join!(wake(&sessions[0]), async {
        server.until_waiting("it").await;
        tokio::join!(wake(&sessions[1]), async {
            until_it_waits(&world, &other, &sessions[1]).await;
            assert_eq!(server.requests(MODEL).len(), 1);
            server.release("it");
        });
    });
    for (workspace, session) in [&world.workspace, &other].into_iter().zip(&sessions) {
        assert!(world.told(session).await.ends_with("idle: end_turn"));
        assert!(!waits(&world, workspace, session).await);
    }
}

#[tokio::test]
async fn an_interrupt_and_a_shutdown_end_the_wait_and_nothing_is_sent() {
    let (dir, server) = (tempfile::tempdir().expect("a folder"), Server::start().await);
    let models = models(&server, |_| {});
    models.pause("gateway", Duration::from_secs(50));
    let world = World::open(dir.path(), models, Arc::default()).await;
    let session = world.session(ALLOW, "go").await;
    let (brain, shutdown) = (world.brain(None), CancellationToken::new());
    tokio::join!(async { assert!(brain.wake(&session, &shutdown).await.expect("the store works")) }, async {
        until_it_waits(&world, &world.workspace, &session).await;
        shutdown.cancel();
    });
    assert!(world.state(&session).await.wants_brain(), "another brain is to go on");
    tokio::join!(world.wake(&session), async {
        until_it_waits(&world, &world.workspace, &session).await;
        world.send(&session, vec![Body::UserInterrupt { session_thread_id: None }]).await;
    });
    assert!(world.told(&session).await.ends_with("idle: end_turn"));
    assert!(!waits(&world, &world.workspace, &session).await);
    assert!(server.requests(MODEL).is_empty());
}

#[tokio::test]
async fn when_nothing_remains_the_next_request_leaves_after_the_reset() {
    let (dir, server) = (tempfile::tempdir().expect("a folder"), Server::start().await);
    server.script(MODEL, [with_remaining(1, "50s"), with_remaining(0, "300ms"), Reply::text("hello")]);
    let world = World::open(dir.path(), models(&server, |_| {}), Arc::default()).await;
    for _ in 0..3 {
        let session = world.session(ALLOW, "go").await;
        world.wake(&session).await;
        assert!(world.told(&session).await.ends_with("idle: end_turn"));
    }
    let at: Vec<u64> = server.requests(MODEL).iter().map(|request| request.at_ms).collect();
    assert!(at[2] - at[1] >= 299, "{at:?}");
}

#[tokio::test]
async fn the_figures_of_the_messages_wire_hold_as_well() {
    let (dir, server) = (tempfile::tempdir().expect("a folder"), Server::start().await);
    let used_up = Reply::text("hello")
        .header("date", "Mon, 23 Nov 2026 08:00:00 GMT")
        .header("anthropic-ratelimit-input-tokens-remaining", "0")
        .header("anthropic-ratelimit-input-tokens-reset", "2026-11-23T08:05:00Z");
    server.script(MODEL, [used_up]);
    let models = models(&server, |config| {
        (config.kind, config.base_url) = (Kind::Anthropic, Some(server.url()));
    });
    let world = World::open(dir.path(), models, Arc::default()).await;
    let sessions = [world.session(ALLOW, "go").await, world.session(ALLOW, "go").await];
    world.wake(&sessions[0]).await;
    world.wake(&sessions[1]).await;
    let told = world.told(&sessions[1]).await;
    // Five minutes are longer than a request waits.
    let expected =
        "failed: model: the provider limits the rate of requests: by its own figures none may leave for";
    assert!(told.contains(expected) && told.ends_with("idle: retries_exhausted"), "{told}");
    assert_eq!(server.requests(MODEL).len(), 1);
}

#[tokio::test]
async fn a_limit_that_lasts_longer_than_a_request_waits_is_a_failure_that_is_tried_again() {
    let (dir, server) = (tempfile::tempdir().expect("a folder"), Server::start().await);
    server.script(MODEL, [with_remaining(0, "300ms"), Reply::text("hello")]);
    let models = models(&server, |config| {
        config.pace_wait_max = Some(Duration::from_millis(1));
        config.attempts_max = Some(3);
        config.retry_base_ms = Some(1);
    });
    let world = World::open(dir.path(), models, Arc::default()).await;
    let sessions = [world.session(ALLOW, "go").await, world.session(ALLOW, "go").await];
    world.wake(&sessions[0]).await;
    world.wake(&sessions[1]).await;
    let told = world.told(&sessions[1]).await;
    assert!(told.contains("failed: model: the provider limits the rate of requests"), "{told}");
    assert!(told.ends_with("agent: hello\nidle: end_turn"), "{told}");
}

#[tokio::test]
async fn a_refusal_pauses_the_provider_for_all_and_is_passed_on() {
    let (dir, server) = (tempfile::tempdir().expect("a folder"), Server::start().await);
    let refused = Reply::error(429, "rate_limit_error").with_error(|error| error.retry_after = Some(50));
    server.script(MODEL, [refused]);
    let models = models(&server, |_| {});
    let passed_on: Arc<Mutex<Vec<(String, Duration)>>> = Arc::default();
    let heard = Arc::clone(&passed_on);
    let on_pause: OnPause = Arc::new(move |provider, wait| {
        heard.lock().expect("not poisoned").push((provider.to_owned(), wait));
    });
    models.set_on_pause(&on_pause);
    let world = World::open(dir.path(), models, Arc::default()).await;
    let sessions = [world.session(ALLOW, "go").await, world.session(ALLOW, "go").await];
    world.wake(&sessions[0]).await;
    assert_eq!(*passed_on.lock().expect("not poisoned"), [("gateway".to_owned(), Duration::from_secs(50))]);
    tokio::join!(world.wake(&sessions[1]), async {
        until_it_waits(&world, &world.workspace, &sessions[1]).await;
        world.send(&sessions[1], vec![Body::UserInterrupt { session_thread_id: None }]).await;
    });
    assert_eq!(server.requests(MODEL).len(), 1);
}

#[tokio::test]
async fn another_process_hears_of_a_refusal_over_the_database() {
    let server = Server::start().await;
    let refused = Reply::error(429, "rate_limit_error").with_error(|error| error.retry_after = Some(50));
    server.script(MODEL, [refused]);
    let url = testkit::postgres::Cluster::shared().database();
    let connect = async || {
        let store = Store::connect(&url, None, store::Options::default()).await.expect("connects");
        World {
            store,
            hands: Arc::default(),
            models: models(&server, |_| {}),
            workspace: WorkspaceId::from_text("w"),
        }
    };
    let (first, second) = (connect().await, connect().await);
    let mut words = second.store.words();
    let shutdown = CancellationToken::new();
    let tells = tokio::spawn(first.brain(None).run(shutdown.clone()));
    first.session(ALLOW, "go").await;
    let word = words.recv().await.expect("it is told");
    shutdown.cancel();
    tells.await.expect("ends in peace");
    // Told again, because the second one listens only now.
    let shutdown = CancellationToken::new();
    let hears = tokio::spawn(second.brain(None).run(shutdown.clone()));
    tokio::task::yield_now().await;
    first.store.tell(&word).await;
    words.recv().await.expect("it is told");
    let session = second.session(ALLOW, "go").await;
    until_it_waits(&second, &second.workspace, &session).await;
    shutdown.cancel();
    hears.await.expect("ends in peace");
    assert_eq!(server.requests(MODEL).len(), 1);
}

#[tokio::test]
async fn headers_that_a_gateway_gets_wrong_need_not_be_believed() {
    let (dir, server) = (tempfile::tempdir().expect("a folder"), Server::start().await);
    server.script(MODEL, [with_remaining(0, "50s"), Reply::text("hello")]);
    let models = models(&server, |config| config.rate_headers = Some(false));
    let world = World::open(dir.path(), models, Arc::default()).await;
    let session = world.session(ALLOW, "go").await;
    world.wake(&session).await;
    world.send(&session, vec![message("and?")]).await;
    world.wake(&session).await;
    assert!(world.told(&session).await.ends_with("agent: hello\nidle: end_turn"));
}
