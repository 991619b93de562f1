//! `posthouse bench density`: what sessions and streams cost that nobody uses at the moment.
//!
//! A `posthouse serve` in a process of its own, on a data directory with many idle sessions, each with one turn behind
//! it. Looked at: how long it takes from its start to its first answer; what it holds in memory at rest, with many open
//! streams, and after all sort of things were read; and how long a client waits for the first token of a session among
//! all these, beside the same on a server that holds nothing else.
//!
//! The server on which nothing else lies is measured before and after the full one: what its two halves differ by is
//! the noise.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use clap::Args;
use client::Client;
use protocol::id::SessionId;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};
use rustix::fs::{Advice, fadvise};
use serde_json::json;
use store::Store;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::child::{Ground, MODEL, Memory};
use super::first_token::{Turn, time_turn};
use super::history::{self, Past, agent, make_session};
use super::machine::Machine;
use super::place::Place;
use super::progress::Progress;
use super::report::{Aim, Bound, Report, Table, grouped};
use super::samples::{Samples, millis};
use super::{Common, runtime};

/// Memory of a server with a hundred thousand idle sessions and thousands of open streams.
///
/// Also how long it takes to start on that data, and whether a turn among so many sessions takes longer than on an
/// empty server. The server is a process of its own, so that its memory is nobody else's; the streams' other ends are
/// in this process. Takes a minute and about 600 MB of disk.
#[derive(Args, Debug)]
pub(crate) struct DensityOptions {
    #[command(flatten)]
    pub(super) common: Common,
    /// Idle sessions, each with one turn behind it. [default: 100000; 2000 with --quick]
    #[arg(long, value_name = "N")]
    sessions: Option<usize>,
    /// Streams that are open on as many of them. Each takes an open file here and one in the server.
    /// [default: 5000; 100 with --quick]
    #[arg(long, value_name = "N")]
    streams: Option<usize>,
    /// Turns that are timed on each server. [default: 500; 30 with --quick]
    #[arg(long, value_name = "N")]
    turns: Option<usize>,
}

/// What every idle session has behind it: one turn without a tool.
const PAST: Past = Past { events: 1, rounds: 0 };
/// Sessions that are made at the same time, and streams that are opened.
const AT_ONCE: usize = 256;
/// Starts of each kind.
const STARTS: usize = 5;
/// Open files of this process besides the streams.
const OTHER_FILES: u64 = 256;
/// Sessions that are read, history and all, to see what the reading leaves in memory.
const READ: usize = 2_000;
/// How much more of a turn is within the noise.
const NOISE: f64 = 1.15;

/// How much is measured.
struct Amount {
    sessions: usize,
    streams: usize,
    turns: usize,
}

impl DensityOptions {
    fn amount(&self) -> Amount {
        let quick = self.common.quick;
        let sessions = self.sessions.unwrap_or(if quick { 2_000 } else { 100_000 }).max(1);
        Amount {
            sessions,
            streams: self.streams.unwrap_or(if quick { 100 } else { 5_000 }).min(sessions),
            turns: self.turns.unwrap_or(if quick { 30 } else { 500 }).clamp(1, sessions),
        }
    }
}

pub(super) fn measure(options: &DensityOptions) -> anyhow::Result<Report> {
    let place = Place::make(&options.common)?;
    let machine = Machine::look(place.path());
    runtime()?.block_on(async {
        tokio::select! {
            report = all(options, &place, machine) => report,
            _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
        }
    })
}

async fn all(options: &DensityOptions, place: &Place, machine: Machine) -> anyhow::Result<Report> {
    let mut amount = options.amount();
    let mut notes = Vec::new();
    if let Some(files) = crate::descriptors::raise() {
        let room = usize::try_from(files.saturating_sub(OTHER_FILES)).unwrap_or(usize::MAX);
        if room < amount.streams {
            notes.push(format!(
                "A process may have {files} open files here, so only {room} of {} streams were opened.",
                amount.streams
            ));
            amount.streams = room;
        }
    }
    let seed = options.common.seed;
    let progress = Progress::new(8);

    progress.step(format!("making {} sessions", amount.sessions));
    let full = Ground::prepare(place.join("full"))?;
    let empty = Ground::prepare(place.join("empty"))?;
    let sessions = fill(&full, amount.sessions, seed).await?;
    let alone = fill(&empty, amount.turns, seed).await?;

    progress.step("starting servers");
    let starts = starts(&full, &empty).await?;

    let mut random = SmallRng::seed_from_u64(seed);
    progress.step("turns on an empty server");
    let server = empty.start().await?;
    let empty_memory = server.memory()?;
    let before = turns(&server.client, &alone, amount.turns, &mut random).await?;
    server.stop().await?;

    progress.step("turns among idle sessions");
    let server = full.start().await?;
    let mut moments = vec![Moment::of("no other sessions, at rest", empty_memory)];
    moments.push(Moment::of(
        format!("{} idle sessions, at rest", grouped(amount.sessions as u64)),
        server.memory()?,
    ));
    let among_sessions = turns(&server.client, &sessions, amount.turns, &mut random).await?;
    moments.push(Moment::of("after turns in some of them", server.memory()?));
    progress.step(format!("opening {} streams", amount.streams));
    let streams = Streams::open(&server.client, &sessions, amount.streams, &mut random).await?;
    moments
        .push(Moment::of(format!("and {} open streams", grouped(amount.streams as u64)), server.memory()?));
    progress.step("turns among streams");
    let among_streams = turns(&server.client, &sessions, amount.turns, &mut random).await?;
    moments.push(Moment::of("after turns beside them", server.memory()?));
    progress.step("reading all sorts of sessions");
    read(&server.client, &sessions, &mut random).await?;
    moments.push(Moment::of("after all sessions were listed, many read", server.memory()?));
    streams.close()?;
    server.stop().await?;

    progress.step("turns on an empty server, again");
    let server = empty.start().await?;
    let after = turns(&server.client, &alone, amount.turns, &mut random).await?;
    server.stop().await?;
    drop(progress);

    let is_as_stated = amount.sessions >= 100_000 && amount.streams >= 5_000;
    if !is_as_stated {
        notes.push("The aims are for 100,000 sessions and 5,000 streams; this run had fewer.".to_owned());
    }
    let timed = [
        ("no other sessions, before", &before),
        ("among idle sessions", &among_sessions),
        ("and open streams", &among_streams),
        ("no other sessions, after", &after),
    ];
    Ok(Report {
        bench: "density",
        machine,
        settings: vec![
            ("seed", json!(seed)),
            ("sessions", json!(amount.sessions)),
            ("streams", json!(amount.streams)),
            ("turns", json!(amount.turns)),
            ("database_bytes", json!(std::fs::metadata(full.data().join("posthouse.db"))?.len())),
            ("quick", json!(options.common.quick)),
        ],
        tables: vec![memory_table(&moments), starts_table(&starts), turns_table(&timed)],
        aims: aims(&moments, &starts, &[&before, &after], &among_streams),
        notes,
    })
}

/// Makes idle sessions in a data directory.
async fn fill(ground: &Ground, count: usize, seed: u64) -> anyhow::Result<Vec<SessionId>> {
    let store = Store::open(ground.data(), store::Options::default())?;
    let workspace = store.ensure_workspace().await?;
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut making = JoinSet::new();
    let mut sessions = Vec::with_capacity(count);
    for number in 0..count {
        let place = Arc::clone(&places).acquire_owned().await?;
        let (store, workspace) = (store.clone(), workspace.clone());
        making.spawn(async move {
            let id = make_session(&store, &workspace, agent(MODEL)).await?;
            history::write(&store, &id, PAST, seed.wrapping_add(number as u64)).await?;
            drop(place);
            anyhow::Ok(id)
        });
        while let Some(made) = making.try_join_next() {
            sessions.push(made??);
        }
    }
    while let Some(made) = making.join_next().await {
        sessions.push(made??);
    }
    store.close().await;
    Ok(sessions)
}

/// How long servers took from their start to their first answer.
struct Starts {
    empty: Samples,
    full: Samples,
    /// After the system was told to forget the files: nearly as after a restart of the machine.
    cold: Samples,
}

/// Starts servers in turns.
async fn starts(full: &Ground, empty: &Ground) -> anyhow::Result<Starts> {
    let mut times: [Vec<Duration>; 3] = Default::default();
    for _ in 0..STARTS {
        for (index, ground) in [empty, full, full].into_iter().enumerate() {
            if index == 2 {
                forget(ground)?;
            }
            let server = ground.start().await?;
            times[index].push(server.started);
            server.stop().await?;
        }
    }
    let [empty, full, cold] = times.map(Samples::from_iter);
    Ok(Starts { empty, full, cold })
}

/// Asks the system to drop a data directory's files from its cache.
fn forget(ground: &Ground) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(ground.data())? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            let file = std::fs::File::open(entry.path())?;
            // Pages that are not written yet are not dropped.
            file.sync_all()?;
            fadvise(&file, 0, None, Advice::DontNeed)?;
        }
    }
    Ok(())
}

/// Times turns of sessions taken at random, one after the other.
async fn turns(
    client: &Client,
    sessions: &[SessionId],
    count: usize,
    random: &mut SmallRng,
) -> anyhow::Result<Vec<Turn>> {
    let mut timed = Vec::with_capacity(count);
    // The first open connections and prepare statements, as in any server that has run for a second.
    let warming = count.div_ceil(10);
    for number in 0..warming + count {
        let session = &sessions[random.random_range(0..sessions.len())];
        let turn = time_turn(client, session.as_str(), "Tell me more about it.").await?;
        if number >= warming {
            timed.push(turn);
        }
    }
    Ok(timed)
}

/// The clients' ends of open streams.
struct Streams(JoinSet<anyhow::Result<()>>);

impl Streams {
    /// Opens streams on that many sessions taken at random; returns when all are open.
    async fn open(
        client: &Client,
        sessions: &[SessionId],
        count: usize,
        random: &mut SmallRng,
    ) -> anyhow::Result<Self> {
        let mut chosen: Vec<&SessionId> = sessions.iter().collect();
        chosen.shuffle(random);
        let places = Arc::new(Semaphore::new(AT_ONCE));
        let mut opening = JoinSet::new();
        for session in chosen.into_iter().take(count) {
            let place = Arc::clone(&places).acquire_owned().await?;
            let (client, session) = (client.clone(), session.clone());
            opening.spawn(async move {
                let stream = client.stream(session.as_str(), None, &[]).await;
                drop(place);
                stream
            });
        }
        let mut reading = JoinSet::new();
        while let Some(opened) = opening.join_next().await {
            let mut stream = opened??;
            reading.spawn(async move {
                while stream.next().await?.is_some() {}
                Ok(())
            });
        }
        Ok(Self(reading))
    }

    /// Closes them. None may have ended by itself.
    fn close(mut self) -> anyhow::Result<()> {
        let mut ended = 0;
        while let Some(stream) = self.0.try_join_next() {
            stream??;
            ended += 1;
        }
        ensure!(ended == 0, "{ended} streams were ended by the server");
        Ok(())
    }
}

/// Lists all sessions and reads the history of many.
async fn read(client: &Client, sessions: &[SessionId], random: &mut SmallRng) -> anyhow::Result<()> {
    let mut page = client.list_sessions(&[("limit", "100")]).await?;
    while let Some(next) = page.next_page.take() {
        page = client.list_sessions(&[("limit", "100"), ("page", &next)]).await?;
    }
    for _ in 0..READ.min(sessions.len()) {
        let session = &sessions[random.random_range(0..sessions.len())];
        client.all_events(session.as_str()).await?;
    }
    Ok(())
}

/// What the server held at a moment.
struct Moment {
    when: String,
    memory: Memory,
}

impl Moment {
    fn of(when: impl Into<String>, memory: Memory) -> Self {
        Self { when: when.into(), memory }
    }
}

fn mib(bytes: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    let bytes = bytes as f64;
    bytes / f64::from(1 << 20)
}

fn memory_table(moments: &[Moment]) -> Table {
    let title = "Memory of the server, MiB: all that is resident, and what it is made of";
    let columns = [
        ("when", "when"),
        ("resident_mib", "resident"),
        ("anonymous_mib", "own (heap, stacks)"),
        ("database_mib", "database, mapped"),
        ("program_mib", "program"),
    ];
    let mut table = Table::new("memory", title, columns);
    for Moment { when, memory } in moments {
        let Memory { anonymous, database, program } = *memory;
        table.row([
            when.as_str().into(),
            mib(memory.resident()).into(),
            mib(anonymous).into(),
            mib(database).into(),
            mib(program).into(),
        ]);
    }
    table
}

fn starts_table(starts: &Starts) -> Table {
    let title = "From the start of the program to its first answered request";
    let columns = [("data", "data"), ("starts", "starts"), ("p50_ms", "p50 ms"), ("max_ms", "slowest ms")];
    let mut table = Table::new("start", title, columns);
    let Starts { empty, full, cold } = starts;
    for (data, times) in [
        ("no other sessions", empty),
        ("idle sessions", full),
        ("idle sessions, files not in the cache", cold),
    ] {
        table.row([data.into(), times.len().into(), times.p50().into(), times.percentile(100.0).into()]);
    }
    table
}

fn accepted(turns: &[Turn]) -> Samples {
    Samples::of(turns.iter().map(|turn| turn.after_acceptance))
}

fn turns_table(timed: &[(&str, &Vec<Turn>)]) -> Table {
    let title = "The first token of a model that takes no time, one turn after the other";
    let columns = [
        ("server", "server holds"),
        ("turns", "turns"),
        ("p50_ms", "from acceptance, p50 ms"),
        ("p99_ms", "p99 ms"),
        ("sent_p50_ms", "from the POST, p50 ms"),
        ("sent_p99_ms", "p99 ms"),
    ];
    let mut table = Table::new("first_token", title, columns);
    for (server, turns) in timed {
        let (accepted, sent) = (accepted(turns), Samples::of(turns.iter().map(|turn| turn.after_sending)));
        table.row([
            (*server).into(),
            turns.len().into(),
            accepted.p50().into(),
            accepted.p99().into(),
            sent.p50().into(),
            sent.p99().into(),
        ]);
    }
    table
}

fn aims(moments: &[Moment], starts: &Starts, empty: &[&Vec<Turn>; 2], among: &[Turn]) -> Vec<Aim> {
    let most = moments.iter().map(|moment| moment.memory.resident()).max().unwrap_or_default();
    let empty = empty.map(|turns| accepted(turns).p50());
    vec![
        Aim {
            what: "resident memory at its most".to_owned(),
            bound: Bound::Below(300.0),
            measured: mib(most),
            unit: "MiB",
        },
        Aim {
            what: "start on idle sessions, slowest".to_owned(),
            bound: Bound::Below(millis(Duration::from_secs(1))),
            measured: starts.full.percentile(100.0).max(starts.cold.percentile(100.0)),
            unit: "ms",
        },
        Aim {
            what: "first token among all, against an empty server, p50".to_owned(),
            bound: Bound::Below(NOISE),
            measured: accepted(among).p50() / empty[0].max(empty[1]),
            unit: "",
        },
    ]
}
