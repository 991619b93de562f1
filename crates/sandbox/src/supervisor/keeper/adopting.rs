//! How a sandbox begins that an engine of containers starts: a door, a greeting, and from then on one like any other.

use std::collections::HashMap;
use std::io;
use std::time::Instant;

use tools::wire;

use super::sandbox::{Body, Sandbox, State};
use super::{Announced, Keeper, Kind, UNKNOWN, WAITING_BYTES_MAX, Waiter, Wanted, pass};
use crate::provider::{Error, Resources, SandboxId};
use crate::supervisor::frames::Frames;
use crate::supervisor::guests::{Expected, Guest, Heard, Lines, OPEN_TIME_MAX};
use crate::supervisor::poller::{Interest, Token};
use crate::supervisor::pool::Shape;
use crate::supervisor::protocol::Answer;
use crate::supervisor::saving::Stillness;
use crate::supervisor::terms::checked;

impl Keeper {
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
        match checked(resources) {
            Ok(resources) => {
                let kind = Kind::Guest { first_id };
                self.admit(Wanted { id, fence, resources, kind, waiters: vec![waiter] }, now);
            }
            Err(error) => self.reply(waiter, Answer::Failed(error)),
        }
    }

    pub(super) fn expect(
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

    pub(super) fn guest(&mut self, id: &SandboxId) -> Option<&mut Guest> {
        self.guests.values_mut().find(|guest| guest.id == *id)
    }

    /// Somebody is at a door.
    pub(crate) fn door_ready(&mut self, key: u64, now: Instant) {
        let Some(guest) = self.guests.get_mut(&key) else { return };
        let Some(lines) = guest.answer() else { return };
        self.poller.remove(guest.descriptor());
        let greeted = guest.greet(lines, &self.only).and_then(|()| {
            let heard = self.poller.add(guest.descriptor(), Token::Greeting(key));
            heard.map_err(|error| Error::unavailable(format!("it cannot be heard: {error}")))
        });
        if let Err(error) = greeted {
            self.dismiss(key, error, now);
        }
    }

    /// Somebody who has come in says something.
    pub(crate) fn greeting_ready(&mut self, key: u64, now: Instant) {
        match self.guests.get_mut(&key).map(Guest::hear) {
            None | Some(Heard::Open) => {}
            Some(Heard::Failed(error)) => self.dismiss(key, error, now),
            Some(Heard::Ready(lines)) => {
                if let Err(error) = self.take_in(key, lines, now) {
                    self.dismiss(key, Error::unavailable(format!("it cannot be kept: {error}")), now);
                }
            }
        }
    }

    /// A guest becomes a sandbox like any other.
    fn take_in(&mut self, key: u64, lines: Lines, now: Instant) -> io::Result<()> {
        let Lines { control, cargo } = lines;
        let control = Frames::new(control, wire::RESPONSE_BYTES_MAX, WAITING_BYTES_MAX)?;
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
            body: Body::Guest { slot: guest.slot, cargo },
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
            restless: 0,
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
    pub(super) fn dismiss(&mut self, key: u64, error: Error, now: Instant) {
        let Some(mut guest) = self.guests.remove(&key) else { return };
        self.poller.remove(guest.descriptor());
        self.guest_slots.give_back(guest.slot);
        // Whoever asks for it a moment later hears the same.
        match &error {
            Error::Unrestorable { reason } => self.graves.dig_unrestorable(guest.id.clone(), reason.clone()),
            Error::Gone { reason } | Error::Unavailable { reason } => {
                self.graves.dig(guest.id.clone(), reason.clone());
            }
            other => self.graves.dig(guest.id.clone(), other.to_string()),
        }
        for waiter in std::mem::take(&mut guest.waiters) {
            self.reply(waiter, Answer::Failed(error.clone()));
        }
        self.refill_at = None;
        self.admit_waiting(now);
    }
}
