//! Which sandboxes are to be kept ready, and what to do next about it. Pure: what is there and the time are arguments.
//!
//! Each server wishes for pools, and its wish goes with its connection. What counts for each shape is the largest wish.
//! A pool is refilled one sandbox at a time, a little after the last was taken: whoever took it is about to run its first
//! command, and must not share the processor with a start that nobody waits for.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::provider::{Network, Pool, Resources};

/// After a take: longer than a first command's start, shorter than people notice.
const REST: Duration = Duration::from_millis(50);
/// However busily they are taken, refilling waits no longer than this.
const REST_MAX: Duration = Duration::from_millis(500);
/// After a sandbox that could not be made, or did not live.
const FAILURE_REST: Duration = Duration::from_secs(5);
/// Pools of one server: an environment each. What is more is not kept ready.
const POOLS_MAX: usize = 256;

/// What sandboxes are made of: those of one shape can stand for each other until they are handed out. What may be reached
/// is said at hand-out; whether there is an exit is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shape(Resources);

impl Shape {
    pub(crate) fn of(resources: &Resources) -> Self {
        let network = resources.network.as_ref().map(|_| Network(String::new()));
        Self(Resources { network, ..resources.clone() })
    }

    pub(crate) fn resources(&self) -> &Resources {
        &self.0
    }
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Errand {
    /// Make one of this shape.
    Make(Shape),
    /// One of this shape is not wished for any more.
    End(Shape),
}

/// The wishes, and when refilling may go on.
#[derive(Default)]
pub(crate) struct Pools {
    /// By connection.
    wishes: HashMap<u64, Vec<(Shape, usize)>>,
    /// The largest wish for each shape, in a fixed order.
    targets: Vec<(Shape, usize)>,
    /// The first take since something was made, and from when refilling may go on.
    taken: Option<(Instant, Instant)>,
}

impl Pools {
    /// What the server on this connection wishes for, in place of what it wished before.
    pub(crate) fn wish(&mut self, connection: u64, pools: Vec<Pool>) {
        let mut wishes: Vec<(Shape, usize)> = Vec::new();
        for Pool { resources, count } in pools.into_iter().take(POOLS_MAX) {
            let shape = Shape::of(&resources);
            // Two environments of one shape draw on one pool, which is as large as both.
            match wishes.iter_mut().find(|(known, _)| *known == shape) {
                Some((_, wished)) => *wished += count,
                None => wishes.push((shape, count)),
            }
        }
        self.wishes.insert(connection, wishes);
        self.count();
    }

    /// The server is gone, and its wish with it.
    pub(crate) fn forget(&mut self, connection: u64) {
        if self.wishes.remove(&connection).is_some() {
            self.count();
        }
    }

    fn count(&mut self) {
        let mut connections: Vec<&u64> = self.wishes.keys().collect();
        connections.sort();
        let mut targets: Vec<(Shape, usize)> = Vec::new();
        for (shape, count) in connections.into_iter().flat_map(|key| &self.wishes[key]) {
            match targets.iter_mut().find(|(known, _)| known == shape) {
                Some((_, target)) => *target = (*target).max(*count),
                None => targets.push((shape.clone(), *count)),
            }
        }
        targets.retain(|(_, count)| *count > 0);
        self.targets = targets;
    }

    /// Whether anything is to be kept ready.
    pub(crate) fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }

    /// One was handed out.
    pub(crate) fn took(&mut self, now: Instant) {
        let first = self.taken.map_or(now, |(first, _)| first);
        self.taken = Some((first, (now + REST).min(first + REST_MAX)));
    }

    /// One could not be made, or died before it was handed out.
    pub(crate) fn failed(&mut self, now: Instant) {
        self.taken = Some((now, now + FAILURE_REST));
    }

    /// How long until [`Pools::errand`] may name something; `None` if it may now.
    pub(crate) fn rest(&self, now: Instant) -> Option<Duration> {
        let (_, until) = self.taken?;
        until.checked_duration_since(now).filter(|left| !left.is_zero())
    }

    /// What to do next, given the shapes of those that are ready; at most `ready_max` in all are to be.
    pub(crate) fn errand(&self, ready: &[&Shape], ready_max: usize, now: Instant) -> Option<Errand> {
        let targets = self.shares(ready_max);
        let there = |shape: &Shape| ready.iter().filter(|known| **known == shape).count();
        let wished =
            |shape: &Shape| targets.iter().find(|(known, _)| *known == shape).map_or(0, |(_, share)| *share);
        if let Some(over) = ready.iter().find(|shape| there(shape) > wished(shape)) {
            return Some(Errand::End((**over).clone()));
        }
        if self.rest(now).is_some() {
            return None;
        }
        let lacking = |(shape, share): &(&Shape, usize)| {
            let lacks = share.saturating_sub(there(shape));
            (lacks > 0).then(|| (lacks, (*shape).clone()))
        };
        let (_, shape) = targets.iter().filter_map(lacking).max_by_key(|(lacks, _)| *lacks)?;
        Some(Errand::Make(shape))
    }

    /// Something was made: the next take begins a new rest.
    pub(crate) fn made(&mut self) {
        self.taken = None;
    }

    /// How many of each, one by one in turns as far as `ready_max` goes.
    fn shares(&self, ready_max: usize) -> Vec<(&Shape, usize)> {
        let mut shares: Vec<(&Shape, usize)> = self.targets.iter().map(|(shape, _)| (shape, 0)).collect();
        let mut left = ready_max;
        let mut given = true;
        while given && left > 0 {
            given = false;
            for ((_, share), (_, target)) in shares.iter_mut().zip(&self.targets) {
                if *share < *target && left > 0 {
                    *share += 1;
                    left -= 1;
                    given = true;
                }
            }
        }
        shares
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::Limits;

    fn resources(mib: u64) -> Resources {
        let limits = Limits { memory_bytes: mib << 20, ..Limits::default() };
        Resources { limits, ..Resources::default() }
    }

    fn pool(mib: u64, count: usize) -> Pool {
        Pool { resources: resources(mib), count }
    }

    fn shape(mib: u64) -> Shape {
        Shape::of(&resources(mib))
    }

    #[test]
    fn what_may_be_reached_makes_no_shape_but_an_exit_does() {
        let with = |label: &str| {
            Shape::of(&Resources { network: Some(Network(label.to_owned())), ..Resources::default() })
        };
        assert_eq!(with("one"), with("other"));
        assert_ne!(with("one"), Shape::of(&Resources::default()));
    }

    #[test]
    fn the_largest_wish_counts_and_goes_with_its_server() {
        let now = Instant::now();
        let mut pools = Pools::default();
        pools.wish(1, vec![pool(100, 1)]);
        pools.wish(2, vec![pool(100, 1), pool(100, 1)]);
        let one = shape(100);
        assert_eq!(pools.errand(&[&one], 9, now), Some(Errand::Make(shape(100))), "2 of one shape");
        assert_eq!(pools.errand(&[&one, &one], 9, now), None);
        pools.forget(2);
        assert_eq!(pools.errand(&[&one, &one], 9, now), Some(Errand::End(shape(100))));
        pools.wish(1, Vec::new());
        assert!(pools.is_empty());
        assert_eq!(pools.errand(&[&one], 9, now), Some(Errand::End(shape(100))));
    }

    #[test]
    fn the_operators_bound_is_shared_out_in_turns() {
        let now = Instant::now();
        let mut pools = Pools::default();
        pools.wish(1, vec![pool(100, 5), pool(200, 1)]);
        let (small, large) = (shape(100), shape(200));
        assert_eq!(pools.errand(&[&small, &small], 3, now), Some(Errand::Make(shape(200))));
        assert_eq!(pools.errand(&[&small, &small, &large], 3, now), None);
        assert_eq!(pools.errand(&[&small, &small, &large], 2, now), Some(Errand::End(shape(100))));
        assert_eq!(pools.errand(&[], 0, now), None);
    }

    #[test]
    fn refilling_rests_after_a_take_but_not_for_ever() {
        let start = Instant::now();
        let mut pools = Pools::default();
        pools.wish(1, vec![pool(100, 1)]);
        pools.took(start);
        assert_eq!(pools.errand(&[], 9, start), None);
        assert_eq!(pools.rest(start), Some(REST));
        assert!(pools.errand(&[], 9, start + REST).is_some());
        let mut now = start;
        while now < start + REST_MAX {
            pools.took(now);
            now += REST / 2;
        }
        assert!(pools.errand(&[], 9, start + REST_MAX).is_some(), "they were taken all the time");
        pools.made();
        pools.failed(now);
        assert_eq!(pools.rest(now), Some(FAILURE_REST));
    }
}
