//! Whether there is room for another sandbox, and who waits for it. Pure: figures and times come as arguments.
//!
//! ```text
//!            ┌── room ──▶ admitted
//! provision ─┤                ▲ in order, as room comes
//!            └── none ──▶ waits ──▶ refused: too long, or too many wait already
//! ```
//!
//! There is room while fewer than so many sandboxes are there, and while the machine's free memory, less what those that
//! are just starting will take, stays above a reserve. A sandbox's limit is not set aside for it: most use a thousandth
//! of it. Sandboxes that are kept ready give way before anybody waits; that is for the keeper to do.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// What a sandbox takes until its first command runs, measured generously: its processes, its tables in the kernel, a
/// shell. It is set aside for each one that is starting, because free memory does not show it yet.
pub(crate) const START_BYTES: u64 = 8 << 20;

/// How many sandboxes a machine holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Capacity {
    /// Sandboxes at once, those that are kept ready included. 4,096: more than a machine of today serves.
    pub sandboxes_max: usize,
    /// Free memory below which no sandbox is started. 256 MiB: the server and the kernel need some to go on.
    pub memory_reserve_bytes: u64,
    /// Sandboxes kept ready for pools, in all. 64.
    pub ready_max: usize,
    /// Who may wait for room at once. 1,024: as many sessions as one brain drives.
    pub waiting_max: usize,
    /// The longest wait for room. 60 seconds: a model's answer takes as long, and a client can see what is waited for.
    #[serde(rename = "waiting_seconds_max", with = "seconds")]
    pub waiting_time_max: Duration,
}

impl Default for Capacity {
    fn default() -> Self {
        Self {
            sandboxes_max: SANDBOXES_MAX,
            memory_reserve_bytes: 256 << 20,
            ready_max: 64,
            waiting_max: 1024,
            waiting_time_max: Duration::from_secs(60),
        }
    }
}

/// Whatever is asked for: bounds what a broken server can make.
const SANDBOXES_MAX: usize = 4096;
/// Whatever is asked for: bounds what the waiting hold.
const WAITING_MAX: usize = 16_384;

mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(time.as_secs())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_secs)
    }
}

/// How full a machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Load {
    /// Sandboxes that are there, in whatever state.
    pub(crate) sandboxes: usize,
    /// Of those, how many are starting.
    pub(crate) starting: usize,
    /// Memory that is free; `None` where nobody says.
    pub(crate) free_bytes: Option<u64>,
}

impl Capacity {
    /// The same, within what any machine holds.
    pub(crate) fn bounded(self) -> Self {
        Self {
            sandboxes_max: self.sandboxes_max.clamp(1, SANDBOXES_MAX),
            waiting_max: self.waiting_max.min(WAITING_MAX),
            ..self
        }
    }

    /// Whether one more may be started; else what is lacking, for people.
    pub(crate) fn admits(&self, load: Load) -> Result<(), String> {
        let Load { sandboxes, starting, free_bytes } = load;
        if sandboxes >= self.sandboxes_max {
            return Err(String::new());
        }
        let soon_taken = (starting as u64 + 1) * START_BYTES;
        match free_bytes {
            Some(free) if free < self.memory_reserve_bytes.saturating_add(soon_taken) => Err(format!(
                ", {} MiB of memory are free and {} MiB of that are kept in reserve",
                free >> 20,
                self.memory_reserve_bytes >> 20
            )),
            Some(_) | None => Ok(()),
        }
    }
}

/// Who waits for room, in order.
pub(crate) struct Line<T> {
    waiting: VecDeque<(Instant, T)>,
}

impl<T> Line<T> {
    pub(crate) fn new() -> Self {
        Self { waiting: VecDeque::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Joins the end; gives `one` back if too many wait already.
    pub(crate) fn join(&mut self, one: T, capacity: &Capacity, now: Instant) -> Result<(), T> {
        if self.waiting.len() >= capacity.waiting_max {
            return Err(one);
        }
        self.waiting.push_back((now, one));
        Ok(())
    }

    /// Who is next, still waiting.
    pub(crate) fn first(&self) -> Option<&T> {
        self.waiting.front().map(|(_, one)| one)
    }

    /// Who is next.
    pub(crate) fn next(&mut self) -> Option<T> {
        self.waiting.pop_front().map(|(_, one)| one)
    }

    /// Who is waiting and fits, if anybody does.
    pub(crate) fn find(&mut self, fits: impl Fn(&T) -> bool) -> Option<&mut T> {
        self.waiting.iter_mut().map(|(_, one)| one).find(|one| fits(one))
    }

    /// Takes everybody out who fits.
    pub(crate) fn leave(&mut self, fits: impl Fn(&mut T) -> bool) -> Vec<T> {
        let (mut left, mut stay) = (Vec::new(), VecDeque::new());
        for (since, mut one) in self.waiting.drain(..) {
            if fits(&mut one) {
                left.push(one);
            } else {
                stay.push_back((since, one));
            }
        }
        self.waiting = stay;
        left
    }

    /// Takes out whoever has waited for too long.
    pub(crate) fn overdue(&mut self, capacity: &Capacity, now: Instant) -> Vec<T> {
        let is_overdue = |since: Instant| now.duration_since(since) >= capacity.waiting_time_max;
        let count = self.waiting.iter().take_while(|(since, _)| is_overdue(*since)).count();
        self.waiting.drain(..count).map(|(_, one)| one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capacity() -> Capacity {
        Capacity {
            sandboxes_max: 3,
            memory_reserve_bytes: 100 << 20,
            ready_max: 1,
            waiting_max: 2,
            waiting_time_max: Duration::from_secs(5),
        }
    }

    #[test]
    fn there_is_room_up_to_the_count() {
        let load = |sandboxes| Load { sandboxes, starting: 0, free_bytes: None };
        assert!(capacity().admits(load(2)).is_ok());
        assert!(capacity().admits(load(3)).is_err());
    }

    #[test]
    fn memory_above_the_reserve_is_enough_only_with_what_is_starting() {
        let load =
            |starting, free_mib: u64| Load { sandboxes: 0, starting, free_bytes: Some(free_mib << 20) };
        assert!(capacity().admits(load(0, 108)).is_ok());
        assert!(capacity().admits(load(1, 108)).is_err(), "it will not be free in a moment");
        assert!(capacity().admits(load(1, 116)).is_ok());
        let lacking = capacity().admits(load(0, 107)).unwrap_err();
        assert_eq!(lacking, ", 107 MiB of memory are free and 100 MiB of that are kept in reserve");
    }

    #[test]
    fn the_line_keeps_its_order_and_its_bounds() {
        let (start, capacity) = (Instant::now(), capacity());
        let mut line = Line::new();
        assert_eq!(line.join('a', &capacity, start), Ok(()));
        assert_eq!(line.join('b', &capacity, start + Duration::from_secs(1)), Ok(()));
        assert_eq!(line.join('c', &capacity, start), Err('c'), "too many");
        assert!(line.overdue(&capacity, start + Duration::from_secs(4)).is_empty());
        assert_eq!(line.overdue(&capacity, start + Duration::from_secs(5)), ['a']);
        line.join('c', &capacity, start).unwrap();
        assert_eq!(line.leave(|one| *one == 'b'), ['b']);
        assert_eq!((line.next(), line.next()), (Some('c'), None));
    }

    #[test]
    fn what_no_machine_holds_is_cut_down() {
        let asked = Capacity { sandboxes_max: usize::MAX, waiting_max: usize::MAX, ..Capacity::default() };
        let bounded = asked.bounded();
        assert_eq!((bounded.sandboxes_max, bounded.waiting_max), (SANDBOXES_MAX, WAITING_MAX));
        assert_eq!(Capacity { sandboxes_max: 0, ..Capacity::default() }.bounded().sandboxes_max, 1);
    }
}
