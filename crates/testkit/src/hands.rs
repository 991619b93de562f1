//! Hands that only pretend: a [`Provider`] in memory that counts what it is asked to do.
//!
//! It keeps the contract of the seam (idempotent provisioning, fences, a ledger of calls) and runs nothing. A bash
//! command `hold NAME` stays running until [`FakeHands::release`]; `fail` gives an error; everything else echoes.

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use sandbox::archive::Written;
use sandbox::{
    Base, Call, Collected, Error, Exits, Output, Pool, Progress, Provider, Resources, Restore, SandboxId,
    SandboxInfo, Saved,
};
use tokio::sync::Notify;

/// Pretended hands.
#[derive(Default)]
pub struct FakeHands {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    living: HashMap<SandboxId, Sandbox>,
    dead: HashSet<SandboxId>,
    /// What they are said to be; an hour where nothing is said.
    ages: HashMap<SandboxId, Duration>,
    /// How long they are said to have been idle; as long as they are old where nothing is said.
    idle: HashMap<SandboxId, Duration>,
    /// What saving fails with, if it is to.
    save_error: Option<Error>,
    /// Whether saving takes until it is given up.
    saves_hang: bool,
    /// The same of these alone.
    hanging: HashSet<SandboxId>,
    /// How much saving leaves out.
    left_out: u64,
    /// Snapshots that sandboxes were made of, in order.
    restored: Vec<String>,
    released: HashSet<String>,
    /// Every run, in order: call id and command.
    runs: Vec<(String, String)>,
    /// How many runs there had been when the deliverables were last collected.
    collected_runs: usize,
    /// What is wished to be kept ready. Nothing is.
    pools: Vec<Pool>,
    /// The ids that were asked for, each once, in order.
    asked: Vec<SandboxId>,
    /// Provisions are not answered.
    holds_provisions: bool,
    /// What was to be prepared, in order.
    prepared: Vec<Base>,
    /// Preparing these never ends.
    stuck_bases: Vec<Base>,
    /// Preparing these fails.
    bad_bases: Vec<Base>,
    /// How often somebody tidied up.
    tidied: usize,
    /// What the next provisions come to, in order.
    failures: VecDeque<Error>,
}

#[derive(Default)]
struct Sandbox {
    fence: u64,
    calls: HashMap<String, Running>,
}

enum Running {
    /// Until this hold is released.
    Held(String),
    Done(Output),
}

impl FakeHands {
    /// What ran, in order: call id and command.
    pub fn runs(&self) -> Vec<(String, String)> {
        self.lock().runs.clone()
    }

    /// Whether the deliverables of every run have been collected.
    pub fn are_outputs_collected(&self) -> bool {
        let state = self.lock();
        state.collected_runs == state.runs.len()
    }

    /// How many sandboxes live.
    pub fn living(&self) -> usize {
        self.lock().living.len()
    }

    /// The sandboxes that live.
    pub fn ids(&self) -> HashSet<SandboxId> {
        self.lock().living.keys().cloned().collect()
    }

    /// The sandboxes that were asked for, each once, in order.
    pub fn asked(&self) -> Vec<SandboxId> {
        self.lock().asked.clone()
    }

    /// What is wished to be kept ready.
    pub fn pools(&self) -> Vec<Pool> {
        self.lock().pools.clone()
    }

    /// From now on provisions are not answered, until [`FakeHands::answer_provisions`].
    pub fn hold_provisions(&self) {
        self.lock().holds_provisions = true;
    }

    /// Provisions are answered again, those that wait included.
    pub fn answer_provisions(&self) {
        self.lock().holds_provisions = false;
        self.changed.notify_waiters();
    }

    /// The next provision comes to this; called again, the one after it, too.
    pub fn fail_next_provision(&self, error: Error) {
        self.lock().failures.push_back(error);
    }

    /// What was to be prepared, in order.
    pub fn prepared(&self) -> Vec<Base> {
        self.lock().prepared.clone()
    }

    /// Waits until something was to be prepared so often.
    pub async fn until_prepared(&self, count: usize) {
        self.until(|state| state.prepared.len() >= count).await;
    }

    /// Preparing this never ends.
    pub fn hang_preparing(&self, base: &Base) {
        self.lock().stuck_bases.push(base.clone());
    }

    /// Preparing this fails.
    pub fn fail_preparing(&self, base: &Base) {
        self.lock().bad_bases.push(base.clone());
    }

    /// How often somebody tidied up.
    pub fn tidied(&self) -> usize {
        self.lock().tidied
    }

    /// Waits until so many sandboxes have been asked for.
    pub async fn until_asked(&self, count: usize) {
        self.until(|state| state.asked.len() >= count).await;
    }

    /// Waits until so many sandboxes live.
    pub async fn until_living(&self, count: usize) {
        self.until(|state| state.living.len() == count).await;
    }

    /// Waits until something is wished to be kept ready.
    pub async fn until_pools(&self) {
        self.until(|state| !state.pools.is_empty()).await;
    }

    async fn until(&self, so: impl Fn(&State) -> bool) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // Before the look, so that no change falls in between.
            changed.as_mut().enable();
            if so(&self.lock()) {
                return;
            }
            changed.await;
        }
    }

    /// Says how old a sandbox is; otherwise it is an hour old.
    pub fn set_age(&self, id: &SandboxId, age: Duration) {
        self.lock().ages.insert(id.clone(), age);
    }

    /// Says how long a sandbox has not been used.
    pub fn set_idle(&self, id: &SandboxId, idle: Duration) {
        self.lock().idle.insert(id.clone(), idle);
    }

    /// Makes every attempt to save fail like this, or no more.
    pub fn fail_saves(&self, error: Option<Error>) {
        self.lock().save_error = error;
    }

    /// Makes saving hang, from its begin on, until whoever asked gives up.
    pub fn hang_saves(&self) {
        self.lock().saves_hang = true;
    }

    /// Makes saving leave so much out.
    pub fn leave_out(&self, count: u64) {
        self.lock().left_out = count;
    }

    /// Makes saving this one hang, from its begin on, until whoever asked gives up.
    pub fn hang_saves_of(&self, id: &SandboxId) {
        self.lock().hanging.insert(id.clone());
    }

    /// What sandboxes were made of, in order: the text of each snapshot, which names the sandbox that was saved.
    pub fn restored(&self) -> Vec<String> {
        self.lock().restored.clone()
    }

    /// Lets the calls that wait on this hold come to their end, now and later.
    pub fn release(&self, hold: &str) {
        self.lock().released.insert(hold.to_owned());
        self.changed.notify_waiters();
    }

    /// Kills every sandbox.
    pub fn kill_all(&self) {
        let mut state = self.lock();
        let dead: Vec<SandboxId> = state.living.drain().map(|(id, _)| id).collect();
        state.dead.extend(dead);
        drop(state);
        self.changed.notify_waiters();
    }

    /// Waits until that many calls have begun.
    pub async fn until_runs(&self, count: usize) {
        loop {
            let changed = self.changed.notified();
            if self.lock().runs.len() >= count {
                return;
            }
            changed.await;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no test panics under the lock")
    }

    fn begin(&self, call: &Call) -> Result<(), Error> {
        let mut state = self.lock();
        let sandbox = live(&mut state, &call.sandbox, call.fence)?;
        if sandbox.calls.contains_key(&call.call_id) {
            return Ok(());
        }
        let command =
            call.input.get("command").and_then(|value| value.as_str()).unwrap_or(&call.name).to_owned();
        let running = match command.strip_prefix("hold ") {
            Some(hold) => Running::Held(hold.to_owned()),
            None if command == "fail" => Running::Done(Output::error("failed")),
            None => Running::Done(Output::text(format!("ran {command}"))),
        };
        sandbox.calls.insert(call.call_id.clone(), running);
        state.runs.push((call.call_id.clone(), command));
        drop(state);
        self.changed.notify_waiters();
        Ok(())
    }

    fn output(&self, call: &Call) -> Result<Option<Output>, Error> {
        let mut state = self.lock();
        let released = state.released.clone();
        let sandbox = live(&mut state, &call.sandbox, call.fence)?;
        Ok(match sandbox.calls.get(&call.call_id) {
            Some(Running::Done(output)) => Some(output.clone()),
            Some(Running::Held(hold)) if released.contains(hold) => {
                Some(Output::text(format!("ran hold {hold}")))
            }
            Some(Running::Held(_)) | None => None,
        })
    }
}

/// What a pretended snapshot begins with; the id of its sandbox follows.
const SNAPSHOT: &str = "snapshot of ";

fn live<'a>(state: &'a mut State, id: &SandboxId, fence: u64) -> Result<&'a mut Sandbox, Error> {
    let Some(sandbox) = state.living.get_mut(id) else {
        return Err(Error::Gone { reason: "it was killed".to_owned() });
    };
    if fence < sandbox.fence {
        return Err(Error::Fenced { seen: sandbox.fence });
    }
    sandbox.fence = fence;
    Ok(sandbox)
}

/// In hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[async_trait]
impl Provider for FakeHands {
    async fn provision(&self, id: &SandboxId, fence: u64, resources: &Resources) -> Result<(), Error> {
        {
            let mut state = self.lock();
            if !state.asked.contains(id) {
                state.asked.push(id.clone());
            }
        }
        self.changed.notify_waiters();
        self.until(|state| !state.holds_provisions).await;
        let made = {
            let mut state = self.lock();
            if state.dead.contains(id) {
                return Err(Error::Gone { reason: "it was killed".to_owned() });
            }
            if let Some(error) = state.failures.pop_front() {
                return Err(error);
            }
            if let Some(Restore { file, base }) =
                resources.restore.as_ref().filter(|_| !state.living.contains_key(id))
            {
                let unrestorable = |reason: String| Error::Unrestorable { reason };
                let now = resources.base.name();
                if *base != now {
                    let reason = format!("it was saved on {base}, and this would be built on {now}");
                    return Err(unrestorable(reason));
                }
                let text = std::fs::read_to_string(file).map_err(|error| unrestorable(error.to_string()))?;
                let Some(saved) = text.strip_prefix(SNAPSHOT) else {
                    return Err(unrestorable("the snapshot is corrupt".to_owned()));
                };
                state.restored.push(saved.to_owned());
            }
            state.living.entry(id.clone()).or_default();
            live(&mut state, id, fence).map(|_| ())
        };
        self.changed.notify_waiters();
        made
    }

    /// Nothing is installed.
    async fn prepare(&self, base: &Base, _: &Progress<'_>) -> Result<(), Error> {
        let (is_stuck, is_bad) = {
            let mut state = self.lock();
            state.prepared.push(base.clone());
            (state.stuck_bases.contains(base), state.bad_bases.contains(base))
        };
        self.changed.notify_waiters();
        match (is_stuck, is_bad) {
            (true, _) => std::future::pending().await,
            (false, true) => Err(Error::Refused { reason: "it is bad".to_owned() }),
            (false, false) => Ok(()),
        }
    }

    async fn tidy(&self) -> Result<(), Error> {
        self.lock().tidied += 1;
        Ok(())
    }

    async fn execute(&self, call: Call) -> Result<Output, Error> {
        self.begin(&call)?;
        loop {
            let changed = self.changed.notified();
            if let Some(output) = self.output(&call)? {
                return Ok(output);
            }
            changed.await;
        }
    }

    async fn cancel(&self, id: &SandboxId, fence: u64, call_id: &str) -> Result<bool, Error> {
        let mut state = self.lock();
        let sandbox = live(&mut state, id, fence)?;
        let known =
            sandbox.calls.insert(call_id.to_owned(), Running::Done(Output::error("cancelled"))).is_some();
        drop(state);
        self.changed.notify_waiters();
        Ok(known)
    }

    async fn touch(&self, id: &SandboxId, fence: u64) -> Result<(), Error> {
        live(&mut self.lock(), id, fence).map(|_| ())
    }

    async fn collect_outputs(&self, id: &SandboxId, _: &Path) -> Result<Vec<Collected>, Error> {
        let mut state = self.lock();
        if !state.living.contains_key(id) {
            return Err(Error::Gone { reason: "it was killed".to_owned() });
        }
        state.collected_runs = state.runs.len();
        Ok(Vec::new())
    }

    async fn save(&self, id: &SandboxId, fence: u64, into: &Path) -> Result<Saved, Error> {
        {
            let mut state = self.lock();
            let (error, hangs) = (state.save_error.clone(), state.saves_hang || state.hanging.contains(id));
            live(&mut state, id, fence)?;
            match (error, hangs) {
                (Some(error), _) => return Err(error),
                (None, true) => {}
                (None, false) => {
                    let text = format!("{SNAPSHOT}{id}");
                    let made = std::fs::File::create_new(into).and_then(|_| std::fs::write(into, &text));
                    made.map_err(|error| Error::Unavailable { reason: error.to_string() })?;
                    let written = Written {
                        size_bytes: text.len() as u64,
                        sha256: sha256(text.as_bytes()),
                        entries: 1,
                        content_bytes: 1,
                        left_out: state.left_out,
                    };
                    return Ok(Saved { written, base: Resources::default().base.name() });
                }
            }
        }
        self.changed.notify_waiters();
        std::future::pending().await
    }

    async fn destroy(&self, id: &SandboxId) -> Result<(), Error> {
        let mut state = self.lock();
        state.living.remove(id);
        state.dead.insert(id.clone());
        drop(state);
        self.changed.notify_waiters();
        Ok(())
    }

    async fn list(&self) -> Result<Vec<SandboxInfo>, Error> {
        let state = self.lock();
        let info = |(id, sandbox): (&SandboxId, &Sandbox)| {
            let age = state.ages.get(id).copied().unwrap_or(Duration::from_secs(3600));
            let idle = state.idle.get(id).copied().unwrap_or(age);
            let fence = sandbox.fence;
            SandboxInfo { id: id.clone(), age, idle, fence, memory_bytes: None, calls: 0 }
        };
        Ok(state.living.iter().map(info).collect())
    }

    async fn keep_ready(&self, pools: &[Pool]) -> Result<(), Error> {
        self.lock().pools = pools.to_vec();
        self.changed.notify_waiters();
        Ok(())
    }

    /// What runs nothing needs no way out.
    fn exits(&self) -> Exits {
        Exits::none()
    }
}
