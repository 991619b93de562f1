//! The limit: what the disk gives a program that appends a kilobyte to a growing file and waits until it is durable.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use super::appends::Appended;
use super::load::EVENT_BYTES;

/// The file; it grows over all turns.
pub(super) struct GrowingFile(File);

impl GrowingFile {
    pub(super) fn make(path: &Path) -> anyhow::Result<Self> {
        let file = File::create(path)?;
        // The folder's entry is on the disk before anything is timed.
        file.sync_all()?;
        Ok(Self(file))
    }

    /// Appends and syncs, one after the other, for that long. On a thread of its own, as the store's writer has.
    pub(super) async fn append(&self, time: Duration) -> anyhow::Result<Appended> {
        let mut file = self.0.try_clone()?;
        tokio::task::spawn_blocking(move || {
            let event = [b'x'; EVENT_BYTES];
            let mut times = Vec::new();
            let began = Instant::now();
            while began.elapsed() < time {
                let asked = Instant::now();
                file.write_all(&event)?;
                file.sync_data()?;
                times.push(asked.elapsed());
            }
            Ok(Appended { events: times.len(), elapsed: began.elapsed(), times })
        })
        .await?
    }
}
