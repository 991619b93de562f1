//! The part of `posthouse bench sandbox` about many: what a pool hands out, what happens when it runs dry, how many fit.
//!
//! The limit for a start is the bare clone that the other part measures in the same run. The limit for a burst is the
//! same burst without a pool.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use sandbox::supervisor::Supervised;
use sandbox::{Error, Occupancy, Pool, Provider, Resources, SandboxId};
use tokio::task::JoinSet;

use super::report::Table;
use super::samples::Samples;
use super::sandbox::{FENCE, PAUSE, Tool, available_kib, run, sandbox_id};

/// How many a pool keeps while single hand-outs are measured, and when a burst comes.
const POOL: usize = 10;
/// Requests of a burst, all at once.
const BURST: usize = 50;
/// A pool that is not full by then will not be.
const FULL_TIME_MAX: Duration = Duration::from_secs(60);
/// After a pool has become full: the processors are to be at rest.
const SETTLE: Duration = Duration::from_millis(100);

/// Hand-outs, and bursts.
pub(super) struct Handed {
    /// Until the provider says that the sandbox lives.
    pub(super) provision: Samples,
    /// Until the output of a tool that starts no program is there.
    pub(super) glob: Samples,
    /// Until the output of a first `echo` is there.
    pub(super) bash: Samples,
    /// Each of a burst that runs the pool dry.
    burst: Samples,
    /// Each of a burst without a pool.
    burst_without: Samples,
}

/// Takes so many from a pool, one after the other, and sends so many bursts.
pub(super) async fn hand_out(hands: &Arc<Supervised>, count: usize, bursts: usize) -> anyhow::Result<Handed> {
    let (mut provisions, mut globs, mut bashes) = (Vec::new(), Vec::new(), Vec::new());
    fill(hands, POOL).await?;
    for number in 0..count {
        for (outputs, call) in [(&mut globs, Tool::Glob), (&mut bashes, Tool::Bash)] {
            until_ready(hands, POOL).await?;
            tokio::time::sleep(PAUSE).await;
            let id = sandbox_id(&format!("pooled-{call:?}-{number}"));
            let asked = Instant::now();
            hands.provision(&id, FENCE, &Resources::default()).await?;
            provisions.push(asked.elapsed());
            run(hands, &id, "first", call).await?;
            outputs.push(asked.elapsed());
            hands.destroy(&id).await?;
        }
    }
    let (mut burst, mut burst_without) = (Vec::new(), Vec::new());
    for number in 0..bursts {
        fill(hands, POOL).await?;
        burst.extend(send_burst(hands, &format!("dry-{number}")).await?);
        hands.keep_ready(&[]).await?;
        until_ready(hands, 0).await?;
        burst_without.extend(send_burst(hands, &format!("cold-{number}")).await?);
    }
    hands.keep_ready(&[]).await?;
    until_ready(hands, 0).await?;
    Ok(Handed {
        provision: provisions.into_iter().collect(),
        glob: globs.into_iter().collect(),
        bash: bashes.into_iter().collect(),
        burst: burst.into_iter().collect(),
        burst_without: burst_without.into_iter().collect(),
    })
}

async fn fill(hands: &Supervised, count: usize) -> anyhow::Result<()> {
    hands.keep_ready(&[Pool { resources: Resources::default(), count }]).await?;
    until_ready(hands, count).await
}

/// Waits until so many are ready and the machine is at rest.
pub(super) async fn until_ready(hands: &Supervised, count: usize) -> anyhow::Result<()> {
    let ready = async {
        while hands.occupancy().await?.ready != count {
            tokio::time::sleep(PAUSE).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(FULL_TIME_MAX, ready).await.context("the pool did not become full")??;
    tokio::time::sleep(SETTLE).await;
    Ok(())
}

/// Asks for many at the same moment; gives how long each took.
async fn send_burst(hands: &Arc<Supervised>, name: &str) -> anyhow::Result<Vec<Duration>> {
    let ids: Vec<SandboxId> = (0..BURST).map(|number| sandbox_id(&format!("{name}-{number}"))).collect();
    let mut running = JoinSet::new();
    for id in ids.clone() {
        let hands = Arc::clone(hands);
        running.spawn(async move {
            let asked = Instant::now();
            hands.provision(&id, FENCE, &Resources::default()).await?;
            anyhow::Ok(asked.elapsed())
        });
    }
    let mut took = Vec::new();
    while let Some(provisioned) = running.join_next().await {
        took.push(provisioned??);
    }
    for id in &ids {
        hands.destroy(id).await?;
    }
    tokio::time::sleep(SETTLE).await;
    Ok(took)
}

impl Handed {
    pub(super) fn bursts_table(&self) -> Table {
        let title = format!("{BURST} at the same moment, each until its sandbox lives");
        let columns = [
            ("what", "what"),
            ("p50_ms", "p50 ms"),
            ("p95_ms", "p95 ms"),
            ("p99_ms", "p99 ms"),
            ("of_without_p50", ": without, p50"),
        ];
        let mut table = Table::new("bursts", title, columns);
        let ready = format!("a pool of {POOL}, which runs dry");
        for (what, times) in [(ready.as_str(), &self.burst), ("without a pool", &self.burst_without)] {
            table.row([
                what.into(),
                times.p50().into(),
                times.p95().into(),
                times.p99().into(),
                (times.p50() / self.burst_without.p50()).into(),
            ]);
        }
        table
    }
}

/// How many fit.
pub(super) struct Fit {
    /// How many there were at once.
    pub(super) count: usize,
    /// What ended it.
    pub(super) because: String,
    /// What the machine has less for each, KiB.
    each_kib: f64,
    /// The last hundred of them, or as many as there were.
    last: Samples,
}

/// Provisions until there is no room, at most `most`.
pub(super) async fn fit(hands: &Supervised, most: usize) -> anyhow::Result<Fit> {
    let before = available_kib();
    let (mut ids, mut times, mut because) = (Vec::new(), Vec::new(), "no more were asked for".to_owned());
    while ids.len() < most {
        let id = sandbox_id(&format!("fit-{}", ids.len()));
        let asked = Instant::now();
        match hands.provision(&id, FENCE, &Resources::default()).await {
            Ok(()) => {
                times.push(asked.elapsed());
                ids.push(id);
            }
            Err(error @ (Error::Busy { .. } | Error::Unavailable { .. })) => {
                because = error.to_string();
                break;
            }
            Err(error) => return Err(error.into()),
        }
    }
    let Occupancy { live, .. } = hands.occupancy().await?;
    let after = available_kib();
    for id in &ids {
        hands.destroy(id).await?;
    }
    let last = times.iter().rev().take(100).copied().collect();
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    let each_kib = (before - after) as f64 / live.max(1) as f64;
    Ok(Fit { count: live, because, each_kib, last })
}

impl Fit {
    pub(super) fn table(&self) -> Table {
        let columns = [
            ("count", "at once"),
            ("because", "no more, because"),
            ("machine_kib", "MemAvailable KiB each"),
            ("last_p50_ms", "the last hundred, p50 ms"),
            ("last_p95_ms", "p95 ms"),
        ];
        let mut table = Table::new("fit", "How many fit", columns);
        table.row([
            self.count.into(),
            self.because.as_str().into(),
            self.each_kib.into(),
            self.last.p50().into(),
            self.last.p95().into(),
        ]);
        table
    }
}
