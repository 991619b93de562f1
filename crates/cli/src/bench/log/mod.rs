//! `posthouse bench log`: the session log beside the disk it lies on.
//!
//! Everything goes through the real [`store::Store`]: appends under leases, answered when durable. The limit is what
//! the disk gives a program that appends a kilobyte to a growing file and syncs it; the two take turns, so that a
//! noisy neighbour is noise for both.

mod appends;
pub(super) mod fill;
mod load;
mod raw;
mod reopen;
mod slices;
mod subscribers;

use std::time::Duration;

use clap::Args;
use serde_json::json;
use store::Store;

use self::appends::Appended;
use self::load::{EVENT_BYTES, Load, Shape};
use super::machine::Machine;
use super::place::Place;
use super::progress::Progress;
use super::report::{Aim, Bound, Report, Table};
use super::samples::{Samples, per_second};
use super::{Common, runtime};

/// Durable appends, slices, subscribers and reopening, beside the raw disk.
#[derive(Args, Debug)]
pub(crate) struct LogOptions {
    #[command(flatten)]
    pub(super) common: Common,
    /// The length of the long session. [default: 1000000; 50000 with --quick]
    #[arg(long, value_name = "N")]
    events: Option<u64>,
}

/// How many sessions append at once.
const SESSIONS: [usize; 3] = [1, 64, 1024];
/// How often disk and store take turns.
const ROUNDS: u32 = 4;

/// How much is measured.
struct Amount {
    /// Of each kind of append, at each number of sessions.
    append: Duration,
    /// Events whose way to a subscriber is timed.
    subscribed: usize,
    slices: usize,
    long_events: u64,
    short_sessions: usize,
    kills: usize,
}

impl LogOptions {
    fn amount(&self) -> Amount {
        if self.common.quick {
            Amount {
                append: Duration::from_millis(600),
                subscribed: 256,
                slices: 200,
                long_events: self.events.unwrap_or(50_000),
                short_sessions: 10,
                kills: 2,
            }
        } else {
            Amount {
                append: Duration::from_secs(4),
                subscribed: 4_096,
                slices: 2_000,
                long_events: self.events.unwrap_or(1_000_000),
                short_sessions: 100,
                kills: 8,
            }
        }
    }
}

pub(super) fn measure(options: &LogOptions) -> anyhow::Result<Report> {
    let place = Place::make(&options.common)?;
    let machine = Machine::look(place.path());
    runtime()?.block_on(async {
        tokio::select! {
            report = all(options, &place, machine) => report,
            _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
        }
    })
}

async fn all(options: &LogOptions, place: &Place, machine: Machine) -> anyhow::Result<Report> {
    let amount = options.amount();
    let progress = Progress::new(SESSIONS.len() + 3);
    let mut notes = Vec::new();
    if machine.is_in_memory() {
        notes.push(
            "The folder lies in memory: nothing here was synced to a disk. Choose a disk with --dir."
                .to_owned(),
        );
    }

    let store = Store::open(&place.join("appends"), store::Options::default())?;
    let raw = raw::GrowingFile::make(&place.join("raw"), place.join("appends").join("posthouse.db"))?;
    let mut rates = Vec::new();
    for sessions in SESSIONS {
        progress.step(format!("appends, {sessions} at once"));
        rates.push(appends_beside_raw(&store, &raw, sessions, &amount, options.common.seed).await?);
    }
    progress.step("subscribers");
    let mut seen = Vec::new();
    for sessions in [1, 64] {
        let load = Load::make(&store, sessions, options.common.seed).await?;
        seen.push((sessions, subscribers::seen(&store, load, amount.subscribed / sessions).await?));
    }
    store.close().await;

    progress.step(format!("filling a session with {} events, then kill -9", amount.long_events));
    let filled = fill::Plan {
        dir: place.join("filled"),
        long_events: amount.long_events,
        short_sessions: amount.short_sessions,
        seed: options.common.seed,
    };
    let reopened = reopen::after_kills(&filled, amount.kills).await?;
    progress.step("slices");
    let slices = slices::both(&filled, amount.slices).await?;
    drop(progress);

    let first = rates.first().expect("one session is measured first");
    let last = rates.last().expect("many sessions are measured last");
    let aims = vec![
        Aim {
            what: "1 session, appends against the raw rate".to_owned(),
            bound: Bound::AtLeast(0.6),
            measured: first.single.per_second() / first.raw.per_second(),
            unit: "",
        },
        Aim {
            what: "1,024 sessions, durable events".to_owned(),
            bound: Bound::AtLeast(50_000.0),
            measured: last.single.per_second(),
            unit: "a second",
        },
        Aim {
            what: "a slice of the long session against one of a short session, p50".to_owned(),
            // What is independent is equal; half is left to caches and neighbours.
            bound: Bound::Below(1.5),
            measured: slices.long.forwards.p50() / slices.short.forwards.p50(),
            unit: "",
        },
        Aim {
            what: "reopening after kill -9 until the first durable append, slowest".to_owned(),
            bound: Bound::Below(100.0),
            measured: reopened.until_append().percentile(100.0),
            unit: "ms",
        },
    ];
    Ok(Report {
        bench: "log",
        machine,
        settings: vec![
            ("seed", json!(options.common.seed)),
            ("event_bytes", json!(EVENT_BYTES)),
            ("long_session_events", json!(amount.long_events)),
            ("quick", json!(options.common.quick)),
        ],
        tables: vec![
            raw_table(&rates),
            appends_table(&rates),
            subscribers_table(&seen),
            slices_table(&slices, amount.long_events),
            reopened.table(),
        ],
        aims,
        notes,
    })
}

/// What disk and store did in turns.
struct Rates {
    sessions: usize,
    raw: Appended,
    single: Appended,
    answers: Appended,
}

async fn appends_beside_raw(
    store: &Store,
    raw: &raw::GrowingFile,
    sessions: usize,
    amount: &Amount,
    seed: u64,
) -> anyhow::Result<Rates> {
    let mut load = Load::make(store, sessions, seed).await?;
    let mut rates = Rates {
        sessions,
        raw: Appended::default(),
        single: Appended::default(),
        answers: Appended::default(),
    };
    let turn = amount.append / ROUNDS;
    // Statements are prepared and files have their first pages: nobody runs a server for its first second.
    load = appends::append(store, load, Shape::Single, turn / 2).await?.0;
    for _ in 0..ROUNDS {
        rates.raw.add(raw.append(turn).await?);
        for (shape, sum) in [(Shape::Single, &mut rates.single), (Shape::Answer, &mut rates.answers)] {
            let (rested, appended) = appends::append(store, load, shape, turn).await?;
            load = rested;
            sum.add(appended);
        }
    }
    load.release(store).await?;
    Ok(rates)
}

fn raw_table(rates: &[Rates]) -> Table {
    let title =
        "The disk: 1 KiB appended to a growing file and synced, in turns with the store at as many sessions";
    let columns = [
        ("beside_sessions", "beside sessions"),
        ("per_second", "a second"),
        ("p50_ms", "p50 ms"),
        ("p99_ms", "p99 ms"),
    ];
    let mut table = Table::new("raw_disk", title, columns);
    for Rates { sessions, raw, single: _, answers: _ } in rates {
        let times = raw.samples();
        table.row([(*sessions).into(), raw.per_second().into(), times.p50().into(), times.p99().into()]);
    }
    table
}

fn appends_table(rates: &[Rates]) -> Table {
    let title = "The store: durable appends under leases, one in flight a session";
    let columns = [
        ("sessions", "sessions"),
        ("append", "append"),
        ("events_per_second", "events a second"),
        ("appends_per_second", "appends a second"),
        ("p50_ms", "ack p50 ms"),
        ("p99_ms", "ack p99 ms"),
        ("appends_of_raw_rate", "appends : raw syncs"),
    ];
    let mut table = Table::new("appends", title, columns);
    for Rates { sessions, raw, single, answers } in rates {
        for (shape, appended) in [(Shape::Single, single), (Shape::Answer, answers)] {
            let times = appended.samples();
            table.row([
                (*sessions).into(),
                shape.describe().into(),
                appended.per_second().into(),
                per_second(times.len(), appended.elapsed).into(),
                times.p50().into(),
                times.p99().into(),
                (per_second(times.len(), appended.elapsed) / raw.per_second()).into(),
            ]);
        }
    }
    table
}

fn subscribers_table(seen: &[(usize, subscribers::Seen)]) -> Table {
    let title =
        "From the call of append: until it is durable, and until a follower of the session has the event";
    let columns = [
        ("sessions", "sessions"),
        ("durable_p50_ms", "durable p50 ms"),
        ("durable_p99_ms", "durable p99 ms"),
        ("seen_p50_ms", "seen p50 ms"),
        ("seen_p99_ms", "seen p99 ms"),
    ];
    let mut table = Table::new("subscribers", title, columns);
    for (sessions, subscribers::Seen { durable, seen }) in seen {
        table.row([
            (*sessions).into(),
            durable.p50().into(),
            durable.p99().into(),
            seen.p50().into(),
            seen.p99().into(),
        ]);
    }
    table
}

fn slices_table(slices: &slices::Slices, long_events: u64) -> Table {
    let title = "Slices of 100 events, from random places";
    let columns = [
        ("session_events", "session of"),
        ("direction", "direction"),
        ("p50_ms", "p50 ms"),
        ("p99_ms", "p99 ms"),
    ];
    let mut table = Table::new("slices", title, columns);
    let slices::Slices { short, long } = slices;
    for (events, times) in [(fill::SHORT_EVENTS, short), (long_events, long)] {
        let slices::Times { forwards, backwards } = times;
        for (direction, times) in [("forwards", forwards), ("backwards", backwards)] {
            table.row([events.into(), direction.into(), times.p50().into(), times.p99().into()]);
        }
    }
    table
}

impl reopen::Reopened {
    fn until_append(&self) -> Samples {
        self.kills.iter().map(|kill| kill.appended).collect()
    }

    fn table(&self) -> Table {
        let title = "Reopening after kill -9 in the middle of appends: from the call of open";
        let columns = [
            ("kill", "kill"),
            ("log_mib", "write-ahead log MiB"),
            ("open_ms", "open ms"),
            ("first_append_ms", "first durable append ms"),
        ];
        let mut table = Table::new("reopening", title, columns);
        for (index, kill) in self.kills.iter().enumerate() {
            let reopen::Kill { log_bytes, opened, appended } = kill;
            #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
            let log_mib = *log_bytes as f64 / f64::from(1 << 20);
            let times: [Samples; 2] = [[*opened].into_iter().collect(), [*appended].into_iter().collect()];
            table.row([(index + 1).into(), log_mib.into(), times[0].p50().into(), times[1].p50().into()]);
        }
        table
    }
}
