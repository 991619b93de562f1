//! The tasks that write.
//!
//! ```text
//!   take all that waits ──▶ read what is not at hand ──▶ each job decides ──▶ one statement ──▶ answer
//!                              ▲                                                │
//!                              └── not kept: another process was quicker ───────┤
//!                                  not heard: ask the head who wrote last ◀─────┘
//! ```
//!
//! A session belongs to one lane of each process. Its head is kept between flushes and believed until the version says
//! otherwise, or a notification does. What was decided on a kept head without writing anything is decided again on a
//! fresh one: only a write proves that the head was the newest.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use protocol::id::SessionId;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::task::TaskTracker;

use crate::error::Error;
use crate::postgres::engine::Shared;
use crate::postgres::fault::Fault;
use crate::postgres::listen;
use crate::postgres::write::{Notice, Writing};
use crate::postgres::{heads, write};
use crate::rules::head::{Head, News};
use crate::rules::jobs::{Job, Moment};

/// Lanes of one process. Two keep the database busy while one of them decides; more gain nothing.
const LANES: usize = 2;
/// Jobs that may wait in a lane. Whoever comes next waits for a place: that is the back-pressure on clients.
const WAITING_MAX: usize = 2_048;
/// Sessions in one flush.
const SESSIONS_MAX: usize = 512;
/// Jobs in one flush.
const JOBS_MAX: usize = 1_024;
/// Bytes of events in one flush, roughly.
const BYTES_MAX: usize = 2 << 20;
/// Heads kept by one lane: some ten KiB each.
const HEADS_MAX: usize = 2_048;
/// How long a job that the database was away for is tried again before its caller is told. Less than a lease lasts, so
/// that a brain whose append took this long still holds its session; longer than a fail-over of a healthy database.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait between two tries.
const PAUSE: Duration = Duration::from_millis(100);

/// The door to the lanes.
pub(crate) struct Lanes {
    jobs: Vec<mpsc::Sender<Box<dyn Job>>>,
    stale: Vec<Arc<Stale>>,
    tasks: TaskTracker,
}

/// Sessions that others have written to.
#[derive(Default)]
pub(crate) struct Stale(Mutex<Marked>);

#[derive(Default)]
struct Marked {
    ids: HashSet<SessionId>,
    /// So many that they are not named, or it is not known which.
    all: bool,
}

impl Stale {
    fn lock(&self) -> std::sync::MutexGuard<'_, Marked> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mark(&self, id: &SessionId) {
        let mut marked = self.lock();
        if marked.ids.len() < HEADS_MAX {
            marked.ids.insert(id.clone());
        } else {
            marked.all = true;
        }
    }

    fn mark_all(&self) {
        self.lock().all = true;
    }

    fn take(&self) -> Marked {
        std::mem::take(&mut *self.lock())
    }
}

impl Lanes {
    /// Starts the lanes.
    pub(crate) fn start(shared: &Arc<Shared>) -> Self {
        let (mut jobs, mut stale, tasks) = (Vec::new(), Vec::new(), TaskTracker::new());
        for _ in 0..LANES {
            let (sender, waiting) = mpsc::channel(WAITING_MAX);
            let marks = Arc::new(Stale::default());
            let lane = Lane {
                shared: shared.clone(),
                waiting,
                stale: marks.clone(),
                kept: HashMap::new(),
                left: VecDeque::new(),
                numbers: Vec::new(),
                clock: 0,
            };
            tasks.spawn(lane.run());
            jobs.push(sender);
            stale.push(marks);
        }
        tasks.close();
        Self { jobs, stale, tasks }
    }

    /// Returns when the lanes have ended, which they do when the store is closed and what was accepted is done.
    pub(crate) async fn ended(&self) {
        self.tasks.wait().await;
    }

    pub(crate) async fn submit(&self, job: Box<dyn Job>) {
        let lane = lane_of(job.session());
        if let Err(mpsc::error::SendError(job)) = self.jobs[lane].send(job).await {
            job.answer(Err(Error::Closed));
        }
    }

    /// Another process has written to this session.
    pub(crate) fn mark(&self, id: &SessionId) {
        self.stale[lane_of(id)].mark(id);
    }

    /// Others may have written to any session.
    pub(crate) fn mark_all(&self) {
        self.stale.iter().for_each(|stale| stale.mark_all());
    }
}

fn lane_of(id: &SessionId) -> usize {
    let mut hasher = DefaultHasher::new();
    id.as_str().hash(&mut hasher);
    usize::try_from(hasher.finish() % LANES as u64).expect("there are few lanes")
}

/// The jobs of one session that are decided together.
struct Group {
    session: SessionId,
    jobs: Vec<Box<dyn Job>>,
    /// Names the write. The same for all tries, so that one that took after all is known by it.
    write_id: i64,
    /// When it came.
    since: Instant,
    /// It was tried in vain, because the database was away.
    is_tried: bool,
    /// A write was sent and its outcome not heard: what the head's last write was called before. `None` for a session
    /// that was to be made.
    doubtful: Option<Option<i64>>,
}

/// A session that is written, and the name of the write.
struct Named {
    session: SessionId,
    write_id: i64,
}

/// A head at hand.
struct Kept {
    head: Option<Head>,
    /// Read for this flush, so that it need not be proved.
    is_fresh: bool,
    /// What its last write was called.
    write_id: Option<i64>,
    used: u64,
}

struct Lane {
    shared: Arc<Shared>,
    waiting: mpsc::Receiver<Box<dyn Job>>,
    stale: Arc<Stale>,
    kept: HashMap<SessionId, Kept>,
    /// To be tried again, first of all.
    left: VecDeque<Group>,
    /// For new sessions.
    numbers: Vec<i64>,
    clock: u64,
}

/// What became of a group.
enum Verdict {
    /// What it left is durable, or it left nothing.
    Done,
    /// It is to be decided again.
    Again,
    /// The database did not say.
    Doubtful(Fault),
    Failed(Fault),
}

impl Lane {
    async fn run(mut self) {
        while let Some(groups) = self.gather().await {
            self.flush(groups).await;
            self.shrink();
        }
    }

    /// Waits for something to do, then takes all that is there, each session's jobs together. `None` at the end.
    async fn gather(&mut self) -> Option<Vec<Group>> {
        let mut groups: Vec<Group> = self.left.drain(..).collect();
        if groups.is_empty() {
            let job = tokio::select! {
                biased;
                job = self.waiting.recv() => job?,
                () = self.shared.closed.cancelled(), if !self.waiting.is_closed() => {
                    // What was accepted is done, nothing else is accepted.
                    self.waiting.close();
                    self.waiting.recv().await?
                }
            };
            self.add(&mut groups, job);
        }
        let mut jobs = groups.iter().map(|group| group.jobs.len()).sum::<usize>();
        let mut size_bytes = 0;
        while jobs < JOBS_MAX && groups.len() < SESSIONS_MAX && size_bytes < BYTES_MAX {
            let Ok(job) = self.waiting.try_recv() else { break };
            size_bytes += job.size_bytes();
            jobs += 1;
            self.add(&mut groups, job);
        }
        // What is tried again is tried without what came later for the same session, so that its outcome stays its own.
        let mut taken = HashSet::new();
        let (first, later): (Vec<Group>, Vec<Group>) =
            groups.into_iter().partition(|group| taken.insert(group.session.clone()));
        self.left.extend(later);
        Some(first)
    }

    fn add(&self, groups: &mut Vec<Group>, job: Box<dyn Job>) {
        let of_session = |group: &&mut Group| group.session == *job.session() && !group.is_tried;
        match groups.iter_mut().rev().find(of_session) {
            Some(group) => group.jobs.push(job),
            None => groups.push(Group {
                session: job.session().clone(),
                jobs: vec![job],
                write_id: self.shared.new_write_id(),
                since: Instant::now(),
                is_tried: false,
                doubtful: None,
            }),
        }
    }

    async fn flush(&mut self, mut groups: Vec<Group>) {
        for group in &mut groups {
            group.jobs.retain(|job| !job.is_abandoned() || group.doubtful.is_some());
        }
        groups.retain(|group| !group.jobs.is_empty());
        self.forget_stale();
        if let Err(fault) = self.load(&mut groups).await {
            return self.put_off(groups, &fault).await;
        }
        for group in &mut groups {
            let kept = self.kept.get_mut(&group.session).expect("loaded");
            let now = self.shared.options.clock.now();
            let moment = Moment { now, hub: &self.shared.hub };
            let running = catch_unwind(AssertUnwindSafe(|| {
                for job in &mut group.jobs {
                    job.run(&mut kept.head, &moment);
                    if let Some(head) = &mut kept.head {
                        head.note_wanting(now);
                    }
                }
            }));
            if running.is_err() {
                // A broken rule costs its session's callers an error, not everybody the lane.
                self.kept.remove(&group.session);
                for job in group.jobs.drain(..) {
                    job.answer(Err(Error::Corrupt("a rule of the store is broken".into())));
                }
            }
        }
        groups.retain(|group| !group.jobs.is_empty());
        // Jobs cannot be looked at by two threads at once, so what is written goes by name.
        let named: Vec<Named> = groups
            .iter()
            .map(|group| Named { session: group.session.clone(), write_id: group.write_id })
            .collect();
        if let Err(fault) = self.number(&named).await {
            self.drop_kept(&groups);
            return self.put_off(groups, &fault).await;
        }
        let verdicts = self.write(&named).await;
        self.finish(groups, verdicts).await;
    }

    /// Lets go of heads that others have changed.
    fn forget_stale(&mut self) {
        let marked = self.stale.take();
        if marked.all {
            self.kept.clear();
        }
        for id in marked.ids {
            self.kept.remove(&id);
        }
    }

    /// Reads what is not at hand. Groups whose session cannot be read are answered, and those whose earlier write turns
    /// out to have taken.
    async fn load(&mut self, groups: &mut Vec<Group>) -> Result<(), Fault> {
        self.clock += 1;
        for group in groups.iter() {
            if group.is_tried {
                self.kept.remove(&group.session);
            }
        }
        let missing: Vec<&SessionId> =
            groups.iter().map(|group| &group.session).filter(|id| !self.kept.contains_key(id)).collect();
        let mut loaded = match missing.is_empty() {
            true => HashMap::new(),
            false => heads::load(&self.shared.db, &missing).await?,
        };
        let mut index = 0;
        while index < groups.len() {
            let group = &groups[index];
            if !self.kept.contains_key(&group.session) {
                let found = loaded.remove(&group.session);
                if let Some(before) = group.doubtful
                    && !matches!(found, Some(Err(_)))
                {
                    let last =
                        found.as_ref().and_then(|found| found.as_ref().ok()).map(|found| found.write_id);
                    let outcome = outcome(before, group.write_id, last);
                    if outcome != Outcome::Untouched {
                        let group = groups.swap_remove(index);
                        self.shared.wake(&group.session);
                        self.shared.ready.notify_one();
                        for job in group.jobs {
                            job.answer(match outcome {
                                Outcome::Taken => Ok(()),
                                Outcome::Untouched | Outcome::Unknown => {
                                    Err(Error::Unknown("somebody else has written since".into()))
                                }
                            });
                        }
                        continue;
                    }
                }
                let (head, write_id) = match found {
                    None => (None, None),
                    Some(Ok(found)) => (Some(found.head), Some(found.write_id)),
                    Some(Err(fault)) => {
                        let group = groups.swap_remove(index);
                        tracing::error!(session.id = %group.session, error = ?fault, "a session cannot be read");
                        group.jobs.into_iter().for_each(|job| job.answer(Err(fault.clone().into())));
                        continue;
                    }
                };
                let kept = Kept { head, is_fresh: true, write_id, used: 0 };
                self.kept.insert(group.session.clone(), kept);
            }
            let kept = self.kept.get_mut(&groups[index].session).expect("just put there");
            kept.used = self.clock;
            index += 1;
        }
        Ok(())
    }

    /// Gives numbers to new sessions.
    async fn number(&mut self, named: &[Named]) -> Result<(), Fault> {
        for named in named {
            let Some(Kept { head: Some(head), .. }) = self.kept.get_mut(&named.session) else { continue };
            if head.number != 0 {
                continue;
            }
            if self.numbers.is_empty() {
                const AT_ONCE: usize = 32;
                self.numbers = write::numbers(&self.shared.db, AT_ONCE).await?;
            }
            head.number = self.numbers.pop().expect("just fetched");
        }
        Ok(())
    }

    /// Writes what the jobs left. One verdict for each group.
    async fn write(&mut self, named: &[Named]) -> Vec<Verdict> {
        let mut verdicts: Vec<Verdict> = Vec::with_capacity(named.len());
        let (mut old, mut new, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        for (index, named) in named.iter().enumerate() {
            let kept = &self.kept[&named.session];
            verdicts.push(match &kept.head {
                Some(head) if head.pending.is_dirty => {
                    let writing = (index, Writing { head, write_id: named.write_id });
                    if head.is_gone() {
                        gone.push(writing);
                    } else if head.version == 0 {
                        new.push(writing);
                    } else {
                        old.push(writing);
                    }
                    // Until the database says so.
                    Verdict::Again
                }
                _ if kept.is_fresh => Verdict::Done,
                _ => Verdict::Again,
            });
        }
        let channel = listen::CHANNEL;
        let (db, now) = (&self.shared.db, self.shared.manual_now());
        // Each is a transaction by itself. Mostly there is only one.
        for (kind, writings) in [(Kind::Old, old), (Kind::New, new), (Kind::Gone, gone)] {
            if writings.is_empty() {
                continue;
            }
            let mut writings = writings;
            // In the same order everywhere, so that two flushes seldom wait for each other in a circle.
            writings.sort_by_key(|(_, writing)| writing.head.number);
            let (indexes, writings): (Vec<usize>, Vec<Writing<'_>>) = writings.into_iter().unzip();
            let sessions = writings.iter().map(|writing| &writing.head.record.id);
            // Where places are limited, a session that is given back makes one.
            let is_limited = self.shared.is_limited();
            let wanting = writings.iter().any(|writing| {
                let lease = &writing.head.lease;
                lease.wanted_since.is_some() || (is_limited && lease.until.is_none())
            });
            let payload = listen::changed_payload(&self.shared.node, sessions, wanting);
            let notice = Notice { channel, payload: &payload };
            let written = match kind {
                Kind::Old => write::save(db, &writings, &notice, now).await,
                Kind::New => write::insert(db, &writings, &notice, now).await,
                Kind::Gone => write::delete(db, &writings, &notice, now).await,
            };
            match written {
                Ok(saved) => {
                    let saved: HashSet<i64> = saved.into_iter().collect();
                    for (index, writing) in indexes.into_iter().zip(&writings) {
                        if saved.contains(&writing.head.number) {
                            verdicts[index] = Verdict::Done;
                        }
                    }
                }
                Err(fault) => {
                    for index in indexes {
                        verdicts[index] = if fault.is_away() || fault.is_doubtful() {
                            Verdict::Doubtful(fault.clone())
                        } else if fault.is_collision() {
                            Verdict::Again
                        } else {
                            Verdict::Failed(fault.clone())
                        };
                    }
                }
            }
        }
        verdicts
    }

    /// Publishes what was written, answers, and keeps the rest for another try.
    async fn finish(&mut self, groups: Vec<Group>, verdicts: Vec<Verdict>) {
        let mut news = News::default();
        let mut doubtful = Vec::new();
        let mut last_fault = None;
        let mut answers = Vec::new();
        let now = self.shared.options.clock.now();
        for (mut group, verdict) in groups.into_iter().zip(verdicts) {
            match verdict {
                Verdict::Done => {
                    self.settle(&group.session, group.write_id, now, &mut news);
                    answers.push((group.jobs, None));
                }
                Verdict::Again => {
                    self.kept.remove(&group.session);
                    self.left.push_front(group);
                }
                Verdict::Doubtful(fault) => {
                    let kept = self.kept.remove(&group.session);
                    if fault.is_doubtful() && group.doubtful.is_none() {
                        group.doubtful = Some(kept.and_then(|kept| kept.write_id));
                    }
                    last_fault = Some(fault);
                    doubtful.push(group);
                }
                Verdict::Failed(fault) => {
                    tracing::error!(error = ?fault, session.id = %group.session, "the store could not write");
                    self.kept.remove(&group.session);
                    answers.push((group.jobs, Some(fault)));
                }
            }
        }
        self.shared.publish(news);
        for (jobs, failed) in answers {
            for job in jobs {
                job.answer(match &failed {
                    None => Ok(()),
                    Some(fault) => Err(fault.of_write()),
                });
            }
        }
        if let Some(fault) = last_fault {
            self.put_off(doubtful, &fault).await;
        }
    }

    /// What the head means once it is durable.
    fn settle(&mut self, id: &SessionId, write_id: i64, now: protocol::time::Timestamp, news: &mut News) {
        let Some(kept) = self.kept.get_mut(id) else { return };
        kept.is_fresh = false;
        let is_gone = match &mut kept.head {
            Some(head) => {
                if head.pending.is_dirty {
                    head.version += 1;
                    kept.write_id = Some(write_id);
                    head.settle(now, news);
                }
                news.deleted.last().is_some_and(|(deleted, _)| deleted == id)
            }
            // There is nothing to keep: it may be made any moment.
            None => true,
        };
        if is_gone || kept.head.as_ref().is_some_and(|head| head.inbox.is_none()) {
            self.kept.remove(id);
        }
    }

    /// The database is away: what has been tried for too long is answered, the rest tried again after a pause.
    async fn put_off(&mut self, groups: Vec<Group>, fault: &Fault) {
        if !fault.is_away() && !fault.is_doubtful() {
            tracing::error!(error = ?fault, "the store could not read what it is to change");
            for group in groups {
                self.kept.remove(&group.session);
                group.jobs.into_iter().for_each(|job| job.answer(Err(fault.clone().into())));
            }
            return;
        }
        let now = Instant::now();
        for mut group in groups {
            self.kept.remove(&group.session);
            group.is_tried = true;
            if now.duration_since(group.since) < PATIENCE && !self.shared.is_closed() {
                // Before what came later for the same session.
                self.left.push_front(group);
                continue;
            }
            for job in group.jobs {
                let source = Box::new(fault.clone());
                let error = if group.doubtful.is_some() {
                    Error::Unknown(source)
                } else {
                    Error::Unreachable(source)
                };
                job.answer(Err(error));
            }
        }
        if !self.left.is_empty() {
            sleep(PAUSE).await;
        }
    }

    fn drop_kept(&mut self, groups: &[Group]) {
        for group in groups {
            self.kept.remove(&group.session);
        }
    }

    /// Keeps memory bounded.
    fn shrink(&mut self) {
        if self.kept.len() <= HEADS_MAX {
            return;
        }
        let mut uses: Vec<u64> = self.kept.values().map(|kept| kept.used).collect();
        let (_, median, _) = uses.select_nth_unstable(HEADS_MAX / 4);
        let median = *median;
        self.kept.retain(|_, kept| kept.used > median);
    }
}

/// What became of a write whose answer was lost.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Taken,
    Untouched,
    /// Somebody else has written since.
    Unknown,
}

/// `before` and `last`: what the head's last write was called when it was decided, and is called now; `None` if there was,
/// or is, no such session.
fn outcome(before: Option<i64>, own: i64, last: Option<i64>) -> Outcome {
    match (before, last) {
        (_, Some(last)) if last == own => Outcome::Taken,
        // Ids are never used twice: what was to be made is there.
        (None, Some(_)) => Outcome::Taken,
        (before, last) if before == last => Outcome::Untouched,
        (Some(_), None) | (Some(_), Some(_)) | (None, None) => Outcome::Unknown,
    }
}

/// Which statement writes a session.
enum Kind {
    Old,
    New,
    Gone,
}
