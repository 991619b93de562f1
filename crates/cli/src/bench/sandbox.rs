//! `posthouse bench sandbox`: sandboxes beside the least that a sandbox of namespaces can cost.
//!
//! The limit is a process that is cloned into the same new namespaces, runs a static program and is collected. It has
//! no root file system, no limits, no filters and nobody to talk to. Sandbox and bare clone take turns.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use egress::{Guard, PrivateHosts};
use sandbox::bench::Bare;
use sandbox::supervisor::{Capacity, Settings, Supervised};
use sandbox::{Call, Network, Provider, Resources, SandboxId};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::machine::Machine;
use super::place::Place;
use super::progress::Progress;
use super::report::{Aim, Bound, Report, Table};
use super::room::{self, Handed};
use super::samples::Samples;
use super::{Common, runtime, saved};
use crate::exits::{self, Rules};

/// Provisioning, executing and memory of sandboxes, beside bare namespaces.
#[derive(Args, Debug)]
pub(crate) struct SandboxOptions {
    #[command(flatten)]
    pub(super) common: Common,
    /// How many sandboxes are provisioned one after the other. [default: 300; 30 with --quick]
    #[arg(long, value_name = "N")]
    provisions: Option<usize>,
    /// How many sandboxes lie idle at once. [default: 100; 10 with --quick]
    #[arg(long, value_name = "N")]
    idle: Option<usize>,
    /// How many sandboxes are tried to have at once. [default: 2000; 40 with --quick]
    #[arg(long, value_name = "N")]
    most: Option<usize>,
}

/// The fence of all calls: there is one lease holder, this bench.
pub(super) const FENCE: u64 = 1;
/// How long the supervisor outlives a bench that was killed.
const ORPHAN: Duration = Duration::from_secs(5);
/// Between two starts. The kernel takes a dead sandbox's network apart after it is gone, and a server seldom
/// provisions the next at that moment.
pub(super) const PAUSE: Duration = Duration::from_millis(20);

pub(super) fn measure(options: &SandboxOptions) -> anyhow::Result<Report> {
    let place = Place::make(&options.common)?;
    let machine = Machine::look(place.path());
    runtime()?.block_on(async {
        let hands = Arc::new(installing(&place.join("data")));
        let stop = CancellationToken::new();
        let guard = Guard::new(private_hosts()?, []);
        let exits =
            tokio::spawn(exits::serve(hands.clone(), Arc::new(guard), None, Rules::default(), stop.clone()));
        let measured = tokio::select! {
            report = all(options, &hands, place.path(), machine) => report,
            _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
        };
        let ended = hands.end().await;
        stop.cancel();
        exits.await?;
        let report = measured?;
        ended?;
        Ok(report)
    })
}

/// The same whose sandboxes may install packages from the public registries.
fn installing(data: &Path) -> Supervised {
    let policy =
        egress::Policy::Limited { allowed_hosts: vec![], mcp_hosts: vec![], allow_package_managers: true };
    let registries = Network(egress::Grant { session: None, policy }.to_text());
    Supervised::new(Settings { registries: Some(registries), ..bench_settings(data) })
}

/// What the operator allows although it is not public, such as a mirror of the registries.
fn private_hosts() -> anyhow::Result<PrivateHosts> {
    let text = std::env::var("POSTHOUSE_ALLOW_PRIVATE_HOSTS").unwrap_or_default();
    text.parse().context("POSTHOUSE_ALLOW_PRIVATE_HOSTS cannot be used")
}

/// Hands whose supervisor does not outlive the bench by much.
pub(super) fn supervised(data: &Path) -> Supervised {
    Supervised::new(bench_settings(data))
}

fn bench_settings(data: &Path) -> Settings {
    // Where there is no room it is said at once: waiting is no figure.
    let capacity = Capacity { waiting_max: 0, ..Capacity::default() };
    Settings { idle_exit: ORPHAN, capacity, ..Settings::new(data) }
}

async fn all(
    options: &SandboxOptions,
    hands: &Arc<Supervised>,
    folder: &Path,
    machine: Machine,
) -> anyhow::Result<Report> {
    let quick = options.common.quick;
    let provisions = options.provisions.unwrap_or(if quick { 30 } else { 300 }).max(1);
    let idle = options.idle.unwrap_or(if quick { 10 } else { 100 }).max(1);
    let most = options.most.unwrap_or(if quick { 40 } else { 2_000 }).max(1);
    let progress = Progress::new(6);
    // Starts the supervisor, which probes the machine: once for each server, not for each sandbox.
    let guards = hands.report().await?;

    progress.step("provisioning");
    let provisioned = provision(hands, provisions).await?;
    progress.step("layers and snapshots");
    let more = saved::starts(hands, folder, provisions.div_ceil(3), quick).await?;
    progress.step("executing");
    let executed = execute(hands, provisions * 3).await?;
    progress.step("idle sandboxes");
    let memory = memory(hands, idle).await?;
    progress.step("pools");
    let handed = room::hand_out(hands, provisions, if quick { 1 } else { 10 }).await?;
    progress.step("how many fit");
    let fit = room::fit(hands, most).await?;
    drop(progress);

    let bare = provisioned.bare.p50();
    let aims = vec![
        Aim {
            what: "provision against the bare clone, p50".to_owned(),
            bound: Bound::AtMost(2.5),
            measured: provisioned.provision.p50() / bare,
            unit: "times",
        },
        Aim {
            what: "provision until the first output of a tool against the bare clone, p50".to_owned(),
            bound: Bound::AtMost(4.0),
            measured: provisioned.glob.p50() / bare,
            unit: "times",
        },
        Aim {
            what: "provision until the first output of bash against the bare clone, p50".to_owned(),
            bound: Bound::AtMost(4.0),
            measured: provisioned.bash.p50() / bare,
            unit: "times",
        },
        Aim {
            what: "provision from a pool, p50".to_owned(),
            bound: Bound::Below(5.0),
            measured: handed.provision.p50(),
            unit: "ms",
        },
        Aim {
            what: "restore of a workspace of 10 MB, p50".to_owned(),
            bound: Bound::Below(100.0),
            measured: more.restore_small_p50(),
            unit: "ms",
        },
        Aim {
            what: "execute in a live sandbox (bash), p50".to_owned(),
            bound: Bound::Below(1.0),
            measured: executed.bash.p50(),
            unit: "ms",
        },
    ];
    let mut notes = more.notes.clone();
    if memory.0.iter().any(|held| held.by_groups.is_none()) {
        notes.push("No control group counts memory here; only the machine's own count is shown.".to_owned());
    }
    Ok(Report {
        bench: "sandbox",
        machine,
        settings: vec![
            ("provisions", json!(provisions)),
            ("idle_sandboxes", json!(idle)),
            ("most_at_once", json!(most)),
            ("pause_ms", json!(PAUSE.as_millis() as u64)),
            ("guards", json!(guards.level.to_string())),
            ("quick", json!(quick)),
        ],
        tables: vec![
            starts_table(&provisioned, &handed),
            more.table(&provisioned.bare),
            more.saves_table(),
            handed.bursts_table(),
            executes_table(&executed),
            memory.table(idle),
            fit.table(),
        ],
        aims,
        notes,
    })
}

/// Starts, in turns.
struct Provisioned {
    bare: Samples,
    /// Until the provider says that the sandbox lives.
    provision: Samples,
    /// Until the output of a tool that starts no program is there.
    glob: Samples,
    /// Until the output of a first `echo` is there: a shell has started, too.
    bash: Samples,
}

async fn provision(hands: &Supervised, count: usize) -> anyhow::Result<Provisioned> {
    let bare = Arc::new(Bare::new()?);
    let (mut bares, mut provisions, mut globs, mut bashes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for number in 0..count {
        tokio::time::sleep(PAUSE).await;
        let cloner = Arc::clone(&bare);
        bares.push(tokio::task::spawn_blocking(move || cloner.clone_exec()).await??);
        for (outputs, call) in [(&mut globs, Tool::Glob), (&mut bashes, Tool::Bash)] {
            tokio::time::sleep(PAUSE).await;
            let id = sandbox_id(&format!("start-{call:?}-{number}"));
            let asked = Instant::now();
            hands.provision(&id, FENCE, &Resources::default()).await?;
            provisions.push(asked.elapsed());
            run(hands, &id, "first", call).await?;
            outputs.push(asked.elapsed());
            hands.destroy(&id).await?;
        }
    }
    Ok(Provisioned {
        bare: bares.into_iter().collect(),
        provision: provisions.into_iter().collect(),
        glob: globs.into_iter().collect(),
        bash: bashes.into_iter().collect(),
    })
}

/// What is run in a sandbox.
#[derive(Clone, Copy, Debug)]
pub(super) enum Tool {
    /// Done by process 1 itself.
    Glob,
    /// Done by a shell.
    Bash,
    /// Done by a program that the shell starts.
    Program,
    /// Does something that takes memory and goes on.
    Work,
}

impl Tool {
    fn call(self) -> (&'static str, Value) {
        match self {
            Self::Glob => ("glob", json!({"pattern": "*"})),
            Self::Bash => ("bash", json!({"command": "echo hi"})),
            Self::Program => ("bash", json!({"command": "/bin/true; echo hi"})),
            Self::Work => ("bash", json!({"command": "head -c 1M /dev/urandom > file; sleep 600 & echo hi"})),
        }
    }
}

pub(super) async fn run(hands: &Supervised, id: &SandboxId, call_id: &str, tool: Tool) -> anyhow::Result<()> {
    let (name, input) = tool.call();
    let call = Call {
        sandbox: id.clone(),
        call_id: call_id.to_owned(),
        fence: FENCE,
        name: name.to_owned(),
        input,
        timeout: Duration::from_secs(30),
    };
    let output = hands.execute(call).await?;
    anyhow::ensure!(!output.is_error, "a call of {name} failed: {output:?}");
    Ok(())
}

pub(super) fn sandbox_id(text: &str) -> SandboxId {
    SandboxId::parse(text).expect("letters, digits and hyphens")
}

/// Calls in one sandbox that lives.
struct Executed {
    glob: Samples,
    bash: Samples,
    program: Samples,
}

async fn execute(hands: &Supervised, count: usize) -> anyhow::Result<Executed> {
    let id = sandbox_id("live");
    hands.provision(&id, FENCE, &Resources::default()).await?;
    // The shell starts with the first call and stays.
    run(hands, &id, "warm", Tool::Bash).await?;
    let mut times = [const { Vec::new() }; 3];
    for number in 0..count {
        for (index, tool) in [Tool::Glob, Tool::Bash, Tool::Program].into_iter().enumerate() {
            let call_id = format!("{tool:?}-{number}");
            let asked = Instant::now();
            run(hands, &id, &call_id, tool).await?;
            times[index].push(asked.elapsed());
        }
    }
    hands.destroy(&id).await?;
    let [glob, bash, program] = times.map(Samples::from_iter);
    Ok(Executed { glob, bash, program })
}

/// What idle and busy sandboxes hold.
struct Memory(Vec<Held>);

/// What each sandbox holds in one state.
struct Held {
    what: &'static str,
    /// As its control group counts it, KiB.
    by_groups: Option<Samples>,
    /// What the machine has less, KiB: an upper bound that counts whatever else happened.
    by_machine: f64,
}

async fn memory(hands: &Supervised, count: usize) -> anyhow::Result<Memory> {
    let ids: Vec<SandboxId> = (0..count).map(|number| sandbox_id(&format!("idle-{number}"))).collect();
    let before = available_kib();
    for id in &ids {
        hands.provision(id, FENCE, &Resources::default()).await?;
    }
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    let hold = async |what| {
        let by_groups = used_kib(hands).await?;
        let by_machine = (before - available_kib()) as f64 / count as f64;
        anyhow::Ok(Held { what, by_groups, by_machine })
    };
    let mut held = vec![hold("idle: provisioned").await?];
    let calls = [
        ("idle: with its shell", Tool::Bash),
        ("busy: 1 MiB of files, a program in the background", Tool::Work),
    ];
    for (what, tool) in calls {
        for id in &ids {
            run(hands, id, what, tool).await?;
        }
        held.push(hold(what).await?);
    }
    for id in &ids {
        hands.destroy(id).await?;
    }
    Ok(Memory(held))
}

/// What each live sandbox's control group counts; `None` where nothing counts.
async fn used_kib(hands: &Supervised) -> anyhow::Result<Option<Samples>> {
    let counted: Option<Vec<u64>> = hands.list().await?.into_iter().map(|info| info.memory_bytes).collect();
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    let kib = |bytes: u64| bytes as f64 / 1024.0;
    Ok(counted.map(|bytes| Samples::of(bytes.into_iter().map(kib))))
}

pub(super) fn available_kib() -> i64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    line.and_then(|rest| rest.trim().split(' ').next()?.parse().ok()).unwrap_or_default()
}

fn starts_table(provisioned: &Provisioned, handed: &Handed) -> Table {
    let title = "Starting one, in turns with the bare clone";
    let columns = [
        ("what", "what"),
        ("p50_ms", "p50 ms"),
        ("p95_ms", "p95 ms"),
        ("p99_ms", "p99 ms"),
        ("of_bare_p50", ": bare, p50"),
        ("of_bare_p95", ": bare, p95"),
    ];
    let mut table = Table::new("provision", title, columns);
    let Provisioned { bare, provision, glob, bash } = provisioned;
    for (what, times) in [
        ("bare clone with the same namespaces, exec, collected", bare),
        ("provision: the sandbox lives", provision),
        ("provision, first output of glob", glob),
        ("provision, first output of bash (a shell starts)", bash),
        ("from a pool: the sandbox lives", &handed.provision),
        ("from a pool, first output of glob", &handed.glob),
        ("from a pool, first output of bash", &handed.bash),
    ] {
        table.row([
            what.into(),
            times.p50().into(),
            times.p95().into(),
            times.p99().into(),
            (times.p50() / bare.p50()).into(),
            (times.p95() / bare.p95()).into(),
        ]);
    }
    table
}

fn executes_table(executed: &Executed) -> Table {
    let title = "Executing in a live one, one call after the other";
    let columns = [("what", "what"), ("p50_ms", "p50 ms"), ("p95_ms", "p95 ms"), ("p99_ms", "p99 ms")];
    let mut table = Table::new("execute", title, columns);
    let Executed { glob, bash, program } = executed;
    for (what, times) in [("glob", glob), ("bash: echo", bash), ("bash: a program and echo", program)] {
        table.row([what.into(), times.p50().into(), times.p95().into(), times.p99().into()]);
    }
    table
}

impl Memory {
    fn table(&self, count: usize) -> Table {
        let title = format!("Memory of each, {count} at once");
        let columns = [
            ("what", "what"),
            ("group_kib_p50", "control group KiB, p50"),
            ("group_kib_p99", "p99"),
            ("machine_kib", "MemAvailable KiB each"),
        ];
        let mut table = Table::new("memory", title, columns);
        for Held { what, by_groups, by_machine } in &self.0 {
            let groups = by_groups.as_ref();
            table.row([
                (*what).into(),
                groups.map(Samples::p50).into(),
                groups.map(Samples::p99).into(),
                (*by_machine).into(),
            ]);
        }
        table
    }
}
