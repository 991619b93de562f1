//! One sandbox, as the supervisor knows it.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::value::RawValue;
use tools::wire;
use tools::wire::{Refusal, Reply, encode};

use super::{Waiter, pass};
use crate::namespaces::cgroups::Group;
use crate::namespaces::child::{EXIT, STAGE};
use crate::namespaces::start::Process;
use crate::namespaces::watchdog;
use crate::provider::{Error, Limits, Network, SandboxId, SandboxInfo};
use crate::supervisor::frames::{Flow, Frames};
use crate::supervisor::passing;
use crate::supervisor::poller::Interest;
use crate::supervisor::pool::Shape;
use crate::supervisor::protocol::{Answer, RelayedRequest, RelayedResponse};
use crate::supervisor::saving::Stillness;

/// Requests to one sandbox at once. `tools` has a bound of its own for calls; this one is for everything together.
const PENDING_MAX: usize = 256;
/// A `tools` that says nothing for this long, asked whether it is there, is broken. It answers while its calls run, however
/// busy the machine is.
const SILENCE_TIME_MAX: Duration = Duration::from_secs(60);
/// How often it is not saved because something in it does not stand still. Then it is saved all the same: what hangs in the
/// kernel for so long may hang there for ever.
const RESTLESS_MAX: u32 = 3;

pub(super) struct Sandbox {
    /// `None` as long as it is kept ready.
    pub(super) id: Option<SandboxId>,
    pub(super) shape: Shape,
    pub(super) fence: u64,
    pub(super) born: Instant,
    pub(super) used: Instant,
    pub(super) limits: Limits,
    pub(super) body: Body,
    /// What its private layer lies on.
    pub(super) base: String,
    pub(super) start_time_max: Duration,
    pub(super) control: Frames,
    pub(super) interest: Interest,
    pub(super) sync: Option<UnixStream>,
    /// What the first steps have said so far: nothing, unless they failed.
    pub(super) complaint: Vec<u8>,
    pub(super) network: Option<Network>,
    pub(super) exit: Option<OwnedFd>,
    /// The bare tmpfs with everything that it writes. Held, it keeps that in memory, but no longer than this struct.
    pub(super) stage: Option<OwnedFd>,
    pub(super) stillness: Stillness,
    /// How often in a row not all of its processes stood still when it was to be saved.
    pub(super) restless: u32,
    pub(super) state: State,
    /// When `tools` last said anything, or was first asked after a silence.
    pub(super) heard: Instant,
    /// By the id of the request to `tools`.
    pub(super) pending: HashMap<u64, Pending>,
    pub(super) next_request: u64,
}

/// What a sandbox consists of, besides its control socket.
pub(super) enum Body {
    /// A process that the supervisor has started.
    Child { slot: u32, pid: i32, process: Process, group: Group },
    /// A container that has come to a door.
    Guest {
        slot: u32,
        /// The line for its files.
        cargo: UnixStream,
    },
}

pub(super) enum State {
    Starting {
        waiters: Vec<Waiter>,
    },
    Live,
    Dying {
        reason: String,
        /// Waiting for the end.
        waiters: Vec<Waiter>,
    },
}

/// Who asked; the supervisor itself, when it asks whether anybody is there.
pub(super) enum Pending {
    Asked(Waiter),
    Ping,
    Pause,
    Pack,
    Resume,
}

/// What `tools` says to the supervisor itself.
#[derive(Default)]
pub(super) struct News {
    /// Its processes stand still.
    pub(super) has_paused: bool,
    /// Why not all of them do.
    pub(super) cannot_pause: Option<String>,
    /// Why it sends no files.
    pub(super) cannot_pack: Option<String>,
}

impl Sandbox {
    /// Lets the holder of this fencing token through, or tells it that it is late.
    pub(super) fn pass(&mut self, fence: Option<u64>, now: Instant) -> Result<(), Error> {
        pass(&mut self.fence, fence)?;
        self.used = now;
        Ok(())
    }

    /// Whether the holder of this fencing token may save this sandbox now. Not a use.
    pub(super) fn may_be_saved(&mut self, fence: u64) -> Result<(), Error> {
        let used = self.used;
        self.pass(Some(fence), used)?;
        match &self.state {
            State::Dying { reason, .. } => return Err(Error::gone(reason.clone())),
            State::Starting { .. } => return Err(Error::Busy { reason: "it is being built".to_owned() }),
            State::Live => {}
        }
        if self.pending.values().any(|pending| matches!(pending, Pending::Asked(_))) {
            return Err(Error::Busy { reason: "calls run in it".to_owned() });
        }
        match self.stillness {
            Stillness::Moving | Stillness::Still => Ok(()),
            Stillness::Pausing(_) | Stillness::Packing(_) => {
                Err(Error::Busy { reason: "it is being saved already".to_owned() })
            }
        }
    }

    /// Takes in what the first steps have to say: the exit, the bare stage, and why they failed if they did.
    pub(super) fn hear_first_steps(&mut self) -> Flow {
        let Some(sync) = &self.sync else { return Flow::Ended };
        let mut descriptors = VecDeque::new();
        let mut bytes = [0; 1024];
        loop {
            match passing::receive(sync, &mut bytes, &mut descriptors) {
                Ok(0) => return Flow::Ended,
                Ok(count) => {
                    // A descriptor comes with its byte, and the kernel lets no reading go beyond that byte.
                    match descriptors.pop_front().zip(bytes[..count].last()) {
                        Some((exit, &EXIT)) => {
                            self.exit.get_or_insert(exit);
                        }
                        Some((stage, &STAGE)) => {
                            self.stage.get_or_insert(stage);
                        }
                        Some(_) | None => {}
                    }
                    let words = bytes[..count].iter().filter(|byte| !matches!(**byte, EXIT | STAGE));
                    self.complaint.extend(words);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Flow::Open,
                Err(_) => return Flow::Ended,
            }
        }
    }

    /// Whose way out it is, what may be reached by it, and a copy of it; `None` if there is none, or none any more.
    pub(super) fn exit(&self) -> Option<(SandboxId, Network, OwnedFd)> {
        let (State::Live, Some(network), Some(exit)) = (&self.state, &self.network, &self.exit) else {
            return None;
        };
        Some((self.id.clone()?, network.clone(), exit.try_clone().ok()?))
    }

    pub(super) fn relay(&mut self, pending: Pending, op: &RawValue, now: Instant) -> Result<(), Error> {
        if let State::Dying { reason, .. } = &self.state {
            return Err(Error::gone(reason.clone()));
        }
        if self.pending.len() >= PENDING_MAX {
            return Err(Error::Busy { reason: format!("{PENDING_MAX} requests wait for this sandbox") });
        }
        let id = self.next_request;
        let frame = encode(&RelayedRequest { id, op }, wire::REQUEST_BYTES_MAX)
            .map_err(|error| Error::refused(error.to_string()))?;
        if !self.control.has_room(frame.len()) {
            return Err(Error::Busy {
                reason: "this sandbox does not take requests as fast as they come".to_owned(),
            });
        }
        self.next_request += 1;
        if self.pending.is_empty() {
            self.heard = now;
        }
        // A broken socket shows as its end too, and is dealt with there.
        let _ = self.control.send(&frame);
        self.pending.insert(id, pending);
        Ok(())
    }

    pub(super) fn read_replies(
        &mut self,
        replies: &mut Vec<(Waiter, Answer)>,
        news: &mut News,
        now: Instant,
    ) -> io::Result<Flow> {
        let flow = self.control.fill()?;
        self.heard = now;
        while let Some(frame) = self.control.next()? {
            let response: RelayedResponse<'_> = serde_json::from_slice(&frame)?;
            if response.id == 0 {
                check_ready(response.reply)?;
                continue;
            }
            match self.pending.remove(&response.id) {
                Some(Pending::Asked(waiter)) => {
                    replies.push((waiter, Answer::Relayed(response.reply.to_owned())))
                }
                Some(Pending::Pause) => match serde_json::from_str(response.reply.get()) {
                    Ok(Reply::Refused { reason: Refusal::Busy, message }) if self.restless < RESTLESS_MAX => {
                        self.restless += 1;
                        news.cannot_pause = Some(message);
                    }
                    // Whatever the answer is: a process 1 that cannot stop its sandbox is not trusted, and hurts itself only.
                    answer => {
                        if matches!(answer, Ok(Reply::Refused { .. })) {
                            let id = self.id.as_ref().map_or("", SandboxId::as_str);
                            eprintln!("supervisor: {id} is saved while a process in it may still write");
                        }
                        self.restless = 0;
                        news.has_paused = true;
                    }
                },
                Some(Pending::Pack) => {
                    if let Ok(Reply::Refused { reason: _, message }) =
                        serde_json::from_str(response.reply.get())
                    {
                        news.cannot_pack = Some(message);
                    }
                }
                // An answer to nothing is a lie without effect.
                Some(Pending::Ping | Pending::Resume) | None => {}
            }
        }
        Ok(flow)
    }

    /// Whether calls run but nothing has been heard for so long that it is worth asking.
    pub(super) fn is_silent(&self, now: Instant) -> bool {
        let asked = || self.pending.values().any(|pending| matches!(pending, Pending::Ping));
        matches!(self.state, State::Live)
            && !self.pending.is_empty()
            && now > self.heard + SILENCE_TIME_MAX / 2
            && !asked()
    }

    /// Why this sandbox must end now, if it must.
    pub(super) fn verdict(&self, watched: bool, now: Instant) -> Option<String> {
        match &self.state {
            State::Dying { .. } => None,
            State::Starting { .. } => {
                (now > self.born + self.start_time_max).then(|| "it could not be built in time".to_owned())
            }
            State::Live => {
                if !self.pending.is_empty() && now > self.heard + SILENCE_TIME_MAX {
                    return Some("it no longer answers".to_owned());
                }
                let limit = self.limits.memory_bytes;
                // A container's is its engine's to limit.
                let Body::Child { pid, .. } = self.body else { return None };
                let over = watched && watchdog::memory_bytes(pid, limit) > limit;
                over.then(|| memory_reason(limit))
            }
        }
    }

    /// `None` of what is kept ready.
    pub(super) fn info(&self, now: Instant) -> Option<SandboxInfo> {
        Some(SandboxInfo {
            id: self.id.clone()?,
            age: now.duration_since(self.born),
            idle: match self.state {
                // Its own deadline ends it; nobody else knows how long it may take.
                State::Starting { .. } => Duration::ZERO,
                State::Live | State::Dying { .. } => now.duration_since(self.used),
            },
            fence: self.fence,
            memory_bytes: self.body.memory_bytes(),
            calls: self.pending.values().filter(|pending| matches!(pending, Pending::Asked(_))).count()
                as u64,
        })
    }
}

impl Body {
    pub(super) fn is_child(&self) -> bool {
        matches!(self, Self::Child { .. })
    }

    pub(super) fn kill(&self) {
        match self {
            Self::Child { process, .. } => process.kill(),
            // It ends with its control socket, and its engine sees to the rest.
            Self::Guest { .. } => {}
        }
    }

    pub(super) fn memory_kills(&self) -> u64 {
        match self {
            Self::Child { group, .. } => group.memory_kills(),
            Self::Guest { .. } => 0,
        }
    }

    pub(super) fn memory_bytes(&self) -> Option<u64> {
        match self {
            Self::Child { pid, group, .. } => {
                group.memory_bytes().or_else(|| Some(watchdog::memory_bytes(*pid, 0)))
            }
            Self::Guest { .. } => None,
        }
    }
}

fn memory_reason(limit: u64) -> String {
    format!("it used more memory than its limit of {} MiB", limit >> 20)
}

/// The greeting of `tools`: both ends come from one build, unless somebody has mixed them.
fn check_ready(reply: &RawValue) -> io::Result<()> {
    match serde_json::from_str(reply.get())? {
        Reply::Ready { protocol: wire::PROTOCOL } => Ok(()),
        _ => Err(io::Error::other("tools of another version")),
    }
}
