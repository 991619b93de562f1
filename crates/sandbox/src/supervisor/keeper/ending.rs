//! How sandboxes end, and what is looked at all the time to see whether one must.

use std::time::{Duration, Instant};

use super::sandbox::{Body, Pending, Sandbox, State};
use super::{DESTROYED, ENDED, Keeper, Waiter};
use crate::namespaces::cgroups::Controller;
use crate::provider::{Error, SandboxId};
use crate::supervisor::protocol::Answer;
use crate::supervisor::saving::Stillness;

/// Where memory has to be added up, sandboxes with calls are looked at every tick, the others once in so many.
const TICKS_PER_ROUND: u64 = 10;

impl Keeper {
    pub(crate) fn destroy(&mut self, waiter: Waiter, id: SandboxId, now: Instant) {
        let guest = self.guests.iter().find(|(_, guest)| guest.id == id).map(|(key, _)| *key);
        if let Some(key) = guest {
            self.dismiss(key, Error::gone(DESTROYED), now);
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

    /// Decides that a sandbox dies, unless that is decided already, and tells everybody who waits for a call in it.
    pub(super) fn kill(&mut self, key: u64, reason: &str, now: Instant) {
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
                Pending::Ping | Pending::Pause | Pending::Pack | Pending::Resume => None,
            });
        self.replies.extend(
            starting.into_iter().chain(calling).map(|waiter| (waiter, Answer::Failed(error.clone()))),
        );
        if !self.sandboxes[&key].body.is_child() {
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
            Body::Guest { slot, cargo: _ } => self.guest_slots.give_back(slot),
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
        let late: Vec<u64> =
            self.guests.iter().filter(|(_, guest)| guest.is_late(now)).map(|(key, _)| *key).collect();
        for key in late {
            self.dismiss(key, Error::unavailable("its container did not come in time"), now);
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
}
