//! Time and ids, as the store hands them out.
//!
//! The store's clock alone decides when an event happened and when a lease lapses; nobody else's clock counts.
//! Nothing here promises that a clock only moves forwards: whoever needs that asks `State::next_time`.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use protocol::id::FromBits;
use protocol::time::Timestamp;
use ring::rand::{SecureRandom, SystemRandom};

/// Says what time it is. May jump either way, as real clocks do.
pub trait Clock: Send + Sync {
    /// The time now.
    fn now(&self) -> Timestamp;

    /// Whether this is not the machine's time. A database that many processes share uses its own clock for leases,
    /// unless a test says what time it is.
    fn is_manual(&self) -> bool {
        true
    }
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        #[expect(clippy::disallowed_methods, reason = "this is the clock that everybody else asks")]
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_micros(i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX))
    }

    fn is_manual(&self) -> bool {
        false
    }
}

/// A clock that stands still until it is told otherwise. For tests.
#[derive(Debug)]
pub struct ManualClock(Mutex<Timestamp>);

impl ManualClock {
    /// A clock that shows `now`.
    pub fn new(now: Timestamp) -> Self {
        Self(Mutex::new(now))
    }

    /// Shows another time, earlier or later.
    pub fn set(&self, now: Timestamp) {
        *lock(&self.0) = now;
    }

    /// Moves on.
    pub fn advance(&self, by: Duration) {
        let mut now = lock(&self.0);
        *now = Timestamp::from_micros(now.as_micros() + i64::try_from(by.as_micros()).unwrap_or(i64::MAX));
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        *lock(&self.0)
    }
}

/// How much randomness is fetched at once: a system call for every id would cost more than the id.
const RANDOM_BYTES: usize = 1024;

/// Makes ids: version-7 UUIDs that grow strictly, so that ids of one kind sort by the time they were made.
#[derive(Clone)]
pub struct Ids(Arc<Mutex<Source>>);

struct Source {
    millis: Box<dyn FnMut() -> u64 + Send>,
    random: Box<dyn FnMut() -> u128 + Send>,
    last: u128,
}

impl Ids {
    /// Ids from the machine's clock and randomness.
    pub fn system() -> Self {
        let random = SystemRandom::new();
        let mut pool = [0; RANDOM_BYTES];
        let mut used = RANDOM_BYTES;
        Self::from_source(
            || u64::try_from(SystemClock.now().as_micros() / 1_000).unwrap_or_default(),
            move || {
                if used == RANDOM_BYTES {
                    random.fill(&mut pool).expect("the system gives randomness");
                    used = 0;
                }
                let piece = pool[used..used + 16].try_into().expect("a piece is sixteen bytes");
                used += 16;
                u128::from_le_bytes(piece)
            },
        )
    }

    /// The same ids every time: for tests and simulations.
    pub fn seeded(seed: u64) -> Self {
        let mut state = seed;
        let mut word = move || {
            // SplitMix64: enough to spread ids, and it needs no dependency.
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut mixed = state;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            mixed ^ (mixed >> 31)
        };
        let mut millis = 1_700_000_000_000;
        Self::from_source(
            move || {
                millis += 1;
                millis
            },
            move || u128::from(word()) << 64 | u128::from(word()),
        )
    }

    fn from_source(
        millis: impl FnMut() -> u64 + Send + 'static,
        random: impl FnMut() -> u128 + Send + 'static,
    ) -> Self {
        Self(Arc::new(Mutex::new(Source { millis: Box::new(millis), random: Box::new(random), last: 0 })))
    }

    /// A new id.
    pub fn make<T: FromBits>(&self) -> T {
        let mut source = lock(&self.0);
        let millis = (source.millis)();
        let random = (source.random)();
        let made = version_7(millis, random);
        // A clock that stands or jumps back must not make ids that sort before older ones.
        let bits = if made > source.last { made } else { source.last + 1 };
        source.last = bits;
        T::from_bits(bits)
    }
}

impl Default for Ids {
    fn default() -> Self {
        Self::system()
    }
}

impl fmt::Debug for Ids {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Ids")
    }
}

fn version_7(millis: u64, random: u128) -> u128 {
    let time = u128::from(millis & 0xFFFF_FFFF_FFFF) << 80;
    let random_a = (random >> 64) & 0xFFF;
    let random_b = random & 0x3FFF_FFFF_FFFF_FFFF;
    time | 0x7 << 76 | random_a << 64 | 0b10 << 62 | random_b
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these locks guard is consistent after every single statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use protocol::id::EventId;

    use super::*;

    #[test]
    fn ids_grow_strictly() {
        for ids in [Ids::system(), Ids::seeded(7)] {
            let made: Vec<EventId> = (0..5_000).map(|_| ids.make()).collect();
            assert!(made.is_sorted_by(|earlier, later| earlier < later));
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_ids() {
        let make = || -> Vec<EventId> {
            let ids = Ids::seeded(42);
            (0..10).map(|_| ids.make()).collect()
        };
        assert_eq!(make(), make());
    }
}
