//! `posthouse bench failover`: how long sessions stand still when the brain that drives them ends.
//!
//! One API process and two brains on PostgreSQL, all of them `posthouse serve`. All sessions are in the middle of their
//! work with the first brain, half of them waiting for the model and half for a command in a real sandbox, when it is
//! killed, or told to stop; and, for comparison, when nothing happens to it. Timed is what a client sees on the session's
//! stream:
//!
//! ```text
//!   message ──▶ work is on record ───────── signal ───────▶ next event
//!                    │                         └── timed ───────┤
//!                    └───────────── timed, too ─────────────────┘
//! ```
//!
//! A command runs on in its sandbox whatever becomes of brains, so its result is late only if nobody is there to take it.
//! A model's answer dies with the brain that was reading it: the next brain says so in the log and asks again.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use client::{Client, Item};
use protocol::event::Body;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::child::{Ground, SLOW_MODEL, TOOL_MODEL, WORK};
use super::machine::Machine;
use super::place::Place;
use super::progress::Progress;
use super::report::{Aim, Bound, Report, Table};
use super::samples::Samples;
use super::sandbox::supervised;
use super::{Common, runtime};

/// How long sessions stand still when the brain that drives them is killed, or told to stop.
///
/// Needs a PostgreSQL database, an empty one at best: what is made there stays there. Takes about a minute, and a real
/// sandbox for each second session.
#[derive(Args, Debug)]
pub(crate) struct FailoverOptions {
    #[command(flatten)]
    pub(super) common: Common,
    /// The database (postgres://…).
    #[arg(long, env = "POSTHOUSE_BENCH_DATABASE", value_name = "URL", hide_env_values = true)]
    database: String,
    /// Sessions in the middle of their work. [default: 200; 20 with --quick]
    #[arg(long, value_name = "N")]
    sessions: Option<usize>,
}

/// How long after the last session's work was recorded everybody is taken to be in the middle of it: a sandbox is
/// provisioned in that time, which no event shows.
const SETTLE: Duration = Duration::from_millis(1_500);
/// Sessions that are made at the same time.
const AT_ONCE: usize = 16;

/// What happens to the brain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Nothing,
    Kill,
    Drain,
}

impl End {
    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Kill => "kill -9",
            Self::Drain => "SIGTERM, drain",
        }
    }
}

/// What a session waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Model,
    Tool,
}

impl Work {
    fn model(self) -> &'static str {
        match self {
            Self::Model => SLOW_MODEL,
            Self::Tool => TOOL_MODEL,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Model => "the model",
            Self::Tool => "a command",
        }
    }

    /// Whether this event says that the work has begun.
    fn is_begun_by(self, body: &Body) -> bool {
        match self {
            Self::Model => matches!(body, Body::ModelRequestStart {}),
            Self::Tool => matches!(body, Body::AgentToolUse { .. }),
        }
    }
}

pub(super) fn measure(options: &FailoverOptions) -> anyhow::Result<Report> {
    let place = Place::make(&options.common)?;
    let machine = Machine::look(place.path());
    runtime()?.block_on(async {
        tokio::select! {
            report = all(options, &place, machine) => report,
            _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
        }
    })
}

async fn all(options: &FailoverOptions, place: &Place, machine: Machine) -> anyhow::Result<Report> {
    let quick = options.common.quick;
    let sessions = options.sessions.unwrap_or(if quick { 20 } else { 200 }).max(2);
    let ground = Ground::prepare(place.join("data"))?.on_database(&options.database);
    let progress = Progress::new(3);
    let mut rounds = Vec::new();
    for end in [End::Nothing, End::Kill, End::Drain] {
        progress.step(format!("{sessions} sessions at work, then {}", end.name()));
        rounds.push(round(&ground, end, sessions).await);
        if rounds.last().is_some_and(Result::is_err) {
            break;
        }
    }
    drop(progress);
    // However that ended: the sandboxes are not to outlive it.
    supervised(ground.data()).end().await?;
    let rounds = rounds.into_iter().collect::<anyhow::Result<Vec<Round>>>()?;
    let drained = rounds.iter().find_map(|round| round.drained);
    let mut notes = vec![format!(
        "A lease lasts {} s. The work takes {} s; a model's answer dies with its brain and is asked for again.",
        store::LEASE.as_secs(),
        WORK.as_secs()
    )];
    notes.extend(drained.map(|took| format!("The drained brain ended after {:.1} s.", took.as_secs_f64())));
    Ok(Report {
        bench: "failover",
        machine,
        settings: vec![
            ("sessions", json!(sessions)),
            ("work_s", json!(WORK.as_secs())),
            ("quick", json!(quick)),
        ],
        tables: vec![table(&rounds)],
        aims: aims(&rounds),
        notes,
    })
}

/// One brain's end.
struct Round {
    end: End,
    sessions: Vec<Session>,
    signal: Instant,
    /// How long a brain that was told to stop took to end.
    drained: Option<Duration>,
}

/// What a client saw of one session.
struct Session {
    work: Work,
    /// When it was seen that the work began.
    begun: Instant,
    /// When each event of the log came, from then on.
    events: Vec<Instant>,
}

impl Session {
    /// When the next event after the signal came; `None` if the session was through before.
    fn next_after(&self, signal: Instant) -> Option<Instant> {
        self.events.iter().copied().find(|came| *came > signal)
    }
}

async fn round(ground: &Ground, end: End, count: usize) -> anyhow::Result<Round> {
    let server = ground.start_api().await?;
    let first = ground.start_brain().await?;
    let (tell, mut begun) = mpsc::unbounded_channel();
    let mut watching = JoinSet::new();
    for (number, session) in sessions(&server.client, end, count).await?.into_iter().enumerate() {
        let work = if number % 2 == 0 { Work::Model } else { Work::Tool };
        let (client, tell) = (server.client.clone(), tell.clone());
        watching.spawn(async move { watch(&client, &session, work, &tell).await });
    }
    drop(tell);
    for _ in 0..count {
        if begun.recv().await.is_none() {
            break;
        }
    }
    // Only now, so that the first drives all of them.
    let second = ground.start_brain().await?;
    tokio::time::sleep(SETTLE).await;

    let signal = Instant::now();
    let mut left = vec![second];
    let mut drained = None;
    match end {
        End::Nothing => left.push(first),
        End::Kill => first.kill().await?,
        End::Drain => {
            first.stop().await?;
            drained = Some(signal.elapsed());
        }
    }
    let mut sessions = Vec::new();
    while let Some(watched) = watching.join_next().await {
        sessions.push(watched??);
    }
    for brain in left {
        brain.stop().await?;
    }
    server.stop().await?;
    ensure!(
        sessions.iter().all(|session| session.begun < signal),
        "this machine is too slow: the work of some sessions began too late"
    );
    Ok(Round { end, sessions, signal, drained })
}

/// Makes idle sessions, those with even numbers for the model and the others for a command.
async fn sessions(client: &Client, end: End, count: usize) -> anyhow::Result<Vec<String>> {
    // Their names must differ, also from those of an earlier run on the same database.
    let name = format!("bench {} {end:?}", std::process::id());
    let environment = client.create_environment(json!({"name": name})).await?;
    let mut agents = Vec::new();
    for work in [Work::Model, Work::Tool] {
        let tools = json!([{"type": "agent_toolset_20260401"}]);
        let body = json!({"name": "bench", "model": work.model(), "tools": tools});
        agents.push(client.create_agent(body).await?.id);
    }
    let mut sessions = Vec::with_capacity(count);
    while sessions.len() < count {
        let numbers = sessions.len()..count.min(sessions.len() + AT_ONCE);
        let mut making = JoinSet::new();
        for number in numbers {
            let client = client.clone();
            let body = json!({"agent": agents[number % 2], "environment_id": environment.id});
            making.spawn(
                async move { Ok::<_, client::Error>((number, client.create_session(body).await?.id)) },
            );
        }
        let mut made = making.join_all().await.into_iter().collect::<Result<Vec<_>, _>>()?;
        made.sort_by_key(|(number, _)| *number);
        sessions.extend(made.into_iter().map(|(_, id)| id.to_string()));
    }
    Ok(sessions)
}

/// Sends a message, tells when the work has begun, and follows the session to its rest.
async fn watch(
    client: &Client,
    session: &str,
    work: Work,
    tell: &mpsc::UnboundedSender<()>,
) -> anyhow::Result<Session> {
    let mut stream = client.stream(session, None, &[]).await?;
    client.send_message(session, "Go on.").await?;
    let mut begun = None;
    let mut events = Vec::new();
    loop {
        let item = stream.next().await?.context("the stream ended before the session")?;
        let Item::Event { position: Some(_), event } = item else { continue };
        let now = Instant::now();
        if begun.is_some() {
            events.push(now);
        } else if work.is_begun_by(&event.body) {
            begun = Some(now);
            // Nobody listens once the bench has failed elsewhere.
            let _ = tell.send(());
        }
        match event.body {
            Body::StatusIdle { .. } => break,
            Body::Error { error } => bail!("a session failed: {}", error.message),
            Body::AgentToolResult { is_error: true, content, .. } => bail!("a command failed: {content:?}"),
            _ => {}
        }
    }
    let begun = begun.context("a session rests and has not worked")?;
    Ok(Session { work, begun, events })
}

impl Round {
    fn of(&self, work: Option<Work>) -> impl Iterator<Item = (&Session, Instant)> {
        let sessions =
            self.sessions.iter().filter(move |session| work.is_none_or(|work| session.work == work));
        sessions.filter_map(|session| Some((session, session.next_after(self.signal)?)))
    }

    /// From the signal to the next event, seconds.
    fn waits(&self, work: Option<Work>) -> Samples {
        Samples::of(self.of(work).map(|(_, next)| next.duration_since(self.signal).as_secs_f64()))
    }

    /// From when the work was on record to the next event, seconds.
    fn works(&self, work: Option<Work>) -> Samples {
        Samples::of(self.of(work).map(|(session, next)| next.duration_since(session.begun).as_secs_f64()))
    }
}

fn table(rounds: &[Round]) -> Table {
    let title = "The next event of sessions that are in the middle of their work, seconds";
    let columns = [
        ("end", "to the brain happens"),
        ("work", "sessions wait for"),
        ("sessions", "sessions"),
        ("p50_s", "from the signal, p50"),
        ("p99_s", "p99"),
        ("max_s", "longest"),
        ("work_p50_s", "from the work's beginning, p50"),
        ("work_p99_s", "p99"),
    ];
    let mut table = Table::new("next_event", title, columns);
    for round in rounds {
        for work in [Some(Work::Model), Some(Work::Tool), None] {
            let (waits, works) = (round.waits(work), round.works(work));
            table.row([
                round.end.name().into(),
                work.map_or("either", Work::name).into(),
                waits.len().into(),
                waits.p50().into(),
                waits.p99().into(),
                waits.percentile(100.0).into(),
                works.p50().into(),
                works.p99().into(),
            ]);
        }
    }
    table
}

fn aims(rounds: &[Round]) -> Vec<Aim> {
    let undisturbed = |work| {
        let round = rounds.iter().find(|round| round.end == End::Nothing);
        round.map_or(0.0, |round| round.works(Some(work)).p99())
    };
    let mut aims = Vec::new();
    for round in rounds {
        match round.end {
            End::Nothing => {}
            End::Kill => aims.push(Aim {
                what: "kill -9: from the signal to the next event, p99".to_owned(),
                bound: Bound::AtMost((store::LEASE + Duration::from_secs(1)).as_secs_f64()),
                measured: round.waits(None).p99(),
                unit: "s",
            }),
            End::Drain => aims.extend([Work::Model, Work::Tool].map(|work| Aim {
                what: format!("drain: {} later than undisturbed, p99", work.name()),
                bound: Bound::AtMost(1.0),
                measured: round.works(Some(work)).p99() - undisturbed(work),
                unit: "s",
            })),
        }
    }
    aims
}
