//! `posthouse doctor`: which guards the machine's sandboxes hold.

use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use sandbox::Settings;

use crate::hands::Hands;
use crate::out;
use crate::settings::{PlaceOptions, SandboxOptions, ServerOptions};

/// Say what this machine's sandboxes can hold off.
#[derive(Args, Debug)]
pub(crate) struct DoctorOptions {
    /// Print JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    place: PlaceOptions,

    #[command(flatten)]
    sandbox: SandboxOptions,
}

pub(crate) async fn doctor(options: DoctorOptions) -> anyhow::Result<()> {
    let DoctorOptions { json, place, sandbox } = options;
    let chosen = ServerOptions { place, sandbox, ..ServerOptions::default() }.settle_quiet()?.sandboxes;
    // A supervisor of its own, so that what is reported is what a server started now would get; it ends at once.
    let dir = std::env::temp_dir().join(format!("posthouse-doctor-{}", std::process::id()));
    let settings = Settings { idle_exit: Duration::ZERO, ..Settings::new(&dir) };
    let report = Hands::kept_by(settings, &chosen).report().await;
    let _ = std::fs::remove_dir_all(&dir);
    let report = report.context("the machine could not be examined")?;
    if json {
        out::line(&serde_json::to_string_pretty(&report)?)?;
    } else {
        out::line(&report.to_string())?;
    }
    Ok(())
}
