//! Moves the write-ahead log into the database, off the writer's thread.
//!
//! The log is never truncated, only begun anew once all of it has been moved and nobody reads it: its file is then
//! overwritten in place, which syncs in half the time of a file that grows. How long it may get also bounds how much
//! is read when the database is opened after a crash.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use rusqlite::Connection;

use crate::sqlite::connect;
use crate::sqlite::fault::Fault;

/// Pages in the log from which on the other thread moves them: 32 MiB.
const PAGES: u64 = 4_096;
/// Pages from which on the writer lends a hand. Under steady load the other thread never catches up entirely, and
/// only then does the log begin anew.
const PAGES_MAX: u64 = 3 * PAGES;
/// Pages by which the log has grown before either tries again.
const STEP: u64 = PAGES / 4;

/// The writer's hold on the thread that checkpoints.
pub(crate) struct Checkpointer {
    length: Arc<AtomicU64>,
    /// The length at which each is to act next.
    next: u64,
    next_own: u64,
    wake: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Checkpointer {
    /// Starts the thread, and watches the length of the writer's log.
    pub(crate) fn start(path: &Path, writer: &mut Connection) -> Result<Self, Fault> {
        let length = Arc::new(AtomicU64::new(0));
        let seen = length.clone();
        writer.wal_hook(Some(move |_: &mut rusqlite::hooks::Wal, pages| {
            seen.store(u64::try_from(pages).unwrap_or_default(), Ordering::Relaxed);
            Ok(())
        }))?;
        let conn = connect::writer(path)?;
        // One pending wake-up is as good as many.
        let (wake, woken) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("checkpoint".to_owned())
            .spawn(move || run(&conn, &woken))
            .expect("a thread can be started");
        Ok(Self { length, next: PAGES, next_own: PAGES_MAX, wake: Some(wake), thread: Some(thread) })
    }

    /// After each commit: sees to it that the log is moved in time.
    pub(crate) fn after_commit(&mut self, writer: &Connection) {
        let length = self.length.load(Ordering::Relaxed);
        if length < PAGES {
            (self.next, self.next_own) = (PAGES, PAGES_MAX);
            return;
        }
        if length >= self.next {
            self.next = length + STEP;
            // Full: it is awake already. Gone: the writer is at its end, too.
            let _ = self.wake.as_ref().expect("kept until the end").try_send(());
        }
        if length >= self.next_own {
            self.next_own = length + STEP;
            checkpoint(writer);
        }
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        drop(self.wake.take());
        if let Some(thread) = self.thread.take() {
            // It panicked: nothing more to save.
            let _ = thread.join();
        }
    }
}

fn run(conn: &Connection, woken: &Receiver<()>) {
    while woken.recv().is_ok() {
        checkpoint(conn);
    }
}

fn checkpoint(conn: &Connection) {
    // Passive: waits for nobody and moves what it can.
    let result = conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
    if let Err(error) = result {
        // The log grows meanwhile; the next one tries again.
        tracing::warn!(error = %error, "the write-ahead log could not be moved into the database");
    }
}
