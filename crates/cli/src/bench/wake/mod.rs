//! `posthouse bench wake`: from claiming a session to asking its model.
//!
//! A brain keeps nothing of a session between two turns: it claims, reads what the model is to be shown, and asks. So
//! a session's length is paid for with each turn, and this says how much. The store, the brain and the model's wire
//! (the Messages format over real HTTP) are those of a server; only the model and the sessions' pasts are made up.
//!
//! The floor is what nobody can do without: reading those events from the store, and handing a request of that size to
//! the model.

mod model;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::Args;
use harness::{Brain, Options};
use protocol::content::Content;
use protocol::event::Body;
use protocol::id::{SessionId, WorkspaceId};
use protocol::position::Position;
use serde_json::json;
use store::{Slice, Store};
use tokio_util::sync::CancellationToken;

use self::model::{MODEL, Model};
use super::history::{self, Past, agent_with_tools, make_session};
use super::machine::Machine;
use super::place::Place;
use super::progress::Progress;
use super::report::{Aim, Bound, Report, Table, grouped};
use super::samples::Samples;
use super::sandbox::supervised;
use super::{Common, runtime};

/// The time from claiming a session to the request to its model, for short and very long sessions.
///
/// Beside it: what it takes to read the events that the model must be shown, and to send a request of that size.
#[derive(Args, Debug)]
pub(crate) struct WakeOptions {
    #[command(flatten)]
    pub(super) common: Common,
    /// How many events the sessions have, in three lengths. [default: 100,10000,100000; 100,1000,10000 with --quick]
    #[arg(long, value_name = "N,N,N", value_delimiter = ',')]
    events: Vec<u64>,
    /// How often each session is woken. [default: 50; 5 with --quick]
    #[arg(long, value_name = "N")]
    wakes: Option<usize>,
}

const EVENTS: [u64; 3] = [100, 10_000, 100_000];
const EVENTS_QUICK: [u64; 3] = [100, 1_000, 10_000];
/// Rounds of tools in each turn of the past.
const ROUNDS: usize = 10;
/// The kinds that a model is shown.
const SHOWN: [&str; 3] = ["user.message", "posthouse.answer", "agent.tool_result"];
/// The length that the aim is for.
const AIM_EVENTS: u64 = 10_000;
/// How much faster than the request the time may grow: noise.
const NOISE: f64 = 1.15;

pub(super) fn measure(options: &WakeOptions) -> anyhow::Result<Report> {
    let place = Place::make(&options.common)?;
    let machine = Machine::look(place.path());
    runtime()?.block_on(async {
        tokio::select! {
            report = all(options, &place, machine) => report,
            _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
        }
    })
}

async fn all(options: &WakeOptions, place: &Place, machine: Machine) -> anyhow::Result<Report> {
    let quick = options.common.quick;
    let lengths = match options.events.as_slice() {
        [] => (if quick { EVENTS_QUICK } else { EVENTS }).to_vec(),
        lengths => lengths.to_vec(),
    };
    let wakes = options.wakes.unwrap_or(if quick { 5 } else { 50 }).max(1);
    let seed = options.common.seed;
    let progress = Progress::new(1 + lengths.len());

    let data = place.join("data");
    let store = Store::open(&data, store::Options::default())?;
    let workspace = store.ensure_workspace().await?;
    let mut model = Model::start().await?;
    let brain = Brain::new(
        store.clone(),
        Arc::new(model.providers()?),
        // No call is made, so no supervisor is started.
        Arc::new(supervised(&data)),
        Options::new(data.join("outputs")),
    );
    progress.step("making sessions");
    let mut sessions = Vec::new();
    for events in &lengths {
        let id = make_session(&store, &workspace, agent_with_tools(MODEL)).await?;
        history::write(&store, &id, Past { events: *events, rounds: ROUNDS }, seed).await?;
        sessions.push(id);
    }
    // Opens the connection to the model.
    let first = make_session(&store, &workspace, agent_with_tools(MODEL)).await?;
    wake(&store, &workspace, &brain, &first, &mut model).await?;

    let mut woken = Vec::new();
    for (events, id) in lengths.iter().zip(&sessions) {
        progress.step(format!("waking a session of {events} events"));
        let mut session = Woken::new(*events, shown(&store, id).await?);
        // The first finds the pages cold, which says more of the disk than of us.
        wake(&store, &workspace, &brain, id, &mut model).await?;
        for _ in 0..wakes {
            session.wakes.push(wake(&store, &workspace, &brain, id, &mut model).await?);
            session.reads.push(read(&store, id).await?);
            let body_bytes = session.body_bytes();
            let bare = model.ask_bare(body_bytes).await?;
            session.sends.push(bare.whole.duration_since(bare.begun));
        }
        woken.push(session);
    }
    drop(progress);
    store.close().await;

    Ok(Report {
        bench: "wake",
        machine,
        settings: vec![
            ("seed", json!(seed)),
            ("wakes", json!(wakes)),
            ("rounds_in_a_turn", json!(ROUNDS)),
            ("quick", json!(quick)),
        ],
        tables: vec![wakes_table(&woken), floor_table(&woken)],
        aims: aims(&woken),
        notes: vec!["From the call of wake, which begins with the durable claim.".to_owned()],
    })
}

/// One session, woken again and again.
struct Woken {
    events: u64,
    shown: usize,
    wakes: Vec<Wake>,
    reads: Vec<Duration>,
    sends: Vec<Duration>,
}

/// One wake. Times are from its call.
struct Wake {
    /// Until the model saw the first bytes of the request.
    asked: Duration,
    /// Until it had the whole request.
    whole: Duration,
    body_bytes: usize,
}

impl Woken {
    fn new(events: u64, shown: usize) -> Self {
        Self { events, shown, wakes: Vec::new(), reads: Vec::new(), sends: Vec::new() }
    }

    /// The size of the last request. They differ by some short messages.
    fn body_bytes(&self) -> usize {
        self.wakes.last().map_or(0, |wake| wake.body_bytes)
    }

    fn body_mib(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        let bytes = self.body_bytes() as f64;
        bytes / f64::from(1 << 20)
    }

    fn asked(&self) -> Samples {
        self.wakes.iter().map(|wake| wake.asked).collect()
    }

    fn whole(&self) -> Samples {
        self.wakes.iter().map(|wake| wake.whole).collect()
    }

    fn reading(&self) -> Samples {
        self.reads.iter().copied().collect()
    }

    fn sending(&self) -> Samples {
        self.sends.iter().copied().collect()
    }
}

/// Sends the session a message and drives it until it rests.
async fn wake(
    store: &Store,
    workspace: &WorkspaceId,
    brain: &Brain,
    id: &SessionId,
    model: &mut Model,
) -> anyhow::Result<Wake> {
    let message = Body::UserMessage { content: vec![Content::text("Go on.")] };
    store.send_events(workspace, id, vec![message]).await?;
    let called = Instant::now();
    let is_driven = brain.wake(id, &CancellationToken::new()).await?;
    ensure!(is_driven, "somebody else holds {id}");
    let asked = model.asked().await?;
    Ok(Wake {
        asked: asked.begun.duration_since(called),
        whole: asked.whole.duration_since(called),
        body_bytes: asked.body_bytes,
    })
}

/// Reads what the model is shown, page by page, and looks at nothing; gives how long it took.
async fn read(store: &Store, id: &SessionId) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    pages(store, id).await?;
    Ok(begun.elapsed())
}

/// How many events of a session a model is shown.
async fn shown(store: &Store, id: &SessionId) -> anyhow::Result<usize> {
    pages(store, id).await
}

async fn pages(store: &Store, id: &SessionId) -> anyhow::Result<usize> {
    let kinds = Some(SHOWN.map(str::to_owned).to_vec());
    let mut count = 0;
    let mut after = Position::START;
    loop {
        let slice = Slice { after, kinds: kinds.clone(), private: true, ..Slice::default() };
        let events = store.get_events(id, slice).await?;
        let Some(last) = events.last() else { return Ok(count) };
        after = last.position.unwrap_or(after);
        count += events.len();
    }
}

fn wakes_table(woken: &[Woken]) -> Table {
    let title = "From the claim to the model";
    let columns = [
        ("session_events", "session of"),
        ("shown_events", "shown to the model"),
        ("request_mib", "request MiB"),
        ("asked_p50_ms", "asked p50 ms"),
        ("asked_p99_ms", "asked p99 ms"),
        ("whole_p50_ms", "asked in full p50 ms"),
        ("ms_per_mib", "asked, ms a MiB"),
    ];
    let mut table = Table::new("wakes", title, columns);
    for session in woken {
        let asked = session.asked();
        table.row([
            session.events.into(),
            session.shown.into(),
            session.body_mib().into(),
            asked.p50().into(),
            asked.p99().into(),
            session.whole().p50().into(),
            (asked.p50() / session.body_mib()).into(),
        ]);
    }
    table
}

fn floor_table(woken: &[Woken]) -> Table {
    let title = "The floor: the same events read and not looked at, a request of that size sent";
    let columns = [
        ("session_events", "session of"),
        ("read_p50_ms", "read p50 ms"),
        ("sent_p50_ms", "sent p50 ms"),
        ("whole_of_floor", "asked in full : floor"),
    ];
    let mut table = Table::new("floor", title, columns);
    for session in woken {
        let (reading, sending) = (session.reading().p50(), session.sending().p50());
        table.row([
            session.events.into(),
            reading.into(),
            sending.into(),
            (session.whole().p50() / (reading + sending)).into(),
        ]);
    }
    table
}

fn aims(woken: &[Woken]) -> Vec<Aim> {
    let mut aims = Vec::new();
    if let Some(session) = woken.iter().find(|session| session.events == AIM_EVENTS) {
        aims.push(Aim {
            what: "from the claim to the request, 10,000 events, p50".to_owned(),
            bound: Bound::Below(20.0),
            measured: session.asked().p50(),
            unit: "ms",
        });
    }
    if let [.., long, longest] = woken {
        aims.push(Aim {
            what: format!(
                "from {} to {} events, growth of the time against that of the request",
                grouped(long.events),
                grouped(longest.events)
            ),
            bound: Bound::Below(NOISE),
            measured: (longest.asked().p50() / long.asked().p50()) / (longest.body_mib() / long.body_mib()),
            unit: "",
        });
    }
    aims
}
