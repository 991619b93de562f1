//! The processes below this one: learning of their ends, stopping and killing them all.
//!
//! `tools` starts shells and nothing else, and every orphan becomes its child: as process 1, or else as
//! a sub-reaper. So "all descendants" and "everything the shell ever started" are the same set, whatever
//! left its session, its process group or its parent. One thread calls this module; a process id it
//! holds is therefore valid until that thread has reaped it.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, Signal, WaitOptions, WaitStatus, getpid, kill_process, set_child_subreaper, wait,
};

use crate::sys;

/// How long [`Processes::kill_all`] goes on. Killed processes go within a millisecond; only one stuck in
/// the kernel outlives this, and it cannot run any more instructions of its program.
const KILL_TIME_MAX: Duration = Duration::from_secs(2);

/// How long one round of killing waits for a child to end before it looks again.
const KILL_ROUND: Timespec = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };

/// Rounds of [`KILL_ROUND`] that [`Processes::pause`] waits for the last process to stand still. A stop takes effect when a
/// process comes back from the kernel; one that stays there longer may still be writing.
const PAUSE_ROUNDS: usize = 50;

/// Every process below this one.
pub struct Processes {
    signals: OwnedFd,
    /// While they are paused: who stood still already.
    stopped_before: Option<Vec<Pid>>,
}

/// The end of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Who.
    pub pid: Pid,
    /// How.
    pub how: End,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself, with this code.
    Exited(i32),
    /// By this signal.
    Killed(i32),
}

impl Processes {
    /// Becomes the parent of every orphan. Call it before any other thread starts.
    pub fn adopt() -> io::Result<Processes> {
        let signals = sys::child_signals()?;
        if !getpid().is_init() {
            set_child_subreaper(Some(getpid()))?;
        }
        Ok(Processes { signals, stopped_before: None })
    }

    /// Readable when [`Processes::reap`] has something to do.
    pub fn signals(&self) -> &OwnedFd {
        &self.signals
    }

    /// Takes the next child that has ended.
    pub fn reap(&self) -> Option<Ended> {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if let Some(how) = end(status) {
                return Some(Ended { pid, how });
            }
        }
        None
    }

    /// Forgets the wake-up that led here. Before reaping, so that a child which ends meanwhile wakes again.
    pub fn acknowledge(&self) {
        let mut signal = [0; 128];
        while rustix::io::read(&self.signals, &mut signal).is_ok_and(|read| read > 0) {}
    }

    /// Kills every descendant and waits until none is left.
    ///
    /// A process may start another while the list is being read; the loop ends only when the kernel says
    /// that there is no child, and an orphan is always a child. Stopped and frozen-by-signal processes
    /// die as well.
    pub fn kill_all(&self) {
        let started = Instant::now();
        loop {
            signal_all(Signal::KILL);
            if self.reap_until_none_is_left() || started.elapsed() > KILL_TIME_MAX {
                return;
            }
            let mut wake = [PollFd::new(&self.signals, PollFlags::IN)];
            let _ = poll(&mut wake, Some(&KILL_ROUND));
            self.acknowledge();
        }
    }

    /// Makes every descendant stand still; whether all of them do. What has no part of it is this process, which goes on
    /// answering.
    pub fn pause(&mut self) -> bool {
        if self.stopped_before.is_none() {
            let standing = descendants().into_iter().filter(|pid| stands_still(*pid));
            self.stopped_before = Some(standing.collect());
        }
        signal_all(Signal::STOP);
        for _ in 0..PAUSE_ROUNDS {
            if descendants().into_iter().all(stands_still) {
                return true;
            }
            let _ = poll(&mut [], Some(&KILL_ROUND));
        }
        descendants().into_iter().all(stands_still)
    }

    /// Lets them go on, but for those who stood still by themselves.
    pub fn resume(&mut self) {
        let Some(stopped_before) = self.stopped_before.take() else { return };
        if stopped_before.is_empty() {
            return signal_all(Signal::CONT);
        }
        for pid in descendants().into_iter().filter(|pid| !stopped_before.contains(pid)) {
            let _ = kill_process(pid, Signal::CONT);
        }
    }

    /// Reaps what can be reaped; whether no child is left at all.
    fn reap_until_none_is_left(&self) -> bool {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some(_)) | Err(rustix::io::Errno::INTR) => {}
                Ok(None) => return false,
                Err(_) => return true,
            }
        }
    }
}

fn end(status: WaitStatus) -> Option<End> {
    let exited = status.exit_status().map(End::Exited);
    exited.or_else(|| status.terminating_signal().map(End::Killed))
}

/// Sends a signal to every descendant.
fn signal_all(signal: Signal) {
    sys::signal_all_others(signal);
    if !getpid().is_init() {
        for pid in descendants() {
            // It may have ended since the list was made, and only this thread reaps, so the id
            // still names it or an ended process further down.
            let _ = kill_process(pid, signal);
        }
    }
}

/// Whether a process is stopped, or has ended.
fn stands_still(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    stat.map_or(true, |stat| matches!(state(&stat), Some("T" | "t" | "Z" | "X")))
}

/// Everything whose chain of parents leads here, the ended ones included.
fn descendants() -> Vec<Pid> {
    let mut parents: Vec<(i32, i32)> = Vec::new();
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    for entry in entries.flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let stat = pid.and_then(|_| fs::read_to_string(entry.path().join("stat")).ok());
        if let (Some(pid), Some(parent)) = (pid, stat.as_deref().and_then(parent)) {
            parents.push((pid, parent));
        }
    }
    let mut family = vec![getpid().as_raw_nonzero().get()];
    let mut next = 0;
    while next < family.len() {
        let of = family[next];
        family.extend(parents.iter().filter(|(_, parent)| *parent == of).map(|(pid, _)| *pid));
        next += 1;
    }
    family.into_iter().skip(1).filter_map(Pid::from_raw).collect()
}

/// The parent in a line of `/proc/<pid>/stat`.
fn parent(stat: &str) -> Option<i32> {
    after_name(stat)?.nth(1)?.parse().ok()
}

/// The state in such a line.
fn state(stat: &str) -> Option<&str> {
    after_name(stat)?.next()
}

/// What follows the name, which is in parentheses and may hold anything.
fn after_name(stat: &str) -> Option<std::str::SplitAsciiWhitespace<'_>> {
    Some(stat[stat.rfind(')')? + 1..].split_ascii_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_full_of_parentheses_does_not_hide_its_parent() {
        assert_eq!(parent("12 (a) S 99 (b) S 7 1 1"), Some(7));
        assert_eq!(parent("12 (sh) R 3 12 12 0"), Some(3));
        assert_eq!(parent("nonsense"), None);
    }
}
