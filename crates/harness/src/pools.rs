//! Telling the hands which sandboxes to keep ready.
//!
//! The environments say so, in the store; the hands of this machine are told the whole of it now and then. What is kept
//! ready, and within which bounds, is the hands' affair. Nothing is remembered here: a wish that was not heard is said
//! again, and it goes with this process.

use std::convert::Infallible;
use std::time::Duration;

use protocol::hands::Policy;
use sandbox::{Pool, Provider, Resources};
use store::Store;
use tokio::time::{MissedTickBehavior, interval};

use crate::hands;

/// How soon a change of an environment shows. The look reads every environment.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Says what to keep ready, for as long as it is awaited.
pub(crate) async fn keep(store: &Store, hands: &dyn Provider, usual: &Resources) -> Infallible {
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut said = Vec::new();
    loop {
        looks.tick().await;
        let pools = match wished(store, usual).await {
            Ok(pools) => pools,
            Err(error) => {
                tracing::debug!(%error, "the pools could not be looked up");
                continue;
            }
        };
        // What was said once is still known, unless the hands were away meanwhile: then it is worth saying again.
        if pools.is_empty() && said.is_empty() {
            continue;
        }
        match hands.keep_ready(&pools).await {
            Ok(()) => said = pools,
            Err(error) => tracing::debug!(%error, "the hands could not be told what to keep ready"),
        }
    }
}

async fn wished(store: &Store, usual: &Resources) -> Result<Vec<Pool>, store::Error> {
    let environments = store.pooled_environments().await?;
    let pools = environments.into_iter().filter_map(|(environment, settings)| match settings.policy {
        Policy::Pool { size } => {
            let resources = hands::resources_of(usual, &environment.config, &settings);
            Some(Pool { resources, count: size as usize })
        }
        Policy::Lazy | Policy::Speculative => None,
    });
    Ok(pools.collect())
}
