//! Installs the packages of environments in the background, so that their first session need not wait.
//!
//! It looks at every environment that is not archived, every few seconds, and asks the hands to prepare what it has not
//! prepared yet. What is made lies with the hands, who make nothing twice; the list in here only saves asking. What it
//! cannot do a session will meet, and tell its client.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};

use protocol::environment::{Environment, EnvironmentConfig, Packages};
use protocol::hands::HandsSettings;
use protocol::id::EnvironmentId;
use sandbox::{Base, Provider};
use store::Store;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// How often it looks. A person who has made an environment takes longer to make its first session.
const EVERY: Duration = Duration::from_secs(5);
/// How long what failed is left alone: a registry that was away is back by then.
const AGAIN: Duration = Duration::from_secs(600);
/// Environments read at once.
const PAGE: usize = 500;
/// Installs at once: each is work for the whole machine, and one that takes long is not to hold up all others.
const AT_ONCE_MAX: usize = 2;
/// Distinct bases remembered. Beyond it the list starts anew, which costs questions and nothing else.
const REMEMBERED_MAX: usize = 10_000;

/// Installs packages with these hands.
pub struct Installer {
    store: Store,
    hands: Arc<dyn Provider>,
    /// What environments start from that name no image.
    image: Option<String>,
}

/// What became of a base.
enum Tried {
    /// It waits for its turn, or is being installed.
    Begun,
    Done,
    Failed(Instant),
}

impl Installer {
    /// For the environments of this store; `image` is what those start from that name none.
    pub fn new(store: Store, hands: Arc<dyn Provider>, image: Option<String>) -> Self {
        Self { store, hands, image }
    }

    /// Works until `shutdown`. What is half installed then is thrown away by whoever comes next.
    pub async fn run(self, shutdown: CancellationToken) {
        shutdown.run_until_cancelled(self.work_for_ever()).await;
    }

    async fn work_for_ever(&self) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut tried, mut new) = (HashMap::new(), VecDeque::new());
        let mut installs: FuturesUnordered<BoxFuture<'_, (Base, Tried)>> = FuturesUnordered::new();
        loop {
            while installs.len() < AT_ONCE_MAX
                && let Some((id, base)) = new.pop_front()
            {
                installs.push(Box::pin(async move {
                    let came = self.prepare(&id, &base).await;
                    (base, came)
                }));
            }
            tokio::select! {
                Some((base, came)) = installs.next() => drop(tried.insert(base, came)),
                _ = ticks.tick() => {
                    if let Err(error) = self.find_new(&mut tried, &mut new).await {
                        tracing::warn!(%error, "the environments could not be read");
                    }
                }
            }
        }
    }

    /// Looks once for what has not been tried, or not lately, and notes that it is begun.
    async fn find_new(
        &self,
        tried: &mut HashMap<Base, Tried>,
        new: &mut VecDeque<(EnvironmentId, Base)>,
    ) -> Result<(), store::Error> {
        let mut after: Option<EnvironmentId> = None;
        loop {
            let page = self.store.environments_after(after, PAGE).await?;
            for environment in &page {
                let Some(base) = self.base(environment) else { continue };
                let is_known = tried.get(&base).is_some_and(|tried| match tried {
                    Tried::Begun | Tried::Done => true,
                    Tried::Failed(at) => at.elapsed() < AGAIN,
                });
                if is_known {
                    continue;
                }
                if tried.len() >= REMEMBERED_MAX {
                    tried.retain(|_, tried| matches!(tried, Tried::Begun));
                }
                tried.insert(base.clone(), Tried::Begun);
                new.push_back((environment.id.clone(), base));
            }
            match page.last() {
                Some(last) if page.len() == PAGE => after = Some(last.id.clone()),
                _ => return Ok(()),
            }
        }
    }

    async fn prepare(&self, id: &EnvironmentId, base: &Base) -> Tried {
        let progress = |line: &str| tracing::info!(environment.id = %id, "{line}");
        match self.hands.prepare(base, &progress).await {
            Ok(()) => {
                tracing::info!(environment.id = %id, "the packages of an environment are installed");
                Tried::Done
            }
            Err(error) => {
                tracing::warn!(environment.id = %id, %error, "the packages of an environment could not be installed");
                Tried::Failed(Instant::now())
            }
        }
    }

    /// What sandboxes of this environment start from, if packages are part of it.
    fn base(&self, environment: &Environment) -> Option<Base> {
        let EnvironmentConfig::Cloud { networking: _, packages } = &environment.config else { return None };
        if packages.is_empty() {
            return None;
        }
        let Packages { tag: _, apt, cargo, gem, go, npm, pip } = packages.clone();
        let settings = HandsSettings::of(&environment.metadata, "metadata").ok()?;
        let packages = sandbox::Packages { apt, cargo, gem, go, npm, pip };
        Some(Base { image: settings.image.or_else(|| self.image.clone()), packages })
    }
}
