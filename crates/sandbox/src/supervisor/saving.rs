//! Saving one sandbox: a child of the supervisor writes the snapshot, while the loop goes on.
//!
//! ```text
//! Moving ──▶ Pausing ──▶ Packing ──▶ Still ──▶ (destroyed, or used again)
//!    ▲──────────┴───────────┴──────────┘
//! ```
//!
//! A half-written file does not stay: a [`Sheet`] removes it when it is dropped, unless a snapshot was [`Packing::finish`]ed
//! well.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use tools::archive::freight::{Mark, Receiver};

use super::cargo;
use super::keeper::Waiter;
use crate::archive::{self, Written};
use crate::namespaces::child::GO;
use crate::namespaces::profile::Profile;
use crate::namespaces::start::{Launched, OnlyThread, Process, launch, map_ids};
use crate::namespaces::{snapshot, sys};
use crate::provider::Error;

/// Saving is not waited for longer. The largest sandbox is some gigabytes in memory, and a slow disk takes 20 MB in a second.
pub(super) const SAVE_TIME_MAX: Duration = Duration::from_secs(300);

/// Of what a container sends.
const BUFFER_BYTES: usize = 256 << 10;

/// Whether a sandbox's processes run.
pub(super) enum Stillness {
    /// They do.
    Moving,
    /// They have been asked to stop.
    Pausing(Sheet),
    /// They stand still, and their files are being written down.
    Packing(Packing),
    /// They stand still, and a snapshot has everything.
    Still,
}

/// The new file for a snapshot, and who waits for it. Removed when dropped.
pub(super) struct Sheet {
    pub(super) waiter: Waiter,
    path: PathBuf,
    file: File,
    begun: Instant,
    keep: bool,
}

impl Sheet {
    /// Makes the file; one that is there already is not touched.
    pub(super) fn open(waiter: Waiter, path: &Path, now: Instant) -> Result<Self, Error> {
        if !path.is_absolute() {
            return Err(Error::refused("a snapshot's file needs an absolute path"));
        }
        let made = File::options().write(true).create_new(true).mode(0o600).open(path);
        let file = made.map_err(|error| Error::unavailable(format!("the snapshot's file: {error}")))?;
        Ok(Self { waiter, path: path.to_owned(), file, begun: now, keep: false })
    }

    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        now > self.begun + SAVE_TIME_MAX
    }
}

impl Drop for Sheet {
    fn drop(&mut self) {
        if !self.keep {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A snapshot that is being written.
pub(super) struct Packing {
    pub(super) sheet: Sheet,
    process: Process,
    /// Brings the outcome, when the process ends.
    sync: UnixStream,
}

/// What the packer says at its end.
#[derive(Serialize, Deserialize)]
enum Outcome {
    Saved(Written),
    Failed(String),
}

impl Packing {
    /// Starts the packer, with the ids of the sandbox's own user namespace: they alone may read everything.
    pub(super) fn start(
        only: &OnlyThread,
        profile: &Profile,
        slot: u32,
        stage: &OwnedFd,
        sheet: Sheet,
    ) -> Result<Self, Error> {
        let groups = profile.ids.groups();
        let inside = |sync: UnixStream| pack(&sync, stage, &sheet.file, groups);
        let started = launch(only, libc::CLONE_NEWUSER, None, inside).and_then(|mut launched| {
            map_ids(launched.pid, profile.ids, slot)?;
            let let_go = launched.sync.write_all(&[GO]).and_then(|()| launched.sync.set_nonblocking(true));
            let_go
                .map_err(|source| crate::namespaces::child::Failure { step: "start the packer", source })?;
            Ok(launched)
        });
        match started {
            Ok(Launched { pid: _, process, sync }) => Ok(Self { sheet, process, sync }),
            Err(failure) => Err(Error::unavailable(failure)),
        }
    }

    /// Starts the packer of a container, which writes down what the container sends: as an ordinary user, because it needs
    /// nothing but the line and the file.
    pub(super) fn start_receiving(
        only: &OnlyThread,
        line: &UnixStream,
        mark: Mark,
        bytes_max: u64,
        sheet: Sheet,
    ) -> Result<Self, Error> {
        let inside = |sync: UnixStream| {
            conclude(&sync, || {
                cargo::give_up_everything_but(&[line.as_raw_fd(), sheet.file.as_raw_fd(), sync.as_raw_fd()])?;
                let mut receiver = Receiver::new(BufReader::with_capacity(BUFFER_BYTES, line), bytes_max);
                receiver.skip_to(&mark)?;
                archive::receive(receiver, &sheet.file).map_err(io::Error::other)
            });
        };
        match launch(only, 0, None, inside) {
            Ok(Launched { pid: _, process, sync }) => Ok(Self { sheet, process, sync }),
            Err(failure) => Err(Error::unavailable(failure)),
        }
    }

    /// Readable when the packer has ended.
    pub(super) fn descriptor(&self) -> &OwnedFd {
        self.process.descriptor()
    }

    /// Kills the packer and removes the file. The process is on its way out.
    pub(super) fn abandon(self) -> Process {
        self.process.kill();
        self.process
    }

    /// How it went, and who wants to know. The packer has ended.
    pub(super) fn finish(mut self) -> (Waiter, Result<Written, Error>) {
        let mut said = Vec::new();
        // It ends where the packer has not written.
        let _ = self.sync.read_to_end(&mut said);
        let saved = match serde_json::from_slice(&said) {
            Ok(Outcome::Saved(saved)) => Ok(saved),
            Ok(Outcome::Failed(why)) => Err(Error::unavailable(format!("saving failed: {why}"))),
            Err(_) => Err(Error::unavailable("saving failed: the packer was killed")),
        };
        self.sheet.keep = saved.is_ok();
        (self.sheet.waiter, saved)
    }
}

/// What the packer does, from its birth on.
fn pack(mut sync: &UnixStream, stage: &OwnedFd, into: &File, groups: sys::ClearGroups) {
    let mut go = [0];
    if sync.read_exact(&mut go).is_err() {
        return;
    }
    conclude(sync, || {
        // Or the files of sandboxes that end meanwhile would stay until this has.
        sys::close_all_but(&[sync.as_raw_fd(), stage.as_raw_fd(), into.as_raw_fd()])?;
        sys::become_namespace_root(groups)?;
        sys::die_with_parent()?;
        snapshot::pack(stage, into).map_err(io::Error::other)
    });
}

/// Does a packer's work, and says how it went.
fn conclude(mut sync: &UnixStream, work: impl FnOnce() -> io::Result<Written>) {
    let attempt = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    let outcome = match attempt {
        Ok(Ok(saved)) => Outcome::Saved(saved),
        Ok(Err(error)) => Outcome::Failed(error.to_string()),
        Err(_) => Outcome::Failed("the packer panicked".to_owned()),
    };
    let _ = sync.write_all(&serde_json::to_vec(&outcome).unwrap_or_default());
}
