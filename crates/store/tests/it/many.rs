//! Several processes on one database of PostgreSQL, and a database that goes away.

use std::sync::Arc;
use std::time::Duration;

use protocol::event::{Preview, PreviewEvent, PreviewKind};
use protocol::id::EventId;
use protocol::position::Position;
use store::{AppendError, From, Ids, LEASE, ManualClock, Options, Store};
use testkit::cut::CutProxy;
use testkit::postgres::{Cluster, PgBouncer, Settings, Stop};

use crate::world::{World, id_of, message, noon, positions, said, soon, words};

/// Another process on the same database.
async fn other(url: &str, listen_url: Option<&str>, clock: &Arc<ManualClock>, seed: u64) -> Store {
    let options = Options {
        clock: clock.clone(),
        ids: Ids::seeded(seed),
        lapsed_poll: Duration::from_millis(20),
        ..Options::default()
    };
    Store::connect(url, listen_url, options).await.expect("connects")
}

/// A world over a store at this address.
async fn world_at(url: &str, listen_url: Option<&str>) -> World {
    let clock = Arc::new(ManualClock::new(noon()));
    let store = other(url, listen_url, &clock, 1).await;
    World::over_store(store, clock)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_process_writes_another_shows() {
    let url = Cluster::shared().database();
    let world = world_at(&url, None).await;
    let reader = other(&url, None, &world.clock, 2).await;
    let (id, lease) = world.leased().await;
    let mut follower = reader.follow(&id, From::Now).await.expect("works").expect("exists");
    world.append(&lease, world.says(2)).await;
    world.send(&id, vec![message("hello")]).await;
    assert_eq!(words(&mut follower, 3).await, ["1 agent.message", "2 agent.message", "(user.message)"]);
    // And the other way round.
    reader.send_events(&world.workspace, &id, vec![message("again")]).await.expect("accepted");
    let mut own = world.follow(&id, From::After(Position(1))).await;
    assert_eq!(words(&mut own, 3).await, ["2 agent.message", "(user.message)", "(user.message)"]);
    world.check_rebuild().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_ends_the_streams_of_other_processes() {
    let url = Cluster::shared().database();
    let world = world_at(&url, None).await;
    let reader = other(&url, None, &world.clock, 2).await;
    let id = world.session().await;
    let mut follower = reader.follow(&id, From::Now).await.expect("works").expect("exists");
    world.store.delete_session(&world.workspace, &id).await.expect("deleted");
    assert_eq!(words(&mut follower, 1).await, ["session.deleted"]);
    assert!(soon(follower.next()).await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_slept_through_its_lease_is_fenced() {
    let url = Cluster::shared().database();
    let world = world_at(&url, None).await;
    let next = other(&url, None, &world.clock, 2).await;
    let (id, sleeper) = world.leased().await;
    world.append(&sleeper, world.says(1)).await;
    assert!(next.try_claim(&id, "next").await.expect("works").is_none());
    world.clock.advance(LEASE + Duration::from_secs(1));
    let lease = next.try_claim(&id, "next").await.expect("works").expect("lapsed");
    assert_eq!(lease.deaths, 1);
    let late = world.store.append(&sleeper.token, Position(1), world.says(1)).await;
    assert!(matches!(late, Err(AppendError::Fenced)));
    assert!(matches!(world.store.renew(&sleeper.token).await, Err(AppendError::Fenced)));
    world.store.release(sleeper).await.expect("without effect");
    let draft = session::Draft::New { id: next.ids().make(), body: said("mine") };
    next.append(&lease.token, Position(1), vec![draft]).await.expect("holds it");
    assert_eq!(positions(&world.log(&id).await), [1, 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_are_shared_out_and_none_is_claimed_twice() {
    let url = Cluster::shared().database();
    let world = world_at(&url, None).await;
    let mut stores = vec![world.store.clone()];
    for seed in 2..=4 {
        stores.push(other(&url, None, &world.clock, seed).await);
    }
    let mut sessions = Vec::new();
    for _ in 0..40 {
        let id = world.session().await;
        world.send(&id, vec![message("go")]).await;
        sessions.push(id);
    }
    let mut claims = tokio::task::JoinSet::new();
    for store in stores {
        claims.spawn(async move {
            let mut claimed = Vec::new();
            while let Ok(leases) = tokio::time::timeout(Duration::from_secs(2), store.claim("some", 4)).await
            {
                claimed.extend(leases.expect("works").into_iter().map(|lease| lease.token.session));
            }
            claimed
        });
    }
    let mut claimed: Vec<_> = claims.join_all().await.into_iter().flatten().collect();
    claimed.sort();
    sessions.sort();
    assert_eq!(claimed, sessions);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn previews_are_shown_in_other_processes() {
    let url = Cluster::shared().database();
    let world = world_at(&url, None).await;
    let reader = other(&url, None, &world.clock, 2).await;
    let (id, lease) = world.leased().await;
    let mut follower = reader.follow(&id, From::Now).await.expect("works").expect("exists");
    follower.want_previews().await;
    let head = world.append(&lease, world.says(1)).await.state.head;
    assert_eq!(words(&mut follower, 1).await, ["1 agent.message"]);
    let event: EventId = world.id();
    let start = Preview::EventStart { event: PreviewEvent { kind: PreviewKind::Message, id: event.clone() } };
    let shown = async {
        loop {
            // Said again until it is known here that somebody there follows: a preview may be lost.
            world.store.previews().publish(&id, head, start.clone());
            let next = tokio::time::timeout(Duration::from_millis(50), words(&mut follower, 1)).await;
            if let Ok(words) = next {
                break words;
            }
        }
    };
    assert_eq!(soon(shown).await, ["~start"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_whose_notification_is_lost_is_seen_with_the_next_poll() {
    let cluster = Cluster::shared();
    let url = cluster.database();
    let world = world_at(&url, None).await;
    let proxy = CutProxy::start(([127, 0, 0, 1], cluster.port()).into()).await.expect("starts");
    let reader = other(&url, Some(&proxy.url(&url)), &world.clock, 2).await;
    let (id, lease) = world.leased().await;
    let mut follower = reader.follow(&id, From::Now).await.expect("works").expect("exists");
    proxy.cut().await;
    world.append(&lease, world.says(1)).await;
    assert_eq!(words(&mut follower, 1).await, ["1 agent.message"]);
    assert!(!reader.is_listening());
    proxy.heal().await;
    let listens = async {
        while !reader.is_listening() {
            tokio::task::yield_now().await;
        }
    };
    soon(listens).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_that_start_at_once_agree_on_the_format_and_the_workspace() {
    let url = Cluster::shared().database();
    let clock = Arc::new(ManualClock::new(noon()));
    let starts = (1..=6).map(|seed| {
        let (url, clock) = (url.clone(), clock.clone());
        async move { other(&url, None, &clock, seed).await.ensure_workspace().await.expect("works") }
    });
    let found = futures_util::future::join_all(starts).await;
    assert!(found.iter().all(|workspace| *workspace == found[0]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_break_under_load_lose_and_repeat_nothing() {
    let cluster = Cluster::shared();
    let url = cluster.database();
    let proxy = CutProxy::start(([127, 0, 0, 1], cluster.port()).into()).await.expect("starts");
    let world = world_at(&proxy.url(&url), None).await;
    let mut writers = tokio::task::JoinSet::new();
    let mut sessions = Vec::new();
    for _ in 0..8 {
        let (id, lease) = world.leased().await;
        let (store, drafts) = (world.store.clone(), world.says(60));
        sessions.push(id);
        writers.spawn(async move {
            let mut head = Position::START;
            for draft in drafts {
                let view = store.append(&lease.token, head, vec![draft]).await;
                head = view.expect("a broken connection is not the caller's business").state.head;
            }
        });
    }
    while !writers.is_empty() {
        proxy.drop_all().await;
        let pause = tokio::time::timeout(Duration::from_millis(30), writers.join_next()).await;
        if let Ok(Some(ended)) = pause {
            ended.expect("no panic");
        }
    }
    for id in sessions {
        assert_eq!(positions(&world.log(&id).await), (1..=60).collect::<Vec<_>>());
    }
    world.check_rebuild().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_away_is_told_and_comes_back() {
    let cluster = Cluster::shared();
    let url = cluster.database();
    let proxy = CutProxy::start(([127, 0, 0, 1], cluster.port()).into()).await.expect("starts");
    let world = world_at(&proxy.url(&url), None).await;
    let id = world.session().await;
    proxy.cut().await;
    // Until that is noticed a statement may be sent on a connection that is dead already, and its outcome is unknown.
    while !matches!(world.store.ping().await, Err(store::Error::Unreachable(_))) {}
    let refused = soon(world.store.send_events(&world.workspace, &id, vec![message("hello")])).await;
    match refused {
        Err(store::ChangeError::Store(error)) => assert!(error.may_try_again(), "{error:?}"),
        other => panic!("{other:?}"),
    }
    proxy.heal().await;
    world.send(&id, vec![message("hello")]).await;
    assert_eq!(world.view(&id).await.inbox.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_restarted_loses_and_repeats_nothing() {
    let cluster = Cluster::new(Settings::default()).expect("starts");
    let world = world_at(&cluster.database(), None).await;
    let (id, lease) = world.leased().await;
    for (round, how) in [Stop::Fast, Stop::Immediate].into_iter().enumerate() {
        let writing = async {
            for _ in 0..20 {
                let head = world.log(&id).await.len() as u64;
                world.store.append(&lease.token, Position(head), world.says(1)).await.expect("appended");
            }
        };
        writing.await;
        tokio::task::block_in_place(|| cluster.restart(how)).expect("restarts");
        let log = world.log(&id).await;
        assert_eq!(positions(&log), (1..=20 * (round as u64 + 1)).collect::<Vec<_>>());
    }
    world.append(&lease, world.says(1)).await;
    world.check_rebuild().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_in_transaction_mode_will_do() {
    let cluster = Cluster::shared();
    let url = cluster.database();
    let bouncer = PgBouncer::new(cluster, 4).expect("starts");
    let world = world_at(&bouncer.url(&url), Some(&url)).await;
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (id, lease) = world.leased().await;
        let mut follower = world.follow(&id, From::Now).await;
        world.send(&id, vec![message("hello")]).await;
        let (store, drafts) = (world.store.clone(), world.says(10));
        writers.spawn(async move {
            for (head, draft) in drafts.into_iter().enumerate() {
                let head = Position(head as u64);
                store.append(&lease.token, head, vec![draft]).await.expect("appended");
            }
            let seen = words(&mut follower, 11).await;
            // A slow reader may find the message waiting when it has read the log.
            assert!(seen.iter().any(|word| word == "(user.message)"));
            store.release(lease).await.expect("released");
        });
    }
    writers.join_all().await;
    assert_eq!(world.store.claim("brain", 16).await.expect("works").len(), 8);
    world.check_rebuild().await;
}

/// Somebody else writes to the same session all the time, so that the head cannot tell who wrote before last.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_whose_answer_is_lost_is_never_there_twice() {
    let cluster = Cluster::shared();
    let url = cluster.database();
    let proxy = CutProxy::start(([127, 0, 0, 1], cluster.port()).into()).await.expect("starts");
    let world = world_at(&proxy.url(&url), None).await;
    let brain = other(&url, None, &world.clock, 2).await;
    let id = world.session().await;
    let lease = brain.try_claim(&id, "brain").await.expect("works").expect("free");
    let stop = tokio_util::sync::CancellationToken::new();
    let appending = tokio::spawn({
        let (brain, stop) = (brain.clone(), stop.clone());
        async move {
            let mut head = Position::START;
            while !stop.is_cancelled() {
                let draft = session::Draft::New { id: brain.ids().make(), body: said("on") };
                match brain.append(&lease.token, head, vec![draft]).await {
                    Ok(view) => head = view.state.head,
                    Err(AppendError::Moved(view)) => head = view.state.head,
                    Err(error) => panic!("{error}"),
                }
            }
        }
    });
    let sending = tokio::spawn({
        let (store, workspace, id) = (world.store.clone(), world.workspace.clone(), id.clone());
        async move {
            let mut acknowledged = Vec::new();
            for _ in 0..60 {
                match store.send_events(&workspace, &id, vec![message("hello")]).await {
                    Ok(sent) => acknowledged.extend(sent.iter().map(|stored| id_of(stored))),
                    Err(store::ChangeError::Store(error)) => {
                        assert!(error.may_have_happened() || error.may_try_again(), "{error:?}");
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            acknowledged
        }
    });
    while !sending.is_finished() {
        proxy.drop_all().await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let acknowledged = sending.await.expect("no panic");
    stop.cancel();
    appending.await.expect("no panic");
    let inbox: Vec<EventId> = brain.get_inbox(&id).await.expect("works").iter().map(id_of).collect();
    let once: std::collections::HashSet<&EventId> = inbox.iter().collect();
    assert_eq!(once.len(), inbox.len(), "nothing twice");
    assert!(acknowledged.iter().all(|id| once.contains(id)), "nothing lost");
    assert_eq!(
        brain.rebuild(&id).await.expect("works"),
        brain.look(&id).await.expect("works").map(|view| view.state)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_that_cannot_be_stored_harms_no_other_session() {
    let url = Cluster::shared().database();
    let world = world_at(&url, None).await;
    let odd = protocol::id::SessionId::from_text("sesn_\0");
    let mut sends = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let id = world.session().await;
        for id in [id, odd.clone()] {
            let (store, workspace) = (world.store.clone(), world.workspace.clone());
            let is_odd = id == odd;
            sends.spawn(async move {
                let sent = store.send_events(&workspace, &id, vec![message("hello")]).await;
                assert_eq!(sent.is_err(), is_odd, "{sent:?}");
            });
        }
    }
    sends.join_all().await;
}
