//! From an append to a follower of the session.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use protocol::position::Position;
use store::{Follower, From, Item, Store};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::load::{Held, Load, Shape};
use crate::bench::samples::Samples;

/// From the call of append, each.
pub(super) struct Seen {
    /// Until it is acknowledged.
    pub(super) durable: Samples,
    /// Until the follower has it.
    pub(super) seen: Samples,
}

/// Each session appends an event, waits until its follower, a task of its own as behind a stream, has seen it, and
/// appends the next.
pub(super) async fn seen(store: &Store, load: Load, events: usize) -> anyhow::Result<Seen> {
    let mut sessions = JoinSet::new();
    for held in load.sessions {
        sessions.spawn(of_one(store.clone(), held, events.max(1)));
    }
    let (mut durable, mut seen) = (Vec::new(), Vec::new());
    while let Some(times) = sessions.join_next().await {
        for (until_durable, until_seen) in times?? {
            durable.push(until_durable);
            seen.push(until_seen);
        }
    }
    Ok(Seen { durable: durable.into_iter().collect(), seen: seen.into_iter().collect() })
}

async fn of_one(store: Store, mut held: Held, events: usize) -> anyhow::Result<Vec<(Duration, Duration)>> {
    let follower =
        store.follow(&held.lease.token.session, From::Now).await?.context("the session is there")?;
    let (show, mut shown) = mpsc::channel(1);
    let following = tokio::spawn(follow(follower, show));
    let mut times = Vec::with_capacity(events);
    for _ in 0..events {
        let drafts = held.words.drafts(Shape::Single);
        let asked = Instant::now();
        held.append(&store, drafts).await?;
        let durable = asked.elapsed();
        let (position, at) = shown.recv().await.context("the follower ended")?;
        anyhow::ensure!(position == held.head, "the follower shows each event once, in order");
        times.push((durable, at.duration_since(asked)));
    }
    following.abort();
    store.release(held.lease).await?;
    Ok(times)
}

async fn follow(mut follower: Follower, show: mpsc::Sender<(Position, Instant)>) {
    while let Some(item) = follower.next().await {
        if let Item::Event { position, .. } = item
            && show.send((position, Instant::now())).await.is_err()
        {
            return;
        }
    }
}
