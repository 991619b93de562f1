//! Appending as fast as acknowledgements come, one append in flight for each session.

use std::time::{Duration, Instant};

use store::Store;
use tokio::task::JoinSet;

use super::load::{Load, Shape};
use crate::bench::samples::{Samples, per_second};

/// What was appended in some stretch of time.
#[derive(Debug, Default)]
pub(super) struct Appended {
    pub(super) events: usize,
    pub(super) elapsed: Duration,
    /// From the call of each append to its acknowledgement.
    pub(super) times: Vec<Duration>,
}

impl Appended {
    pub(super) fn add(&mut self, other: Self) {
        let Self { events, elapsed, times } = other;
        self.events += events;
        self.elapsed += elapsed;
        self.times.extend(times);
    }

    pub(super) fn samples(&self) -> Samples {
        self.times.iter().copied().collect()
    }

    /// Events in a second.
    pub(super) fn per_second(&self) -> f64 {
        per_second(self.events, self.elapsed)
    }
}

/// Every session appends for that long. What an append needs besides the store (making the events' text) is part of
/// it, as it is for a brain.
pub(super) async fn append(
    store: &Store,
    load: Load,
    shape: Shape,
    time: Duration,
) -> anyhow::Result<(Load, Appended)> {
    let mut appending = JoinSet::new();
    let began = Instant::now();
    for mut held in load.sessions {
        let store = store.clone();
        appending.spawn(async move {
            let mut times = Vec::new();
            while began.elapsed() < time {
                let drafts = held.words.drafts(shape);
                let asked = Instant::now();
                held.append(&store, drafts).await?;
                times.push(asked.elapsed());
            }
            anyhow::Ok((held, times))
        });
    }
    let mut sessions = Vec::new();
    let mut times = Vec::new();
    while let Some(appended) = appending.join_next().await {
        let (held, of_one) = appended??;
        sessions.push(held);
        times.extend(of_one);
    }
    let elapsed = began.elapsed();
    Ok((Load { sessions }, Appended { events: times.len() * shape.events(), elapsed, times }))
}
