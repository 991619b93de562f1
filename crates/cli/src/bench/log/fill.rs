//! Filling a store, in a process of its own that is there to be killed.
//!
//! The first start fills one long session and some short ones; every start then says so and appends to the long one,
//! event by event, until SIGKILL. Nothing is closed, ever. A child whose parent is gone ends by itself: nobody would
//! kill it, and the disk is finite.

use std::io::Write as _;
use std::os::unix::process::parent_id;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use protocol::id::SessionId;
use serde::{Deserialize, Serialize};
use store::{Ids, Store};

use super::load::{Held, Shape, Words, hold, make_session};
use crate::bench::runtime;

/// The length of a short session.
pub(super) const SHORT_EVENTS: u64 = 1_000;
/// Events in one append while filling.
const APPEND_EVENTS: u64 = 250;
/// What the child prints once the store is full.
pub(super) const FILLED: &str = "filled";

/// Fills a store until it is killed.
#[derive(Args, Debug)]
pub(crate) struct FillOptions {
    #[arg(long)]
    dir: PathBuf,
    #[arg(long)]
    long_events: u64,
    #[arg(long)]
    short_sessions: usize,
    #[arg(long)]
    seed: u64,
}

/// What is to be filled, as the parent knows it.
pub(super) struct Plan {
    pub(super) dir: PathBuf,
    pub(super) long_events: u64,
    pub(super) short_sessions: usize,
    pub(super) seed: u64,
}

/// The sessions of a full store; kept in a file beside it.
#[derive(Serialize, Deserialize)]
pub(super) struct Filled {
    pub(super) long: SessionId,
    pub(super) short: Vec<SessionId>,
}

impl Plan {
    /// The data directory.
    pub(super) fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub(super) fn words(&self, ids: &Ids) -> Words {
        Words::new(ids, self.seed)
    }

    /// What the store holds. Only once the child has said that it is full.
    pub(super) fn filled(&self) -> anyhow::Result<Filled> {
        let text = std::fs::read(self.list()).context("the store is not full yet")?;
        Ok(serde_json::from_slice(&text)?)
    }

    fn list(&self) -> PathBuf {
        self.dir.join("sessions.json")
    }
}

/// The child: returns only if something fails or nobody is there to kill it.
pub(crate) fn fill(options: &FillOptions) -> anyhow::Result<()> {
    let FillOptions { dir, long_events, short_sessions, seed } = options;
    let plan =
        Plan { dir: dir.clone(), long_events: *long_events, short_sessions: *short_sessions, seed: *seed };
    runtime()?.block_on(async {
        let store = Store::open(&plan.data(), store::Options::default())?;
        let filled = match plan.filled() {
            Ok(filled) => filled,
            Err(_) => fill_up(&store, &plan).await?,
        };
        let mut held = hold(&store, &filled.long, plan.words(store.ids())).await?;
        println!("{FILLED}");
        std::io::stdout().flush()?;
        let parent = parent_id();
        while parent_id() == parent {
            let drafts = held.words.drafts(Shape::Single);
            held.append(&store, drafts).await?;
        }
        Ok(())
    })
}

async fn fill_up(store: &Store, plan: &Plan) -> anyhow::Result<Filled> {
    let workspace = store.ensure_workspace().await?;
    let long = make_session(store, &workspace).await?;
    let mut short = Vec::new();
    for _ in 0..plan.short_sessions {
        short.push(make_session(store, &workspace).await?);
    }
    let lengths = short.iter().map(|id| (id, SHORT_EVENTS)).chain([(&long, plan.long_events)]);
    for (id, events) in lengths {
        let mut held = hold(store, id, plan.words(store.ids())).await?;
        fill_one(store, &mut held, events).await?;
        store.release(held.lease).await?;
    }
    let filled = Filled { long, short };
    std::fs::write(plan.list(), serde_json::to_vec(&filled)?)?;
    Ok(filled)
}

async fn fill_one(store: &Store, held: &mut Held, events: u64) -> anyhow::Result<()> {
    let mut left = events;
    while left > 0 {
        let count = left.min(APPEND_EVENTS);
        let drafts = (0..count).flat_map(|_| held.words.drafts(Shape::Single)).collect();
        held.append(store, drafts).await?;
        left -= count;
    }
    Ok(())
}
