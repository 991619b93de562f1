//! What the supervisor owns, and every decision about it: who is fenced off, who is gone and why, what happens to the
//! calls of a sandbox that dies, who gets the room that there is (`admission`), what is kept ready (`pool`).
//!
//! It reacts to asks and to events of the loop and answers through [`Keeper::take_replies`]; it never waits. A sandbox goes through
//!
//! ```text
//! Starting ──▶ Live ──▶ Dying ──▶ (buried: its id, fence and reason are remembered for a while)
//!     └──────────────────▲
//! ```
//!
//! has no id as long as it is kept ready for whoever comes, and is `Dying` from the decision to kill it until the kernel says
//! that its last process has ended. A container is not the supervisor's child: it is expected at a door ([`super::guests`]),
//! lives as long as its control socket, and is buried at once; the engine that started it removes what is left.
//!
//! Here stand the tables. In reading order: `holding` (who gets a place), `starting` and `adopting` (how one begins, of
//! either kind), `sandbox` (one of them), `relaying` (calls), `saving`, `ready` (what waits for nobody yet), `ending`.

mod adopting;
mod ending;
mod holding;
mod ready;
mod relaying;
mod sandbox;
mod saving;
mod starting;

use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::value::{RawValue, to_raw_value};
use tools::wire;

use self::sandbox::{Body, Sandbox, State};
use crate::doctor::Report;
use crate::namespaces::cgroups::{Controller, Group, Groups};
use crate::namespaces::profile::Profile;
use crate::namespaces::start::{OnlyThread, Process};
use crate::provider::{Error, Limits, Resources, SandboxId, SandboxInfo};
use crate::shelf::Shelf;
use crate::supervisor::admission::{Capacity, Line};
use crate::supervisor::books::{Graves, Slots};
use crate::supervisor::frames::Frames;
use crate::supervisor::guests::{Doors, Guest, SLOTS};
use crate::supervisor::memory::Memory;
use crate::supervisor::poller::{Interest, Poller, Token};
use crate::supervisor::pool::Pools;
use crate::supervisor::private::Private;
use crate::supervisor::protocol::Answer;
use crate::supervisor::saving::Stillness;
use crate::supervisor::terms::checked;

/// Bytes that may wait for one sandbox: a few of the largest requests.
const WAITING_BYTES_MAX: usize = 4 * wire::REQUEST_BYTES_MAX;
/// How often deadlines and memory are looked at while there is anything to look at.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// Who is waiting for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Waiter {
    pub(crate) connection: u64,
    pub(crate) request: u64,
}

pub(crate) struct Keeper {
    only: OnlyThread,
    poller: Rc<Poller>,
    profile: Profile,
    report: Report,
    sandboxes: HashMap<u64, Sandbox>,
    keys: HashMap<SandboxId, u64>,
    next_key: u64,
    ticks: u64,
    shelf: Shelf,
    /// What of the host's `/usr` is nobody's business.
    private: Private,
    /// Sandboxes that cannot be begun before that is known.
    held_back: Vec<Asked>,
    slots: Slots,
    graves: Graves,
    next_group: u64,
    /// What the last sandbox was given.
    usual: Option<Limits>,
    /// A control group for the next one, if it is given the same.
    ready: Option<(Limits, Group)>,
    /// Control groups whose last process is still on its way out.
    unremoved: Vec<Group>,
    /// Packers that were killed. One that waits for the disk takes a while to end, and nobody shall wait for it.
    leaving: Vec<Process>,
    replies: Vec<(Waiter, Answer)>,
    /// Sandboxes with an exit that nobody has been told of.
    untold: Vec<u64>,
    /// Those that had one and have ended, which nobody has been told of.
    closed: Vec<SandboxId>,
    capacity: Capacity,
    memory: Memory,
    /// Who waits for room.
    line: Line<Wanted>,
    pools: Pools,
    /// What is kept ready, the oldest first: sandboxes without an id that are not dying.
    spare: Vec<u64>,
    /// When it is to be looked at the pools again; `None`: at once, something has changed. Not with every event, because the
    /// look compares everything that is ready with everything that is wished for.
    refill_at: Option<Instant>,
    /// When it was last looked whether there is memory for them.
    looked: Option<Instant>,
    /// When it was last said that somebody waits.
    said: Option<Instant>,
    doors: Doors,
    /// Containers that are expected, by the keys that they will have as sandboxes.
    guests: HashMap<u64, Guest>,
    guest_slots: Slots,
    /// What the supervisor itself asks of `tools`, as it goes over the wire.
    ping: Box<RawValue>,
    pause: Box<RawValue>,
    resume: Box<RawValue>,
}

/// A sandbox that somebody asked for.
pub(crate) struct Asked {
    pub(crate) waiter: Waiter,
    pub(crate) id: SandboxId,
    pub(crate) fence: u64,
    pub(crate) resources: Resources,
    /// The layer that is made in it.
    pub(crate) layer: Option<String>,
}

/// A container that a door is to be opened for.
pub(crate) struct Announced {
    pub(crate) waiter: Waiter,
    pub(crate) id: SandboxId,
    pub(crate) fence: u64,
    pub(crate) resources: Resources,
    /// The lowest id that such containers run with, where it can be foreseen.
    pub(crate) first_id: Option<u32>,
}

/// A sandbox that is asked for, maybe more than once.
struct Wanted {
    id: SandboxId,
    fence: u64,
    resources: Resources,
    kind: Kind,
    waiters: Vec<Waiter>,
}

/// How a sandbox is to come about.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Child {
        /// The layer that is made in it.
        layer: Option<String>,
    },
    /// Through a door.
    Guest { first_id: Option<u32> },
}

/// The parts of a sandbox whose first steps have begun.
struct Beginning {
    key: u64,
    /// What it is built on.
    base: String,
    body: Body,
    control: Frames,
    sync: UnixStream,
}

impl Keeper {
    pub(crate) fn new(
        only: OnlyThread,
        poller: Rc<Poller>,
        profile: Profile,
        report: Report,
        shelf: Shelf,
        doors: Doors,
    ) -> Self {
        let slots = Slots::new(profile.ids.slots());
        let memory = Memory::find(&Groups::own_folders());
        Self {
            only,
            poller,
            profile,
            report,
            sandboxes: HashMap::new(),
            keys: HashMap::new(),
            next_key: 0,
            ticks: 0,
            shelf,
            private: Private::Unknown,
            held_back: Vec::new(),
            slots,
            graves: Graves::default(),
            next_group: 0,
            usual: None,
            ready: None,
            unremoved: Vec::new(),
            leaving: Vec::new(),
            replies: Vec::new(),
            untold: Vec::new(),
            closed: Vec::new(),
            capacity: Capacity::default(),
            memory,
            line: Line::new(),
            pools: Pools::default(),
            spare: Vec::new(),
            refill_at: None,
            looked: None,
            said: None,
            doors,
            guests: HashMap::new(),
            guest_slots: Slots::new(SLOTS),
            ping: to_raw_value(&wire::Op::Ping).expect("a ping is plain JSON"),
            pause: to_raw_value(&wire::Op::Pause).expect("so is this"),
            resume: to_raw_value(&wire::Op::Resume).expect("and this"),
        }
    }

    /// Answers since the last time.
    pub(crate) fn take_replies(&mut self) -> Vec<(Waiter, Answer)> {
        std::mem::take(&mut self.replies)
    }

    pub(crate) fn report(&self) -> &Report {
        &self.report
    }

    /// Whether [`Keeper::tick`] has anything to look at.
    pub(crate) fn needs_ticks(&self) -> bool {
        let watched = !self.profile.groups.limits(Controller::Memory);
        let restless = |sandbox: &Sandbox| match sandbox.state {
            State::Starting { .. } | State::Dying { .. } => true,
            State::Live => {
                (watched && sandbox.body.is_child())
                    || !sandbox.pending.is_empty()
                    || matches!(sandbox.stillness, Stillness::Packing(_))
            }
        };
        !self.held_back.is_empty()
            || !self.guests.is_empty()
            || !self.unremoved.is_empty()
            || !self.leaving.is_empty()
            || !self.line.is_empty()
            || self.sandboxes.values().any(restless)
    }

    pub(crate) fn list(&self, now: Instant) -> Vec<SandboxInfo> {
        let alive = self.sandboxes.values().filter(|sandbox| !matches!(sandbox.state, State::Dying { .. }));
        let expected = self.guests.values().map(|guest| guest.info(now));
        let mut list: Vec<SandboxInfo> =
            alive.filter_map(|sandbox| sandbox.info(now)).chain(expected).collect();
        list.sort_by(|one, other| one.id.cmp(&other.id));
        list
    }

    fn update_interest(&mut self, key: u64) {
        let Some(sandbox) = self.sandboxes.get_mut(&key) else { return };
        let wanted = if sandbox.control.has_output() { Interest::ReadAndWrite } else { Interest::Read };
        if wanted != sandbox.interest {
            sandbox.interest = wanted;
            let _ = self.poller.change(sandbox.control.descriptor(), Token::Control(key), wanted);
        }
    }

    fn reply(&mut self, waiter: Waiter, answer: Answer) {
        self.replies.push((waiter, answer));
    }
}

const CHILD: Kind = Kind::Child { layer: None };

/// The same as far as the supervisor can make it itself.
fn of_namespaces(resources: Resources) -> Result<Resources, Error> {
    match resources.runtime {
        None => checked(resources),
        Some(_) => Err(Error::refused(
            "sandboxes are no containers here, so they have no runtime; the operator can make them containers with \
             [sandbox] provider = \"docker\"",
        )),
    }
}

/// Raises the fence, or says that the caller is late.
fn pass(seen: &mut u64, fence: Option<u64>) -> Result<(), Error> {
    match fence {
        Some(fence) if fence < *seen => Err(Error::Fenced { seen: *seen }),
        Some(fence) => {
            *seen = fence;
            Ok(())
        }
        None => Ok(()),
    }
}

const UNKNOWN: &str = "no sandbox of this id lives here";
const DESTROYED: &str = "it was destroyed";
const ENDED: &str = "its first process has ended";
