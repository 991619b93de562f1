//! What goes to the `tools` of a sandbox and comes back, and the exits.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use serde_json::value::RawValue;

use super::sandbox::{News, Pending, Sandbox};
use super::{ENDED, Keeper, UNKNOWN, Waiter};
use crate::provider::{Error, Network, SandboxId};
use crate::supervisor::frames::Flow;
use crate::supervisor::protocol::Answer;

impl Keeper {
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

    /// Somebody uses this sandbox.
    pub(crate) fn touch(&mut self, waiter: Waiter, id: &SandboxId, fence: u64, now: Instant) {
        if self.is_known(waiter, id, fence, now) {
            return;
        }
        let error = match self.guest(id) {
            Some(_) => Error::Busy { reason: "its container has not come yet".to_owned() },
            None => Error::gone(UNKNOWN),
        };
        self.reply(waiter, Answer::Failed(error));
    }

    /// A sandbox's `tools` said something, or its socket takes more.
    pub(crate) fn control_ready(&mut self, key: u64, now: Instant) {
        let Some(sandbox) = self.sandboxes.get_mut(&key) else { return };
        let mut replies = Vec::new();
        let mut news = News::default();
        let talked =
            sandbox.control.flush().and_then(|()| sandbox.read_replies(&mut replies, &mut news, now));
        for (waiter, answer) in replies {
            self.reply(waiter, answer);
        }
        if news.has_paused {
            self.pack(key, now);
        }
        if let Some(reason) = news.cannot_pause {
            self.stop_saving(key, &Error::Busy { reason });
            self.stir(key, now);
        }
        if let Some(why) = news.cannot_pack {
            self.stop_saving(key, &Error::unavailable(format!("saving failed: {why}")));
            self.stir(key, now);
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
}
