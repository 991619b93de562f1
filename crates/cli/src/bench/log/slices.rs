//! Slices from short and long sessions, in turns.

use std::time::Instant;

use protocol::id::SessionId;
use protocol::position::Position;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use store::{Order, Slice, Store};

use super::fill::{Plan, SHORT_EVENTS};
use crate::bench::samples::{Samples, millis};

/// Events in a slice.
const SLICE: u64 = 100;

/// Times of slices.
pub(super) struct Times {
    pub(super) forwards: Samples,
    pub(super) backwards: Samples,
}

pub(super) struct Slices {
    pub(super) short: Times,
    pub(super) long: Times,
}

/// Reads slices from random places: of the long session, and each time of another short one, so that neither lies
/// in a connection's cache.
pub(super) async fn both(plan: &Plan, count: usize) -> anyhow::Result<Slices> {
    let filled = plan.filled()?;
    let store = Store::open(&plan.data(), store::Options::default())?;
    let mut random = SmallRng::seed_from_u64(plan.seed);
    let mut times = [const { Vec::new() }; 4];
    for _ in 0..count {
        let short = &filled.short[random.random_range(0..filled.short.len())];
        for (index, (id, events, order)) in [
            (short, SHORT_EVENTS, Order::Asc),
            (short, SHORT_EVENTS, Order::Desc),
            (&filled.long, plan.long_events, Order::Asc),
            (&filled.long, plan.long_events, Order::Desc),
        ]
        .into_iter()
        .enumerate()
        {
            let after = random.random_range(0..=events - SLICE);
            times[index].push(one(&store, id, after, order).await?);
        }
    }
    store.close().await;
    let [short_forwards, short_backwards, long_forwards, long_backwards] = times.map(Samples::of);
    Ok(Slices {
        short: Times { forwards: short_forwards, backwards: short_backwards },
        long: Times { forwards: long_forwards, backwards: long_backwards },
    })
}

async fn one(store: &Store, id: &SessionId, after: u64, order: Order) -> anyhow::Result<f64> {
    let slice = Slice {
        after: Position(after),
        until: Some(Position(after + SLICE)),
        order,
        limit: SLICE as usize,
        ..Slice::default()
    };
    let asked = Instant::now();
    let events = store.get_events(id, slice).await?;
    let taken = millis(asked.elapsed());
    anyhow::ensure!(events.len() as u64 == SLICE, "a slice in the middle is full");
    Ok(taken)
}
