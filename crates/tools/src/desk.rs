//! Where calls come in and outputs go out: the ledger, the threads of the file tools, and the one writer
//! of the control socket.
//!
//! A thread lives as long as there is work for it, so that an idle sandbox is one thread.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::EventfdFlags;
use serde::Serialize;
use serde_json::Value;

use crate::config::Config;
use crate::confine::Roots;
use crate::ledger::{Begin, Ledger, Running};
use crate::outputs;
use crate::overflow::settle;
use crate::tool::{FileTool, Stop};
use crate::wire::{self, Output, RESPONSE_BYTES_MAX, Refusal, Reply, Response};

/// As many file tools as run at once. More than one answer of a model asks for.
const WORKERS_MAX: usize = 16;

/// As many calls as wait for a thread. A request costs at most
/// [`REQUEST_BYTES_MAX`](wire::REQUEST_BYTES_MAX), usually a few hundred bytes.
pub const WAITING_MAX: usize = 256;

/// Large enough for a regular expression nested as deeply as `grep` allows, also without optimisation.
/// Only what is touched costs memory, and only while there is work.
const STACK_BYTES: usize = 1 << 20;

/// What all threads share.
pub struct Desk {
    /// Where the tools may act.
    pub config: Config,
    roots: Roots,
    state: Mutex<State>,
    socket: Mutex<UnixStream>,
    wake: OwnedFd,
}

#[derive(Default)]
struct State {
    ledger: Ledger,
    waiting: VecDeque<Job>,
    workers: usize,
}

/// Work for a thread.
pub enum Job {
    /// A call of a file tool.
    Call {
        /// The ledger's key.
        call_id: String,
        /// The tool.
        tool: FileTool,
        /// Its input.
        input: Value,
        /// How long it may run.
        time_max: Duration,
        /// Asks it to end.
        stop: Arc<Stop>,
    },
    /// [`wire::Op::Collect`].
    Collect {
        /// The request's id.
        request: u64,
        /// The bound of the sizes' sum.
        max_bytes: u64,
        /// The bound of the list.
        max_files: u64,
    },
    /// [`wire::Op::ReadOutput`].
    ReadOutput {
        /// The request's id.
        request: u64,
        /// Below the outputs directory.
        path: String,
        /// Where the piece starts.
        offset: u64,
        /// How long it is.
        length: u64,
    },
}

impl Desk {
    /// An empty ledger, and a socket to answer on.
    pub fn new(config: Config, socket: UnixStream) -> std::io::Result<Desk> {
        let roots = Roots::new(&config);
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Desk { config, roots, state: Mutex::default(), socket: Mutex::new(socket), wake })
    }

    /// Readable when [`Desk::deadline`] has changed behind the owner's back.
    pub fn wake(&self) -> &OwnedFd {
        &self.wake
    }

    /// A call comes in. `Some` when it is new and to be run; otherwise it is answered, now or with the
    /// run it has been attached to.
    pub fn begin(&self, call_id: &str, request: u64) -> Option<Arc<Stop>> {
        let begin = self.state().ledger.begin(call_id, request);
        match begin {
            Begin::Run(stop) => return Some(stop),
            Begin::Attached => {}
            Begin::Done(output) => self.send_output(request, &output),
            Begin::Forgotten => self.refuse(
                request,
                Refusal::Forgotten,
                format!("call {call_id} already ran, its output is no longer kept"),
            ),
            Begin::Crowded => {
                self.refuse(request, Refusal::Busy, format!("too many requests wait for call {call_id}"));
            }
        }
        None
    }

    /// Refuses a call that [`Desk::begin`] gave out and that has not run.
    pub fn turn_away(&self, call_id: &str, request: u64) {
        self.state().ledger.withdraw(call_id);
        self.refuse(request, Refusal::Busy, format!("more than {WAITING_MAX} calls wait"));
    }

    /// Whether a call has ever been seen.
    pub fn knows(&self, call_id: &str) -> bool {
        self.state().ledger.knows(call_id)
    }

    /// Whether a call waits or runs.
    pub fn is_active(&self, call_id: &str) -> bool {
        self.state().ledger.is_active(call_id)
    }

    /// A call has its output: keep it and answer everybody who waits.
    pub fn finish(&self, call_id: &str, output: Output) {
        let output = settle(&self.config, &self.roots, call_id, output);
        let finished = self.state().ledger.finish(call_id, output);
        if let Some((waiters, output)) = finished {
            for request in waiters {
                self.send_output(request, &output);
            }
        }
    }

    /// When the next file tool has had its time.
    pub fn deadline(&self) -> Option<Instant> {
        self.state().ledger.running().map(|(_, running)| running.deadline).min()
    }

    /// Gives up the file tools that have had their time. Their threads see it soon after.
    pub fn on_time(&self, now: Instant) {
        let late: Vec<(String, &str)> = {
            let state = self.state();
            let late = state.ledger.running().filter(|(_, running)| running.deadline <= now);
            late.map(|(call_id, running)| (call_id.to_owned(), running.tool)).collect()
        };
        for (call_id, tool) in late {
            self.finish(&call_id, Output::error(format!("tool '{tool}' timed out")));
        }
    }

    /// Hands work to a thread.
    pub fn submit(self: &Arc<Desk>, job: Job) {
        let mut state = self.state();
        if state.workers >= WORKERS_MAX {
            if state.waiting.len() < WAITING_MAX {
                state.waiting.push_back(job);
                return;
            }
            drop(state);
            return self.reject(job, "too many calls wait");
        }
        let job = match start(&mut state, job) {
            Some(job) => job,
            None => return,
        };
        state.workers += 1;
        drop(state);
        // The job is shared with the thread that may not come to be, to have it back in that case.
        let slot = Arc::new(Mutex::new(Some(job)));
        let (desk, theirs) = (Arc::clone(self), Arc::clone(&slot));
        let spawned = thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
            let job = theirs.lock().unwrap_or_else(PoisonError::into_inner).take();
            desk.work(job);
        });
        if let Err(cause) = spawned {
            // The sandbox may be at its limit of processes. The call fails, the next may not.
            self.state().workers -= 1;
            if let Some(job) = slot.lock().unwrap_or_else(PoisonError::into_inner).take() {
                self.reject(job, &cause.to_string());
            }
        }
    }

    /// Sends one answer. A socket that fails is closed on the other side, which the main loop sees.
    pub fn send(&self, response: &impl Serialize, request: u64) {
        let frame = wire::encode(response, RESPONSE_BYTES_MAX).or_else(|cause| {
            let refused = Reply::Refused { reason: Refusal::Invalid, message: cause.to_string() };
            wire::encode(&Response { id: request, reply: refused }, RESPONSE_BYTES_MAX)
        });
        if let Ok(frame) = frame {
            let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = std::io::Write::write_all(&mut &*socket, &frame);
        }
    }

    /// Sends one answer by its parts.
    pub fn reply(&self, request: u64, reply: Reply) {
        self.send(&Response { id: request, reply }, request);
    }

    fn refuse(&self, request: u64, reason: Refusal, message: String) {
        self.reply(request, Reply::Refused { reason, message });
    }

    fn send_output(&self, request: u64, output: &Output) {
        // The same bytes as `Response { id, reply: Reply::Output(..) }`, without a copy of the output.
        #[derive(Serialize)]
        struct Borrowed<'a> {
            id: u64,
            reply: BorrowedReply<'a>,
        }
        #[derive(Serialize)]
        #[serde(rename_all = "snake_case")]
        enum BorrowedReply<'a> {
            Output(&'a Output),
        }
        self.send(&Borrowed { id: request, reply: BorrowedReply::Output(output) }, request);
    }

    /// A thread's life: one job after the other until none waits.
    fn work(&self, mut job: Option<Job>) {
        while let Some(current) = job {
            self.perform(current);
            let mut state = self.state();
            job = None;
            while job.is_none()
                && let Some(waiting) = state.waiting.pop_front()
            {
                job = start(&mut state, waiting);
            }
            if job.is_none() {
                // Under the same lock that saw the queue empty, so no job is left behind.
                state.workers -= 1;
            } else {
                // The main loop sleeps until a deadline that may now be too late.
                let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
            }
        }
    }

    fn perform(&self, job: Job) {
        match job {
            Job::Call { call_id, tool, input, time_max: _, stop } => {
                let run = AssertUnwindSafe(|| tool.run(&self.roots, input, &stop));
                let output = catch_unwind(run).unwrap_or_else(|_| {
                    Output::error(format!("{}: the tool failed in a way it should not", tool.name()))
                });
                self.finish(&call_id, output);
            }
            Job::Collect { request, max_bytes, max_files } => {
                self.reply(request, outputs::collect(&self.config, max_bytes, max_files));
            }
            Job::ReadOutput { request, path, offset, length } => {
                self.reply(request, outputs::read(&self.config, &path, offset, length));
            }
        }
    }

    fn reject(&self, job: Job, why: &str) {
        match job {
            Job::Call { call_id, tool, .. } => {
                self.finish(&call_id, Output::error(format!("{}: not run: {why}", tool.name())));
            }
            Job::Collect { request, .. } | Job::ReadOutput { request, .. } => {
                self.refuse(request, Refusal::Busy, why.to_owned());
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic is caught outside the lock; were it not, the ledger would still be whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Notes that a job runs now. `None` when its call was cancelled while it waited.
fn start(state: &mut State, job: Job) -> Option<Job> {
    if let Job::Call { call_id, tool, time_max, .. } = &job {
        let running = Running { deadline: Instant::now() + *time_max, tool: tool.name() };
        if !state.ledger.starts(call_id, running) {
            return None;
        }
    }
    Some(job)
}
