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

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::value::{RawValue, to_raw_value};
use tools::wire::{self, Reply, encode};

use super::admission::{Capacity, Line, Load};
use super::books::{Graves, Slots};
use super::frames::{Flow, Frames};
use super::guests::{Doors, Expected, Guest, Heard, OPEN_TIME_MAX, SLOTS};
use super::memory::Memory;
use super::passing;
use super::poller::{Interest, Poller, Token};
use super::pool::{Errand, Pools, Shape};
use super::private::Private;
use super::protocol::{Answer, RelayedRequest, RelayedResponse};
use super::saving::{Packing, Sheet, Stillness};
use super::terms::checked;
use crate::doctor::{self, Report};
use crate::namespaces::cgroups::{Controller, Group, Groups};
use crate::namespaces::child::{EXIT, STAGE, UNRESTORABLE};
use crate::namespaces::profile::Owners;
use crate::namespaces::profile::Profile;
use crate::namespaces::stacks::Plan;
use crate::namespaces::start::{OnlyThread, Process, Started, start};
use crate::namespaces::watchdog;
use crate::provider::{
    Error, Limits, Network, Occupancy, Pool, Resources, Rights, SandboxId, SandboxInfo, Saved,
};
use crate::shelf::{self, Shelf};

/// Requests to one sandbox at once. `tools` has a bound of its own for calls; this one is for everything together.
const PENDING_MAX: usize = 256;
/// Bytes that may wait for one sandbox: a few of the largest requests.
const WAITING_BYTES_MAX: usize = 4 * wire::REQUEST_BYTES_MAX;
/// Sandboxes that wait for the first look at the host's files. It takes a second.
const HELD_BACK_MAX: usize = 256;
/// Building a root takes milliseconds; after this long it hangs on something.
const START_TIME_MAX: Duration = Duration::from_secs(30);
/// What restoring a snapshot may add: it may hold gigabytes, or a few hundred thousand files.
const RESTORE_TIME_MAX: Duration = Duration::from_secs(300);
/// A `tools` that says nothing for this long, asked whether it is there, is broken. It answers while its calls run, however
/// busy the machine is.
const SILENCE_TIME_MAX: Duration = Duration::from_secs(60);
/// How often deadlines and memory are looked at while there is anything to look at.
pub(crate) const TICK: Duration = Duration::from_millis(100);
/// Where memory has to be added up, sandboxes with calls are looked at every tick, the others once in so many.
const TICKS_PER_ROUND: u64 = 10;
/// How often it is looked whether there is memory for what is kept ready.
const READY_LOOK: Duration = Duration::from_secs(1);
/// That somebody waits for room is said in the log, but not more often than this.
const SAY: Duration = Duration::from_secs(60);

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

struct Sandbox {
    /// `None` as long as it is kept ready.
    id: Option<SandboxId>,
    shape: Shape,
    fence: u64,
    born: Instant,
    used: Instant,
    limits: Limits,
    body: Body,
    /// What its private layer lies on.
    base: String,
    start_time_max: Duration,
    control: Frames,
    interest: Interest,
    sync: Option<UnixStream>,
    /// What the first steps have said so far: nothing, unless they failed.
    complaint: Vec<u8>,
    network: Option<Network>,
    exit: Option<OwnedFd>,
    /// The bare tmpfs with everything that it writes. Held, it keeps that in memory, but no longer than this struct.
    stage: Option<OwnedFd>,
    stillness: Stillness,
    state: State,
    /// When `tools` last said anything, or was first asked after a silence.
    heard: Instant,
    /// By the id of the request to `tools`.
    pending: HashMap<u64, Pending>,
    next_request: u64,
}

/// The parts of a sandbox whose first steps have begun.
struct Beginning {
    key: u64,
    body: Body,
    control: Frames,
    sync: UnixStream,
}

/// What a sandbox consists of, besides its control socket.
enum Body {
    /// A process that the supervisor has started.
    Child { slot: u32, pid: i32, process: Process, group: Group },
    /// A container that has come to a door.
    Guest { slot: u32 },
}

enum State {
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
enum Pending {
    Asked(Waiter),
    Ping,
    Pause,
    Resume,
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

    /// Within how long [`Keeper::refill`] wants to be called again; `None` if nothing is to be kept ready.
    pub(crate) fn refill_due(&self, now: Instant) -> Option<Duration> {
        let idle = self.pools.is_empty() && self.spare.is_empty();
        let wait = || self.refill_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        (!idle).then(wait)
    }

    /// From now on this machine holds so many; maybe some that may install packages.
    pub(crate) fn hold(&mut self, capacity: Capacity, will_install: bool, now: Instant) {
        if will_install && self.profile.installs {
            self.look_for_private(now);
        }
        self.capacity = capacity.bounded();
        self.refill_at = None;
        self.admit_waiting(now);
    }

    /// What the server on this connection wishes to be kept ready.
    pub(crate) fn keep_ready(&mut self, connection: u64, pools: Vec<Pool>) {
        let checked = pools.into_iter().filter_map(|Pool { resources, count }| {
            // Whoever provisions it is told what is wrong with it.
            Some(Pool { resources: of_namespaces(resources).ok()?, count })
        });
        self.pools.wish(connection, checked.collect());
        self.refill_at = None;
    }

    /// A server is gone. It waits for nothing any more and wishes for nothing.
    pub(crate) fn forget(&mut self, connection: u64) {
        self.pools.forget(connection);
        self.refill_at = None;
        self.held_back.retain(|asked| asked.waiter.connection != connection);
        self.line.leave(|wanted| {
            wanted.waiters.retain(|waiter| waiter.connection != connection);
            wanted.waiters.is_empty()
        });
    }

    /// How full this machine is.
    pub(crate) fn occupancy(&self) -> Occupancy {
        self.occupancy_of(&CHILD)
    }

    fn occupancy_of(&self, kind: &Kind) -> Occupancy {
        let is_ready = |key: &&u64| matches!(self.sandboxes[*key].state, State::Live);
        Occupancy {
            live: self.keys.len() + self.guests.len(),
            waiting: self.line.len(),
            ready: self.spare.iter().filter(is_ready).count(),
            sandboxes_max: self.sandboxes_max(kind),
        }
    }

    pub(crate) fn provision(&mut self, asked: Asked, now: Instant) {
        let (waiter, id, fence) = (asked.waiter, asked.id.clone(), asked.fence);
        if self.is_known(waiter, &id, fence, now) {
            return;
        }
        if self.guest(&id).is_some() {
            let error = Error::refused("a container is awaited under this id");
            return self.reply(waiter, Answer::Failed(error));
        }
        if self.waits_in_line(waiter, &id, fence, |kind| matches!(kind, Kind::Child { .. })) {
            return;
        }
        let allowed = match self.report.refusal() {
            Some(reason) => Err(Error::Refused { reason }),
            None => of_namespaces(asked.resources.clone()),
        };
        match allowed {
            Ok(resources) if self.installs(&resources).is_none() => {
                if let Err(error) = self.hold_back(Asked { resources, ..asked }, now) {
                    self.reply(waiter, Answer::Failed(error));
                }
            }
            Ok(resources) => {
                let kind = Kind::Child { layer: asked.layer };
                self.admit(Wanted { id, fence, resources, kind, waiters: vec![waiter] }, now);
            }
            Err(error) => self.reply(waiter, Answer::Failed(error)),
        }
    }

    /// Whether such a sandbox waits for room; whoever asks for it then waits with it, or has an answer.
    fn waits_in_line(
        &mut self,
        waiter: Waiter,
        id: &SandboxId,
        fence: u64,
        is_same: impl FnOnce(&Kind) -> bool,
    ) -> bool {
        let Some(wanted) = self.line.find(|wanted| wanted.id == *id) else { return false };
        let joined = match is_same(&wanted.kind) {
            true => pass(&mut wanted.fence, Some(fence)),
            false => Err(Error::refused("a sandbox of another kind is awaited under this id")),
        };
        match joined {
            Ok(()) => wanted.waiters.push(waiter),
            Err(error) => self.reply(waiter, Answer::Failed(error)),
        }
        true
    }

    /// Places a sandbox at once, unless there is no room or somebody has waited longer.
    fn admit(&mut self, wanted: Wanted, now: Instant) {
        if self.line.is_empty() && self.has_place_for(&wanted) {
            return self.place(wanted, now);
        }
        match self.line.join(wanted, &self.capacity, now) {
            Ok(()) => {
                self.make_way(now);
                self.say_full(now);
                // What is ready may be all that the first in line needs.
                self.admit_waiting(now);
            }
            Err(wanted) => self.refuse(wanted),
        }
    }

    /// Gives those who wait what room there is, in order.
    fn admit_waiting(&mut self, now: Instant) {
        while self.line.first().is_some_and(|wanted| self.has_place_for(wanted)) {
            if let Some(wanted) = self.line.next() {
                self.place(wanted, now);
            }
        }
    }

    fn has_place_for(&self, wanted: &Wanted) -> bool {
        self.spare_for(wanted).is_some() || self.room(&wanted.kind).is_ok()
    }

    /// Hands one out that is ready, begins a new one, or opens a door for one. There is a place for it.
    fn place(&mut self, wanted: Wanted, now: Instant) {
        if let Some(key) = self.spare_for(&wanted) {
            return self.hand_out(key, wanted, now);
        }
        let Wanted { id, fence, resources, kind, waiters } = wanted;
        let (answer, waiters) = match kind {
            Kind::Child { layer } => {
                match self.begin(Some((id, fence)), resources, layer.as_deref(), waiters, now) {
                    Ok(_) => return,
                    Err((error, waiters)) => (Answer::Failed(error), waiters),
                }
            }
            Kind::Guest { first_id } => {
                let door = self.expect(id, fence, resources, first_id, now);
                (door.unwrap_or_else(Answer::Failed), waiters)
            }
        };
        for waiter in waiters {
            self.reply(waiter, answer.clone());
        }
    }

    /// Gives a sandbox that was kept ready its id.
    fn hand_out(&mut self, key: u64, wanted: Wanted, now: Instant) {
        let Wanted { id, fence, resources, kind: _, waiters: asked } = wanted;
        self.spare.retain(|spare| *spare != key);
        self.pools.took(now);
        self.refill_at = None;
        let sandbox = self.sandboxes.get_mut(&key).expect("what is spare is there");
        sandbox.id = Some(id.clone());
        sandbox.network = resources.network;
        (sandbox.fence, sandbox.born, sandbox.used, sandbox.heard) = (fence, now, now, now);
        self.keys.insert(id, key);
        match &mut sandbox.state {
            State::Starting { waiters } => waiters.extend(asked),
            State::Live | State::Dying { .. } => {
                if sandbox.exit.is_some() {
                    self.untold.push(key);
                }
                self.replies.extend(asked.into_iter().map(|waiter| (waiter, Answer::Done {})));
            }
        }
    }

    /// One that is kept ready and will do. A layer is made in a sandbox of its own.
    fn spare_for(&self, wanted: &Wanted) -> Option<u64> {
        match wanted.kind {
            Kind::Child { layer: None } => self.spare_of(&Shape::of(&wanted.resources)),
            Kind::Child { layer: Some(_) } | Kind::Guest { .. } => None,
        }
    }

    /// One of this shape that is kept ready: a finished one, or one that will be sooner than a new one.
    fn spare_of(&self, shape: &Shape) -> Option<u64> {
        let fitting = || self.spare.iter().copied().filter(|key| self.sandboxes[key].shape == *shape);
        let is_live = |key: &u64| matches!(self.sandboxes[key].state, State::Live);
        fitting().find(is_live).or_else(|| fitting().next())
    }

    /// Whether one more may be started, or awaited; else what is lacking.
    fn room(&self, kind: &Kind) -> Result<(), String> {
        let is_starting = |sandbox: &&Sandbox| matches!(sandbox.state, State::Starting { .. });
        let load = Load {
            sandboxes: self.sandboxes.len() + self.guests.len(),
            starting: self.sandboxes.values().filter(is_starting).count() + self.guests.len(),
            free_bytes: self.memory.free_bytes(),
        };
        Capacity { sandboxes_max: self.sandboxes_max(kind), ..self.capacity.clone() }.admits(load)
    }

    /// As many as are allowed, and as there are ranges of ids. Containers need none of those.
    fn sandboxes_max(&self, kind: &Kind) -> usize {
        let slots = match kind {
            Kind::Child { .. } => self.profile.ids.slots(),
            Kind::Guest { .. } => SLOTS,
        };
        self.capacity.sandboxes_max.min(slots as usize)
    }

    /// Ends what is kept ready, as far as it is in the way of those who wait.
    fn make_way(&mut self, now: Instant) {
        let is_dying = |sandbox: &&Sandbox| matches!(sandbox.state, State::Dying { .. });
        let on_the_way = self.sandboxes.values().filter(is_dying).count();
        let in_the_way = self.line.len().saturating_sub(on_the_way);
        let giving: Vec<u64> = self.spare.iter().copied().take(in_the_way).collect();
        for key in giving {
            self.kill(key, GIVES_WAY, now);
        }
    }

    fn refuse(&mut self, wanted: Wanted) {
        let lacking = self.room(&wanted.kind).err().unwrap_or_default();
        let Occupancy { live, waiting, ready: _, sandboxes_max } = self.occupancy_of(&wanted.kind);
        let reason = format!(
            "no room for another sandbox on this machine: {live} live, limit {sandboxes_max}, {waiting} wait{lacking}"
        );
        for waiter in wanted.waiters {
            self.reply(waiter, Answer::Failed(Error::Busy { reason: reason.clone() }));
        }
    }

    fn say_full(&mut self, now: Instant) {
        if self.said.is_none_or(|said| now.duration_since(said) >= SAY) {
            self.said = Some(now);
            let Occupancy { live, waiting, ready, sandboxes_max } = self.occupancy();
            eprintln!(
                "supervisor: no room for another sandbox: {live} live, limit {sandboxes_max}, {waiting} wait, \
                 {ready} ready"
            );
        }
    }

    /// Makes or ends one of those that are kept ready, where nobody is in a hurry.
    pub(crate) fn refill(&mut self, now: Instant) {
        let idle = self.pools.is_empty() && self.spare.is_empty();
        if idle || self.refill_at.is_some_and(|at| now < at) {
            return;
        }
        self.release_memory(now);
        self.run_errands(now);
        self.refill_at = Some(now + self.pools.rest(now).unwrap_or(READY_LOOK));
    }

    fn run_errands(&mut self, now: Instant) {
        loop {
            let shapes: Vec<&Shape> = self.spare.iter().map(|key| &self.sandboxes[key].shape).collect();
            match self.pools.errand(&shapes, self.capacity.ready_max, now) {
                None => return,
                Some(Errand::End(shape)) => {
                    if let Some(key) = self.spare_of(&shape) {
                        self.kill(key, NOT_WISHED, now);
                    }
                }
                Some(Errand::Make(shape)) => {
                    let is_starting = |sandbox: &Sandbox| matches!(sandbox.state, State::Starting { .. });
                    let hurry = !self.line.is_empty() || self.sandboxes.values().any(is_starting);
                    if hurry || self.report.refusal().is_some() || self.room(&CHILD).is_err() {
                        return;
                    }
                    if self.installs(shape.resources()).is_none() {
                        // It is begun when that is known.
                        return self.look_for_private(now);
                    }
                    match self.begin(None, shape.resources().clone(), None, Vec::new(), now) {
                        Ok(key) => self.spare.push(key),
                        Err(_) => self.pools.failed(now),
                    }
                }
            }
        }
    }

    /// Whether there is or was such a sandbox; whoever asks for it then has an answer, or will have.
    fn is_known(&mut self, waiter: Waiter, id: &SandboxId, fence: u64, now: Instant) -> bool {
        let Some(key) = self.keys.get(id).copied() else {
            let Some(reason) = self.graves.reason(id) else { return false };
            let error = Error::gone(reason);
            self.reply(waiter, Answer::Failed(error));
            return true;
        };
        let sandbox = self.sandboxes.get_mut(&key).expect("every key leads to a sandbox");
        if let Err(error) = sandbox.pass(Some(fence), now) {
            self.reply(waiter, Answer::Failed(error));
            return true;
        }
        self.stir(key, now);
        let Some(sandbox) = self.sandboxes.get_mut(&key) else { return true };
        let answer = match &mut sandbox.state {
            State::Starting { waiters } => {
                waiters.push(waiter);
                return true;
            }
            State::Live => Answer::Done {},
            State::Dying { reason, .. } => Answer::Failed(Error::gone(reason.clone())),
        };
        self.reply(waiter, answer);
        true
    }

    /// Opens a door for a container as soon as there is room for it, or says again where it is.
    pub(crate) fn adopt(&mut self, announced: Announced, now: Instant) {
        let Announced { waiter, id, fence, resources, first_id } = announced;
        if self.is_known(waiter, &id, fence, now)
            || self.waits_in_line(waiter, &id, fence, |kind| matches!(kind, Kind::Guest { .. }))
        {
            return;
        }
        if let Some(guest) = self.guest(&id) {
            let door = pass(&mut guest.fence, Some(fence)).map(|()| {
                guest.used = now;
                guest.door()
            });
            return self.reply(waiter, door.unwrap_or_else(Answer::Failed));
        }
        let allowed = match resources.restore {
            None => checked(resources),
            Some(_) => Err(Error::refused(NO_SNAPSHOTS)),
        };
        match allowed {
            Ok(resources) => {
                let kind = Kind::Guest { first_id };
                self.admit(Wanted { id, fence, resources, kind, waiters: vec![waiter] }, now);
            }
            Err(error) => self.reply(waiter, Answer::Failed(error)),
        }
    }

    fn expect(
        &mut self,
        id: SandboxId,
        fence: u64,
        resources: Resources,
        first_id: Option<u32>,
        now: Instant,
    ) -> Result<Answer, Error> {
        let Some(slot) = self.guest_slots.take() else {
            return Err(Error::Busy { reason: format!("{} sandboxes live here", self.sandboxes.len()) });
        };
        let peer = first_id.map(|first| first.saturating_add(slot));
        let expected = Expected { id, fence, slot, resources, peer };
        let key = self.next_key;
        self.next_key += 1;
        let guest = Guest::expect(&mut self.doors, expected, now).and_then(|guest| {
            self.poller.add(guest.descriptor(), Token::Door(key)).map_err(Error::unavailable)?;
            Ok(guest)
        });
        let guest = guest.inspect_err(|_| self.guest_slots.give_back(slot))?;
        let door = guest.door();
        self.guests.insert(key, guest);
        Ok(door)
    }

    /// Waits until the container that a door was opened for is there.
    pub(crate) fn adopted(&mut self, waiter: Waiter, id: &SandboxId, fence: u64, now: Instant) {
        if self.is_known(waiter, id, fence, now) {
            return;
        }
        let passed = match self.guest(id) {
            Some(guest) => pass(&mut guest.fence, Some(fence)).map(|()| guest.waiters.push(waiter)),
            None => Err(Error::gone(UNKNOWN)),
        };
        if let Err(error) = passed {
            self.reply(waiter, Answer::Failed(error));
        }
    }

    fn guest(&mut self, id: &SandboxId) -> Option<&mut Guest> {
        self.guests.values_mut().find(|guest| guest.id == *id)
    }

    /// Somebody is at a door.
    pub(crate) fn door_ready(&mut self, key: u64, now: Instant) {
        let Some(guest) = self.guests.get_mut(&key) else { return };
        let Some(stream) = guest.answer() else { return };
        self.poller.remove(guest.descriptor());
        guest.greet(stream);
        if let Err(error) = self.poller.add(guest.descriptor(), Token::Greeting(key)) {
            self.dismiss(key, &format!("it cannot be heard: {error}"), now);
        }
    }

    /// Somebody who has come in says something.
    pub(crate) fn greeting_ready(&mut self, key: u64, now: Instant) {
        match self.guests.get_mut(&key).map(Guest::hear) {
            None | Some(Heard::Open) => {}
            Some(Heard::Failed(reason)) => self.dismiss(key, &reason, now),
            Some(Heard::Ready(stream)) => {
                if let Err(error) = self.take_in(key, stream, now) {
                    self.dismiss(key, &format!("it cannot be kept: {error}"), now);
                }
            }
        }
    }

    /// Where memory has become short, what is kept ready goes first, one each time.
    fn release_memory(&mut self, now: Instant) {
        if self.spare.is_empty() || self.looked.is_some_and(|looked| now.duration_since(looked) < READY_LOOK)
        {
            return;
        }
        self.looked = Some(now);
        if self.memory.free_bytes().is_some_and(|free| free < self.capacity.memory_reserve_bytes) {
            let key = self.spare[0];
            self.kill(key, GIVES_WAY, now);
            self.pools.failed(now);
        }
    }

    /// A guest becomes a sandbox like any other.
    fn take_in(&mut self, key: u64, stream: UnixStream, now: Instant) -> io::Result<()> {
        let control = Frames::new(stream, wire::RESPONSE_BYTES_MAX, WAITING_BYTES_MAX)?;
        self.poller.add(control.descriptor(), Token::Control(key))?;
        let Some(mut guest) = self.guests.remove(&key) else { return Ok(()) };
        self.poller.remove(guest.descriptor());
        let sandbox = Sandbox {
            id: Some(guest.id.clone()),
            shape: Shape::of(&guest.resources),
            fence: guest.fence,
            born: guest.born,
            used: now,
            limits: guest.resources.limits.clone(),
            body: Body::Guest { slot: guest.slot },
            base: guest.resources.base.name(),
            start_time_max: OPEN_TIME_MAX,
            control,
            interest: Interest::Read,
            sync: None,
            complaint: Vec::new(),
            network: guest.resources.network.clone(),
            exit: guest.exit.take(),
            stage: None,
            stillness: Stillness::Moving,
            state: State::Live,
            heard: now,
            pending: HashMap::new(),
            next_request: 1,
        };
        if sandbox.exit.is_some() {
            self.untold.push(key);
        }
        self.keys.insert(guest.id.clone(), key);
        self.sandboxes.insert(key, sandbox);
        for waiter in std::mem::take(&mut guest.waiters) {
            self.reply(waiter, Answer::Done {});
        }
        self.refill_at = None;
        self.admit_waiting(now);
        Ok(())
    }

    /// Nobody comes through this door any more.
    fn dismiss(&mut self, key: u64, reason: &str, now: Instant) {
        let Some(mut guest) = self.guests.remove(&key) else { return };
        self.poller.remove(guest.descriptor());
        self.guest_slots.give_back(guest.slot);
        self.graves.dig(guest.id.clone(), reason.to_owned());
        let error = match reason == DESTROYED {
            true => Error::gone(reason),
            false => Error::unavailable(reason),
        };
        for waiter in std::mem::take(&mut guest.waiters) {
            self.reply(waiter, Answer::Failed(error.clone()));
        }
        self.refill_at = None;
        self.admit_waiting(now);
    }

    /// Starts one: for somebody, or to be kept ready.
    fn begin(
        &mut self,
        named: Option<(SandboxId, u64)>,
        resources: Resources,
        layer: Option<&str>,
        waiters: Vec<Waiter>,
        now: Instant,
    ) -> Result<u64, (Error, Vec<Waiter>)> {
        match self.start(&resources, layer) {
            Ok(Beginning { key, body, control, sync }) => {
                let (id, fence) = named.unzip();
                self.keys.extend(id.clone().map(|id| (id, key)));
                let sandbox = Sandbox {
                    id,
                    shape: Shape::of(&resources),
                    fence: fence.unwrap_or_default(),
                    born: now,
                    used: now,
                    base: resources.base.name(),
                    limits: resources.limits,
                    start_time_max: match resources.restore {
                        None => START_TIME_MAX,
                        Some(_) => START_TIME_MAX + RESTORE_TIME_MAX,
                    },
                    body,
                    control,
                    interest: Interest::Read,
                    sync: Some(sync),
                    complaint: Vec::new(),
                    network: resources.network,
                    exit: None,
                    stage: None,
                    stillness: Stillness::Moving,
                    state: State::Starting { waiters },
                    heard: now,
                    pending: HashMap::new(),
                    next_request: 1,
                };
                self.sandboxes.insert(key, sandbox);
                Ok(key)
            }
            Err(error) => Err((error, waiters)),
        }
    }

    fn start(&mut self, resources: &Resources, layer: Option<&str>) -> Result<Beginning, Error> {
        let installs = self.installs(resources).unwrap_or(false);
        let mut plan = self.plan(resources, installs)?;
        if let Some(key) = layer {
            plan.stage_on_disk(self.shelf.unfinished(key)?);
        }
        let Some(slot) = self.slots.take() else {
            return Err(Error::Busy { reason: format!("{} sandboxes live here", self.sandboxes.len()) });
        };
        let key = self.next_key;
        self.next_key += 1;
        let group = self.group(&resources.limits);
        let group = group.inspect_err(|_| self.slots.give_back(slot))?;
        let started =
            start(&self.only, &self.profile, &group, slot, resources, &plan).map_err(Error::unavailable);
        let watched = started.and_then(|Started { pid, process, control, sync }| {
            let control = self.watch(key, &process, control, &sync).map_err(Error::unavailable)?;
            Ok((pid, process, control, sync))
        });
        match watched {
            Ok((pid, process, control, sync)) => {
                Ok(Beginning { key, body: Body::Child { slot, pid, process, group }, control, sync })
            }
            Err(error) => {
                self.unremoved.push(group);
                self.slots.give_back(slot);
                Err(error)
            }
        }
    }

    /// What the root of a sandbox is made of.
    fn plan(&self, resources: &Resources, installs: bool) -> Result<Plan, Error> {
        let found = self.shelf.find(&resources.base, self.shape())?;
        let needs_owners = found.image.is_some() || found.layer.is_some();
        if needs_owners && self.profile.owners == Owners::AsTheyAre && self.profile.ids.are_ranges() {
            return Err(Error::refused(
                "images and packages need mounts with mapped owners, which this kernel or file system has not",
            ));
        }
        match &found.image {
            Some(image) => Ok(Plan::over_image(image, &found, installs)),
            None => {
                let masked = matches!(self.private, Private::Known { masked } if masked > 0);
                Plan::over_host(&self.profile.layout, &found, installs, masked).map_err(Error::unavailable)
            }
        }
    }

    fn shape(&self) -> shelf::Shape {
        let installs = self.profile.installs && !matches!(self.private, Private::Failed);
        if installs { shelf::Shape::Installs } else { shelf::Shape::Plain }
    }

    /// Whether root inside is given what installing takes; `None` as long as it is not known what of the host it must
    /// not see then.
    fn installs(&self, resources: &Resources) -> Option<bool> {
        let installs = self.profile.installs && resources.rights == Rights::Install;
        if !installs || resources.base.image.is_some() {
            return Some(installs);
        }
        match &self.private {
            Private::Known { .. } => Some(true),
            // As if root inside could not be given it.
            Private::Failed => Some(false),
            Private::Unknown | Private::Looking(_) => None,
        }
    }

    /// Begins to look what of the host a sandbox must not see that may install.
    fn look_for_private(&mut self, now: Instant) {
        if matches!(self.private, Private::Unknown) {
            self.private = Private::look(&self.only, &self.poller, now);
        }
    }

    /// Puts a sandbox off until it is known what of the host it must not see.
    fn hold_back(&mut self, asked: Asked, now: Instant) -> Result<(), Error> {
        if self.held_back.len() >= HELD_BACK_MAX {
            return Err(Error::Busy { reason: format!("{HELD_BACK_MAX} sandboxes wait to be begun") });
        }
        self.look_for_private(now);
        self.held_back.push(asked);
        if matches!(self.private, Private::Failed) {
            self.resume(now);
        }
        Ok(())
    }

    /// The look for what is private has something to say.
    pub(crate) fn masks_ready(&mut self, now: Instant) {
        self.private.hear(&self.poller);
        self.resume(now);
    }

    /// Begins what was put off, if it is known now.
    fn resume(&mut self, now: Instant) {
        if matches!(self.private, Private::Looking(_)) {
            return;
        }
        if matches!(self.private, Private::Failed) {
            self.report.lose(doctor::PACKAGES, "/usr could not be looked through for private files");
        }
        for asked in std::mem::take(&mut self.held_back) {
            self.provision(asked, now);
        }
    }

    /// A control group with these limits: the one that is ready, or a new one.
    fn group(&mut self, limits: &Limits) -> Result<Group, Error> {
        self.usual = Some(limits.clone());
        match self.ready.take_if(|(ready, _)| ready == limits) {
            Some((_, group)) => Ok(group),
            None => self.new_group(limits),
        }
    }

    fn new_group(&mut self, limits: &Limits) -> Result<Group, Error> {
        let name = self.next_group.to_string();
        self.next_group += 1;
        self.profile.groups.create(&name, limits).map_err(Error::unavailable)
    }

    /// Makes the next sandbox's group while nobody waits for it; that is a tenth of what a sandbox takes.
    fn make_ready(&mut self) {
        let Some(limits) = self.usual.clone().filter(|_| self.ready.is_none()) else { return };
        // Whoever needs it and does not find it meets the same error, and can be told.
        self.ready = self.new_group(&limits).ok().map(|group| (limits, group));
    }

    fn watch(
        &self,
        key: u64,
        process: &Process,
        control: UnixStream,
        sync: &UnixStream,
    ) -> io::Result<Frames> {
        sync.set_nonblocking(true)?;
        let control = Frames::new(control, wire::RESPONSE_BYTES_MAX, WAITING_BYTES_MAX)?;
        self.poller.add(control.descriptor(), Token::Control(key))?;
        self.poller.add(sync, Token::Sync(key))?;
        self.poller.add(process.descriptor(), Token::Process(key))?;
        Ok(control)
    }

    /// Hands an operation to a sandbox. One that is still being built reads it as soon as it can.
    pub(crate) fn relay(
        &mut self,
        waiter: Waiter,
        id: &SandboxId,
        fence: Option<u64>,
        op: &RawValue,
        now: Instant,
    ) {
        let Some(key) = self.keys.get(id).copied() else {
            if self.guest(id).is_some() {
                let reason = "its container has not come yet".to_owned();
                return self.reply(waiter, Answer::Failed(Error::Busy { reason }));
            }
            let error = Error::gone(self.graves.reason(id).unwrap_or(UNKNOWN));
            return self.reply(waiter, Answer::Failed(error));
        };
        let sandbox = self.sandboxes.get_mut(&key).expect("every key leads to a sandbox");
        if let Err(error) = sandbox.pass(fence, now) {
            return self.reply(waiter, Answer::Failed(error));
        }
        self.stir(key, now);
        let Some(sandbox) = self.sandboxes.get_mut(&key) else { return };
        match sandbox.relay(Pending::Asked(waiter), op, now) {
            Ok(()) => self.update_interest(key),
            Err(error) => self.reply(waiter, Answer::Failed(error)),
        }
    }

    /// Begins to write a sandbox's snapshot: its processes stand still first.
    pub(crate) fn save(&mut self, waiter: Waiter, id: &SandboxId, fence: u64, into: &Path, now: Instant) {
        let Some(key) = self.keys.get(id).copied() else {
            let error = Error::gone(self.graves.reason(id).unwrap_or(UNKNOWN));
            return self.reply(waiter, Answer::Failed(error));
        };
        let sandbox = self.sandboxes.get_mut(&key).expect("every key leads to a sandbox");
        let begun = sandbox.may_be_saved(fence).and_then(|()| Sheet::open(waiter, into, now));
        let begun = begun.and_then(|sheet| match sandbox.stillness {
            // Its last snapshot went where it is of no use any more.
            Stillness::Still => {
                sandbox.stillness = Stillness::Pausing(sheet);
                Ok(true)
            }
            Stillness::Moving | Stillness::Pausing(_) | Stillness::Packing(_) => {
                sandbox.relay(Pending::Pause, &self.pause, now)?;
                sandbox.stillness = Stillness::Pausing(sheet);
                Ok(false)
            }
        });
        match begun {
            Ok(true) => self.pack(key, now),
            Ok(false) => self.update_interest(key),
            Err(error) => self.reply(waiter, Answer::Failed(error)),
        }
    }

    /// The processes of a sandbox stand still; now their files are written down.
    fn pack(&mut self, key: u64, now: Instant) {
        let Some(sandbox) = self.sandboxes.get_mut(&key) else { return };
        let sheet = match std::mem::replace(&mut sandbox.stillness, Stillness::Still) {
            Stillness::Pausing(sheet) => sheet,
            // It has been used meanwhile.
            other => {
                sandbox.stillness = other;
                return;
            }
        };
        let waiter = sheet.waiter;
        let started = match (&sandbox.body, &sandbox.stage) {
            (Body::Child { slot, .. }, Some(stage)) => {
                Packing::start(&self.only, &self.profile, *slot, stage, sheet)
            }
            _ => Err((Error::unavailable("this sandbox has not handed out its files"), sheet)),
        };
        let watched = started.map_err(|(error, _sheet)| error).and_then(|packing| {
            self.poller.add(packing.descriptor(), Token::Packer(key)).map_err(Error::unavailable)?;
            Ok(packing)
        });
        match watched {
            Ok(packing) => sandbox.stillness = Stillness::Packing(packing),
            Err(error) => {
                self.stir(key, now);
                self.reply(waiter, Answer::Failed(error));
            }
        }
    }

    /// A snapshot is written, or will never be.
    pub(crate) fn packer_ended(&mut self, key: u64, now: Instant) {
        let Some(sandbox) = self.sandboxes.get_mut(&key) else { return };
        let packing = match std::mem::replace(&mut sandbox.stillness, Stillness::Still) {
            Stillness::Packing(packing) => packing,
            other => {
                sandbox.stillness = other;
                return;
            }
        };
        self.poller.remove(packing.descriptor());
        let (waiter, saved) = packing.finish();
        match saved {
            Ok(written) => {
                let base = sandbox.base.clone();
                self.reply(waiter, Answer::Saved(Saved { written, base }));
            }
            Err(error) => {
                self.stir(key, now);
                self.reply(waiter, Answer::Failed(error));
            }
        }
    }

    /// Lets a sandbox go on that was saved or is being saved.
    fn stir(&mut self, key: u64, now: Instant) {
        self.stop_saving(key, &Error::Busy { reason: "the sandbox is used again".to_owned() });
        let Some(sandbox) = self.sandboxes.get_mut(&key) else { return };
        match std::mem::replace(&mut sandbox.stillness, Stillness::Moving) {
            Stillness::Moving => {}
            Stillness::Pausing(_) | Stillness::Packing(_) | Stillness::Still => {
                // Where there is no room for it, whatever comes next is refused, too, and the one after that tries again.
                if sandbox.relay(Pending::Resume, &self.resume, now).is_err() {
                    sandbox.stillness = Stillness::Still;
                }
                self.update_interest(key);
            }
        }
    }

    /// Ends what is being saved, and leaves the sandbox standing still.
    fn stop_saving(&mut self, key: u64, error: &Error) {
        let Some(sandbox) = self.sandboxes.get_mut(&key) else { return };
        let waiter = match std::mem::replace(&mut sandbox.stillness, Stillness::Still) {
            Stillness::Still => return,
            Stillness::Moving => {
                sandbox.stillness = Stillness::Moving;
                return;
            }
            Stillness::Pausing(sheet) => sheet.waiter,
            Stillness::Packing(packing) => {
                self.poller.remove(packing.descriptor());
                let waiter = packing.sheet.waiter;
                self.leaving.push(packing.abandon());
                waiter
            }
        };
        self.reply(waiter, Answer::Failed(error.clone()));
    }

    pub(crate) fn destroy(&mut self, waiter: Waiter, id: SandboxId, now: Instant) {
        let guest = self.guests.iter().find(|(_, guest)| guest.id == id).map(|(key, _)| *key);
        if let Some(key) = guest {
            self.dismiss(key, DESTROYED, now);
            return self.reply(waiter, Answer::Done {});
        }
        match self.keys.get(&id).copied() {
            Some(key) => {
                self.kill(key, DESTROYED, now);
                match self.sandboxes.get_mut(&key).map(|sandbox| &mut sandbox.state) {
                    Some(State::Dying { waiters, .. }) => waiters.push(waiter),
                    Some(State::Starting { .. } | State::Live) | None => self.reply(waiter, Answer::Done {}),
                }
            }
            None => {
                let waited = self.line.leave(|wanted| wanted.id == id);
                for waiter in waited.into_iter().flat_map(|wanted| wanted.waiters) {
                    self.reply(waiter, Answer::Failed(Error::gone(DESTROYED)));
                }
                self.forget_held_back(&id);
                // Remembered too: whoever provisions it after this is late, and must not make what nobody will destroy.
                self.graves.dig(id, DESTROYED.to_owned());
                self.reply(waiter, Answer::Done {});
            }
        }
    }

    fn forget_held_back(&mut self, id: &SandboxId) {
        let (gone, kept) = std::mem::take(&mut self.held_back).into_iter().partition(|asked| asked.id == *id);
        self.held_back = kept;
        let gone: Vec<Asked> = gone;
        for asked in gone {
            self.reply(asked.waiter, Answer::Failed(Error::gone(DESTROYED)));
        }
    }

    pub(crate) fn list(&self, now: Instant) -> Vec<SandboxInfo> {
        let alive = self.sandboxes.values().filter(|sandbox| !matches!(sandbox.state, State::Dying { .. }));
        let expected = self.guests.values().map(|guest| guest.info(now));
        let mut list: Vec<SandboxInfo> =
            alive.filter_map(|sandbox| sandbox.info(now)).chain(expected).collect();
        list.sort_by(|one, other| one.id.cmp(&other.id));
        list
    }

    /// A sandbox's `tools` said something, or its socket takes more.
    pub(crate) fn control_ready(&mut self, key: u64, now: Instant) {
        let Some(sandbox) = self.sandboxes.get_mut(&key) else { return };
        let mut replies = Vec::new();
        let mut has_paused = false;
        let talked =
            sandbox.control.flush().and_then(|()| sandbox.read_replies(&mut replies, &mut has_paused, now));
        for (waiter, answer) in replies {
            self.reply(waiter, answer);
        }
        if has_paused {
            self.pack(key, now);
        }
        match talked {
            Ok(Flow::Open) => self.update_interest(key),
            // Process 1 has closed its end or talks nonsense: either way it is not our `tools` any more. When it has died,
            // the kernel tells more in a moment.
            Ok(Flow::Ended) => {
                self.poller.remove(self.sandboxes[&key].control.descriptor());
                // One that failed in its first steps has said why, and this may be seen before the end of that.
                self.finish_start(key, "it ended while it was being built", now);
                self.kill(key, ENDED, now);
            }
            Err(error) => {
                self.poller.remove(self.sandboxes[&key].control.descriptor());
                let broken =
                    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe);
                let nonsense = format!("its first process talks nonsense: {error}");
                self.kill(key, if broken { ENDED } else { &nonsense }, now);
            }
        }
    }

    /// The exits of new sandboxes since the last time, and those that have ended since.
    pub(crate) fn take_exits(&mut self) -> (Vec<(SandboxId, Network, OwnedFd)>, Vec<SandboxId>) {
        let untold = std::mem::take(&mut self.untold);
        let opened = untold.iter().filter_map(|key| self.sandboxes.get(key)?.exit()).collect();
        (opened, std::mem::take(&mut self.closed))
    }

    /// The exits of all that live.
    pub(crate) fn exits(&self) -> Vec<(SandboxId, Network, OwnedFd)> {
        self.sandboxes.values().filter_map(Sandbox::exit).collect()
    }

    /// A sandbox's first steps have handed its exit out, or have ended, one way or the other.
    pub(crate) fn sync_ready(&mut self, key: u64, now: Instant) {
        let Some(sandbox) = self.sandboxes.get_mut(&key) else { return };
        if sandbox.hear_first_steps() == Flow::Ended {
            self.finish_start(key, "", now);
            self.admit_waiting(now);
        }
    }

    /// Tells those who wait for a sandbox how its start went: well, unless it said why not, or there is a reason already.
    fn finish_start(&mut self, key: u64, reason: &str, now: Instant) {
        let Some(sandbox) = self.sandboxes.get_mut(&key) else { return };
        sandbox.hear_first_steps();
        let Some(sync) = sandbox.sync.take() else { return };
        self.poller.remove(&sync);
        // Refilling waits while anything starts.
        self.refill_at = None;
        let message = std::mem::take(&mut sandbox.complaint);
        let State::Starting { waiters } = &mut sandbox.state else { return };
        let waiters = std::mem::take(waiters);
        let (unrestorable, message) = match message.strip_prefix(&[UNRESTORABLE]) {
            Some(message) => (true, message),
            None => (false, message.as_slice()),
        };
        let reason = if message.is_empty() {
            reason.to_owned()
        } else {
            String::from_utf8_lossy(message).into_owned()
        };
        let answer = if reason.is_empty() {
            sandbox.state = State::Live;
            if sandbox.id.is_none() {
                self.pools.made();
            } else if sandbox.exit.is_some() {
                self.untold.push(key);
            }
            Answer::Done {}
        } else {
            if sandbox.id.is_none() {
                self.pools.failed(now);
            }
            self.kill(key, &reason, now);
            Answer::Failed(match unrestorable {
                true => Error::Unrestorable { reason },
                false => Error::Unavailable { reason },
            })
        };
        for waiter in waiters {
            self.reply(waiter, answer.clone());
        }
    }

    /// Process 1 of a sandbox has ended, and everything else in it with it.
    pub(crate) fn process_ended(&mut self, key: u64, now: Instant) {
        // It may have said why a moment ago.
        self.finish_start(key, "it ended while it was being built", now);
        if self.spare.contains(&key) {
            self.pools.failed(now);
        }
        self.refill_at = None;
        self.kill(key, ENDED, now);
        let Some(sandbox) = self.sandboxes.get(&key) else { return };
        let Body::Child { process, .. } = &sandbox.body else { return };
        if process.reap() {
            self.bury(key, now);
        }
    }

    /// Forgets one that has ended, and tells those who wait for that.
    fn bury(&mut self, key: u64, now: Instant) {
        let Some(sandbox) = self.sandboxes.remove(&key) else { return };
        self.poller.remove(sandbox.control.descriptor());
        if let Some(sync) = &sandbox.sync {
            self.poller.remove(sync);
        }
        if let State::Dying { reason, waiters } = sandbox.state {
            if let Some(id) = sandbox.id {
                self.keys.remove(&id);
                if sandbox.exit.is_some() {
                    self.closed.push(id.clone());
                }
                self.graves.dig(id, reason);
            }
            for waiter in waiters {
                self.reply(waiter, Answer::Done {});
            }
        }
        match sandbox.body {
            Body::Child { slot, pid: _, process, group } => {
                self.poller.remove(process.descriptor());
                self.slots.give_back(slot);
                if !group.remove() {
                    self.unremoved.push(group);
                }
                self.make_ready();
            }
            Body::Guest { slot } => self.guest_slots.give_back(slot),
        }
        self.refill_at = None;
        self.admit_waiting(now);
    }

    /// Looks at deadlines, memory and what is left of the dead.
    pub(crate) fn tick(&mut self, now: Instant) {
        if self.private.is_late(now) {
            self.private.give_up(&self.poller);
            self.resume(now);
        }
        self.unremoved.retain(|group| !group.remove());
        self.leaving.retain(|packer| !packer.reap());
        self.make_ready();
        let watched = !self.profile.groups.limits(Controller::Memory);
        self.ticks += 1;
        let full_round = self.ticks.is_multiple_of(TICKS_PER_ROUND);
        let verdicts: Vec<(u64, String)> = self
            .sandboxes
            .iter()
            .filter_map(|(key, sandbox)| {
                Some((*key, sandbox.verdict(watched && (full_round || !sandbox.pending.is_empty()), now)?))
            })
            .collect();
        for (key, reason) in verdicts {
            self.kill(key, &reason, now);
        }
        let late = |guest: &Guest| now > guest.born + OPEN_TIME_MAX;
        let late: Vec<u64> =
            self.guests.iter().filter(|(_, guest)| late(guest)).map(|(key, _)| *key).collect();
        for key in late {
            self.dismiss(key, "its container did not come in time", now);
        }
        let overdue = |sandbox: &Sandbox| match &sandbox.stillness {
            Stillness::Moving | Stillness::Still => false,
            Stillness::Pausing(sheet) => sheet.is_overdue(now),
            Stillness::Packing(packing) => packing.sheet.is_overdue(now),
        };
        let overdue: Vec<u64> =
            self.sandboxes.iter().filter(|(_, sandbox)| overdue(sandbox)).map(|(key, _)| *key).collect();
        for key in overdue {
            self.stop_saving(key, &Error::unavailable("saving took too long"));
            self.stir(key, now);
        }
        let silent: Vec<u64> = self
            .sandboxes
            .iter()
            .filter(|(_, sandbox)| sandbox.is_silent(now))
            .map(|(key, _)| *key)
            .collect();
        for key in silent {
            let Some(sandbox) = self.sandboxes.get_mut(&key) else { continue };
            // Where there is no room for it, that is the same silence.
            let _ = sandbox.relay(Pending::Ping, &self.ping, now);
            self.update_interest(key);
        }
        self.admit_waiting(now);
        for wanted in self.line.overdue(&self.capacity, now) {
            self.refuse(wanted);
        }
    }

    /// Ends every sandbox and waits for it. The supervisor is about to end.
    pub(crate) fn destroy_all(&mut self) {
        let sandboxes = std::mem::take(&mut self.sandboxes);
        self.keys.clear();
        self.spare.clear();
        self.guests.clear();
        self.doors.remove();
        sandboxes.values().for_each(|sandbox| sandbox.body.kill());
        for (_, sandbox) in sandboxes {
            // A container ends with its control socket, which goes here.
            let Body::Child { process, group, .. } = sandbox.body else { continue };
            drop(process);
            self.unremoved.push(group);
        }
        self.unremoved.extend(self.ready.take().map(|(_, group)| group));
        // The groups empty themselves within moments of the last process; what stays is cleared by the next supervisor.
        for _ in 0..100 {
            self.unremoved.retain(|group| !group.remove());
            if self.unremoved.is_empty() {
                break;
            }
            let _ = self.poller.wait(Some(Duration::from_millis(5)));
        }
        self.profile.groups.remove();
    }

    /// Decides that a sandbox dies, unless that is decided already, and tells everybody who waits for a call in it.
    fn kill(&mut self, key: u64, reason: &str, now: Instant) {
        let Some(sandbox) = self.sandboxes.get_mut(&key) else { return };
        if matches!(sandbox.state, State::Dying { .. }) {
            return;
        }
        sandbox.body.kill();
        self.spare.retain(|spare| *spare != key);
        self.stop_saving(key, &Error::gone(reason));
        let Some(sandbox) = self.sandboxes.get_mut(&key) else { return };
        // The kernel does not say whom it killed, so neither do we.
        let reason = match reason == ENDED && sandbox.body.memory_kills() > 0 {
            true => format!(
                "{ENDED}, after processes in it were killed for want of memory (its limit is {} MiB)",
                sandbox.limits.memory_bytes >> 20
            ),
            false => reason.to_owned(),
        };
        let error = Error::gone(reason.clone());
        let state = std::mem::replace(&mut sandbox.state, State::Dying { reason, waiters: Vec::new() });
        let starting = match state {
            State::Starting { waiters } => waiters,
            State::Live | State::Dying { .. } => Vec::new(),
        };
        let calling =
            std::mem::take(&mut sandbox.pending).into_values().filter_map(|pending| match pending {
                Pending::Asked(waiter) => Some(waiter),
                Pending::Ping | Pending::Pause | Pending::Resume => None,
            });
        self.replies.extend(
            starting.into_iter().chain(calling).map(|waiter| (waiter, Answer::Failed(error.clone()))),
        );
        if !self.sandboxes[&key].body.is_child() {
            self.bury(key, now);
        }
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

impl Sandbox {
    /// Lets the holder of this fencing token through, or tells it that it is late.
    fn pass(&mut self, fence: Option<u64>, now: Instant) -> Result<(), Error> {
        pass(&mut self.fence, fence)?;
        self.used = now;
        Ok(())
    }

    /// Whether the holder of this fencing token may save this sandbox now. Not a use.
    fn may_be_saved(&mut self, fence: u64) -> Result<(), Error> {
        let used = self.used;
        self.pass(Some(fence), used)?;
        match &self.state {
            State::Dying { reason, .. } => return Err(Error::gone(reason.clone())),
            State::Starting { .. } => return Err(Error::Busy { reason: "it is being built".to_owned() }),
            State::Live => {}
        }
        if !self.body.is_child() {
            return Err(Error::refused(NO_SNAPSHOTS));
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
    fn hear_first_steps(&mut self) -> Flow {
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
    fn exit(&self) -> Option<(SandboxId, Network, OwnedFd)> {
        let (State::Live, Some(network), Some(exit)) = (&self.state, &self.network, &self.exit) else {
            return None;
        };
        Some((self.id.clone()?, network.clone(), exit.try_clone().ok()?))
    }

    fn relay(&mut self, pending: Pending, op: &RawValue, now: Instant) -> Result<(), Error> {
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

    fn read_replies(
        &mut self,
        replies: &mut Vec<(Waiter, Answer)>,
        has_paused: &mut bool,
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
                // Whatever the answer is: a process 1 that cannot stop its sandbox is not trusted, and hurts itself only.
                Some(Pending::Pause) => *has_paused = true,
                // An answer to nothing is a lie without effect.
                Some(Pending::Ping | Pending::Resume) | None => {}
            }
        }
        Ok(flow)
    }

    /// Whether calls run but nothing has been heard for so long that it is worth asking.
    fn is_silent(&self, now: Instant) -> bool {
        let asked = || self.pending.values().any(|pending| matches!(pending, Pending::Ping));
        matches!(self.state, State::Live)
            && !self.pending.is_empty()
            && now > self.heard + SILENCE_TIME_MAX / 2
            && !asked()
    }

    /// Why this sandbox must end now, if it must.
    fn verdict(&self, watched: bool, now: Instant) -> Option<String> {
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
    fn info(&self, now: Instant) -> Option<SandboxInfo> {
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
    fn is_child(&self) -> bool {
        matches!(self, Self::Child { .. })
    }

    fn kill(&self) {
        match self {
            Self::Child { process, .. } => process.kill(),
            // It ends with its control socket, and its engine sees to the rest.
            Self::Guest { .. } => {}
        }
    }

    fn memory_kills(&self) -> u64 {
        match self {
            Self::Child { group, .. } => group.memory_kills(),
            Self::Guest { .. } => 0,
        }
    }

    fn memory_bytes(&self) -> Option<u64> {
        match self {
            Self::Child { pid, group, .. } => {
                group.memory_bytes().or_else(|| Some(watchdog::memory_bytes(*pid, 0)))
            }
            Self::Guest { .. } => None,
        }
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

/// What tells those who want to save a container, or to make one of a snapshot.
const NO_SNAPSHOTS: &str = "containers cannot be saved or restored yet; sandboxes of namespaces can";
const UNKNOWN: &str = "no sandbox of this id lives here";
const DESTROYED: &str = "it was destroyed";
const GIVES_WAY: &str = "it was kept ready and made way";
const NOT_WISHED: &str = "it was kept ready and is not wished for any more";
const ENDED: &str = "its first process has ended";

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
