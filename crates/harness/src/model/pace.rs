//! How fast a provider may be asked: what its own headers allow, shared with the other brain processes.
//!
//! ```text
//!          ┌── leave ──▶ sent ──▶ heard: the response's figures are the new truth
//!   free ──┤                        └── 429, 529 ──▶ paused: nothing leaves, told to the other processes
//!          └── not before a time ──▶ asks again then, or when something was heard
//! ```
//!
//! [`Pace`] is plain data: figures and times in, a decision out. [`SharedPace`] is the one of a provider in this
//! process, with a lock, wake-ups and a way to the other processes.
//!
//! # Across processes, approximately
//!
//! A response's figures count what every process of the account has used, so each process sees the others in them.
//! What it does not see is what the others are about to send. So of what remains each takes its share, by the number of
//! brain processes that are alive; where less remains than there are processes, chance decides who takes one, so that
//! about as many leave as may. A refusal pauses the provider in this process and, by a notification that may be lost, in
//! the others. Two processes may still send more than is allowed between two responses; then the provider refuses,
//! which is what its refusals are for.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use reqwest::header::HeaderMap;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;

use super::rates::{Rate, Rates};

/// No refusal pauses a provider for longer: it may concern one model of many, and one that is used up for a day must not
/// keep the others from being asked. Whoever was refused waits as long as it was told, by its own retries.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// A pause that ends so little later than the one that is known is not passed on: a thousand requests may be refused
/// together.
const NEWS: Duration = Duration::from_secs(1);

/// Those who waited for the same time leave within a quarter of the wait, and within this.
const SPREAD_MAX: Duration = Duration::from_secs(5);

/// When a limit should be full again and no response has said so yet, another share leaves after this at the
/// earliest.
const REFILL_EVERY: Duration = Duration::from_secs(1);

/// Models whose figures are kept. Clients name models, so there may be any number.
const MODELS_MAX: usize = 256;

/// Tells the other processes that a provider, by its name, is paused for so long. Not called for what they told.
pub type OnPause = Arc<dyn Fn(&str, Duration) + Send + Sync>;

/// One provider's pace, as this process knows it.
#[derive(Debug)]
struct Pace {
    /// How many processes share what remains.
    brains: u32,
    pause: Option<Gap>,
    /// Providers count by model.
    models: HashMap<String, Figures>,
}

/// A time before which nothing leaves.
#[derive(Clone, Copy, Debug)]
struct Gap {
    until: Instant,
    /// Within this after it, those who waited leave.
    spread: Duration,
}

/// What is known of one model's limits.
#[derive(Debug, Default)]
struct Figures {
    /// Requests that were sent and whose response has not begun: the last figures may not count them.
    pending: u64,
    requests: Option<Window>,
    /// No tokens are left.
    tokens: Option<Gap>,
}

/// A limit on requests.
#[derive(Debug)]
struct Window {
    /// What this process may still send.
    allowance: u64,
    limit: Option<u64>,
    resets: Gap,
}

impl Gap {
    fn new(now: Instant, wait: Duration) -> Self {
        Self { until: now + wait, spread: (wait / 4).min(SPREAD_MAX) }
    }

    /// When whoever drew this number may leave.
    fn end(&self, draw: f64) -> Instant {
        self.until + self.spread.mul_f64(draw.clamp(0.0, 1.0))
    }

    /// The same, if it is yet to come.
    fn blocks(&self, now: Instant, draw: f64) -> Option<Instant> {
        Some(self.end(draw)).filter(|end| now < *end)
    }
}

impl Pace {
    fn new() -> Self {
        Self { brains: 1, pause: None, models: HashMap::new() }
    }

    /// Whether a request to this model may leave; else, when to ask again. `brains` is how many processes share what
    /// remains; `draw`, from 0 to 1, spreads those who wait for the same moment and is to be the same each time that
    /// one request asks.
    fn look(&mut self, model: &str, brains: u32, now: Instant, draw: f64) -> Result<(), Instant> {
        self.brains = brains.max(1);
        if let Some(end) = self.pause.and_then(|pause| pause.blocks(now, draw)) {
            return Err(end);
        }
        let Some(figures) = self.models.get_mut(model) else { return Ok(()) };
        if let Some(end) = figures.tokens.and_then(|tokens| tokens.blocks(now, draw)) {
            return Err(end);
        }
        let Some(window) = &mut figures.requests else { return Ok(()) };
        if now >= window.resets.until {
            let Some(limit) = window.limit else {
                figures.requests = None;
                return Ok(());
            };
            // Full again, as far as we know; the next response says more.
            window.allowance = share(limit, self.brains, draw).saturating_sub(figures.pending);
            window.resets = Gap::new(now, REFILL_EVERY);
        }
        if window.allowance == 0 { Err(window.resets.end(draw)) } else { Ok(()) }
    }

    /// The same, and counts it.
    fn leave(&mut self, model: &str, brains: u32, now: Instant, draw: f64) -> Result<(), Instant> {
        self.look(model, brains, now, draw)?;
        if let Some(window) = self.models.get_mut(model).and_then(|figures| figures.requests.as_mut()) {
            window.allowance = window.allowance.saturating_sub(1);
        }
        Ok(())
    }

    /// A request to this model goes out.
    fn sent(&mut self, model: &str) {
        if self.models.len() >= MODELS_MAX && !self.models.contains_key(model) {
            self.models.retain(|_, figures| figures.pending > 0);
        }
        self.models.entry(model.to_owned()).or_default().pending += 1;
    }

    /// Its response has begun, or will never.
    fn ended(&mut self, model: &str) {
        if let Some(figures) = self.models.get_mut(model) {
            figures.pending = figures.pending.saturating_sub(1);
        }
    }

    /// A response to a request to this model says how much remains.
    fn observe(&mut self, model: &str, rates: &Rates, now: Instant, draw: f64) {
        let Some(figures) = self.models.get_mut(model) else { return };
        let Rates { requests, tokens } = rates;
        if let Some(Rate { remaining, resets_in, limit }) = *requests {
            let allowance = share(remaining, self.brains, draw).saturating_sub(figures.pending);
            figures.requests = Some(Window { allowance, limit, resets: Gap::new(now, resets_in) });
        }
        if !tokens.is_empty() {
            let empty = tokens.iter().filter(|rate| rate.remaining == 0).map(|rate| rate.resets_in).max();
            figures.tokens = empty.map(|wait| Gap::new(now, wait));
        }
    }

    /// Nothing leaves for so long. A pause that ends later stays. Gives whether this is much news.
    fn pause(&mut self, wait: Duration, now: Instant) -> bool {
        let pause = Gap::new(now, wait.min(PAUSE_MAX));
        let known = self.pause.map(|known| known.until);
        if known.is_none_or(|known| known < pause.until) {
            self.pause = Some(pause);
        }
        known.is_none_or(|known| known + NEWS < pause.until)
    }
}

/// One process's part: what is left over after an even division goes to some by chance.
fn share(count: u64, brains: u32, draw: f64) -> u64 {
    let brains = u64::from(brains);
    #[expect(clippy::cast_precision_loss, reason = "nobody runs so many processes")]
    let chance = (count % brains) as f64 / brains as f64;
    count / brains + u64::from(draw < chance)
}

/// The pace of one provider, for all of this process.
pub(super) struct SharedPace {
    provider: String,
    pace: Mutex<Pace>,
    /// Something was heard.
    changed: Notify,
    on_pause: OnceLock<OnPause>,
}

/// A request whose response has not begun.
pub(super) struct Sent {
    pace: Arc<SharedPace>,
    model: String,
}

impl SharedPace {
    pub(super) fn new(provider: String) -> Self {
        let pace = Mutex::new(Pace::new());
        Self { provider, pace, changed: Notify::new(), on_pause: OnceLock::new() }
    }

    pub(super) fn look(&self, model: &str, brains: u32, draw: f64) -> Result<(), Instant> {
        self.lock().look(model, brains, Instant::now(), draw)
    }

    pub(super) fn leave(&self, model: &str, brains: u32, draw: f64) -> Result<(), Instant> {
        self.lock().leave(model, brains, Instant::now(), draw)
    }

    /// To be made before [`SharedPace::look`] is asked, so that nothing is missed between the two.
    pub(super) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    pub(super) fn sent(self: &Arc<Self>, model: &str) -> Sent {
        self.lock().sent(model);
        Sent { pace: Arc::clone(self), model: model.to_owned() }
    }

    /// The provider refuses and says for how long: it is too busy, or we are too many.
    pub(super) fn refused(&self, wait: Duration) {
        let wait = wait.min(PAUSE_MAX);
        if self.lock().pause(wait, Instant::now())
            && let Some(on_pause) = self.on_pause.get()
        {
            on_pause(&self.provider, wait);
        }
    }

    pub(super) fn pause(&self, wait: Duration) {
        self.lock().pause(wait, Instant::now());
    }

    /// What to do when this process pauses. The first that is set stays.
    pub(super) fn set_on_pause(&self, on_pause: OnPause) {
        let _ = self.on_pause.set(on_pause);
    }

    fn lock(&self) -> MutexGuard<'_, Pace> {
        // Consistent after every statement that could panic.
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sent {
    /// The response has begun.
    pub(super) fn heard(self, headers: &HeaderMap) {
        let (pace, model) = (Arc::clone(&self.pace), self.model.clone());
        // No longer pending when its own figures are taken in.
        drop(self);
        let rates = Rates::read(headers);
        if !rates.is_empty() {
            pace.lock().observe(&model, &rates, Instant::now(), random());
            pace.changed.notify_waiters();
        }
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        self.pace.lock().ended(&self.model);
    }
}

/// From 0 to 1. Only ever asked for after a real exchange, so that nothing that has to be repeatable depends on it.
fn random() -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "53 bits are what a float holds")]
    let even = |bits: u64| (bits >> 11) as f64 / (1_u64 << 53) as f64;
    // Every such state is seeded anew.
    even(RandomState::new().hash_one(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn rates(remaining: u64, seconds: u32, limit: Option<u64>) -> Rates {
        let rate = Rate { remaining, resets_in: SECOND * seconds, limit };
        Rates { requests: Some(rate), tokens: Vec::new() }
    }

    /// A pace that has heard this from one answer.
    fn heard(rates: &Rates, brains: u32, draw: f64) -> (Pace, Instant) {
        let (mut pace, now) = (Pace::new(), Instant::now());
        pace.leave("m", brains, now, 0.0).expect("nothing is known yet");
        pace.sent("m");
        pace.ended("m");
        pace.observe("m", rates, now, draw);
        (pace, now)
    }

    /// How many leave at this moment.
    fn leaving(pace: &mut Pace, brains: u32, now: Instant) -> usize {
        (0..1_000).take_while(|_| pace.leave("m", brains, now, 0.0).is_ok()).count()
    }

    #[test]
    fn what_remains_may_leave_and_the_rest_waits_for_the_reset() {
        let (mut pace, now) = heard(&rates(3, 60, None), 1, 0.0);
        assert_eq!(leaving(&mut pace, 1, now), 3);
        assert_eq!(pace.leave("m", 1, now, 0.0), Err(now + 60 * SECOND));
        // The last to leave after a reset leaves a little later.
        assert_eq!(pace.leave("m", 1, now, 1.0), Err(now + 65 * SECOND));
        assert_eq!(pace.leave("another", 1, now, 0.0), Ok(()));
        assert_eq!(pace.leave("m", 1, now + 60 * SECOND, 0.0), Ok(()));
    }

    #[test]
    fn of_what_remains_each_process_takes_a_share() {
        let (mut pace, now) = heard(&rates(8, 60, None), 4, 0.0);
        assert_eq!(leaving(&mut pace, 4, now), 2);
        // Less than one for each: one in two gets one.
        let (mut lucky, now) = heard(&rates(2, 60, None), 4, 0.4);
        assert_eq!(leaving(&mut lucky, 4, now), 1);
        let (mut unlucky, now) = heard(&rates(2, 60, None), 4, 0.6);
        assert_eq!(leaving(&mut unlucky, 4, now), 0);
    }

    #[test]
    fn requests_under_way_are_not_sent_twice_on_the_same_figures() {
        let (mut pace, now) = heard(&rates(10, 60, None), 1, 0.0);
        (0..4).for_each(|_| pace.sent("m"));
        pace.ended("m");
        pace.observe("m", &rates(9, 60, None), now, 0.0);
        assert_eq!(leaving(&mut pace, 1, now), 6);
    }

    #[test]
    fn after_the_reset_a_limits_worth_leaves_and_no_more_until_something_is_heard() {
        let (mut pace, now) = heard(&rates(0, 60, Some(5)), 1, 0.0);
        assert_eq!(leaving(&mut pace, 1, now), 0);
        let then = now + 60 * SECOND;
        assert_eq!(leaving(&mut pace, 1, then), 5);
        (0..5).for_each(|_| pace.sent("m"));
        assert_eq!(leaving(&mut pace, 1, then + SECOND), 0);
        pace.ended("m");
        pace.observe("m", &rates(4, 60, Some(5)), then + SECOND, 0.0);
        assert_eq!(leaving(&mut pace, 1, then + SECOND), 0, "four are under way");
    }

    #[test]
    fn without_tokens_nothing_leaves_until_they_are_back() {
        let empty = Rate { remaining: 0, resets_in: 30 * SECOND, limit: None };
        let plenty = Rate { remaining: 9_000, resets_in: 50 * SECOND, limit: None };
        let (mut pace, now) = heard(&Rates { requests: None, tokens: vec![plenty, empty] }, 1, 0.0);
        assert_eq!(pace.leave("m", 1, now, 0.0), Err(now + 30 * SECOND));
        assert_eq!(pace.leave("m", 1, now + 30 * SECOND, 0.0), Ok(()));
    }

    #[test]
    fn a_pause_holds_for_every_model_and_the_longer_one_wins() {
        let (mut pace, now) = (Pace::new(), Instant::now());
        pace.pause(20 * SECOND, now);
        pace.pause(2 * SECOND, now);
        assert_eq!(pace.leave("m", 1, now, 0.0), Err(now + 20 * SECOND));
        assert_eq!(pace.leave("n", 1, now, 0.5), Err(now + Duration::from_millis(22_500)));
        assert_eq!(pace.leave("n", 1, now + 20 * SECOND, 0.0), Ok(()));
        pace.pause(3_600 * SECOND, now);
        assert_eq!(pace.leave("n", 1, now + PAUSE_MAX, 0.0), Ok(()), "an hour is longer than any pause");
    }

    #[test]
    fn models_that_clients_make_up_are_forgotten() {
        let mut pace = Pace::new();
        for name in 0..10 * MODELS_MAX {
            pace.sent(&name.to_string());
            pace.ended(&name.to_string());
        }
        assert!(pace.models.len() <= MODELS_MAX);
    }
}
