//! Chaos on the real thing: PostgreSQL, two API processes, three brains, a supervisor with real sandboxes, and a line to
//! the database that can be cut.
//!
//! Clients talk to their sessions all the while, as sane clients do: they try again what was refused for the moment, look
//! up what became of a request without an answer, and resume streams at another process. Every call appends an id of its
//! own to a file in the sandbox, so that it shows how often it ran. At the end everything is put right, every session
//! reads its file back, and all that was promised is checked.
//!
//! The order of the troubles follows from a seed, which is printed; what they meet does not. More of them:
//! `cargo xtask soak --chaos`, which sets the variables that [`Round::from_env`] reads.

mod fleet;
mod load;
mod model;
mod trouble;
mod verdict;

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use testkit::postgres::{Cluster, Settings};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::chaos::fleet::Fleet;
use crate::chaos::load::Findings;
use crate::chaos::verdict::Tally;

/// How long the clients may take to come to an end once everything is right again.
const CONCLUSION_MAX: Duration = Duration::from_secs(240);

/// How much of it.
struct Round {
    seed: u64,
    sessions: usize,
    /// Every kind of trouble happens this many times, at the least.
    cycles: u32,
}

impl Round {
    fn from_env() -> Self {
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        Self {
            seed: number("POSTHOUSE_CHAOS_SEED").unwrap_or(1),
            sessions: number("POSTHOUSE_CHAOS_SESSIONS")
                .map_or(60, |count| usize::try_from(count).expect("few")),
            cycles: number("POSTHOUSE_CHAOS_CYCLES").map_or(1, |count| u32::try_from(count).expect("few")),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brains_and_doors_that_die_freeze_and_lose_their_database_lose_nothing_and_repeat_nothing() {
    let round = Round::from_env();
    let Round { seed, sessions, cycles } = round;
    println!(
        "chaos: seed {seed}; again: cargo xtask soak --chaos --seed {seed} --sessions {sessions} --rounds {cycles}"
    );
    let began = Instant::now();
    let dir = tempfile::tempdir().expect("a folder");
    let cluster = Cluster::new(Settings::default()).expect("PostgreSQL runs");
    let model = model::start(dir.path(), seed).await;
    let mut fleet = Fleet::start(dir.path(), &cluster).await;

    let findings = Arc::new(Findings::default());
    let over = CancellationToken::new();
    let talks = load::begin(&fleet, sessions, seed, &over, &findings).await;
    let random = SmallRng::seed_from_u64(seed);
    let troubles = trouble::make(&mut fleet, &cluster, cycles, random).await;
    println!("chaos: {} s of it are over: {troubles:?}", began.elapsed().as_secs());
    over.cancel();
    let tally = conclude(talks, &findings).await;
    fleet.stop().await;

    let mut wrong = findings.take();
    wrong.extend(fleet.take_wrongs());
    wrong.extend(model.violations().into_iter().map(|text| format!("the model refused a request: {text}")));
    println!("chaos: seed {seed}, {} s: {tally}", began.elapsed().as_secs());
    if !wrong.is_empty() {
        let kept = dir.keep();
        panic!("seed {seed}, logs in {}:\n{}", kept.display(), wrong.join("\n"));
    }
    assert!(tally.calls > sessions, "the load did something: {tally}");
}

/// Waits for the end of all conversations; what does not end is a finding.
async fn conclude(mut talks: JoinSet<Tally>, findings: &Findings) -> Tally {
    let mut tally = Tally::default();
    let all = async {
        while let Some(talk) = talks.join_next().await {
            match talk {
                Ok(talk) => tally.add(&talk),
                Err(error) => findings.add(format!("a conversation failed: {error}")),
            }
        }
    };
    if tokio::time::timeout(CONCLUSION_MAX, all).await.is_err() {
        findings.add(format!("{} conversations did not come to an end", talks.len()));
    }
    tally
}
