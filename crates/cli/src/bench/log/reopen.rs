//! Reopening a store whose process was killed in the middle of appending.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use store::Store;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use super::fill::{FILLED, Plan};
use super::load::{Shape, hold};

/// How long the child appends before it is killed: so long that the kills find write-ahead logs of every length.
const LIFE_MS: std::ops::Range<u64> = 100..3_000;

/// What came out, kill by kill.
pub(super) struct Reopened {
    pub(super) kills: Vec<Kill>,
}

/// One kill. Times are from the call of open.
pub(super) struct Kill {
    /// The write-ahead log that the dead process left.
    pub(super) log_bytes: u64,
    /// Until the store is open.
    pub(super) opened: Duration,
    /// Until the first further event is durable.
    pub(super) appended: Duration,
}

/// Fills the store in a child, kills it, opens the store; then starts the next child, and so on.
pub(super) async fn after_kills(plan: &Plan, kills: usize) -> anyhow::Result<Reopened> {
    std::fs::create_dir_all(&plan.dir)?;
    let mut random = SmallRng::seed_from_u64(plan.seed);
    let mut reopened = Vec::new();
    for _ in 0..kills {
        let mut child = start(plan).await?;
        tokio::time::sleep(Duration::from_millis(random.random_range(LIFE_MS))).await;
        // SIGKILL: nothing is closed, nothing is flushed.
        child.kill().await.context("the child cannot be killed")?;
        reopened.push(reopen(plan).await?);
    }
    Ok(Reopened { kills: reopened })
}

async fn start(plan: &Plan) -> anyhow::Result<Child> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["bench", "fill", "--long-events", &plan.long_events.to_string()])
        .args([
            "--short-sessions",
            &plan.short_sessions.to_string(),
            "--seed",
            &plan.seed.to_string(),
            "--dir",
        ])
        .arg(&plan.dir)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("the child cannot be started")?;
    let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    while let Some(line) = lines.next_line().await? {
        if line == FILLED {
            return Ok(child);
        }
    }
    bail!("the child ended before the store was full")
}

async fn reopen(plan: &Plan) -> anyhow::Result<Kill> {
    let log_bytes =
        std::fs::metadata(plan.data().join("posthouse.db-wal")).map_or(0, |metadata| metadata.len());
    let filled = plan.filled()?;
    let data = plan.data();
    let asked = Instant::now();
    // Opening blocks, as it does when a server starts.
    let store = Store::open(&data, store::Options::default())?;
    let opened = asked.elapsed();
    let mut held = hold(&store, &filled.long, plan.words(store.ids())).await?;
    let drafts = held.words.drafts(Shape::Single);
    held.append(&store, drafts).await?;
    let appended = asked.elapsed();
    let wanted = plan.long_events + 1;
    anyhow::ensure!(held.head.0 >= wanted, "acknowledged events are missing: {} of {wanted}", held.head.0);
    store.release(held.lease).await?;
    store.close().await;
    Ok(Kill { log_bytes, opened, appended })
}
