//! The command line.

use clap::{Parser, Subcommand};

use crate::bench::BenchOptions;
use crate::database::DatabaseOptions;
use crate::doctor::DoctorOptions;
use crate::images::ImagesOptions;
use crate::keys::KeysOptions;
use crate::run::RunOptions;
use crate::saved::SavedOptions;
use crate::serve::ServeOptions;
use crate::sessions::SessionsOptions;
use crate::vaults::VaultsOptions;

#[derive(Debug, Parser)]
#[command(
    version,
    about = "A self-hosted managed-agents server: durable sessions, stateless brains, replaceable sandboxes.",
    after_help = "Try it:  posthouse run \"count the lines of every file in /etc and write a report\"\n\
                  With no model configured, `run` plays a scripted demonstration.",
    max_term_width = 100
)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the server until it is told to stop.
    Serve(ServeOptions),
    /// Give an agent a task and watch it work. Starts a server of its own if none is named.
    Run(RunOptions),
    /// Look at sessions of a running server, and speak to them.
    Sessions(SessionsOptions),
    /// Look at saved workspaces of a running server's sessions, and save one.
    Snapshots(SavedOptions),
    /// Make, list and revoke API keys.
    Keys(KeysOptions),
    /// Make, fill and empty vaults, and change the key that seals them.
    #[command(visible_alias = "vault")]
    Vaults(VaultsOptions),
    /// Make, list and remove images for sandboxes.
    Images(ImagesOptions),
    /// Look after the database: its format, and whether what it holds fits together.
    Database(DatabaseOptions),
    /// Say what this machine's sandboxes can hold off, and what to do about what they cannot.
    Doctor(DoctorOptions),
    /// Measure this machine: time to first token, the log, sandboxes.
    Bench(BenchOptions),
    /// Keeps the sandboxes of one data directory. Started by the server.
    #[command(hide = true)]
    Supervisor(SupervisorOptions),
}

/// What the server tells the supervisor that it starts.
#[derive(Debug, clap::Args)]
pub(crate) struct SupervisorOptions {
    /// The arguments as the sandbox crate gave them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) arguments: Vec<std::ffi::OsString>,
}
