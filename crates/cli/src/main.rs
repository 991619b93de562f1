//! The one binary: it reads arguments, environment and files, wires the crates together, and shows what happens.
//!
//! Nothing else in the project reads the environment or prints. What a subcommand does is in the module of its name.

mod args;
mod bench;
mod client_options;
mod connect;
mod database;
mod demo;
mod descriptors;
mod doctor;
mod exits;
mod git;
mod hands;
mod images;
mod keys;
mod load;
mod network;
mod out;
mod render;
mod run;
mod saved;
mod serve;
mod server;
mod sessions;
mod settings;
mod snapshots;
mod vaults;

use std::process::ExitCode;

use clap::Parser as _;

use crate::args::{Args, Command};

/// What shells show for a program that ended because nobody read its output: 128 and SIGPIPE.
const CLOSED: u8 = 141;

fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = match args.command {
        // The supervisor stays small: it gets neither the runtime nor anything else.
        Command::Supervisor(options) => return sandbox::supervisor::main(options.arguments),
        Command::Serve(options) => on_runtime(serve::serve(options)),
        Command::Run(options) => on_runtime(run::run(options)),
        Command::Sessions(options) => on_runtime(sessions::sessions(options)),
        Command::Snapshots(options) => on_runtime(saved::saved(options)),
        Command::Keys(options) => on_runtime(keys::keys(options)),
        Command::Vaults(options) => on_runtime(vaults::vaults(options)),
        Command::Images(options) => on_runtime(images::images(options)),
        Command::Database(options) => on_runtime(database::database(options)),
        Command::Doctor(options) => on_runtime(doctor::doctor(options)),
        Command::Bench(options) => bench::bench(options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<out::Closed>() => ExitCode::from(CLOSED),
        Err(error) => {
            // The chain reads from what was attempted to why it failed.
            out::remark(&format!("posthouse: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn on_runtime(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    harness::model::install_crypto();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(work);
    // Who ended in order has left nothing behind; who was told to end at once does not wait for threads.
    runtime.shutdown_background();
    outcome
}
