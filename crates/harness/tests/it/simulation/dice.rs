//! Chance that is the same every time, and time that passes only when everybody waits.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use protocol::time::Timestamp;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use store::Clock;
use tokio::time::Instant;

/// One stream of chance. Each part of a simulation has its own, so that a change to one does not change all.
pub(super) struct Dice(Mutex<StdRng>);

impl Dice {
    pub(super) fn new(seed: u64, name: &str) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        for (index, byte) in name.bytes().enumerate() {
            bytes[8 + index % 24] = bytes[8 + index % 24].rotate_left(3) ^ byte;
        }
        Self(Mutex::new(StdRng::from_seed(bytes)))
    }

    /// A number from the first to the last, both included.
    pub(super) fn between(&self, first: u64, last: u64) -> u64 {
        self.0.lock().expect("not poisoned").random_range(first..=last)
    }

    /// True one time in so many; never for 0.
    pub(super) fn one_in(&self, times: u64) -> bool {
        times > 0 && self.between(1, times) == 1
    }

    pub(super) fn millis(&self, max: u64) -> Duration {
        Duration::from_millis(self.between(0, max))
    }

    pub(super) fn pick<'a, T>(&self, of: &'a [T]) -> &'a T {
        let index = self.between(0, of.len() as u64 - 1);
        &of[usize::try_from(index).expect("below the length")]
    }
}

/// The misfortunes of one simulation: whether there still are any, and how many there were of each kind.
#[derive(Default)]
pub(super) struct Misfortunes {
    has_ended: AtomicBool,
    counts: Mutex<BTreeMap<&'static str, u64>>,
}

impl Misfortunes {
    /// Whether this one happens now, as one in so many does.
    pub(super) fn strikes(&self, name: &'static str, dice: &Dice, one_in: u64) -> bool {
        let does = !self.has_ended() && dice.one_in(one_in);
        if does {
            *self.counts.lock().expect("not poisoned").entry(name).or_default() += 1;
        }
        does
    }

    pub(super) fn end(&self) {
        self.has_ended.store(true, Ordering::Relaxed);
    }

    pub(super) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Relaxed)
    }

    pub(super) fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.counts.lock().expect("not poisoned").clone()
    }
}

/// How bad it is in one simulation. Some are mild in one respect and wild in another: what hides behind frequent deaths
/// shows in a world without them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Climate {
    /// Calls that never arrive: one in so many.
    pub(super) refused: u64,
    /// Calls whose reply is lost.
    pub(super) unheard: u64,
    /// Changes that are decided twice.
    pub(super) twice: u64,
    /// The usual time on the way, in milliseconds.
    pub(super) delay: u64,
    /// Calls that take as long as a lease and longer.
    pub(super) stalled: u64,
    /// Polls of a brain at which it dies.
    pub(super) dies: u64,
    /// Polls of a brain at which it freezes.
    pub(super) freezes: u64,
    /// Polls of a brain at which it is told to stop.
    pub(super) stops: u64,
    /// Points between two effects at which a brain dies.
    pub(super) dies_at_points: u64,
    /// Calls of hands at which the sandbox dies.
    pub(super) kills: u64,
    /// Replies of hands that are lost.
    pub(super) deaf: u64,
    /// Looks at the clock between which it jumps, either way.
    pub(super) jumps: u64,
}

impl Climate {
    pub(super) fn draw(dice: &Dice) -> Self {
        Self {
            refused: *dice.pick(&[0, 300, 60, 15]),
            unheard: *dice.pick(&[0, 300, 60, 20]),
            twice: *dice.pick(&[0, 10, 2]),
            delay: *dice.pick(&[0, 3, 30, 300]),
            stalled: *dice.pick(&[0, 0, 300, 100]),
            dies: *dice.pick(&[0, 800, 200, 50]),
            freezes: *dice.pick(&[0, 0, 800, 200]),
            stops: *dice.pick(&[0, 400, 100]),
            dies_at_points: *dice.pick(&[0, 60, 15]),
            kills: *dice.pick(&[0, 10, 4]),
            deaf: *dice.pick(&[0, 10, 3]),
            jumps: *dice.pick(&[0, 0, 1_000, 200]),
        }
    }
}

/// The time that tokio shows, which moves on when nobody has anything to do; but for jumps, as real clocks have them.
pub(super) struct VirtualClock {
    started: Instant,
    dice: Dice,
    one_in: u64,
    misfortunes: Arc<Misfortunes>,
    ahead_micros: AtomicI64,
}

impl VirtualClock {
    pub(super) fn new(dice: Dice, climate: Climate, misfortunes: Arc<Misfortunes>) -> Self {
        let (started, ahead_micros) = (Instant::now(), AtomicI64::new(0));
        Self { started, dice, one_in: climate.jumps, misfortunes, ahead_micros }
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Timestamp {
        if self.misfortunes.strikes("jumps of the clock", &self.dice, self.one_in) {
            let jump = i64::try_from(self.dice.between(0, 40_000_000)).expect("small") - 20_000_000;
            self.ahead_micros.fetch_add(jump, Ordering::Relaxed);
        }
        let noon = Timestamp::parse("2026-11-20T12:00:00Z").expect("a time");
        let passed = self.started.elapsed().as_micros();
        let passed = i64::try_from(passed).expect("less than an age");
        let ahead = self.ahead_micros.load(Ordering::Relaxed);
        Timestamp::from_micros(noon.as_micros() + passed + ahead)
    }
}
