//! Leases: claims, fencing, lapsing, the queue.

use std::time::Duration;

use protocol::position::Position;
use session::Draft;
use store::{AppendError, LEASE, Slice};

use crate::world::{START, World, claim, id_of, message, positions, soon};

pub(crate) async fn a_claimed_session_is_nobody_elses(world: &World) {
    let (id, lease) = world.leased().await;
    assert_eq!((&lease.token.session, lease.token.epoch), (&id, 1));
    assert!(world.store.try_claim(&id, "other").await.expect("works").is_none());
    world.store.release(lease).await.expect("works");
    let next = world.lease(&id).await;
    assert_eq!(next.token.epoch, 2);
    assert!(world.store.try_claim(&world.id(), "other").await.expect("works").is_none());
}

/// A session whose lease has lapsed and been taken by another: the old lease, then the new one.
async fn taken_over(world: &World) -> (store::Lease, store::Lease) {
    let (id, old) = world.leased().await;
    world.append(&old, world.says(1)).await;
    world.clock.advance(LEASE);
    let new = world.lease(&id).await;
    (old, new)
}

pub(crate) async fn an_old_epoch_appends_nothing(world: &World) {
    let (old, new) = taken_over(world).await;
    for expected in [Position(1), START] {
        let refused = world.store.append(&old.token, expected, world.says(1)).await;
        assert!(matches!(refused, Err(AppendError::Fenced)));
    }
    assert!(matches!(world.store.renew(&old.token).await, Err(AppendError::Fenced)));
    world.append(&new, world.says(1)).await;
    assert_eq!(positions(&world.log(&new.token.session).await), [1, 2]);
}

pub(crate) async fn an_old_epoch_appends_nothing_among_others(world: &World) {
    let (old, new) = taken_over(world).await;
    let (_, other) = world.leased().await;
    // Sent together, so that they may well share a flush.
    let (stale, current, elsewhere) = tokio::join!(
        world.store.append(&old.token, Position(1), world.says(3)),
        world.store.append(&new.token, Position(1), world.says(2)),
        world.store.append(&other.token, START, world.says(1)),
    );
    assert!(matches!(stale, Err(AppendError::Fenced)));
    assert_eq!(current.expect("appended").state.head, Position(3));
    assert_eq!(elsewhere.expect("appended").state.head, Position(1));
    assert_eq!(positions(&world.log(&new.token.session).await), [1, 2, 3]);
}

pub(crate) async fn a_lease_lapses_by_the_stores_clock(world: &World) {
    let (id, _lease) = world.leased().await;
    world.clock.advance(LEASE - Duration::from_micros(1));
    assert!(world.store.try_claim(&id, "other").await.expect("works").is_none());
    world.clock.advance(Duration::from_micros(1));
    assert_eq!(world.lease(&id).await.token.epoch, 2);
}

pub(crate) async fn an_append_renews_the_lease(world: &World) {
    let (id, lease) = world.leased().await;
    for _ in 0..5 {
        world.clock.advance(LEASE / 2);
        world.append(&lease, world.says(1)).await;
    }
    world.clock.advance(LEASE - Duration::from_micros(1));
    assert!(world.store.try_claim(&id, "other").await.expect("works").is_none());
}

pub(crate) async fn a_renewal_renews_the_lease(world: &World) {
    let (id, lease) = world.leased().await;
    for _ in 0..5 {
        world.clock.advance(LEASE / 10);
        world.store.renew(&lease.token).await.expect("ours");
    }
    world.clock.advance(LEASE - Duration::from_micros(1));
    assert!(world.store.try_claim(&id, "other").await.expect("works").is_none());
}

pub(crate) async fn a_lapsed_lease_still_serves_until_it_is_claimed(world: &World) {
    let (id, lease) = world.leased().await;
    world.clock.advance(LEASE * 3);
    world.append(&lease, world.says(1)).await;
    assert!(world.store.try_claim(&id, "other").await.expect("works").is_none());
}

pub(crate) async fn a_released_token_is_fenced(world: &World) {
    let (id, lease) = world.leased().await;
    let token = lease.token.clone();
    world.store.release(lease).await.expect("works");
    let refused = world.store.append(&token, START, world.says(1)).await;
    assert!(matches!(refused, Err(AppendError::Fenced)));
    assert!(matches!(world.store.renew(&token).await, Err(AppendError::Fenced)));
    assert!(world.log(&id).await.is_empty());
}

pub(crate) async fn releasing_a_lapsed_lease_leaves_the_new_one(world: &World) {
    let (old, new) = taken_over(world).await;
    world.store.release(old).await.expect("works");
    world.store.renew(&new.token).await.expect("still ours");
}

pub(crate) async fn sessions_are_claimed_in_the_order_in_which_they_wanted(world: &World) {
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(world.session().await);
    }
    ids.reverse();
    for id in &ids {
        world.send(id, vec![message("hello")]).await;
        world.send(id, vec![message("again")]).await;
    }
    for id in &ids {
        let lease = soon(world.claim("test")).await.expect("works");
        assert_eq!(lease.token.session, *id);
    }
}

pub(crate) async fn a_claim_waits_until_somebody_wants_a_brain(world: &World) {
    let id = world.session().await;
    let claim = tokio::spawn({
        let store = world.store.clone();
        async move { claim(&store, "test").await }
    });
    world.session().await;
    assert!(!claim.is_finished());
    world.send(&id, vec![message("hello")]).await;
    let lease = soon(claim).await.expect("no panic").expect("works");
    assert_eq!(lease.token.session, id);
}

pub(crate) async fn a_satisfied_session_is_not_claimed(world: &World) {
    let (first, second) = (world.session().await, world.session().await);
    let echo = world.send(&first, vec![message("hello")]).await.remove(0);
    world.send(&second, vec![message("hello")]).await;
    let lease = world.lease(&first).await;
    world.append(&lease, vec![Draft::Take(id_of(&echo))]).await;
    world.store.release(lease).await.expect("works");
    let lease = soon(world.claim("test")).await.expect("works");
    assert_eq!(lease.token.session, second);
}

pub(crate) async fn a_released_session_that_still_wants_is_claimed_again(world: &World) {
    let (first, second) = (world.session().await, world.session().await);
    for id in [&first, &second] {
        world.send(id, vec![message("hello")]).await;
    }
    let lease = soon(world.claim("test")).await.expect("works");
    world.store.release(lease).await.expect("works");
    // It goes to the end of the queue.
    for id in [&second, &first] {
        let lease = soon(world.claim("test")).await.expect("works");
        assert_eq!(lease.token.session, *id);
    }
}

pub(crate) async fn a_lapsed_lease_is_found_by_waiting_claims(world: &World) {
    let id = world.session().await;
    world.send(&id, vec![message("hello")]).await;
    let dead = soon(world.claim("dead")).await.expect("works");
    let claim = tokio::spawn({
        let store = world.store.clone();
        async move { claim(&store, "next").await }
    });
    world.clock.advance(LEASE);
    let lease = soon(claim).await.expect("no panic").expect("works");
    assert_eq!((lease.token.session, lease.token.epoch), (id, dead.token.epoch + 1));
}

pub(crate) async fn many_claims_get_one_session_each(world: &World) {
    let mut claims = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let store = world.store.clone();
        claims.spawn(async move { claim(&store, "test").await.expect("works").token.session });
    }
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(world.session().await);
    }
    for id in &ids {
        world.send(id, vec![message("hello")]).await;
    }
    let mut claimed = soon(claims.join_all()).await;
    claimed.sort();
    ids.sort();
    assert_eq!(claimed, ids);
}

pub(crate) async fn a_claim_dropped_while_it_waits_loses_nothing(world: &World) {
    let id = world.session().await;
    for _ in 0..10 {
        let claim = tokio::spawn({
            let store = world.store.clone();
            async move { claim(&store, "test").await }
        });
        tokio::task::yield_now().await;
        claim.abort();
        assert!(claim.await.expect_err("aborted").is_cancelled());
    }
    world.send(&id, vec![message("hello")]).await;
    let lease = soon(world.claim("test")).await.expect("works");
    assert_eq!(lease.token.session, id);
}

pub(crate) async fn a_claim_dropped_as_it_succeeds_gives_the_session_back(world: &World) {
    let id = world.session().await;
    world.send(&id, vec![message("hello")]).await;
    for patience in 0..60 {
        let claim = tokio::spawn({
            let store = world.store.clone();
            async move { claim(&store, "test").await }
        });
        for _ in 0..patience % 20 {
            tokio::task::yield_now().await;
        }
        claim.abort();
        if let Ok(lease) = claim.await {
            world.store.release(lease.expect("works")).await.expect("works");
        }
    }
    // The clock stands still: a lease that nobody gave back would never lapse.
    let lease = soon(world.claim("test")).await.expect("works");
    assert_eq!(lease.token.session, id);
}

pub(crate) async fn a_change_wakes_who_watches(world: &World) {
    let (id, lease) = world.leased().await;
    let mut changed = world.store.changed(&id);
    world.send(&id, vec![message("hello")]).await;
    soon(changed.wait()).await;
    world.append(&lease, world.says(1)).await;
    soon(changed.wait()).await;
}

pub(crate) async fn a_deleted_session_is_fenced(world: &World) {
    let (id, lease) = world.leased().await;
    world.append(&lease, world.says(3)).await;
    world.store.delete_session(&world.workspace, &id).await.expect("deleted");
    let refused = world.store.append(&lease.token, Position(3), world.says(1)).await;
    assert!(matches!(refused, Err(AppendError::Fenced)));
    assert!(world.slice(&id, Slice::default()).await.is_empty());
    world.store.release(lease).await.expect("without effect");
}
