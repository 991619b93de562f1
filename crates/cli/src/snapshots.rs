//! What is kept of sandboxes that nobody uses: where, how long and how much.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use blobs::Blobs;
use clap::Args;
use serde::Deserialize;

/// Saved workspaces.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Saved workspaces (docs/configuration.md)")]
pub(crate) struct SnapshotOptions {
    /// Where saved workspaces are kept: a folder, or s3://bucket/prefix with the usual AWS_… variables.
    /// [default: blobs in the data directory]
    #[arg(long, env = "POSTHOUSE_BLOBS", value_name = "ADDRESS")]
    blobs: Option<String>,

    /// A sandbox that nobody has used for so long is saved and destroyed; the next call restores it. 0: never.
    /// [default: 600]
    #[arg(long, env = "POSTHOUSE_SANDBOX_IDLE", value_name = "SECONDS")]
    sandbox_idle: Option<f64>,

    /// How long a saved workspace is kept, from when the workspace was begun. [default: 30]
    #[arg(long, env = "POSTHOUSE_SNAPSHOT_DAYS", value_name = "DAYS")]
    snapshot_days: Option<f64>,

    /// The most that one session's saved workspace may take; the sandbox of a larger one is not put away.
    /// [default: 2147483648]
    #[arg(long, env = "POSTHOUSE_SNAPSHOT_SESSION_BYTES", value_name = "BYTES")]
    snapshot_session_bytes: Option<u64>,

    /// The most that all saved workspaces may take together; beyond it the oldest are dropped. [default: 107374182400]
    #[arg(long, env = "POSTHOUSE_SNAPSHOT_TOTAL_BYTES", value_name = "BYTES")]
    snapshot_total_bytes: Option<u64>,
}

/// The table `[snapshots]` of the file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct SnapshotTable {
    idle: Option<f64>,
    days: Option<f64>,
    session_bytes: Option<u64>,
    total_bytes: Option<u64>,
}

/// What a server does with idle sandboxes.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotSettings {
    blobs: String,
    /// `None`: none is put away.
    pub(crate) idle: Option<Duration>,
    pub(crate) keep: Duration,
    pub(crate) session_bytes_max: u64,
    pub(crate) total_bytes_max: u64,
    pub(crate) scratch: PathBuf,
}

const DEFAULT_IDLE: Duration = Duration::from_secs(600);
const DAY: f64 = 86_400.0;
const DEFAULT_DAYS: f64 = 30.0;
/// As much as a sandbox may write.
const DEFAULT_SESSION_BYTES: u64 = 2 << 30;
/// What a disk of today has to spare.
const DEFAULT_TOTAL_BYTES: u64 = 100 << 30;
/// Longer than anything lasts, and short enough to be added to a time.
const SECONDS_MAX: f64 = 100.0 * 365.0 * DAY;

impl SnapshotOptions {
    pub(crate) fn over(
        self,
        file: SnapshotTable,
        blobs: Option<String>,
        data_dir: &Path,
    ) -> anyhow::Result<SnapshotSettings> {
        let seconds = |name: &str, given: Option<f64>| match given {
            Some(seconds) => {
                ensure!((0.0..=SECONDS_MAX).contains(&seconds), "{name} must be from 0 to a hundred years");
                Ok(Some(Duration::from_secs_f64(seconds)))
            }
            None => Ok(None),
        };
        let idle = seconds("--sandbox-idle", self.sandbox_idle.or(file.idle))?.unwrap_or(DEFAULT_IDLE);
        let days = self.snapshot_days.or(file.days).unwrap_or(DEFAULT_DAYS);
        let blobs = match self.blobs.or(blobs).filter(|address| !address.trim().is_empty()) {
            // Relative to where the command was started, like the data directory.
            Some(address) if !address.contains("://") => std::path::absolute(&address)
                .with_context(|| format!("the folder {address} cannot be used"))?
                .to_string_lossy()
                .into_owned(),
            Some(address) => address,
            None => data_dir.join("blobs").to_string_lossy().into_owned(),
        };
        Ok(SnapshotSettings {
            blobs,
            idle: (!idle.is_zero()).then_some(idle),
            keep: seconds("--snapshot-days", Some(days * DAY))?.unwrap_or_default(),
            session_bytes_max: self
                .snapshot_session_bytes
                .or(file.session_bytes)
                .unwrap_or(DEFAULT_SESSION_BYTES),
            total_bytes_max: self.snapshot_total_bytes.or(file.total_bytes).unwrap_or(DEFAULT_TOTAL_BYTES),
            scratch: data_dir.join("snapshots"),
        })
    }
}

impl SnapshotSettings {
    /// Opens the place for saved workspaces. A bucket is not asked for until it is needed.
    pub(crate) fn open(&self) -> anyhow::Result<Blobs> {
        Blobs::at(&self.blobs, std::env::vars().filter(|(name, _)| name.starts_with("AWS_")))
            .context("saved workspaces cannot be kept there: choose another place with --blobs")
    }
}
