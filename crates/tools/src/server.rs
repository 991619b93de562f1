//! The main loop: requests, the shell, ended children and deadlines, one at a time, on one thread.
//!
//! It ends when the control socket does. As process 1 that ends every process of the sandbox.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::archive::freight::Mark;
use crate::bash::{Bash, Call, Finished};
use crate::config::Config;
use crate::desk::{Desk, Job, WAITING_MAX};
use crate::equipment;
use crate::luggage::Luggage;
use crate::processes::Processes;
use crate::tool::FileTool;
use crate::trees::{Piece, Trees};
use crate::wire::{self, INTERRUPTED, Op, Output, PROTOCOL, REQUEST_BYTES_MAX, Refusal, Reply};

/// How long a call of any tool may run when the request does not say.
const CALL_TIME: Duration = Duration::from_secs(150);

/// The longest that a call may run. A shell is meant for commands, not for services.
const CALL_TIME_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Serves one control socket to its end. Call it before any other thread starts. Whoever has luggage packs it when asked to.
pub fn serve(control: UnixStream, config: Config, luggage: Option<Luggage>) -> io::Result<()> {
    let processes = Processes::adopt()?;
    let bash = Bash::new(&config);
    let environment = config.environment.clone();
    let desk = Arc::new(Desk::new(config, control.try_clone()?)?);
    desk.reply(0, Reply::Ready { protocol: PROTOCOL });
    let mut server = Server { control, processes, bash, environment, desk, luggage, trees: Trees::default() };
    let ended = server.run();
    server.processes.kill_all();
    ended
}

struct Server {
    control: UnixStream,
    processes: Processes,
    bash: Bash,
    /// Of shells that start from now on.
    environment: Vec<(OsString, OsString)>,
    desk: Arc<Desk>,
    luggage: Option<Luggage>,
    trees: Trees,
}

/// What the loop woke up for.
#[derive(Default)]
struct Woken {
    request: bool,
    child: bool,
    wake: bool,
    output: bool,
    end: bool,
}

impl Server {
    fn run(&mut self) -> io::Result<()> {
        loop {
            let woken = self.wait()?;
            let now = Instant::now();
            if woken.wake {
                let _ = rustix::io::read(self.desk.wake(), &mut [0; 8]);
            }
            if woken.output {
                self.bash.on_output();
            }
            // Before the children: a command whose marker is there has ended, whatever became of its shell.
            if woken.end {
                let finished = self.bash.on_end(now, &self.processes);
                self.finish(finished);
            }
            if woken.child {
                self.reap(now);
            }
            let finished = self.bash.on_time(now, &self.processes);
            self.finish(finished);
            self.desk.on_time(now);
            if woken.request && !self.request()? {
                return Ok(());
            }
        }
    }

    /// Sleeps until there is something to do.
    fn wait(&self) -> io::Result<Woken> {
        let deadline = [self.bash.deadline(), self.desk.deadline()].into_iter().flatten().min();
        let timeout = deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() }
        });
        let always = [self.control.as_fd(), self.processes.signals().as_fd(), self.desk.wake().as_fd()];
        let shell = [self.bash.output(), self.bash.end()];
        let mut polled: Vec<PollFd<'_>> = always
            .into_iter()
            .chain(shell.into_iter().flatten())
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Woken::default()),
            Err(cause) => return Err(cause.into()),
        }
        let mut ready = polled.iter().map(|fd| !fd.revents().is_empty());
        let mut next = || ready.next().unwrap_or(false);
        let (request, child, wake) = (next(), next(), next());
        let output = shell[0].is_some() && next();
        let end = shell[1].is_some() && next();
        Ok(Woken { request, child, wake, output, end })
    }

    fn reap(&mut self, now: Instant) {
        self.processes.acknowledge();
        while let Some(ended) = self.processes.reap() {
            let finished = self.bash.on_child(ended, now, &self.processes);
            self.finish(finished);
        }
    }

    fn finish(&self, finished: Vec<Finished>) {
        for (call_id, output) in finished {
            self.desk.finish(&call_id, output);
        }
    }

    /// Takes one request. `false` at the end of the socket.
    fn request(&mut self) -> io::Result<bool> {
        #[derive(Deserialize)]
        struct Envelope {
            id: u64,
            // Raw, because an input may nest deeper than a parser follows, and then only its call shall fail.
            op: Box<RawValue>,
        }
        let Envelope { id, op } = match wire::read_frame(&mut self.control, REQUEST_BYTES_MAX) {
            Ok(Some(envelope)) => envelope,
            Ok(None) => return Ok(false),
            // The supervisor is gone, or what it says can no longer be followed. Either way nobody is
            // left whom this sandbox could serve.
            Err(wire::Error::Io(cause)) => return Err(cause),
            Err(cause) => return Err(io::Error::other(cause)),
        };
        match serde_json::from_str(op.get()) {
            Ok(op) => self.perform(id, op),
            Err(cause) => {
                let message = format!("unknown operation: {cause}");
                self.desk.reply(id, Reply::Refused { reason: Refusal::Invalid, message });
            }
        }
        Ok(true)
    }

    fn perform(&mut self, id: u64, op: Op) {
        match op {
            Op::Execute { call_id, name, input, timeout_ms } => {
                self.execute(id, call_id, &name, input, timeout_ms)
            }
            Op::Cancel { call_id } => {
                let known = self.desk.knows(&call_id);
                self.cancel(&call_id);
                self.desk.reply(id, Reply::Cancelled { known });
            }
            Op::Collect { max_bytes, max_files } => {
                self.desk.submit(Job::Collect { request: id, max_bytes, max_files });
            }
            Op::ReadOutput { path, offset, length } => {
                self.desk.submit(Job::ReadOutput { request: id, path, offset, length });
            }
            Op::Pause => {
                let reply = match self.processes.pause() {
                    true => Reply::Paused,
                    false => Reply::Refused {
                        reason: Refusal::Busy,
                        message: "a process does not come back from a system call".to_owned(),
                    },
                };
                self.desk.reply(id, reply);
            }
            Op::Resume => {
                // Before anything moves that it reads.
                if let Some(luggage) = &mut self.luggage {
                    luggage.stop();
                }
                self.processes.resume();
                self.desk.reply(id, Reply::Resumed);
            }
            Op::Pack { mark } => {
                let begun = match (&mut self.luggage, parse_mark(&mark)) {
                    (Some(luggage), Some(mark)) => luggage.pack(mark).map_err(|cause| cause.to_string()),
                    (None, _) => Err("there is no line for files here".to_owned()),
                    (Some(_), None) => Err("this is no mark".to_owned()),
                };
                let reply = match begun {
                    Ok(()) => Reply::Packing,
                    Err(message) => Reply::Refused { reason: Refusal::Invalid, message },
                };
                self.desk.reply(id, reply);
            }
            Op::Equip { variables, trusted } => {
                let reply = match self.equip(variables, trusted) {
                    Ok(()) => Reply::Equipped,
                    Err(message) => Reply::Refused { reason: Refusal::Invalid, message },
                };
                self.desk.reply(id, reply);
            }
            Op::Unpack { at, offset, data, last } => {
                self.trees.take(&self.desk, id, Piece { at, offset, data, last });
            }
            Op::Ping => self.desk.reply(id, Reply::Pong),
        }
    }

    fn equip(&mut self, variables: BTreeMap<String, String>, trusted: Option<String>) -> Result<(), String> {
        if let Some((name, _)) = variables.iter().find(|(name, value)| !equipment::is_variable(name, value)) {
            return Err(format!("{name:?} is no variable"));
        }
        let trust = match trusted {
            Some(authority) => equipment::trust(&authority, &self.environment)
                .map_err(|cause| format!("the list of authorities cannot be written: {cause}"))?,
            None => Vec::new(),
        };
        let variables = variables.into_iter().map(|(name, value)| (name.into(), value.into()));
        equipment::set(&mut self.environment, variables.chain(trust));
        self.bash.set_environment(&self.environment);
        Ok(())
    }

    fn execute(&mut self, id: u64, call_id: String, name: &str, input: Value, timeout_ms: u64) {
        let Some(stop) = self.desk.begin(&call_id, id) else {
            return;
        };
        let time_max = match timeout_ms {
            0 => CALL_TIME,
            given => Duration::from_millis(given).min(CALL_TIME_MAX),
        };
        if name == "bash" {
            if self.bash.waiting() >= WAITING_MAX {
                return self.desk.turn_away(&call_id, id);
            }
            let call = Call { call_id, input, time_max };
            let finished = self.bash.submit(call, Instant::now(), &self.processes);
            self.finish(finished);
        } else if let Some(tool) = FileTool::named(name) {
            self.desk.submit(Job::Call { call_id, tool, input, time_max, stop });
        } else {
            self.desk
                .finish(&call_id, Output::error(format!("tool '{name}' is not available in this sandbox")));
        }
    }

    fn cancel(&mut self, call_id: &str) {
        if !self.desk.is_active(call_id) {
            return;
        }
        match self.bash.cancel(call_id, Instant::now(), &self.processes) {
            Some(finished) => self.finish(finished),
            // A file tool: its thread ends by itself, and what it then says is not heard.
            None => self.desk.finish(call_id, Output::error(INTERRUPTED)),
        }
    }
}

/// 32 digits.
fn parse_mark(text: &str) -> Option<Mark> {
    let number = u128::from_str_radix(text, 16).ok().filter(|_| text.len() == 32)?;
    Some(number.to_be_bytes())
}
