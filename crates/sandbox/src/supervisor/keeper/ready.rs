//! What is kept ready: made and ended where nobody is in a hurry, and handed out.

use std::time::{Duration, Instant};

use super::sandbox::{Sandbox, State};
use super::{CHILD, Keeper, Kind, Wanted, of_namespaces};
use crate::provider::Pool;
use crate::supervisor::pool::{Errand, Shape};
use crate::supervisor::protocol::Answer;

/// How often it is looked whether there is memory for what is kept ready.
const READY_LOOK: Duration = Duration::from_secs(1);
const GIVES_WAY: &str = "it was kept ready and made way";
const NOT_WISHED: &str = "it was kept ready and is not wished for any more";

impl Keeper {
    /// What the server on this connection wishes to be kept ready.
    pub(crate) fn keep_ready(&mut self, connection: u64, pools: Vec<Pool>) {
        let checked = pools.into_iter().filter_map(|Pool { resources, count }| {
            // Whoever provisions it is told what is wrong with it.
            Some(Pool { resources: of_namespaces(resources).ok()?, count })
        });
        self.pools.wish(connection, checked.collect());
        self.refill_at = None;
    }

    /// Within how long [`Keeper::refill`] wants to be called again; `None` if nothing is to be kept ready.
    pub(crate) fn refill_due(&self, now: Instant) -> Option<Duration> {
        let idle = self.pools.is_empty() && self.spare.is_empty();
        let wait = || self.refill_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        (!idle).then(wait)
    }

    /// Makes or ends one of those that are kept ready, where nobody is in a hurry.
    pub(crate) fn refill(&mut self, now: Instant) {
        let idle = self.pools.is_empty() && self.spare.is_empty();
        if idle || self.refill_at.is_some_and(|at| now < at) {
            return;
        }
        self.release_memory(now);
        self.run_errands(now);
        self.refill_at = Some(now + self.pools.rest(now).unwrap_or(READY_LOOK));
    }

    fn run_errands(&mut self, now: Instant) {
        loop {
            let shapes: Vec<&Shape> = self.spare.iter().map(|key| &self.sandboxes[key].shape).collect();
            match self.pools.errand(&shapes, self.capacity.ready_max, now) {
                None => return,
                Some(Errand::End(shape)) => {
                    if let Some(key) = self.spare_of(&shape) {
                        self.kill(key, NOT_WISHED, now);
                    }
                }
                Some(Errand::Make(shape)) => {
                    let is_starting = |sandbox: &Sandbox| matches!(sandbox.state, State::Starting { .. });
                    let hurry = !self.line.is_empty() || self.sandboxes.values().any(is_starting);
                    if hurry || self.report.refusal().is_some() || self.room(&CHILD).is_err() {
                        return;
                    }
                    if self.installs(shape.resources()).is_none() {
                        // It is begun when that is known.
                        return self.look_for_private(now);
                    }
                    match self.begin(None, shape.resources().clone(), None, Vec::new(), now) {
                        Ok(key) => self.spare.push(key),
                        Err(_) => self.pools.failed(now),
                    }
                }
            }
        }
    }

    /// Gives a sandbox that was kept ready its id.
    pub(super) fn hand_out(&mut self, key: u64, wanted: Wanted, now: Instant) {
        let Wanted { id, fence, resources, kind: _, waiters: asked } = wanted;
        self.spare.retain(|spare| *spare != key);
        self.pools.took(now);
        self.refill_at = None;
        let sandbox = self.sandboxes.get_mut(&key).expect("what is spare is there");
        sandbox.id = Some(id.clone());
        sandbox.network = resources.network;
        (sandbox.fence, sandbox.born, sandbox.used, sandbox.heard) = (fence, now, now, now);
        self.keys.insert(id, key);
        match &mut sandbox.state {
            State::Starting { waiters } => waiters.extend(asked),
            State::Live | State::Dying { .. } => {
                if sandbox.exit.is_some() {
                    self.untold.push(key);
                }
                self.replies.extend(asked.into_iter().map(|waiter| (waiter, Answer::Done {})));
            }
        }
    }

    /// One that is kept ready and will do. A layer is made in a sandbox of its own.
    pub(super) fn spare_for(&self, wanted: &Wanted) -> Option<u64> {
        match wanted.kind {
            Kind::Child { layer: None } => self.spare_of(&Shape::of(&wanted.resources)),
            Kind::Child { layer: Some(_) } | Kind::Guest { .. } => None,
        }
    }

    /// One of this shape that is kept ready: a finished one, or one that will be sooner than a new one.
    fn spare_of(&self, shape: &Shape) -> Option<u64> {
        let fitting = || self.spare.iter().copied().filter(|key| self.sandboxes[key].shape == *shape);
        let is_live = |key: &u64| matches!(self.sandboxes[key].state, State::Live);
        fitting().find(is_live).or_else(|| fitting().next())
    }

    /// Ends what is kept ready, as far as it is in the way of those who wait.
    pub(super) fn make_way(&mut self, now: Instant) {
        let is_dying = |sandbox: &&Sandbox| matches!(sandbox.state, State::Dying { .. });
        let on_the_way = self.sandboxes.values().filter(is_dying).count();
        let in_the_way = self.line.len().saturating_sub(on_the_way);
        let giving: Vec<u64> = self.spare.iter().copied().take(in_the_way).collect();
        for key in giving {
            self.kill(key, GIVES_WAY, now);
        }
    }

    /// Where memory has become short, what is kept ready goes first, one each time.
    fn release_memory(&mut self, now: Instant) {
        if self.spare.is_empty() || self.looked.is_some_and(|looked| now.duration_since(looked) < READY_LOOK)
        {
            return;
        }
        self.looked = Some(now);
        if self.memory.free_bytes().is_some_and(|free| free < self.capacity.memory_reserve_bytes) {
            let key = self.spare[0];
            self.kill(key, GIVES_WAY, now);
            self.pools.failed(now);
        }
    }
}
