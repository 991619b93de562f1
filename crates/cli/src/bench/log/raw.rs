//! The limit: what the disk gives a program that appends a kilobyte to a growing file and waits until it is durable.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::appends::Appended;
use super::load::EVENT_BYTES;

/// The file; it grows over all turns.
pub(super) struct GrowingFile {
    file: File,
    /// The store's database, of which it moves pages into place while nobody waits.
    database: PathBuf,
}

impl GrowingFile {
    pub(super) fn make(path: &Path, database: PathBuf) -> anyhow::Result<Self> {
        let file = File::create(path)?;
        // The folder's entry is on the disk before anything is timed.
        file.sync_all()?;
        Ok(Self { file, database })
    }

    /// Appends and syncs, one after the other, for that long. On a thread of its own, as the store's writer has. First
    /// waits for what the store has left to be written, which would otherwise slow the disk's own turn.
    pub(super) async fn append(&self, time: Duration) -> anyhow::Result<Appended> {
        let mut file = self.file.try_clone()?;
        let database = File::open(&self.database)?;
        tokio::task::spawn_blocking(move || {
            database.sync_all()?;
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
