//! Who gets the room that there is: at once, in line, or not at all.

use std::time::{Duration, Instant};

use super::sandbox::{Sandbox, State};
use super::{Asked, CHILD, Keeper, Kind, Waiter, Wanted, of_namespaces, pass};
use crate::provider::{Error, Occupancy, SandboxId};
use crate::supervisor::admission::{Capacity, Load};
use crate::supervisor::guests::SLOTS;
use crate::supervisor::protocol::Answer;

/// That somebody waits for room is said in the log, but not more often than this.
const SAY: Duration = Duration::from_secs(60);

impl Keeper {
    /// From now on this machine holds so many; maybe some that may install packages.
    pub(crate) fn hold(&mut self, capacity: Capacity, will_install: bool, now: Instant) {
        if will_install && self.profile.installs {
            self.look_for_private(now);
        }
        self.capacity = capacity.bounded();
        self.refill_at = None;
        self.admit_waiting(now);
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

    /// Whether there is or was such a sandbox; whoever asks for it then has an answer, or will have.
    pub(super) fn is_known(&mut self, waiter: Waiter, id: &SandboxId, fence: u64, now: Instant) -> bool {
        let Some(key) = self.keys.get(id).copied() else {
            let Some(error) = self.graves.error(id) else { return false };
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

    /// Whether such a sandbox waits for room; whoever asks for it then waits with it, or has an answer.
    pub(super) fn waits_in_line(
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
    pub(super) fn admit(&mut self, wanted: Wanted, now: Instant) {
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
    pub(super) fn admit_waiting(&mut self, now: Instant) {
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

    /// Whether one more may be started, or awaited; else what is lacking.
    pub(super) fn room(&self, kind: &Kind) -> Result<(), String> {
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

    pub(super) fn refuse(&mut self, wanted: Wanted) {
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
}
