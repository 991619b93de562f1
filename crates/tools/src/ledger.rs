//! Which calls have been seen, so that none runs twice.
//!
//! ```text
//! unknown -begin-> active -finish-> done -(pushed out by newer ones)-> forgotten
//! ```
//!
//! A brain that died asks again with the same `call_id`. An active call then gets one more waiter, a
//! done one gives its output again, and of a forgotten one the ledger still knows that it ran. The
//! ledger lives and dies with the sandbox: what a call did lives and dies there too.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Instant;

use crate::tool::Stop;
use crate::wire::{Content, Output, Source};

/// As many outputs as are kept. A brain asks again for the calls of its last turn, which are a few.
const OUTPUTS_MAX: usize = 256;

/// As much output as is kept: one PDF of the largest size, or every text of the last 256 calls.
const OUTPUT_BYTES_MAX: usize = 32 << 20;

/// As many call ids as are remembered after their output is gone. A hundred thousand calls are weeks of
/// work for one sandbox, and cost 3 MiB of it.
const FORGOTTEN_MAX: usize = 100_000;

/// Who waits for the output of a call: the ids of the requests.
pub type Waiters = Vec<u64>;

/// As many requests as may wait for one call. More than one wait only when a brain has died.
const WAITERS_MAX: usize = 64;

/// Every call of this sandbox.
#[derive(Default)]
pub struct Ledger {
    active: HashMap<String, Active>,
    done: HashMap<String, Arc<Output>>,
    /// The keys of `done`, the oldest first.
    done_order: VecDeque<String>,
    /// The sum of the sizes in `done`.
    done_bytes: usize,
    forgotten: HashSet<u64>,
    forgotten_order: VecDeque<u64>,
    hasher: RandomState,
}

/// A call that waits for its turn or runs.
#[derive(Debug, Default)]
struct Active {
    waiters: Waiters,
    stop: Arc<Stop>,
    /// `None` until it runs, and for a call whose time is kept elsewhere.
    running: Option<Running>,
}

/// A call that runs.
#[derive(Clone, Debug)]
pub struct Running {
    /// When it must have ended.
    pub deadline: Instant,
    /// The tool's name.
    pub tool: &'static str,
}

/// What the ledger says to a call that comes in.
#[derive(Debug)]
pub enum Begin {
    /// Never seen: run it. It is active now.
    Run(Arc<Stop>),
    /// Active already; the request waits with the others.
    Attached,
    /// Ended already, with this output.
    Done(Arc<Output>),
    /// Ended long ago; its output is not kept.
    Forgotten,
    /// Too many requests wait for it.
    Crowded,
}

impl Ledger {
    /// A call comes in with this request.
    pub fn begin(&mut self, call_id: &str, request: u64) -> Begin {
        if let Some(output) = self.done.get(call_id) {
            return Begin::Done(Arc::clone(output));
        }
        if let Some(active) = self.active.get_mut(call_id) {
            if active.waiters.len() >= WAITERS_MAX {
                return Begin::Crowded;
            }
            active.waiters.push(request);
            return Begin::Attached;
        }
        if self.forgotten.contains(&self.hasher.hash_one(call_id)) {
            return Begin::Forgotten;
        }
        let active = Active { waiters: vec![request], ..Active::default() };
        let stop = Arc::clone(&active.stop);
        self.active.insert(call_id.to_owned(), active);
        Begin::Run(stop)
    }

    /// Takes back a [`Begin::Run`] that was not carried out: nothing has happened.
    pub fn withdraw(&mut self, call_id: &str) {
        self.active.remove(call_id);
    }

    /// The call has begun to run. `false` when it is no longer wanted: it was cancelled before its turn.
    pub fn starts(&mut self, call_id: &str, running: Running) -> bool {
        match self.active.get_mut(call_id) {
            Some(active) => {
                active.running = Some(running);
                true
            }
            None => false,
        }
    }

    /// The output of a call is known. Returns who waits for it; `None` when it had one already, which
    /// then stands: a call that was cancelled or overran may still come to its own end.
    pub fn finish(&mut self, call_id: &str, output: Output) -> Option<(Waiters, Arc<Output>)> {
        let active = self.active.remove(call_id)?;
        active.stop.set();
        let output = Arc::new(output);
        self.done_bytes += size_bytes(&output);
        match self.done.entry(call_id.to_owned()) {
            Entry::Vacant(entry) => entry.insert(Arc::clone(&output)),
            Entry::Occupied(_) => unreachable!("an active call is not done"),
        };
        self.done_order.push_back(call_id.to_owned());
        self.make_room();
        Some((active.waiters, output))
    }

    /// Whether a call waits or runs.
    pub fn is_active(&self, call_id: &str) -> bool {
        self.active.contains_key(call_id)
    }

    /// Whether a call has ever been seen.
    pub fn knows(&self, call_id: &str) -> bool {
        self.is_active(call_id)
            || self.done.contains_key(call_id)
            || self.forgotten.contains(&self.hasher.hash_one(call_id))
    }

    /// The calls that run and whose time is kept here.
    pub fn running(&self) -> impl Iterator<Item = (&str, &Running)> {
        let active = self.active.iter();
        active.filter_map(|(call_id, active)| Some((call_id.as_str(), active.running.as_ref()?)))
    }

    fn make_room(&mut self) {
        // The newest always stays: somebody waits for it.
        while self.done_order.len() > OUTPUTS_MAX
            || (self.done_bytes > OUTPUT_BYTES_MAX && self.done_order.len() > 1)
        {
            let oldest = self.done_order.pop_front().expect("it has more than one");
            let output = self.done.remove(&oldest).expect("both hold the same calls");
            self.done_bytes -= size_bytes(&output);
            let hash = self.hasher.hash_one(&oldest);
            if self.forgotten.insert(hash) {
                self.forgotten_order.push_back(hash);
            }
            if self.forgotten_order.len() > FORGOTTEN_MAX
                && let Some(hash) = self.forgotten_order.pop_front()
            {
                self.forgotten.remove(&hash);
            }
        }
    }
}

fn size_bytes(output: &Output) -> usize {
    let sizes = output.content.iter().map(|content| match content {
        Content::Text { text } => text.len(),
        Content::Image { source: Source::Base64 { data, media_type: _ } }
        | Content::Document { source: Source::Base64 { data, media_type: _ } } => data.len(),
    });
    sizes.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran(ledger: &mut Ledger, call_id: &str, text: &str) {
        assert!(matches!(ledger.begin(call_id, 1), Begin::Run(_)), "{call_id}");
        assert!(ledger.finish(call_id, Output::text(text)).is_some());
    }

    #[test]
    fn a_call_runs_once_however_often_it_is_asked_for() {
        let mut ledger = Ledger::default();
        assert!(matches!(ledger.begin("a", 1), Begin::Run(_)));
        assert!(matches!(ledger.begin("a", 2), Begin::Attached));
        let (waiters, output) = ledger.finish("a", Output::text("out")).unwrap();
        assert_eq!((waiters, output.as_ref()), (vec![1, 2], &Output::text("out")));
        match ledger.begin("a", 3) {
            Begin::Done(output) => assert_eq!(*output, Output::text("out")),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_first_output_stands() {
        let mut ledger = Ledger::default();
        assert!(matches!(ledger.begin("a", 1), Begin::Run(_)));
        assert!(ledger.finish("a", Output::error("interrupted")).is_some());
        assert!(ledger.finish("a", Output::text("late")).is_none());
        assert!(matches!(ledger.begin("a", 2), Begin::Done(output) if output.is_error));
    }

    #[test]
    fn finishing_asks_the_call_to_stop() {
        let mut ledger = Ledger::default();
        let Begin::Run(stop) = ledger.begin("a", 1) else { panic!("never seen") };
        assert!(stop.check().is_ok());
        ledger.finish("a", Output::error("cancelled"));
        assert!(stop.check().is_err());
    }

    #[test]
    fn an_old_call_is_forgotten_but_never_runs_again() {
        let mut ledger = Ledger::default();
        for call in 0..=OUTPUTS_MAX {
            ran(&mut ledger, &call.to_string(), "");
        }
        assert!(matches!(ledger.begin("0", 1), Begin::Forgotten));
        assert!(matches!(ledger.begin("1", 1), Begin::Done(_)));
        assert!(ledger.knows("0"));
    }

    #[test]
    fn large_outputs_push_older_ones_out() {
        let mut ledger = Ledger::default();
        let half = "x".repeat(OUTPUT_BYTES_MAX / 2 + 1);
        for call in ["a", "b", "c"] {
            ran(&mut ledger, call, &half);
        }
        assert!(matches!(ledger.begin("b", 1), Begin::Forgotten));
        assert!(matches!(ledger.begin("c", 1), Begin::Done(_)));
        assert_eq!(ledger.done_bytes, half.len());
    }

    #[test]
    fn the_memory_of_old_calls_is_bounded() {
        let mut ledger = Ledger::default();
        for call in 0..FORGOTTEN_MAX + OUTPUTS_MAX + 10 {
            ran(&mut ledger, &call.to_string(), "");
        }
        assert_eq!((ledger.forgotten.len(), ledger.forgotten_order.len()), (FORGOTTEN_MAX, FORGOTTEN_MAX));
        assert!(!ledger.knows("0"));
    }

    #[test]
    fn a_withdrawn_call_may_run_later() {
        let mut ledger = Ledger::default();
        assert!(matches!(ledger.begin("a", 1), Begin::Run(_)));
        ledger.withdraw("a");
        assert!(matches!(ledger.begin("a", 2), Begin::Run(_)));
    }
}
