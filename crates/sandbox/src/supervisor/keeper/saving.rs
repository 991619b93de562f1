//! How a sandbox is saved: it stands still, and a child of the supervisor writes its files down.

use std::path::Path;
use std::time::Instant;

use serde_json::value::{RawValue, to_raw_value};
use tools::archive::freight::Mark;
use tools::wire::Op;

use super::sandbox::{Body, Pending};
use super::{Keeper, UNKNOWN, Waiter};
use crate::provider::{Error, SandboxId, Saved};
use crate::supervisor::cargo;
use crate::supervisor::poller::Token;
use crate::supervisor::protocol::Answer;
use crate::supervisor::saving::{Packing, Sheet, Stillness};

impl Keeper {
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
    pub(super) fn pack(&mut self, key: u64, now: Instant) {
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
        let mut asks = None;
        let started = match (&sandbox.body, &sandbox.stage) {
            (Body::Child { slot, .. }, Some(stage)) => {
                Packing::start(&self.only, &self.profile, *slot, stage, sheet)
            }
            (Body::Child { .. }, None) => {
                Err(Error::unavailable("this sandbox has not handed out its files"))
            }
            (Body::Guest { slot: _, cargo }, _) => any_mark().and_then(|(mark, op)| {
                let bytes_max = cargo::bytes_max(&sandbox.limits);
                let packing = Packing::start_receiving(&self.only, cargo, mark, bytes_max, sheet)?;
                asks = Some(op);
                Ok(packing)
            }),
        };
        let started = started.and_then(|packing| match &asks {
            Some(op) => sandbox.relay(Pending::Pack, op, now).map(|()| packing),
            None => Ok(packing),
        });
        self.update_interest(key);
        let watched = started.and_then(|packing| {
            self.poller.add(packing.descriptor(), Token::Packer(key)).map_err(Error::unavailable)?;
            Ok(packing)
        });
        let Some(sandbox) = self.sandboxes.get_mut(&key) else { return };
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
    pub(super) fn stir(&mut self, key: u64, now: Instant) {
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
    pub(super) fn stop_saving(&mut self, key: u64, error: &Error) {
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
}

/// A mark that nothing in a container can have foreseen, and how to ask for files behind it.
fn any_mark() -> Result<(Mark, Box<RawValue>), Error> {
    let mut mark = Mark::default();
    rustix::rand::getrandom(&mut mark, rustix::rand::GetRandomFlags::empty())
        .map_err(|_| Error::unavailable("no randomness"))?;
    let op = Op::Pack { mark: crate::packages::hex(&mark) };
    Ok((mark, to_raw_value(&op).map_err(Error::unavailable)?))
}
