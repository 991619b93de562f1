//! Finding out what of the host's `/usr` is private, once, when the first sandbox is asked for that would see it.
//!
//! The look takes a second on a large machine, so a process of its own does it, while everything else goes on. Sandboxes
//! that install nothing never wait for it.

use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use super::poller::{Poller, Token};
use crate::namespaces::start::OnlyThread;
use crate::namespaces::{masks, stacks, sys};

/// A cold disk and half a million files; the askers' patience is 35 seconds.
const LOOK_TIME_MAX: Duration = Duration::from_secs(25);

/// What is known.
pub(crate) enum Private {
    /// Nobody has asked yet.
    Unknown,
    Looking(Look),
    /// The masks lie in the working folder, this many.
    Known {
        masked: usize,
    },
    /// It could not be found out, and the log says why. Nothing private is shown then, because nothing is.
    Failed,
}

pub(crate) struct Look {
    process: i32,
    /// Ends with the process; says how many masks were made before that, or why not.
    said: std::io::PipeReader,
    deadline: Instant,
}

impl Private {
    /// Starts to look.
    pub(crate) fn look(only: &OnlyThread, poller: &Poller, now: Instant) -> Self {
        let started = || -> std::io::Result<Look> {
            let (said, mut say) = std::io::pipe()?;
            match only.fork()? {
                sys::Forked::Parent(process) => {
                    poller.add(&said, Token::Masks)?;
                    Ok(Look { process, said, deadline: now + LOOK_TIME_MAX })
                }
                sys::Forked::Child => {
                    drop(said);
                    let _ = sys::die_with_parent();
                    let made = masks::make(Path::new("/usr"), "local", Path::new(stacks::MASKS));
                    let text = made.map_or_else(|error| error.to_string(), |count| count.to_string());
                    let _ = std::io::Write::write_all(&mut say, text.as_bytes());
                    sys::exit_now(0)
                }
            }
        };
        match started() {
            Ok(look) => Self::Looking(look),
            Err(error) => failed(&error.to_string()),
        }
    }

    /// Takes in what the look has to say.
    pub(crate) fn hear(&mut self, poller: &Poller) {
        let Self::Looking(look) = self else { return };
        let mut text = String::new();
        // It writes a few bytes at once and ends, so this waits for nothing.
        let _ = look.said.read_to_string(&mut text);
        poller.remove(&look.said);
        collect(look.process);
        *self = match text.parse() {
            Ok(masked) => Self::Known { masked },
            Err(_) => failed(&text),
        };
    }

    /// Whether the look takes too long.
    pub(crate) fn is_late(&self, now: Instant) -> bool {
        matches!(self, Self::Looking(look) if now > look.deadline)
    }

    /// Ends the look.
    pub(crate) fn give_up(&mut self, poller: &Poller) {
        let Self::Looking(look) = self else { return };
        if let Some(process) = Pid::from_raw(look.process) {
            let _ = kill_process(process, Signal::KILL);
        }
        collect(look.process);
        poller.remove(&look.said);
        *self = failed("it took too long");
    }
}

fn failed(why: &str) -> Private {
    eprintln!(
        "supervisor: /usr could not be looked through, so no sandbox may install system packages: {why}"
    );
    Private::Failed
}

fn collect(process: i32) {
    if let Some(process) = Pid::from_raw(process) {
        let _ = waitpid(Some(process), WaitOptions::empty());
    }
}
