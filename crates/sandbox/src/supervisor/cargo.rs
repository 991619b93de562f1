//! What travels on a container's second line, seen from the host: snapshots in ([`Feeding`]) and out
//! ([`super::saving::Packing`]).
//!
//! Each is the work of a child, so that the loop goes on. A snapshot may be anybody's forgery and what a container sends is
//! whatever it likes, so such a child is left with two or three descriptors and the rights of nobody.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use rustix::process::{chdir, chroot, geteuid};
use rustix::thread::{Gid, Uid, set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use tools::archive::freight::{Sender, Word};

use crate::archive;
use crate::namespaces::start::{Launched, OnlyThread, Process, launch};
use crate::namespaces::sys;
use crate::provider::{Error, Limits};

/// Whom nothing belongs to.
const NOBODY: u32 = 65_534;
/// Of an expanded snapshot.
const BUFFER_BYTES: usize = 256 << 10;

/// As much as an archive of a sandbox with these limits may hold: its files, and as much again for their names, owners and
/// times, of which the longest take half of what a file takes at least.
pub(super) fn bytes_max(limits: &Limits) -> u64 {
    limits.disk_bytes.saturating_mul(2).saturating_add(1 << 20)
}

/// A snapshot on its way into a container. Ended with this.
pub(super) struct Feeding {
    _process: Process,
}

impl Feeding {
    /// Starts sending. Whoever receives it is told how it ends.
    pub(super) fn start(only: &OnlyThread, snapshot: &File, line: &UnixStream) -> Result<Self, Error> {
        let inside = |_sync: UnixStream| {
            let attempt = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                give_up_everything_but(&[snapshot.as_raw_fd(), line.as_raw_fd()])?;
                let mut stream = BufWriter::with_capacity(BUFFER_BYTES, Sender(line));
                archive::send(snapshot, &mut stream).map_err(io::Error::other)?;
                stream.flush()
            }));
            let word = match attempt {
                Ok(Ok(())) => Word::Whole { entries: 0, bytes: 0, left_out: 0 },
                Ok(Err(error)) => Word::Broken(error.to_string()),
                Err(_) => Word::Broken("whoever read the snapshot panicked".to_owned()),
            };
            let _ = Sender(line).finish(&word);
        };
        let launched = launch(only, 0, None, inside).map_err(Error::unavailable)?;
        let Launched { pid: _, process, sync: _ } = launched;
        Ok(Self { _process: process })
    }
}

/// What a child does first: from here on it has these descriptors and nothing else.
pub(super) fn give_up_everything_but(kept: &[RawFd]) -> io::Result<()> {
    // Whoever waits for an answer comes first.
    let _ = rustix::process::nice(19);
    sys::close_all_but(kept)?;
    if geteuid().is_root() {
        // The supervisor's own folder: empty, or a sandbox's would be in it.
        chroot(".")?;
        chdir("/")?;
        set_thread_groups(&[])?;
        let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
        set_thread_res_gid(group, group, group)?;
        set_thread_res_uid(user, user, user)?;
    }
    sys::no_new_privileges()?;
    sys::die_with_parent()
}
