//! A brain as a process: all of it is one future, which dies by being dropped and freezes by not being polled.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use harness::faults::{Faults, Point};
use harness::{Brain, Options};
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

use super::World;
use super::dice::{Climate, Dice, Misfortunes};

/// Sessions that one brain drives at once.
const SESSIONS_MAX: usize = 4;
/// How long a brain waits when the store failed.
const PAUSE: Duration = Duration::from_secs(1);

/// One brain after the other, in the same place.
pub(super) async fn live_again_and_again(world: Arc<World>, number: u64) {
    let mut life = 0;
    loop {
        life += 1;
        let dice = Arc::new(world.dice(&format!("brain {number} {life}")));
        let is_doomed = Arc::new(AtomicBool::new(false));
        let shutdown = CancellationToken::new();
        let points = Points {
            dice: dice.clone(),
            one_in: world.climate.dies_at_points,
            is_doomed: is_doomed.clone(),
            misfortunes: world.misfortunes.clone(),
        };
        let mut options = Options::new("/nowhere".into());
        options.holder = format!("brain-{number}-{life}");
        options.model_limits = world.model_limits;
        options.faults = Arc::new(points);
        let hands = world.hands.clone();
        let brain = Brain::new(world.store.clone(), world.models.clone(), hands, options);
        let working = work(Arc::new(brain), world.clone(), shutdown.clone(), number);
        let mortal = Mortal {
            working: Some(Box::pin(working)),
            frozen: None,
            dice: dice.clone(),
            climate: world.climate,
            is_doomed,
            misfortunes: world.misfortunes.clone(),
            shutdown,
        };
        mortal.await;
        tokio::time::sleep(dice.millis(4_000)).await;
    }
}

/// What [`Brain::run`] does, as one future that is dropped as a whole.
async fn work(brain: Arc<Brain>, world: Arc<World>, shutdown: CancellationToken, number: u64) {
    let holder = format!("brain-{number}");
    // Kept while sessions are driven: a claim that is dropped on its way back leaves leases that have to lapse.
    let claim = || {
        let (store, holder) = (world.store.clone(), holder.clone());
        Box::pin(async move {
            let claimed = store.claim(&holder, 2).await;
            if claimed.is_err() {
                tokio::time::sleep(PAUSE).await;
            }
            claimed.unwrap_or_default()
        })
    };
    let mut claiming = claim();
    let mut drives = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(()) = drives.next() => {}
            leases = &mut claiming, if drives.len() < SESSIONS_MAX => {
                for lease in leases {
                    let (brain, shutdown) = (brain.clone(), shutdown.clone());
                    drives.push(async move { brain.drive(lease, &shutdown).await });
                }
                claiming = claim();
            }
        }
    }
    drop(claiming);
    while drives.next().await.is_some() {}
}

/// Dies, freezes or is told to stop at any of its steps.
struct Mortal {
    /// `None` once it is dead.
    working: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    frozen: Option<Pin<Box<Sleep>>>,
    dice: Arc<Dice>,
    climate: Climate,
    is_doomed: Arc<AtomicBool>,
    misfortunes: Arc<Misfortunes>,
    shutdown: CancellationToken,
}

impl Future for Mortal {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if let Some(frozen) = &mut self.frozen {
            if frozen.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            self.frozen = None;
        }
        let strikes = |name, one_in| self.misfortunes.strikes(name, &self.dice, one_in);
        if strikes("brains that died", self.climate.dies) {
            self.working = None;
            return Poll::Ready(());
        }
        if strikes("brains that were told to stop", self.climate.stops) {
            self.shutdown.cancel();
        }
        if strikes("brains that froze", self.climate.freezes) {
            // Often longer than a lease.
            self.frozen = Some(Box::pin(tokio::time::sleep(self.dice.millis(30_000))));
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let Some(working) = &mut self.working else { return Poll::Ready(()) };
        let polled = working.as_mut().poll(context);
        if self.is_doomed.load(Ordering::Relaxed) {
            self.working = None;
            return Poll::Ready(());
        }
        polled
    }
}

/// Lets a brain die between two effects.
struct Points {
    dice: Arc<Dice>,
    one_in: u64,
    is_doomed: Arc<AtomicBool>,
    misfortunes: Arc<Misfortunes>,
}

#[async_trait]
impl Faults for Points {
    async fn reached(&self, _: Point) {
        if self.misfortunes.strikes("brains that died between two effects", &self.dice, self.one_in) {
            self.is_doomed.store(true, Ordering::Relaxed);
            std::future::pending::<()>().await;
        }
    }
}
