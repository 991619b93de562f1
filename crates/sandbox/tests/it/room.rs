//! What is kept ready, and what becomes of those for whom there is no room.

use std::sync::Arc;
use std::time::Duration;

use sandbox::{Capacity, Error, ExitNews, Limits, Network, Pool, Resources};

use crate::host::{Hands, Host, call, fresh_id, text};

fn pool(resources: &Resources, count: usize) -> Pool {
    Pool { resources: resources.clone(), count }
}

fn small() -> Resources {
    let limits = Limits { memory_bytes: 64 << 20, ..Limits::default() };
    Resources { limits, ..Resources::default() }
}

fn at_most(sandboxes_max: usize) -> Capacity {
    Capacity { sandboxes_max, ..Capacity::default() }
}

/// Waits until so many are ready.
async fn until_ready(provider: &Hands, count: usize) {
    let ready = async {
        while provider.occupancy().await.unwrap().ready != count {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), ready).await.expect("so many become ready");
}

/// Waits until so many wait for room.
async fn until_waiting(provider: &Hands, count: usize) {
    let waiting = async {
        while provider.occupancy().await.unwrap().waiting != count {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("so many wait");
}

#[tokio::test]
async fn a_pool_is_handed_out_filled_again_and_given_up() {
    let host = Host::new();
    let usual = Resources::default();
    host.provider.keep_ready(&[pool(&usual, 2)]).await.unwrap();
    until_ready(&host.provider, 2).await;
    let before = host.family();
    let sandbox = host.sandbox(usual.clone()).await;
    assert_eq!(sandbox.bash("pwd; hostname").await, "/workspace\nsandbox");
    assert!(
        host.provider.list().await.unwrap().iter().map(|info| &info.id).eq([&sandbox.id]),
        "what is ready is not listed"
    );
    until_ready(&host.provider, 2).await;
    let family = host.family();
    assert!(before.iter().all(|pid| family.contains(pid)), "it was one of those that were ready");
    // One of another kind is made, and the pool stays.
    let other = host.sandbox(small()).await;
    assert_eq!(other.bash("echo other").await, "other");
    assert_eq!(host.provider.occupancy().await.unwrap().ready, 2);
    host.provider.keep_ready(&[]).await.unwrap();
    until_ready(&host.provider, 0).await;
    assert_eq!(sandbox.bash("echo still here").await, "still here");
    host.end().await;
}

#[tokio::test]
async fn what_comes_from_a_pool_reaches_what_it_was_provisioned_for() {
    let host = Host::new();
    let reaching =
        |label: &str| Resources { network: Some(Network(label.to_owned())), ..Resources::default() };
    host.provider.keep_ready(&[pool(&reaching("anything"), 1)]).await.unwrap();
    until_ready(&host.provider, 1).await;
    let mut exits = host.provider.exits();
    let sandbox = host.sandbox(reaching("one place")).await;
    let Some(ExitNews::Opened(exit)) = exits.next().await else { panic!("it comes at hand-out") };
    assert_eq!((exit.sandbox, exit.network), (sandbox.id.clone(), Network("one place".to_owned())));
    host.end().await;
}

#[tokio::test]
async fn a_wish_goes_with_its_server_and_comes_back_with_a_connection() {
    let host = Host::new();
    let usual = Resources::default();
    let (one, two) = (host.another(), host.another());
    one.keep_ready(&[pool(&usual, 1)]).await.unwrap();
    two.keep_ready(&[pool(&usual, 3)]).await.unwrap();
    until_ready(&host.provider, 3).await;
    drop(two);
    until_ready(&host.provider, 1).await;
    // The supervisor dies; the first server's next question starts another, which is told of the wish.
    rustix::process::kill_process(host.supervisor(), rustix::process::Signal::KILL).unwrap();
    one.list().await.unwrap();
    until_ready(&one, 1).await;
    drop(one);
    host.end().await;
}

#[tokio::test]
async fn who_finds_no_room_waits_in_line() {
    let host = Host::new().with_capacity(at_most(1));
    let provider = &host.provider;
    let first = host.sandbox(Resources::default()).await;
    let (second, third) = (fresh_id(), fresh_id());
    let usual = Resources::default();
    let make = |id| provider.provision(id, 1, &usual);
    let in_turn = async {
        let earlier = async {
            make(&second).await.expect("its turn comes when the first is gone");
            assert_eq!(provider.occupancy().await.unwrap().waiting, 1, "the other's turn has not come");
            provider.destroy(&second).await.unwrap();
        };
        let later = async {
            until_waiting(provider, 1).await;
            make(&third).await.expect("its turn comes");
        };
        let go = async {
            until_waiting(provider, 2).await;
            assert_eq!(provider.occupancy().await.unwrap().live, 1);
            provider.destroy(&first.id).await.unwrap();
        };
        tokio::join!(earlier, later, go);
    };
    tokio::time::timeout(Duration::from_secs(60), in_turn).await.expect("in time");
    let output = provider.execute(call(&third, "bash", serde_json::json!({"command": "echo hi"}))).await;
    assert_eq!(text(&output.unwrap()), "hi");
    host.end().await;
}

#[tokio::test]
async fn a_wait_for_room_can_be_ended() {
    let host = Host::new().with_capacity(at_most(1));
    let _first = host.sandbox(Resources::default()).await;
    let (provider, second, usual) = (&host.provider, fresh_id(), Resources::default());
    let end = async {
        until_waiting(provider, 1).await;
        provider.destroy(&second).await.unwrap();
    };
    let (made, ()) = tokio::join!(provider.provision(&second, 1, &usual), end);
    assert!(matches!(made, Err(Error::Gone { .. })), "{made:?}");
    until_waiting(provider, 0).await;
    // A server that dies waits for nothing any more.
    let dies = host.another();
    let (third, usual) = (fresh_id(), Resources::default());
    tokio::select! {
        made = dies.provision(&third, 1, &usual) => panic!("{made:?}"),
        () = until_waiting(provider, 1) => {}
    }
    drop(dies);
    until_waiting(provider, 0).await;
    host.end().await;
}

#[tokio::test]
async fn beyond_the_bounds_of_waiting_it_is_said_what_is_lacking() {
    for (capacity, lacking) in [
        (Capacity { waiting_max: 0, ..at_most(1) }, "1 live, limit 1, 0 wait"),
        (Capacity { waiting_time_max: Duration::ZERO, ..at_most(1) }, "1 live, limit 1, 0 wait"),
    ] {
        let host = Host::new().with_capacity(capacity);
        let _first = host.sandbox(Resources::default()).await;
        let refused = host.provider.provision(&fresh_id(), 1, &Resources::default()).await.unwrap_err();
        assert_eq!(
            refused.to_string(),
            format!("too busy: no room for another sandbox on this machine: {lacking}")
        );
        host.end().await;
    }
    let reserve = Capacity { memory_reserve_bytes: u64::MAX, waiting_max: 0, ..Capacity::default() };
    let host = Host::new().with_capacity(reserve);
    let refused = host.provider.provision(&fresh_id(), 1, &Resources::default()).await.unwrap_err();
    assert!(refused.to_string().contains("kept in reserve"), "{refused}");
    host.end().await;
}

#[tokio::test]
async fn what_is_kept_ready_makes_way() {
    let host = Host::new().with_capacity(at_most(3));
    host.provider.keep_ready(&[pool(&Resources::default(), 5)]).await.unwrap();
    until_ready(&host.provider, 3).await;
    // Of another kind, so that none of those that are ready will do.
    for _ in 0..3 {
        let sandbox = host.sandbox(small()).await;
        assert_eq!(sandbox.bash("echo here").await, "here");
    }
    let occupancy = host.provider.occupancy().await.unwrap();
    assert_eq!((occupancy.live, occupancy.ready), (3, 0));
    host.end().await;
}

#[tokio::test]
async fn what_is_kept_ready_goes_where_memory_is_short() {
    let host = Host::new();
    let wisher = host.another();
    wisher.keep_ready(&[pool(&Resources::default(), 2)]).await.unwrap();
    until_ready(&wisher, 2).await;
    // The machine is as full as ever; what is to stay free is more.
    let host = host.with_capacity(Capacity { memory_reserve_bytes: u64::MAX, ..Capacity::default() });
    assert_eq!(host.provider.list().await.unwrap(), []);
    until_ready(&wisher, 0).await;
    host.end().await;
}

#[tokio::test]
async fn a_pool_run_dry_by_many_at_once_serves_them_all() {
    let host = Host::new();
    let usual = Resources::default();
    host.provider.keep_ready(&[pool(&usual, 3)]).await.unwrap();
    until_ready(&host.provider, 3).await;
    let provider = Arc::new(host.another());
    let mut all = tokio::task::JoinSet::new();
    for id in (0..20).map(|_| fresh_id()) {
        let provider = Arc::clone(&provider);
        all.spawn(async move { provider.provision(&id, 1, &Resources::default()).await });
    }
    for made in all.join_all().await {
        made.expect("each gets one");
    }
    assert_eq!(host.provider.list().await.unwrap().len(), 20);
    until_ready(&host.provider, 3).await;
    host.end().await;
}
