//! How a sandbox begins that is the supervisor's own child: its root, its control group, its first steps.

use std::collections::HashMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use tools::wire;

use super::sandbox::{Body, Sandbox, State};
use super::{Asked, Beginning, DESTROYED, Keeper, WAITING_BYTES_MAX, Waiter};
use crate::namespaces::cgroups::Group;
use crate::namespaces::child::UNRESTORABLE;
use crate::namespaces::profile::Owners;
use crate::namespaces::stacks::{Found, Plan};
use crate::namespaces::start::{Process, Started, start};
use crate::provider::{Error, Limits, Resources, Restore, Rights, SandboxId};
use crate::supervisor::frames::{Flow, Frames};
use crate::supervisor::poller::{Interest, Token};
use crate::supervisor::pool::Shape;
use crate::supervisor::private::Private;
use crate::supervisor::protocol::Answer;
use crate::supervisor::saving::Stillness;
use crate::{doctor, shelf};

/// Sandboxes that wait for the first look at the host's files. It takes a second.
const HELD_BACK_MAX: usize = 256;
/// Building a root takes milliseconds; after this long it hangs on something.
const START_TIME_MAX: Duration = Duration::from_secs(30);
/// What restoring a snapshot may add: it may hold gigabytes, or a few hundred thousand files.
const RESTORE_TIME_MAX: Duration = Duration::from_secs(300);

impl Keeper {
    /// Starts one: for somebody, or to be kept ready.
    pub(super) fn begin(
        &mut self,
        named: Option<(SandboxId, u64)>,
        resources: Resources,
        layer: Option<&str>,
        waiters: Vec<Waiter>,
        now: Instant,
    ) -> Result<u64, (Error, Vec<Waiter>)> {
        match self.start(&resources, layer) {
            Ok(Beginning { key, base, body, control, sync }) => {
                let (id, fence) = named.unzip();
                self.keys.extend(id.clone().map(|id| (id, key)));
                let sandbox = Sandbox {
                    id,
                    shape: Shape::of(&resources),
                    fence: fence.unwrap_or_default(),
                    born: now,
                    used: now,
                    base,
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
                    restless: 0,
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
        let found = self.shelf.find(&resources.base, self.shape())?;
        if let Some(Restore { file: _, base }) = &resources.restore
            && *base != found.base
        {
            let reason = format!("it was saved on {base}, and this would be built on {}", found.base);
            return Err(Error::Unrestorable { reason });
        }
        let mut plan = self.plan(&found, installs)?;
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
                let body = Body::Child { slot, pid, process, group };
                Ok(Beginning { key, base: found.base, body, control, sync })
            }
            Err(error) => {
                self.unremoved.push(group);
                self.slots.give_back(slot);
                Err(error)
            }
        }
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

    /// What the root of a sandbox is made of.
    fn plan(&self, found: &Found, installs: bool) -> Result<Plan, Error> {
        let needs_owners = found.image.is_some() || found.layer.is_some();
        if needs_owners && self.profile.owners == Owners::AsTheyAre && self.profile.ids.are_ranges() {
            return Err(Error::refused(
                "images and packages need mounts with mapped owners, which this kernel or file system has not",
            ));
        }
        match &found.image {
            Some(image) => Ok(Plan::over_image(image, found, installs)),
            None => {
                let masked = matches!(self.private, Private::Known { masked } if masked > 0);
                Plan::over_host(&self.profile.layout, found, installs, masked).map_err(Error::unavailable)
            }
        }
    }

    fn shape(&self) -> shelf::Shape {
        let installs = self.profile.installs && !matches!(self.private, Private::Failed);
        if installs { shelf::Shape::Installs } else { shelf::Shape::Plain }
    }

    /// Whether root inside is given what installing takes; `None` as long as it is not known what of the host it must
    /// not see then.
    pub(super) fn installs(&self, resources: &Resources) -> Option<bool> {
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
    pub(super) fn look_for_private(&mut self, now: Instant) {
        if matches!(self.private, Private::Unknown) {
            self.private = Private::look(&self.only, &self.poller, now);
        }
    }

    /// Puts a sandbox off until it is known what of the host it must not see.
    pub(super) fn hold_back(&mut self, asked: Asked, now: Instant) -> Result<(), Error> {
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
    pub(super) fn resume(&mut self, now: Instant) {
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

    pub(super) fn forget_held_back(&mut self, id: &SandboxId) {
        let (gone, kept) = std::mem::take(&mut self.held_back).into_iter().partition(|asked| asked.id == *id);
        self.held_back = kept;
        let gone: Vec<Asked> = gone;
        for asked in gone {
            self.reply(asked.waiter, Answer::Failed(Error::gone(DESTROYED)));
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
    pub(super) fn make_ready(&mut self) {
        let Some(limits) = self.usual.clone().filter(|_| self.ready.is_none()) else { return };
        // Whoever needs it and does not find it meets the same error, and can be told.
        self.ready = self.new_group(&limits).ok().map(|group| (limits, group));
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
    pub(super) fn finish_start(&mut self, key: u64, reason: &str, now: Instant) {
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
}
