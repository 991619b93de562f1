//! The keeper's books: which ranges of ids are taken, and how those ended who are no more. Both are bounded.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::provider::{Error, SandboxId};

/// Dead sandboxes whose end is remembered.
const GRAVES_MAX: usize = 4096;

/// Which id ranges are taken. The search goes round, so that a range rests before it is used again.
pub(crate) struct Slots {
    count: u32,
    next: u32,
    taken: HashSet<u32>,
}

impl Slots {
    pub(crate) fn new(count: u32) -> Self {
        Self { count, next: 0, taken: HashSet::new() }
    }

    /// A range that is free; `None` if none is.
    pub(crate) fn take(&mut self) -> Option<u32> {
        if self.taken.len() >= self.count as usize {
            return None;
        }
        loop {
            let slot = self.next;
            self.next = (self.next + 1) % self.count;
            if self.taken.insert(slot) {
                return Some(slot);
            }
        }
    }

    /// Frees a range.
    pub(crate) fn give_back(&mut self, slot: u32) {
        self.taken.remove(&slot);
    }
}

/// The dead whose end is remembered, oldest first.
#[derive(Default)]
pub(crate) struct Graves {
    reasons: HashMap<SandboxId, String>,
    /// Those that never lived, because their snapshots could not be restored.
    unrestorable: HashSet<SandboxId>,
    order: VecDeque<SandboxId>,
}

impl Graves {
    /// Remembers an end.
    pub(crate) fn dig(&mut self, id: SandboxId, reason: String) {
        if self.reasons.insert(id.clone(), reason).is_none() {
            self.order.push_back(id);
        }
        if self.order.len() > GRAVES_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.reasons.remove(&oldest);
            self.unrestorable.remove(&oldest);
        }
    }

    /// Remembers one that its snapshot has kept from living.
    pub(crate) fn dig_unrestorable(&mut self, id: SandboxId, reason: String) {
        self.unrestorable.insert(id.clone());
        self.dig(id, reason);
    }

    /// What is said to those who want it to be made, if its end is remembered.
    pub(crate) fn error(&self, id: &SandboxId) -> Option<Error> {
        let reason = self.reason(id)?.to_owned();
        Some(match self.unrestorable.contains(id) {
            true => Error::Unrestorable { reason },
            false => Error::gone(reason),
        })
    }

    /// Why that one ended, if it is remembered.
    pub(crate) fn reason(&self, id: &SandboxId) -> Option<&str> {
        self.reasons.get(id).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_ids_rests_before_it_is_used_again() {
        let mut slots = Slots::new(3);
        assert_eq!([slots.take(), slots.take()], [Some(0), Some(1)]);
        slots.give_back(0);
        assert_eq!([slots.take(), slots.take(), slots.take()], [Some(2), Some(0), None]);
    }

    #[test]
    fn graves_are_bounded_and_the_oldest_goes_first() {
        let mut graves = Graves::default();
        let id = |number: usize| SandboxId::parse(&format!("s{number}")).unwrap();
        for number in 0..=GRAVES_MAX {
            graves.dig(id(number), "x".to_owned());
        }
        assert_eq!((graves.reason(&id(0)), graves.reason(&id(1))), (None, Some("x")));
    }
}
