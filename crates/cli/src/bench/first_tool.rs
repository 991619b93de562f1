//! `posthouse bench first-tool`: how long a client waits for the first result of a tool, under each policy.
//!
//! The same seeded sessions are played in each case, in turns, over real HTTP, against a server wired as `serve` wires
//! it. Each says a few words, runs one small command, and answers. Cases:
//!
//! - *lazy*, *speculative*, *pool*: as built, the sandbox at the first call, while the model thinks, or from a pool.
//! - *coupled*: a sandbox is made before the message is sent, as a container-first design does; the call then finds one
//!   that was made ahead. What making it first took is counted.
//!
//! With a model that takes no time nothing can be made while it thinks: that round shows what speculation costs.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, bail};
use clap::Args;
use client::{Item, Stream};
use protocol::event::{Body, Preview, PreviewKind};
use protocol::id::SessionId;
use sandbox::{Provider as _, Resources};
use serde_json::json;

use super::first_token::signed;
use super::machine::Machine;
use super::place::Place;
use super::progress::Progress;
use super::report::{Aim, Bound, Report, Table};
use super::room::until_ready;
use super::samples::{Samples, millis};
use super::sandbox::{FENCE, PAUSE, sandbox_id};
use super::ttft::all_at_once;
use super::ttft::model::{ModelLatency, Plan, models};
use super::ttft::served::Served;
use super::{Common, runtime};

/// The time from a message to the first result of a tool, under each policy.
#[derive(Args, Debug)]
pub(crate) struct FirstToolOptions {
    #[command(flatten)]
    pub(super) common: Common,
    /// Sessions in each case. [default: 25; 4 with --quick]
    #[arg(long, value_name = "N")]
    sessions: Option<usize>,
    /// Sessions at once. Most of the time they wait for their model.
    #[arg(long, default_value_t = 5, value_name = "N")]
    concurrency: usize,
    /// The model's time to its first token: median and 95th percentile of a lognormal distribution in milliseconds. A
    /// round with a model that takes no time is played besides.
    #[arg(long, default_value = "600,1800", value_name = "LATENCY")]
    model_latency: ModelLatency,
}

/// When the sandbox is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    Lazy,
    Speculative,
    Pool,
    Coupled,
}

impl Case {
    const ALL: [Self; 4] = [Self::Lazy, Self::Speculative, Self::Pool, Self::Coupled];

    fn name(self) -> &'static str {
        match self {
            Self::Lazy => "lazy",
            Self::Speculative => "speculative",
            Self::Pool => "pool",
            Self::Coupled => "coupled: a sandbox first",
        }
    }

    fn policy(self) -> &'static str {
        match self {
            Self::Lazy => "lazy",
            Self::Speculative | Self::Coupled => "speculative",
            Self::Pool => "pool",
        }
    }
}

/// Kept ready, for each session at once: one that is taken, one that may be on its way, and some for the refill's rest.
const POOL_FOR_EACH: usize = 4;

/// One session, in milliseconds.
#[derive(Clone, Copy, Debug)]
struct Timing {
    /// From acceptance to the first token, with what was made before.
    first_token: f64,
    /// From acceptance to the first result, with what was made before.
    result: f64,
    /// From the call to its result, as the client sees both.
    call: f64,
}

pub(super) fn measure(options: &FirstToolOptions) -> anyhow::Result<Report> {
    let place = Place::make(&options.common)?;
    let machine = Machine::look(place.path());
    runtime()?.block_on(async {
        tokio::select! {
            report = all(options, &place, machine) => report,
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        }
    })
}

async fn all(options: &FirstToolOptions, place: &Place, machine: Machine) -> anyhow::Result<Report> {
    let sessions = options.sessions.unwrap_or(if options.common.quick { 4 } else { 25 }).max(1);
    let latencies = [("no-time", ModelLatency::Zero), ("as-stated", options.model_latency)];
    let progress = Progress::new(latencies.len() * sessions * Case::ALL.len());
    let mut rounds = Vec::new();
    for (name, latency) in latencies {
        let played = round(&place.join(name), options, latency, sessions, &progress).await?;
        rounds.push((latency, played));
    }
    drop(progress);
    Ok(Report {
        bench: "first-tool",
        machine,
        settings: vec![
            ("seed", json!(options.common.seed)),
            ("model_latency", json!(options.model_latency.to_string())),
            ("sessions", json!(sessions)),
            ("concurrency", json!(options.concurrency)),
            ("quick", json!(options.common.quick)),
        ],
        tables: vec![table(&rounds)],
        aims: aims(&rounds),
        notes: vec![
            "The coupled case's call runs in a sandbox that lives, as any later call does.".to_owned(),
        ],
    })
}

/// The timings of each case.
type Played = Vec<(Case, Vec<Timing>)>;

async fn round(
    data: &std::path::Path,
    options: &FirstToolOptions,
    latency: ModelLatency,
    sessions: usize,
    progress: &Progress,
) -> anyhow::Result<Played> {
    let seed = options.common.seed;
    let served = Served::start(data, models(latency, seed)?, Resources::default()).await?;
    let served = Arc::new(served);
    served.hands.report().await?;
    let concurrency = options.concurrency.clamp(1, 16);
    let size = concurrency * POOL_FOR_EACH;
    let mut environments = Vec::new();
    for case in Case::ALL {
        let mut metadata = json!({"posthouse.policy": case.policy()});
        if case == Case::Pool {
            metadata["posthouse.pool_size"] = json!(size.to_string());
        }
        let body = json!({"name": case.name(), "metadata": metadata});
        environments.push(served.client.create_environment(body).await?.id.to_string());
    }
    until_ready(&served.hands, size).await?;
    let timings = all_at_once(sessions * Case::ALL.len(), concurrency, |number| {
        let (number, index) = (number / Case::ALL.len(), number % Case::ALL.len());
        progress.step(format!("a model that takes {latency}"));
        let (served, environment) = (Arc::clone(&served), environments[index].clone());
        let text =
            format!("Session {number} of seed {seed}: look into the matter and tell me what you find.");
        async move { play(&served, Case::ALL[index], &environment, &text).await }
    })
    .await?;
    let served = Arc::into_inner(served).context("every session has ended")?;
    served.stop().await?;
    let of = |index: usize| timings.iter().skip(index).step_by(Case::ALL.len()).copied().collect();
    Ok(Case::ALL.into_iter().enumerate().map(|(index, case)| (case, of(index))).collect())
}

async fn play(served: &Served, case: Case, environment: &str, text: &str) -> anyhow::Result<Timing> {
    let session: SessionId = served.session_in(Plan::SmallTool, environment).await?;
    let stream = served.client.stream(session.as_str(), None, &[PreviewKind::Message]).await?;
    let watching = tokio::spawn(watch(stream));
    tokio::time::sleep(PAUSE).await;
    let begun = Instant::now();
    let before = match case {
        Case::Coupled => {
            let id = sandbox_id(&format!("coupled_{session}"));
            served.hands.provision(&id, FENCE, &Resources::default()).await?;
            Some(id)
        }
        Case::Lazy | Case::Speculative | Case::Pool => None,
    };
    let set_up = before.as_ref().map_or(0.0, |_| millis(begun.elapsed()));
    served.client.send_message(session.as_str(), text).await?;
    let accepted = Instant::now();
    let Seen { token, call, result } = watching.await??;
    served.forget(&session).await?;
    if let Some(id) = before {
        served.hands.destroy(&id).await?;
    }
    Ok(Timing {
        first_token: set_up + signed(accepted, token),
        result: set_up + signed(accepted, result),
        call: signed(call, result),
    })
}

/// When the client saw what.
struct Seen {
    token: Instant,
    call: Instant,
    result: Instant,
}

async fn watch(mut stream: Stream) -> anyhow::Result<Seen> {
    let (mut token, mut call, mut result) = (None, None, None);
    while let Some(item) = stream.next().await? {
        let now = Instant::now();
        match item {
            Item::Preview(Preview::EventDelta { .. }) => drop(token.get_or_insert(now)),
            Item::Preview(Preview::EventStart { .. }) => {}
            Item::Event { position: _, event } => match event.body {
                Body::AgentToolUse { .. } => drop(call.get_or_insert(now)),
                Body::AgentToolResult { is_error: true, content, .. } => bail!("a call failed: {content:?}"),
                Body::AgentToolResult { .. } => drop(result.get_or_insert(now)),
                Body::Error { error } => bail!("the session failed: {}", error.message),
                Body::StatusIdle { .. } => {
                    let missing = "the session ended without it";
                    return Ok(Seen {
                        token: token.context(missing)?,
                        call: call.context(missing)?,
                        result: result.context(missing)?,
                    });
                }
                _ => {}
            },
        }
    }
    bail!("the stream ended before the session")
}

fn table(rounds: &[(ModelLatency, Played)]) -> Table {
    let title = "To the first token and to the first result of a tool, from acceptance";
    let columns = [
        ("model", "model"),
        ("case", "case"),
        ("sessions", "sessions"),
        ("first_token_p50_ms", "token, p50 ms"),
        ("first_token_p95_ms", "p95 ms"),
        ("result_p50_ms", "result, p50 ms"),
        ("result_p95_ms", "p95 ms"),
        ("call_p50_ms", "call to result, p50 ms"),
        ("call_p95_ms", "p95 ms"),
        ("call_p99_ms", "p99 ms"),
    ];
    let mut table = Table::new("first_tool", title, columns);
    for (latency, played) in rounds {
        for (case, timings) in played {
            let of = |figure: fn(&Timing) -> f64| Samples::of(timings.iter().map(figure));
            let (token, result, call) = (of(|one| one.first_token), of(|one| one.result), of(|one| one.call));
            table.row([
                latency.to_string().into(),
                case.name().into(),
                timings.len().into(),
                token.p50().into(),
                token.p95().into(),
                result.p50().into(),
                result.p95().into(),
                call.p50().into(),
                call.p95().into(),
                call.p99().into(),
            ]);
        }
    }
    table
}

fn aims(rounds: &[(ModelLatency, Played)]) -> Vec<Aim> {
    let p50 = |played: &Played, case: Case, figure: fn(&Timing) -> f64| {
        let timings = played.iter().find(|(known, _)| *known == case).map(|(_, timings)| timings);
        Samples::of(timings.into_iter().flatten().map(figure)).p50()
    };
    let mut aims = Vec::new();
    for (latency, played) in rounds {
        let token = |case| p50(played, case, |one| one.first_token);
        let call = |case| p50(played, case, |one| one.call);
        aims.push(Aim {
            what: format!("first token, speculative against lazy, p50; model: {latency}"),
            bound: Bound::AtMost(1.05),
            measured: token(Case::Speculative) / token(Case::Lazy),
            unit: "times",
        });
        if *latency != ModelLatency::Zero {
            aims.push(Aim {
                what: format!("call to result, speculative against coupled, p50; model: {latency}"),
                bound: Bound::AtMost(1.1),
                measured: call(Case::Speculative) / call(Case::Coupled),
                unit: "times",
            });
        }
    }
    aims
}
