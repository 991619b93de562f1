//! `posthouse bench brains`: turns a second with one, two and four brain processes, and what a turn costs.
//!
//! A turn is a message, an answer that calls a tool, the call, and the answer to its result: seventeen events in five
//! durable appends, besides the message's own way into the inbox, the claim and the release. The model takes no time and the hands are pretended (see `member`), because what is measured is what
//! a turn costs besides a model's and a sandbox's time: the store, the brain, the door. Clients are in this process,
//! over real HTTP, and wait for each turn to end before they send the next message.
//!
//! The rival of PostgreSQL is the embedded store in one process, and the rival of many processes is one process that
//! does everything.

mod cpu;
mod fleet;
pub(super) mod member;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use client::{Client, Item};
use protocol::event::Body;
use protocol::id::SessionId;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use self::cpu::Postgres;
use self::fleet::{Member, Shape};
use self::member::{MODEL, Role, open};
use super::history::{agent_with_tools, make_session};
use super::machine::Machine;
use super::place::Place;
use super::progress::Progress;
use super::report::{Report, Table};
use super::samples::{Samples, millis, per_second};
use super::{Common, runtime};

/// Turns a second with 1, 2 and 4 brain processes on PostgreSQL, and of one process on SQLite.
///
/// Also what a turn costs in processor time, ours and the database's. The model is scripted and takes no time, each turn
/// calls one tool, and the hands are pretended: what is left is our own. On a machine with few cores, which all of this
/// and the clients share, more processes cannot do more; the cost of a turn is what travels.
#[derive(Args, Debug)]
pub(crate) struct BrainsOptions {
    #[command(flatten)]
    pub(super) common: Common,
    /// An empty PostgreSQL database (postgres://…) to work in. What is made there stays there. Without it only SQLite is
    /// measured.
    #[arg(long, env = "POSTHOUSE_BENCH_DATABASE", value_name = "URL", hide_env_values = true)]
    database: Option<String>,
    /// Sessions, of four turns each, for each number of processes. [default: 1000; 50 with --quick]
    #[arg(long, value_name = "N")]
    sessions: Option<usize>,
    /// Sessions at once.
    #[arg(long, default_value_t = 64, value_name = "N")]
    concurrency: usize,
}

/// Turns of each session: its log is as long as that of a short conversation.
const TURNS: usize = 4;

const ALL: Shape = &[&[Role::Api, Role::Brain]];
const DOOR: &[Role] = &[Role::Api];
const BRAIN: &[Role] = &[Role::Brain];
const ONE_BRAIN: Shape = &[DOOR, BRAIN];
const TWO_BRAINS: Shape = &[DOOR, BRAIN, BRAIN];
const FOUR_BRAINS: Shape = &[DOOR, BRAIN, BRAIN, BRAIN, BRAIN];

pub(super) fn measure(options: &BrainsOptions) -> anyhow::Result<Report> {
    let place = Place::make(&options.common)?;
    let machine = Machine::look(place.path());
    runtime()?.block_on(async {
        tokio::select! {
            report = all(options, &place, machine) => report,
            _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
        }
    })
}

async fn all(options: &BrainsOptions, place: &Place, machine: Machine) -> anyhow::Result<Report> {
    let sessions = options.sessions.unwrap_or(if options.common.quick { 50 } else { 1_000 }).max(1);
    let amount = Amount { sessions, concurrency: options.concurrency.clamp(1, sessions) };
    let database = options.database.as_deref();
    let mut notes = Vec::new();
    let mut cases = vec![("SQLite", "1 process for all", ALL, None)];
    match database {
        Some(url) => cases.extend(
            [
                ("1 process for all", ALL),
                ("API, 1 brain", ONE_BRAIN),
                ("API, 2 brains", TWO_BRAINS),
                ("API, 4 brains", FOUR_BRAINS),
            ]
            .map(|(processes, shape)| ("PostgreSQL", processes, shape, Some(url))),
        ),
        None => notes.push(
            "PostgreSQL was left out: name an empty database with --database postgres://… to measure it."
                .to_owned(),
        ),
    }
    let progress = Progress::new(cases.len());
    let mut measured = Vec::new();
    for (index, (engine, processes, shape, database)) in cases.into_iter().enumerate() {
        progress.step(format!("{engine}, {processes}"));
        let data = place.join(&format!("data-{index}"));
        let played = play_all(shape, &data, database, &amount).await?;
        measured.push(Case { engine, processes, played });
    }
    drop(progress);
    if measured.iter().any(|case| case.engine == "PostgreSQL" && case.played.spent.database.is_none()) {
        notes.push(
            "PostgreSQL's own processor time could not be seen: it runs on another machine, or behind a pooler."
                .to_owned(),
        );
    }
    notes.push(format!(
        "All processes and the clients, whose time is shown, too, share {} cores.",
        std::thread::available_parallelism().map_or(0, usize::from)
    ));
    Ok(Report {
        bench: "brains",
        machine,
        settings: vec![
            ("sessions", json!(amount.sessions)),
            ("turns_each", json!(TURNS)),
            ("concurrency", json!(amount.concurrency)),
            ("quick", json!(options.common.quick)),
        ],
        tables: vec![turns_table(&measured), cost_table(&measured)],
        aims: Vec::new(),
        notes,
    })
}

/// How much is played in each case.
struct Amount {
    sessions: usize,
    concurrency: usize,
}

struct Case {
    engine: &'static str,
    processes: &'static str,
    played: Played,
}

/// What came out of one case.
struct Played {
    turns: Samples,
    elapsed: Duration,
    spent: Cost,
}

/// Processor time. The embedded store's is part of the brains'.
#[derive(Clone, Copy, Default)]
struct Cost {
    brains: Duration,
    doors: Duration,
    /// Of `brains` and `doors`, that of the threads of the embedded store.
    embedded: Duration,
    database: Option<Duration>,
    clients: Duration,
}

impl Cost {
    /// What was spent between two looks.
    fn since(self, before: Self) -> Self {
        Self {
            brains: self.brains.saturating_sub(before.brains),
            doors: self.doors.saturating_sub(before.doors),
            embedded: self.embedded.saturating_sub(before.embedded),
            database: self.database.zip(before.database).map(|(now, then)| now.saturating_sub(then)),
            clients: self.clients.saturating_sub(before.clients),
        }
    }

    fn server(&self) -> Duration {
        self.brains + self.doors + self.database.unwrap_or_default()
    }

    /// The share of the store in what a server spends, percent. With PostgreSQL: what its processes spend; what ours
    /// spend on speaking to it is not in it.
    fn store_percent(&self) -> f64 {
        let store = self.embedded + self.database.unwrap_or_default();
        store.as_secs_f64() / self.server().as_secs_f64().max(f64::EPSILON) * 100.0
    }
}

/// Makes the sessions, starts the processes, and plays all sessions' turns.
async fn play_all(
    shape: Shape,
    data: &Path,
    database: Option<&str>,
    amount: &Amount,
) -> anyhow::Result<Played> {
    let (key, sessions) = prepare(data, database, amount).await?;
    let members = fleet::start(shape, data, database).await?;
    let url = members.iter().find_map(|member| member.url.as_deref()).context("there is a door")?;
    let client = Client::new(url, &key)?;
    // Statements are prepared and connections are open, as in any server that has run for a second.
    let (warming, measured) = sessions.split_at(amount.concurrency);
    play(&client, warming, amount.concurrency).await?;
    let postgres = database.and_then(name_of).and_then(|name| Postgres::with_connection_to(&name));

    let before = cost(&members, postgres)?;
    let begun = Instant::now();
    let turns = play(&client, measured, amount.concurrency).await?;
    let elapsed = begun.elapsed();
    let spent = cost(&members, postgres)?.since(before);
    for member in members {
        member.stop().await?;
    }
    Ok(Played { turns: turns.into_iter().collect(), elapsed, spent })
}

/// Idle sessions, as many as are to be measured and some more, and a key to them.
async fn prepare(
    data: &Path,
    database: Option<&str>,
    amount: &Amount,
) -> anyhow::Result<(String, Vec<SessionId>)> {
    let store = open(data, database).await?;
    let workspace = store.ensure_workspace().await?;
    let key = crate::keys::mint();
    store.create_key(&workspace, "bench", store::hash_key(&key)).await?;
    let mut making = JoinSet::new();
    for _ in 0..amount.sessions + amount.concurrency {
        let (store, workspace) = (store.clone(), workspace.clone());
        making.spawn(async move { make_session(&store, &workspace, agent_with_tools(MODEL)).await });
    }
    let sessions = making.join_all().await.into_iter().collect::<anyhow::Result<_>>()?;
    store.close().await;
    Ok((key, sessions))
}

/// Plays these sessions, so many at once; gives how long each turn took.
async fn play(client: &Client, sessions: &[SessionId], concurrency: usize) -> anyhow::Result<Vec<Duration>> {
    let places = Arc::new(Semaphore::new(concurrency));
    let mut playing = JoinSet::new();
    let mut turns = Vec::with_capacity(sessions.len() * TURNS);
    for session in sessions {
        let place = Arc::clone(&places).acquire_owned().await?;
        let (client, session) = (client.clone(), session.clone());
        playing.spawn(async move {
            let played = play_one(&client, &session).await;
            drop(place);
            played
        });
        while let Some(played) = playing.try_join_next() {
            turns.extend(played??);
        }
    }
    while let Some(played) = playing.join_next().await {
        turns.extend(played??);
    }
    Ok(turns)
}

async fn play_one(client: &Client, session: &SessionId) -> anyhow::Result<Vec<Duration>> {
    let mut stream = client.stream(session.as_str(), None, &[]).await?;
    let mut turns = Vec::with_capacity(TURNS);
    for _ in 0..TURNS {
        let sent = Instant::now();
        client.send_message(session.as_str(), "Have a look at it.").await?;
        loop {
            let Some(item) = stream.next().await? else { bail!("the stream ended before the turn") };
            let Item::Event { position: _, event } = item else { continue };
            match event.body {
                Body::StatusIdle { .. } => break,
                Body::Error { error } => bail!("the session failed: {}", error.message),
                Body::AgentToolResult { is_error: true, content, .. } => bail!("a call failed: {content:?}"),
                _ => {}
            }
        }
        turns.push(sent.elapsed());
    }
    Ok(turns)
}

/// What was spent so far.
fn cost(members: &[Member], postgres: Option<Postgres>) -> anyhow::Result<Cost> {
    let mut cost = Cost {
        clients: cpu::of_this_process().context("the time of this process cannot be seen")?,
        database: postgres.and_then(Postgres::spent),
        ..Cost::default()
    };
    for member in members {
        let spent = member.spent()?;
        cost.embedded += spent.store;
        if member.drives_sessions() {
            cost.brains += spent.all;
        } else {
            cost.doors += spent.all;
        }
    }
    if postgres.is_some() {
        // Threads of ours that wait for another process's database do not belong to a store.
        cost.embedded = Duration::ZERO;
    }
    Ok(cost)
}

/// The name of the database in an address.
fn name_of(url: &str) -> Option<String> {
    let (_, rest) = url.split_once("://")?;
    let (_, name) = rest.split('?').next()?.rsplit_once('/')?;
    Some(name.to_owned()).filter(|name| !name.is_empty())
}

fn turns_table(cases: &[Case]) -> Table {
    let title = "Turns, each with one call of a tool";
    let columns = [
        ("engine", "store"),
        ("processes", "processes"),
        ("turns", "turns"),
        ("turns_per_second", "turns a second"),
        ("p50_ms", "a turn, p50 ms"),
        ("p99_ms", "p99 ms"),
        ("of_one_process", ": 1 process"),
    ];
    let mut table = Table::new("turns", title, columns);
    let rate = |case: &Case| per_second(case.played.turns.len(), case.played.elapsed);
    for case in cases {
        let alone = cases.iter().find(|other| other.engine == case.engine).map_or(0.0, rate);
        let turns = &case.played.turns;
        table.row([
            case.engine.into(),
            case.processes.into(),
            turns.len().into(),
            rate(case).into(),
            turns.p50().into(),
            turns.p99().into(),
            (rate(case) / alone).into(),
        ]);
    }
    table
}

fn cost_table(cases: &[Case]) -> Table {
    let title = "Processor time a turn, ms";
    let columns = [
        ("engine", "store"),
        ("processes", "processes"),
        ("brains_ms", "brain processes"),
        ("api_ms", "API process"),
        ("database_ms", "database"),
        ("all_ms", "all"),
        ("store_percent", "of it the store, %"),
        ("clients_ms", "besides: clients"),
    ];
    let mut table = Table::new("cost", title, columns);
    for Case { engine, processes, played } in cases {
        let Played { turns, elapsed: _, spent } = played;
        #[expect(clippy::cast_precision_loss, reason = "counts of a bench are small")]
        let count = turns.len().max(1) as f64;
        let a_turn = |time: Duration| millis(time) / count;
        let has_doors = spent.doors > Duration::ZERO;
        let is_embedded = *engine == "SQLite";
        let database = if is_embedded { Some(spent.embedded) } else { spent.database };
        let sees_all = is_embedded || spent.database.is_some();
        table.row([
            (*engine).into(),
            (*processes).into(),
            a_turn(spent.brains.saturating_sub(spent.embedded)).into(),
            has_doors.then(|| a_turn(spent.doors)).into(),
            database.map(a_turn).into(),
            a_turn(spent.server()).into(),
            sees_all.then(|| spent.store_percent()).into(),
            a_turn(spent.clients).into(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_its_database() {
        assert_eq!(
            name_of("postgres://posthouse@127.0.0.1:5432/bench?sslmode=disable").as_deref(),
            Some("bench")
        );
        assert_eq!(name_of("postgres://localhost/"), None);
        assert_eq!(name_of("nonsense"), None);
    }
}
