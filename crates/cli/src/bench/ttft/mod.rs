//! `posthouse bench ttft`: how long a client waits for the first token.
//!
//! The same seeded sessions are played in each case, over real HTTP, against a server wired as `serve` wires it; half
//! of them never use a tool. A session waits for its scripted model as long in one case as in any other. Cases:
//!
//! - *bare model*: the model asked with nothing in between. What it takes is nobody's merit or fault.
//! - *decoupled*: as built, under the policy `lazy`. The model is asked at once; a sandbox is provisioned at the first call
//!   of a tool.
//! - *coupled*: everything that a container-first design does before it asks the model is done first: (a) the default
//!   sandbox, (b) the default sandbox and the set-up of a real task in it.
//!
//! In case (b) the decoupled sessions that use a tool set up the same task, in their first call.

pub(super) mod model;
mod play;
pub(super) mod served;
mod task;

use std::sync::Arc;

use clap::Args;
use sandbox::{Mount, Resources};
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use self::model::{ModelLatency, Plan, ask_bare, models};
use self::play::{Before, Timing, play, try_set_up};
use self::served::Served;
use super::machine::Machine;
use super::place::Place;
use super::progress::Progress;
use super::report::{Aim, Bound, Report, Table};
use super::samples::{Samples, millis};
use super::{Common, runtime};

/// The time from a message to the first token, with and without a sandbox before it.
#[derive(Args, Debug)]
pub(crate) struct TtftOptions {
    #[command(flatten)]
    pub(super) common: Common,
    /// Sessions in each case. [default: 40; 6 with --quick]
    #[arg(long, value_name = "N")]
    sessions: Option<usize>,
    /// Sessions at once. A smaller round with one at a time is played besides.
    #[arg(long, default_value_t = 4, value_name = "N")]
    concurrency: usize,
    /// The model's time to its first token: `zero`, or median and 95th percentile of a lognormal distribution in
    /// milliseconds.
    #[arg(long, default_value = "600,1800", value_name = "LATENCY")]
    model_latency: ModelLatency,
    /// The size of the repository that case (b) clones, in MB. [default: 50; 10 with --quick]
    #[arg(long, value_name = "MB")]
    repository_mb: Option<usize>,
}

/// How much is played.
struct Amount {
    sessions: usize,
    /// Of those, in case (b), which takes the longest.
    task_sessions: usize,
    /// One at a time.
    alone: usize,
    /// With a model that takes no time.
    at_once: usize,
    repository_bytes: usize,
}

impl TtftOptions {
    fn amount(&self) -> Amount {
        let quick = self.common.quick;
        let sessions = self.sessions.unwrap_or(if quick { 6 } else { 40 }).max(2);
        Amount {
            sessions,
            task_sessions: if quick { 2 } else { sessions },
            alone: if quick { 0 } else { sessions.div_ceil(4).max(2) },
            at_once: if quick { 100 } else { 1_000 },
            repository_bytes: self.repository_mb.unwrap_or(if quick { 10 } else { 50 }) * 1_000_000,
        }
    }
}

pub(super) fn measure(options: &TtftOptions) -> anyhow::Result<Report> {
    let place = Place::make(&options.common)?;
    let machine = Machine::look(place.path());
    runtime()?.block_on(async {
        tokio::select! {
            report = all(options, &place, machine) => report,
            _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
        }
    })
}

async fn all(options: &TtftOptions, place: &Place, machine: Machine) -> anyhow::Result<Report> {
    let amount = options.amount();
    let seed = options.common.seed;
    let rounds: Vec<(usize, usize)> = [(1, amount.alone), (options.concurrency.max(1), amount.sessions)]
        .into_iter()
        .filter(|(_, sessions)| *sessions > 0)
        .collect();
    let progress = Progress::new(2 + 5 * rounds.len());
    let mut notes = Vec::new();

    progress.step("making the repository");
    let (mount, pack_bytes) = match repository(place, amount.repository_bytes, seed).await {
        Ok((mount, pack_bytes)) => (Some(mount), Some(pack_bytes)),
        Err(error) => {
            notes.push(format!("Case (b) is left out: {error:#}."));
            (None, None)
        }
    };
    let resources = Resources { mounts: mount.iter().cloned().collect(), ..Resources::default() };
    let served = Served::start(&place.join("data"), models(options.model_latency, seed)?, resources).await?;
    let served = Arc::new(served);
    // Starts the supervisor, which a server does once.
    served.hands.report().await?;
    let task = match mount {
        Some(mount) => match try_set_up(&served, &mount).await {
            Ok(()) => Some(Before::Task { mount }),
            Err(error) => {
                notes.push(format!("Case (b) is left out: {error:#}."));
                None
            }
        },
        None => None,
    };

    progress.step("a model that takes no time");
    let mut overheads = Vec::new();
    for concurrency in [1, options.concurrency.max(1)] {
        let case = Case { plans: [Plan::TalkAtOnce; 2], before: Before::Nothing };
        // Connections are open and statements prepared, as in any server that has run for a second.
        run_case(&served, &case, amount.at_once / 10, concurrency, seed).await?;
        let timings = run_case(&served, &case, amount.at_once, concurrency, seed).await?;
        overheads.push(Overhead { concurrency, timings });
    }
    let mut played = Vec::new();
    for (concurrency, sessions) in rounds {
        let sessions = (sessions, sessions.min(amount.task_sessions));
        played.push(round(&served, task.as_ref(), concurrency, sessions, seed, &progress).await?);
    }
    drop(progress);
    let served = Arc::into_inner(served).expect("every session has ended");
    served.stop().await?;

    if pack_bytes.is_some() {
        let python = "Case (b) runs `git clone` and `python3 -m venv`, with pip, inside the sandbox.";
        notes.push(python.to_owned());
    }
    Ok(Report {
        bench: "ttft",
        machine,
        settings: vec![
            ("seed", json!(seed)),
            ("model_latency", json!(options.model_latency.to_string())),
            ("repository_bytes", json!(amount.repository_bytes)),
            ("repository_pack_bytes", json!(pack_bytes)),
            ("quick", json!(options.common.quick)),
        ],
        tables: vec![overhead_table(&overheads, &played), cases_table(&played), reductions_table(&played)],
        aims: aims(&overheads, &played),
        notes,
    })
}

/// Makes the repository off the runtime's threads.
async fn repository(place: &Place, size_bytes: usize, seed: u64) -> anyhow::Result<(Mount, u64)> {
    let at = place.join("repository");
    let host = at.clone();
    let pack_bytes = tokio::task::spawn_blocking(move || {
        std::fs::create_dir_all(&at)?;
        task::make_repository(&at, size_bytes, seed)
    })
    .await??;
    Ok((play::mount(host), pack_bytes))
}

/// What is played.
struct Case {
    /// Of sessions with even numbers, and with odd ones.
    plans: [Plan; 2],
    before: Before,
}

/// All cases with the same sessions.
struct Round {
    concurrency: usize,
    bare: Vec<f64>,
    small: Pair,
    task: Option<Pair>,
}

/// The same work, decoupled and coupled.
struct Pair {
    decoupled: Vec<Timing>,
    coupled: Vec<Timing>,
}

struct Overhead {
    concurrency: usize,
    timings: Vec<Timing>,
}

async fn round(
    served: &Arc<Served>,
    task: Option<&Before>,
    concurrency: usize,
    (sessions, task_sessions): (usize, usize),
    seed: u64,
    progress: &Progress,
) -> anyhow::Result<Round> {
    let small = [Plan::Talk, Plan::SmallTool];
    progress.step(format!("the bare model, {concurrency} at once"));
    let bare = run_bare(served, small, sessions, concurrency, seed).await?;
    let play = async |what: &str, sessions: usize, plans: [Plan; 2], before: &Before| {
        progress.step(format!("{what}, {concurrency} at once"));
        let case = Case { plans, before: before.clone() };
        run_case(served, &case, sessions, concurrency, seed).await
    };
    let small = Pair {
        decoupled: play("(a) decoupled", sessions, small, &Before::Nothing).await?,
        coupled: play("(a) coupled", sessions, small, &Before::Sandbox).await?,
    };
    let task = match task {
        Some(before) => Some(Pair {
            decoupled: play("(b) decoupled", task_sessions, [Plan::Talk, Plan::TaskTool], &Before::Nothing)
                .await?,
            // Its task is set up before; what is left for its tool is as small as in case (a).
            coupled: play("(b) coupled", task_sessions, [Plan::Talk, Plan::SmallTool], before).await?,
        }),
        None => None,
    };
    Ok(Round { concurrency, bare, small, task })
}

/// What session `number` says: the model's latency is drawn from it.
fn text(number: usize, seed: u64) -> String {
    format!("Session {number} of seed {seed}: look into the matter and tell me what you find.")
}

/// Plays the sessions, so many at once; gives their timings in the order of their numbers.
async fn run_case(
    served: &Arc<Served>,
    case: &Case,
    sessions: usize,
    concurrency: usize,
    seed: u64,
) -> anyhow::Result<Vec<Timing>> {
    all_at_once(sessions, concurrency, |number| {
        let (served, before, plan) = (Arc::clone(served), case.before.clone(), case.plans[number % 2]);
        async move { play(&served, plan, &text(number, seed), &before).await }
    })
    .await
}

async fn run_bare(
    served: &Arc<Served>,
    plans: [Plan; 2],
    sessions: usize,
    concurrency: usize,
    seed: u64,
) -> anyhow::Result<Vec<f64>> {
    all_at_once(sessions, concurrency, |number| {
        let (models, plan) = (Arc::clone(&served.models), plans[number % 2]);
        async move { Ok(millis(ask_bare(&models, plan, &text(number, seed)).await?)) }
    })
    .await
}

/// Runs the work of each number, so many at once; gives what came out in the order of the numbers.
pub(super) async fn all_at_once<T, Work>(
    count: usize,
    concurrency: usize,
    work: impl Fn(usize) -> Work,
) -> anyhow::Result<Vec<T>>
where
    T: Send + 'static,
    Work: Future<Output = anyhow::Result<T>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(concurrency));
    let mut running = JoinSet::new();
    for number in 0..count {
        let place = Arc::clone(&places).acquire_owned().await?;
        let work = work(number);
        running.spawn(async move {
            let done = work.await;
            drop(place);
            done.map(|done| (number, done))
        });
    }
    let mut done = Vec::with_capacity(count);
    while let Some(finished) = running.join_next().await {
        done.push(finished??);
    }
    done.sort_by_key(|(number, _)| *number);
    Ok(done.into_iter().map(|(_, done)| done).collect())
}

fn first_tokens(timings: &[Timing]) -> Samples {
    Samples::of(timings.iter().map(Timing::first_token))
}

/// What each session waited beyond its model, session by session.
fn beyond_model(timings: &[Timing], bare: &[f64]) -> Samples {
    Samples::of(timings.iter().zip(bare).map(|(timing, bare)| timing.first_token() - bare))
}

fn overhead_table(overheads: &[Overhead], rounds: &[Round]) -> Table {
    let title = "Our own: what the client waits beyond the model";
    let columns = [
        ("model", "model"),
        ("from", "from"),
        ("concurrency", "at once"),
        ("sessions", "sessions"),
        ("p50_ms", "p50 ms"),
        ("p95_ms", "p95 ms"),
        ("p99_ms", "p99 ms"),
    ];
    let mut table = Table::new("overhead", title, columns);
    let mut row = |model: &str, from: &str, concurrency: usize, times: &Samples| {
        table.row([
            model.into(),
            from.into(),
            concurrency.into(),
            times.len().into(),
            times.p50().into(),
            times.p95().into(),
            times.p99().into(),
        ]);
    };
    for Overhead { concurrency, timings } in overheads {
        row("takes no time", "acceptance", *concurrency, &first_tokens(timings));
        let sent = Samples::of(timings.iter().map(|timing| timing.after_sending));
        row("takes no time", "beginning of the POST", *concurrency, &sent);
    }
    for Round { concurrency, bare, small, task: _ } in rounds {
        let beyond = beyond_model(&small.decoupled, bare);
        row("as stated, session by session", "acceptance", *concurrency, &beyond);
    }
    table
}

fn cases_table(rounds: &[Round]) -> Table {
    let title = "Time to first token, from acceptance";
    let columns = [
        ("case", "case"),
        ("concurrency", "at once"),
        ("sessions", "sessions"),
        ("p50_ms", "p50 ms"),
        ("p95_ms", "p95 ms"),
        ("p99_ms", "p99 ms"),
        ("set_up_p50_ms", "of it set-up, p50 ms"),
    ];
    let mut table = Table::new("first_token", title, columns);
    for Round { concurrency, bare, small, task } in rounds {
        let mut row = |case: &str, times: &Samples, set_up: Option<f64>| {
            table.row([
                case.into(),
                (*concurrency).into(),
                times.len().into(),
                times.p50().into(),
                times.p95().into(),
                times.p99().into(),
                set_up.into(),
            ]);
        };
        row("the bare model", &Samples::of(bare.iter().copied()), None);
        for (name, pair) in [("(a) a small tool", Some(small)), ("(b) a real task", task.as_ref())] {
            let Some(Pair { decoupled, coupled }) = pair else { continue };
            let set_up = Samples::of(coupled.iter().map(|timing| timing.set_up));
            row(&format!("{name}, decoupled"), &first_tokens(decoupled), None);
            row(&format!("{name}, coupled"), &first_tokens(coupled), Some(set_up.p50()));
        }
    }
    table
}

/// What decoupling takes away, of a hundred.
struct Reduction {
    p50: f64,
    p95: f64,
    /// The same for what is not the model's, session by session.
    beyond_model_p50: f64,
    beyond_model_p95: f64,
}

impl Reduction {
    fn of(pair: &Pair, bare: &[f64]) -> Self {
        let (decoupled, coupled) = (first_tokens(&pair.decoupled), first_tokens(&pair.coupled));
        let (ours, theirs) = (beyond_model(&pair.decoupled, bare), beyond_model(&pair.coupled, bare));
        let percent = |less: f64, more: f64| (1.0 - less / more) * 100.0;
        Self {
            p50: percent(decoupled.p50(), coupled.p50()),
            p95: percent(decoupled.p95(), coupled.p95()),
            beyond_model_p50: percent(ours.p50(), theirs.p50()),
            beyond_model_p95: percent(ours.p95(), theirs.p95()),
        }
    }
}

fn reductions_table(rounds: &[Round]) -> Table {
    let title = "What decoupling takes away from the time to first token, percent";
    let columns = [
        ("case", "case"),
        ("concurrency", "at once"),
        ("p50_percent", "p50"),
        ("p95_percent", "p95"),
        ("beyond_model_p50_percent", "beyond the model, p50"),
        ("beyond_model_p95_percent", "beyond the model, p95"),
    ];
    let mut table = Table::new("reductions", title, columns);
    for Round { concurrency, bare, small, task } in rounds {
        for (name, pair) in
            [("(a) the default sandbox", Some(small)), ("(b) and the task's set-up", task.as_ref())]
        {
            let Some(pair) = pair else { continue };
            let Reduction { p50, p95, beyond_model_p50, beyond_model_p95 } = Reduction::of(pair, bare);
            table.row([
                name.into(),
                (*concurrency).into(),
                p50.into(),
                p95.into(),
                beyond_model_p50.into(),
                beyond_model_p95.into(),
            ]);
        }
    }
    table
}

fn aims(overheads: &[Overhead], rounds: &[Round]) -> Vec<Aim> {
    let mut aims = Vec::new();
    for Overhead { concurrency, timings } in overheads {
        let times = first_tokens(timings);
        for (percentile, limit, measured) in [("p50", 3.0, times.p50()), ("p99", 15.0, times.p99())] {
            let what = format!("our own overhead, {concurrency} at once, {percentile}");
            aims.push(Aim { what, bound: Bound::Below(limit), measured, unit: "ms" });
        }
    }
    for Round { concurrency, bare, small: _, task } in rounds {
        let Some(pair) = task else { continue };
        let reduction = Reduction::of(pair, bare);
        for (percentile, least, measured) in [("p50", 60.0, reduction.p50), ("p95", 90.0, reduction.p95)] {
            let what = format!("case (b), {concurrency} at once, reduction at {percentile}");
            aims.push(Aim { what, bound: Bound::AtLeast(least), measured, unit: "%" });
        }
    }
    aims
}
