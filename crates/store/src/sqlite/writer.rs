//! The one thread that writes.
//!
//! ```text
//!   take all that waits ──▶ begin ──▶ each job decides, then writes ──▶ heads ──▶ commit (one sync) ──▶ wake ──▶ answer
//! ```
//!
//! No linger: a lone job pays for one sync and nothing else, and while a sync runs the next flush gathers. A job that
//! is refused has written nothing, so it fails alone. What fails in SQLite fails the whole flush: nothing of it has
//! happened, everybody is told, and the memory of the sessions is thrown away. Durable first, published second.

use std::collections::VecDeque;
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use protocol::id::SessionId;
use protocol::time::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};

use crate::clock::Clock;
use crate::error::Error;
use crate::hub::Hub;
use crate::ready::Ready;
use crate::rules::head::{Head, News};
use crate::rules::jobs::{Job as SessionJob, Moment};
use crate::sqlite::checkpoint::Checkpointer;
use crate::sqlite::claims;
use crate::sqlite::fault::{Fault, Stage};
use crate::sqlite::heads::Heads;
use crate::sqlite::kinds::Kinds;

/// Jobs that may wait. Whoever comes next waits for a place: that is the back-pressure on clients.
const WAITING_MAX: usize = 4_096;
/// Jobs in one flush. More would make the first wait for the last without making the sync cheaper.
const JOBS_MAX: usize = 1_024;
/// Bytes of events in one flush, roughly. A sync of this much takes about as long as a small one.
const BYTES_MAX: usize = 1 << 20;
/// Events of deleted sessions that one flush removes besides its other work.
const DOOMED_EVENTS: usize = 512;

/// What a flush has in hand.
pub(crate) struct Flush<'a> {
    pub(crate) conn: &'a Connection,
    pub(crate) heads: &'a mut Heads,
    pub(crate) kinds: &'a Kinds,
    pub(crate) ready: &'a Ready,
    pub(crate) clock: &'a dyn Clock,
}

impl Flush<'_> {
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// A session that is to be changed; `None` if there is no such session.
    pub(crate) fn with<T>(
        &mut self,
        id: &SessionId,
        change: impl FnOnce(&mut Head) -> T,
    ) -> Result<Option<T>, Fault> {
        let now = self.now();
        self.heads.with(self.conn, self.kinds, id, now, change)
    }
}

/// A job's turn has come.
enum Turn<'a, 'flush> {
    Run(&'a mut Flush<'flush>),
    /// No transaction could be begun.
    Refuse(Error),
}

/// To be called when the outcome of the flush is known.
type Answer = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// Decides, writes, and gives the answer.
type Run = Box<dyn FnOnce(Turn<'_, '_>) -> (Answer, Result<(), Fault>) + Send>;

enum Job {
    /// Anything.
    Run { size_bytes: usize, run: Run },
    /// A change to one session.
    Session(Box<dyn SessionJob>),
}

impl Job {
    fn size_bytes(&self) -> usize {
        match self {
            Self::Run { size_bytes, .. } => *size_bytes,
            Self::Session(job) => job.size_bytes(),
        }
    }
}

enum Message {
    Job(Job),
    Stop,
}

/// The door to the writer.
pub(crate) struct Writer {
    jobs: Option<mpsc::Sender<Message>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What the writer shares with the rest of the store.
pub(crate) struct Shared {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) ready: Arc<Ready>,
    pub(crate) kinds: Kinds,
}

impl Writer {
    /// One that takes nothing: for a database that somebody else writes.
    pub(crate) fn none() -> Self {
        let (jobs, _) = mpsc::channel(1);
        Self { jobs: Some(jobs), thread: Mutex::default() }
    }

    /// Takes over the connection, and the lock of the data directory for as long as the thread lives.
    pub(crate) fn start(
        path: &Path,
        mut conn: Connection,
        shared: Shared,
        lock: File,
    ) -> Result<Self, Fault> {
        let checkpointer = Checkpointer::start(path, &mut conn)?;
        let has_doomed = has_doomed(&conn)?;
        let (jobs, waiting) = mpsc::channel(WAITING_MAX);
        let mut desk =
            Desk { conn, shared, checkpointer, waiting, has_doomed, heads: Heads::default(), is_open: true };
        let thread = std::thread::Builder::new()
            .name("writer".to_owned())
            .spawn(move || {
                desk.work();
                drop(desk);
                // Last of all: whoever gets the lock next finds everything written.
                drop(lock);
            })
            .expect("a thread can be started");
        Ok(Self { jobs: Some(jobs), thread: Mutex::new(Some(thread)) })
    }

    /// Runs `job` in the writer's transaction and answers when that is durable. `size_bytes` is about what it writes.
    ///
    /// If the caller is gone before its turn comes the job does not run; later it does, and nobody hears of it.
    pub(crate) async fn run<T, Run>(&self, size_bytes: usize, job: Run) -> Result<T, Error>
    where
        T: Send + 'static,
        Run: FnOnce(&mut Flush<'_>) -> Result<T, Fault> + Send + 'static,
    {
        self.run_then(size_bytes, job, |value| value).await
    }

    /// The same, and turns the value into the answer after the commit: so that what is tied to the answer holds only
    /// if the job has happened.
    pub(crate) async fn run_then<T, U, Run, Then>(
        &self,
        size_bytes: usize,
        job: Run,
        then: Then,
    ) -> Result<U, Error>
    where
        T: Send + 'static,
        U: Send + 'static,
        Run: FnOnce(&mut Flush<'_>) -> Result<T, Fault> + Send + 'static,
        Then: FnOnce(T) -> U + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let run = move |turn: Turn<'_, '_>| -> (Answer, Result<(), Fault>) {
            let flush = match turn {
                Turn::Run(flush) if !answer.is_closed() => flush,
                Turn::Run(_) => return (Box::new(|_| ()), Ok(())),
                Turn::Refuse(error) => {
                    let _ = answer.send(Err(error));
                    return (Box::new(|_| ()), Ok(()));
                }
            };
            let (value, result) = match job(flush) {
                Ok(value) => (Some(value), Ok(())),
                Err(fault) => (None, Err(fault)),
            };
            let answer = move |outcome: Result<(), Error>| {
                let outcome = outcome.map(|()| then(value.expect("a job that failed fails its flush")));
                // Nobody waits any more.
                let _ = answer.send(outcome);
            };
            (Box::new(answer), result)
        };
        let jobs = self.jobs.as_ref().expect("kept until the end");
        let message = Message::Job(Job::Run { size_bytes, run: Box::new(run) });
        jobs.send(message).await.map_err(|_| Error::Closed)?;
        answered.await.unwrap_or_else(|_| Err(Error::Unknown("the writer is gone".into())))
    }

    /// Takes a job on a session.
    pub(crate) async fn submit(&self, job: Box<dyn SessionJob>) {
        let jobs = self.jobs.as_ref().expect("kept until the end");
        if let Err(mpsc::error::SendError(Message::Job(Job::Session(job)))) =
            jobs.send(Message::Job(Job::Session(job))).await
        {
            job.answer(Err(Error::Closed));
        }
    }

    /// Whether the thread has ended, though nobody told it to.
    pub(crate) fn is_dead(&self) -> bool {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        thread.as_ref().is_some_and(JoinHandle::is_finished)
    }

    /// Finishes what waits, then ends the thread.
    pub(crate) async fn close(&self) {
        let jobs = self.jobs.as_ref().expect("kept until the end");
        // It has ended already.
        let _ = jobs.send(Message::Stop).await;
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic of the writer was told to all who waited for it.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Without senders the thread finishes what waits and ends; the wait is for one flush at most.
        drop(self.jobs.take());
        if let Some(thread) = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = thread.join();
        }
    }
}

struct Desk {
    conn: Connection,
    shared: Shared,
    checkpointer: Checkpointer,
    waiting: mpsc::Receiver<Message>,
    heads: Heads,
    has_doomed: bool,
    is_open: bool,
}

impl Desk {
    fn work(&mut self) {
        let mut jobs = VecDeque::with_capacity(JOBS_MAX);
        while self.gather(&mut jobs) {
            self.flush(&mut jobs);
            self.heads.shrink();
        }
    }

    /// Waits for something to do, then takes all that is there. False at the end.
    fn gather(&mut self, jobs: &mut VecDeque<Job>) -> bool {
        // What a failed flush left over, first; then what is doomed needs no waiting either.
        if jobs.is_empty() && !self.has_doomed {
            match self.waiting.blocking_recv() {
                Some(message) => self.accept(message, jobs),
                None => return false,
            }
        }
        let mut size_bytes: usize = jobs.iter().map(Job::size_bytes).sum();
        while jobs.len() < JOBS_MAX && size_bytes < BYTES_MAX {
            match self.waiting.try_recv() {
                Ok(message) => self.accept(message, jobs),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    self.is_open = false;
                    break;
                }
            }
            size_bytes += jobs.back().map_or(0, Job::size_bytes);
        }
        // At the end, what is doomed can wait for the next start.
        self.is_open || !jobs.is_empty() || !self.waiting.is_empty()
    }

    fn accept(&mut self, message: Message, jobs: &mut VecDeque<Job>) {
        match message {
            Message::Job(job) => jobs.push_back(job),
            Message::Stop => {
                // What was sent before is still in the channel, and is done.
                self.waiting.close();
                self.is_open = false;
            }
        }
    }

    fn flush(&mut self, jobs: &mut VecDeque<Job>) {
        if let Err(fault) = self.run_sql("BEGIN IMMEDIATE") {
            tracing::error!(error = ?fault, jobs = jobs.len(), "the store could not begin to write");
            self.has_doomed = false;
            for job in jobs.drain(..) {
                match job {
                    Job::Run { run, .. } => {
                        let (_, _) = run(Turn::Refuse(fault.at(Stage::Before)));
                    }
                    Job::Session(job) => job.answer(Err(fault.at(Stage::Before))),
                }
            }
            return;
        }
        let mut answers = Vec::with_capacity(jobs.len());
        match self.transact(jobs, &mut answers) {
            Ok(news) => {
                self.publish(news);
                for answer in answers {
                    answer(Ok(()));
                }
                self.checkpointer.after_commit(&self.conn);
            }
            Err((fault, stage)) => {
                tracing::error!(error = ?fault, jobs = answers.len(), "the store could not write");
                self.roll_back();
                for answer in answers {
                    answer(Err(fault.at(stage)));
                }
            }
        }
    }

    /// Runs the jobs and commits. After a fault, those that have not run are left for the next flush.
    fn transact(
        &mut self,
        jobs: &mut VecDeque<Job>,
        answers: &mut Vec<Answer>,
    ) -> Result<News, (Fault, Stage)> {
        let before = |fault: Fault| (fault, Stage::Before);
        let hub = self.shared.hub.clone();
        let mut flush = Flush {
            conn: &self.conn,
            heads: &mut self.heads,
            kinds: &self.shared.kinds,
            ready: &self.shared.ready,
            clock: &*self.shared.clock,
        };
        while let Some(job) = jobs.pop_front() {
            match job {
                Job::Run { run, .. } => {
                    let (answer, result) = run(Turn::Run(&mut flush));
                    answers.push(answer);
                    result.map_err(before)?;
                }
                Job::Session(job) if job.is_abandoned() => {}
                Job::Session(mut job) => {
                    let moment = Moment { now: flush.now(), hub: &hub };
                    let ran = flush.heads.run(flush.conn, flush.kinds, &mut *job, &moment);
                    match ran {
                        // It fails alone: nothing was written, and the others do not hang on what cannot be read.
                        Err(fault @ Fault::Json(_)) => job.answer(Err(fault.at(Stage::Before))),
                        ran => {
                            answers.push(Box::new(move |outcome| job.answer(outcome)));
                            ran.map_err(before)?;
                        }
                    }
                }
            }
        }
        let now = flush.now();
        let news = self.heads.save(&self.conn, &self.shared.kinds, now).map_err(before)?;
        self.has_doomed |= !news.deleted.is_empty();
        if self.has_doomed {
            self.has_doomed = remove_doomed(&self.conn).map_err(before)?;
        }
        self.run_sql("COMMIT").map_err(|fault| (fault, Stage::Commit))?;
        Ok(news)
    }

    fn run_sql(&self, sql: &str) -> Result<(), Fault> {
        self.conn.prepare_cached(sql)?.execute([])?;
        Ok(())
    }

    fn publish(&self, news: News) {
        for id in &news.freed {
            self.shared.ready.ended(id);
        }
        self.shared.ready.push(&news.wanting);
        news.publish(&self.shared.hub);
    }

    /// Nothing of the flush has happened: neither in the database nor in memory.
    fn roll_back(&mut self) {
        if !self.conn.is_autocommit()
            && let Err(fault) = self.run_sql("ROLLBACK")
        {
            tracing::error!(error = ?fault, "a transaction could not be rolled back");
        }
        self.heads.clear();
        // On a full disk there would be no end of trying; the next deletion or start tries again.
        self.has_doomed = false;
        if let Err(fault) = self.shared.kinds.load(&self.conn) {
            tracing::error!(error = ?fault, "the kinds of event could not be read again");
        }
        // A claim of this flush may have taken sessions out of the queue, and counted them as running.
        if let Err(fault) = claims::recount(&self.conn, &self.shared.ready, self.shared.clock.now()) {
            tracing::error!(error = ?fault, "the running sessions could not be counted again");
        }
        self.shared.ready.look_again();
    }
}

fn has_doomed(conn: &Connection) -> Result<bool, Fault> {
    Ok(conn.query_row("SELECT EXISTS (SELECT 1 FROM doomed)", [], |row| row.get(0))?)
}

/// Removes some events of deleted sessions; gives whether any are left.
fn remove_doomed(conn: &Connection) -> Result<bool, Fault> {
    let doomed: Option<i64> = conn
        .prepare_cached("SELECT session FROM doomed LIMIT 1")?
        .query_row([], |row| row.get(0))
        .optional()?;
    let Some(session) = doomed else { return Ok(false) };
    const REMOVE: &str =
        "DELETE FROM event WHERE number IN (SELECT number FROM event WHERE session = ?1 LIMIT ?2)";
    let removed = conn.prepare_cached(REMOVE)?.execute(params![session, DOOMED_EVENTS])?;
    if removed < DOOMED_EVENTS {
        conn.prepare_cached("DELETE FROM doomed WHERE session = ?1")?.execute([session])?;
    }
    Ok(removed == DOOMED_EVENTS || has_doomed(conn)?)
}
