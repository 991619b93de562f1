//! `posthouse bench`: measuring this machine, and Posthouse on it.
//!
//! Every figure stands beside a limit or a rival that was measured in the same run: machines differ and are noisy,
//! ratios travel. What is missed is printed like what is met. What each figure stands for is in docs/benchmarks.md.
//!
//! - [`brains`]: turns a second with one and more processes, and what a turn costs; beside one process on SQLite.
//! - [`density`]: many idle sessions and open streams on one server; beside an empty one.
//! - [`failover`]: how long sessions stand still when their brain ends; beside the lease's length.
//! - [`first_tool`]: the time to the first result of a tool under each policy; beside a design that has its container first.
//! - [`git`]: a session's repository cold and kept, and requests through the exit; beside git itself.
//! - [`log`]: durable appends, slices, subscribers, reopening; beside the disk's own synced appends.
//! - [`mcp`]: a call of an MCP server's tool; beside a bare connection to the same server.
//! - [`sandbox`]: provisioning, executing, memory, and with [`room`] pools and how many fit; beside a bare process in the
//!   same namespaces.
//! - [`ttft`]: the time to the first token; beside the bare model, and beside a design that has its container first.
//! - [`vault`]: opening a secret; beside the bare cipher.
//! - [`wake`]: from claiming a session to asking its model; beside reading the same events and sending the same bytes.
//!
//! In common: [`samples`] (percentiles), [`machine`] (what it was measured on), [`report`] (table and JSON),
//! [`progress`], [`place`] (where a bench works), [`history`] (sessions with a past), [`child`] (a server in a process of
//! its own), [`first_token`] (a turn seen from outside).

mod brains;
mod child;
mod density;
mod failover;
mod first_token;
mod first_tool;
mod git;
mod history;
mod log;
mod machine;
mod mcp;
mod place;
mod progress;
mod report;
mod room;
mod samples;
mod sandbox;
mod saved;
mod ttft;
mod vault;
mod wake;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use report::Report;

/// Measure this machine, and Posthouse on it.
#[derive(Args, Debug)]
pub(crate) struct BenchOptions {
    #[command(subcommand)]
    which: Which,
}

#[derive(Debug, Subcommand)]
enum Which {
    /// The time from a message to the first token, with and without a sandbox before it.
    Ttft(ttft::TtftOptions),
    FirstTool(first_tool::FirstToolOptions),
    /// Durable appends, slices, subscribers and reopening, beside the raw disk.
    Log(log::LogOptions),
    /// Provisioning, executing and memory of sandboxes, beside bare namespaces.
    Sandbox(sandbox::SandboxOptions),
    Density(density::DensityOptions),
    Git(git::GitOptions),
    Wake(wake::WakeOptions),
    Vault(vault::VaultOptions),
    Brains(brains::BrainsOptions),
    Failover(failover::FailoverOptions),
    Mcp(mcp::McpOptions),
    /// One process of a fleet. Started by `bench brains`.
    #[command(hide = true)]
    Member(brains::member::MemberOptions),
    /// Fills a store until it is killed. Started by `bench log`.
    #[command(hide = true)]
    Fill(log::fill::FillOptions),
}

/// What all benches have in common.
#[derive(Args, Clone, Debug)]
pub(crate) struct Common {
    /// Print one JSON object instead of tables.
    #[arg(long)]
    json: bool,
    /// A small run of a few seconds: shows that everything works, not how fast it is.
    #[arg(long)]
    quick: bool,
    /// Varies the load; the same seed makes the same load.
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// Where to work, in a folder that is removed afterwards: on the disk that is to be measured.
    /// [default: /var/tmp]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Runs a bench and prints what came out.
pub(crate) fn bench(options: BenchOptions) -> anyhow::Result<()> {
    if cfg!(debug_assertions) {
        eprintln!("posthouse: this is a debug build; its figures say nothing. Build with --release.");
    }
    let (report, json) = match options.which {
        Which::Ttft(options) => (ttft::measure(&options)?, options.common.json),
        Which::FirstTool(options) => (first_tool::measure(&options)?, options.common.json),
        Which::Log(options) => (log::measure(&options)?, options.common.json),
        Which::Sandbox(options) => (sandbox::measure(&options)?, options.common.json),
        Which::Density(options) => (density::measure(&options)?, options.common.json),
        Which::Git(options) => (git::measure(&options)?, options.common.json),
        Which::Wake(options) => (wake::measure(&options)?, options.common.json),
        Which::Vault(options) => (vault::measure(&options)?, options.common.json),
        Which::Brains(options) => (brains::measure(&options)?, options.common.json),
        Which::Failover(options) => (failover::measure(&options)?, options.common.json),
        Which::Mcp(options) => (mcp::measure(&options)?, options.common.json),
        Which::Member(options) => return brains::member::member(&options),
        Which::Fill(options) => return log::fill::fill(&options),
    };
    print(&report, json)
}

fn print(report: &Report, json: bool) -> anyhow::Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(&report.to_json())?);
    } else {
        println!("{report}");
    }
    Ok(())
}

/// The runtime that a server has, too.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    harness::model::install_crypto();
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}
