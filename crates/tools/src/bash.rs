//! `bash`: commands in one shell that lives on between calls.
//!
//! ```text
//! no shell -first command-> idle -command-> busy -marker-> idle
//!    ^                        |               |
//!    +------ its end ---------+-- its end, timeout, cancel, restart: everything it started is killed
//! ```
//!
//! The shell reads its own program line by line from a pipe that only `tools` writes. A call puts the
//! command into a memory file and sends one line that reads and evaluates it and then writes a marker
//! with the exit code to a pipe of its own. So the end of a call is not looked for in what the command
//! prints, and a background job that keeps the output pipe open holds up nothing. The marker carries a
//! random number of the call, so an earlier command's leftovers cannot end a later one.
//!
//! While a command runs, the descriptors of the memory file and of the marker are closed to it.
//!
//! Nothing here blocks: the owner polls [`Bash::output`], [`Bash::end`] and [`Bash::deadline`] and calls
//! the function of the same topic.

use std::collections::VecDeque;
use std::ffi::{CString, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;
use serde::Deserialize;
use serde_json::Value;

use crate::config::Config;
use crate::processes::{End, Ended, Processes};
use crate::sys::{self, Program};
use crate::terminal::Tail;
use crate::tool::parse;
use crate::wire::{INTERRUPTED, Output};

/// How long a command may run when its input does not say.
const TIMEOUT: Duration = Duration::from_secs(120);

/// What background jobs print between two calls is shown with the next, but no more than this of it: the
/// model has not asked for it.
const BETWEEN_CALLS_BYTES_MAX: usize = 8 << 10;

/// One read of the output. As large as a pipe, so that a flood costs few calls.
const CHUNK_BYTES: usize = 64 << 10;

/// Descriptors in the shell. Below 10, above which it keeps its own.
const SCRIPT: i32 = 8;
const END: i32 = 9;

/// Descriptors here are moved to this number and up before the shell starts, out of the way of the above.
const SOURCES: i32 = 20;

/// How much sooner than others the processes of the shell are chosen when memory runs out, of 1000.
const KILL_COMMANDS_FIRST: &str = "500";

/// Longer than any marker; what is longer is none.
const MARKER_BYTES_MAX: usize = 64;

/// A call that waits for the shell.
pub struct Call {
    /// The ledger's key.
    pub call_id: String,
    /// The tool's input.
    pub input: Value,
    /// How long a call of any tool may run.
    pub time_max: Duration,
}

/// A call that has its output.
pub type Finished = (String, Output);

#[derive(Deserialize)]
struct Input {
    command: Option<String>,
    restart: Option<bool>,
    timeout_ms: Option<i64>,
}

/// The shell and the calls that want it, in the order in which they came.
pub struct Bash {
    path: CString,
    dialect: Dialect,
    environment: Vec<CString>,
    workdir: PathBuf,
    shell: Option<Shell>,
    waiting: VecDeque<Call>,
    running: Option<Running>,
}

struct Running {
    call_id: String,
    marker: String,
    timeout: Duration,
    deadline: Instant,
}

/// What the shell understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    Bash,
    /// What every `sh` does. A command that is no valid shell program ends it, as in every `sh`.
    Posix,
}

struct Shell {
    pid: Pid,
    dialect: Dialect,
    control: OwnedFd,
    script: OwnedFd,
    /// `None` when nobody holds the other end any more; a shell may redirect all it prints.
    output: Option<OwnedFd>,
    end: Option<OwnedFd>,
    tail: Tail,
    markers: Vec<u8>,
}

fn c_string(bytes: &[u8]) -> CString {
    CString::new(bytes).unwrap_or_default()
}

impl Bash {
    /// No shell yet; the first command starts one.
    pub fn new(config: &Config) -> Bash {
        let mut bash = Bash {
            path: c_string(config.shell.as_os_str().as_bytes()),
            dialect: Dialect::of(&config.shell),
            environment: Vec::new(),
            workdir: config.workdir.clone(),
            shell: None,
            waiting: VecDeque::new(),
            running: None,
        };
        bash.set_environment(&config.environment);
        bash
    }

    /// The whole environment of shells that start from now on.
    pub fn set_environment(&mut self, environment: &[(OsString, OsString)]) {
        let text = |(name, value): &(OsString, OsString)| {
            c_string(&[name.as_bytes(), b"=", value.as_bytes()].concat())
        };
        self.environment = environment.iter().map(text).collect();
    }

    /// How many calls wait for their turn.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Readable when something was printed.
    pub fn output(&self) -> Option<BorrowedFd<'_>> {
        Some(self.shell.as_ref()?.output.as_ref()?.as_fd())
    }

    /// Readable when the command has ended.
    pub fn end(&self) -> Option<BorrowedFd<'_>> {
        Some(self.shell.as_ref()?.end.as_ref()?.as_fd())
    }

    /// When the running command has had its time.
    pub fn deadline(&self) -> Option<Instant> {
        Some(self.running.as_ref()?.deadline)
    }

    /// A call comes in. It runs at once if the shell is free.
    pub fn submit(&mut self, call: Call, now: Instant, processes: &Processes) -> Vec<Finished> {
        self.waiting.push_back(call);
        self.advance(now, processes)
    }

    /// Ends a call, waiting or running. `None` when it is not here.
    pub fn cancel(&mut self, call_id: &str, now: Instant, processes: &Processes) -> Option<Vec<Finished>> {
        let interrupted = |call_id| (call_id, Output::error(INTERRUPTED));
        if let Some(running) = self.running.take_if(|running| running.call_id == call_id) {
            self.kill(processes);
            let mut finished = vec![interrupted(running.call_id)];
            finished.extend(self.advance(now, processes));
            return Some(finished);
        }
        let position = self.waiting.iter().position(|call| call.call_id == call_id)?;
        let call = self.waiting.remove(position).expect("its position was just found");
        Some(vec![interrupted(call.call_id)])
    }

    /// [`Bash::output`] is readable.
    pub fn on_output(&mut self) {
        let Some(shell) = &mut self.shell else { return };
        shell.take_output(CHUNK_BYTES);
        if self.running.is_none() {
            shell.tail.shorten(BETWEEN_CALLS_BYTES_MAX);
        }
    }

    /// [`Bash::end`] is readable.
    pub fn on_end(&mut self, now: Instant, processes: &Processes) -> Vec<Finished> {
        let Some(shell) = &mut self.shell else { return Vec::new() };
        let Some(code) = shell.take_marker(self.running.as_ref().map(|running| running.marker.as_str()))
        else {
            return Vec::new();
        };
        let running = self.running.take().expect("a marker is that of the running call");
        let output = Output { is_error: code != 0, ..Output::text(shell.printed()) };
        let mut finished = vec![(running.call_id, output)];
        finished.extend(self.advance(now, processes));
        finished
    }

    /// A child has ended. If it is the shell, its jobs end with it and the next command gets a new one.
    pub fn on_child(&mut self, ended: Ended, now: Instant, processes: &Processes) -> Vec<Finished> {
        let Some(mut shell) = self.shell.take_if(|shell| shell.pid == ended.pid) else {
            return Vec::new();
        };
        let mut printed = shell.printed();
        processes.kill_all();
        let Some(running) = self.running.take() else {
            return Vec::new();
        };
        if let End::Killed(signal) = ended.how {
            if !printed.is_empty() {
                printed.push('\n');
            }
            printed.push_str(&format!(
                "[the shell was killed by signal {signal}; the next command starts a new one]"
            ));
        }
        let output = Output { is_error: ended.how != End::Exited(0), ..Output::text(printed) };
        let mut finished = vec![(running.call_id, output)];
        finished.extend(self.advance(now, processes));
        finished
    }

    /// Ends the running command if it has had its time.
    pub fn on_time(&mut self, now: Instant, processes: &Processes) -> Vec<Finished> {
        let Some(running) = self.running.take_if(|running| running.deadline <= now) else {
            return Vec::new();
        };
        let printed = self.shell.as_mut().map(Shell::printed).unwrap_or_default();
        self.kill(processes);
        let mut text = format!("bash: bash command timed out after {}s", running.timeout.as_secs_f64());
        if !printed.is_empty() {
            text.push('\n');
            text.push_str(&printed);
        }
        let mut finished = vec![(running.call_id, Output::error(text))];
        finished.extend(self.advance(now, processes));
        finished
    }

    /// Starts waiting calls until one runs; those that end at once are returned.
    fn advance(&mut self, now: Instant, processes: &Processes) -> Vec<Finished> {
        let mut finished = Vec::new();
        while self.running.is_none()
            && let Some(call) = self.waiting.pop_front()
        {
            let Call { call_id, input, time_max } = call;
            match self.start(&call_id, input, time_max, now, processes) {
                Ok(None) => {}
                Ok(Some(output)) => finished.push((call_id, output)),
                Err(message) => finished.push((call_id, Output::error(format!("bash: {message}")))),
            }
        }
        finished
    }

    /// Starts one call. `Some` when it has its output already.
    fn start(
        &mut self,
        call_id: &str,
        input: Value,
        time_max: Duration,
        now: Instant,
        processes: &Processes,
    ) -> Result<Option<Output>, String> {
        let Input { command, restart, timeout_ms } = parse(input)?;
        if restart == Some(true) {
            self.kill(processes);
            self.shell = Some(self.start_shell()?);
            return Ok(Some(Output::text("bash session restarted")));
        }
        let command = command.filter(|command| !command.is_empty()).ok_or("command is required")?;
        if command.as_bytes().contains(&0) {
            return Err("command contains a zero byte".into());
        }
        let asked = timeout_ms.and_then(|ms| u64::try_from(ms).ok()).filter(|ms| *ms > 0);
        let timeout = asked.map_or(TIMEOUT, Duration::from_millis).min(time_max);
        let mut shell = match self.shell.take() {
            Some(shell) => shell,
            None => self.start_shell()?,
        };
        let marker = shell.send(&command).map_err(|cause| {
            // Nothing of the command has run: the line that evaluates it is written last and whole.
            processes.kill_all();
            format!("the shell does not take the command: {}", std::io::Error::from(cause))
        })?;
        self.shell = Some(shell);
        let deadline = now + timeout;
        self.running = Some(Running { call_id: call_id.to_owned(), marker, timeout, deadline });
        Ok(None)
    }

    fn start_shell(&self) -> Result<Shell, String> {
        let failed = |cause: std::io::Error| {
            format!("cannot start {} in {}: {cause}", self.path.to_string_lossy(), self.workdir.display())
        };
        self.open_shell().map_err(failed)
    }

    fn open_shell(&self) -> std::io::Result<Shell> {
        let (control_read, control) = pipe_with(PipeFlags::CLOEXEC)?;
        let (output, output_write) = pipe_with(PipeFlags::CLOEXEC)?;
        let (end, end_write) = pipe_with(PipeFlags::CLOEXEC)?;
        for ours in [&control, &output, &end] {
            rustix::io::ioctl_fionbio(ours, true)?;
        }
        let script = rustix::fs::memfd_create("command", MemfdFlags::CLOEXEC)?;
        let away = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, SOURCES);
        let (control_read, output_write) = (away(&control_read)?, away(&output_write)?);
        let (script_there, end_write) = (away(&script)?, away(&end_write)?);
        // The shell inherits it. Nothing else here depends on the working directory: every path is absolute.
        std::env::set_current_dir(&self.workdir)?;
        let pid = sys::spawn(&Program {
            path: &self.path,
            arguments: &self.dialect.arguments(),
            environment: &self.environment,
            descriptors: &[
                (0, control_read.as_fd()),
                (1, output_write.as_fd()),
                (2, output_write.as_fd()),
                (SCRIPT, script_there.as_fd()),
                (END, end_write.as_fd()),
            ],
        })?;
        // Where memory runs out, a command is to be killed and not this process, with which the sandbox would go.
        // Where it cannot be said, the kernel's own choice, the largest, is nearly always a command too.
        let _ = std::fs::write(format!("/proc/{}/oom_score_adj", pid.as_raw_nonzero()), KILL_COMMANDS_FIRST);
        let (output, end) = (Some(output), Some(end));
        Ok(Shell {
            pid,
            dialect: self.dialect,
            control,
            script,
            output,
            end,
            tail: Tail::default(),
            markers: Vec::new(),
        })
    }

    /// Kills the shell and everything that was ever started in it.
    fn kill(&mut self, processes: &Processes) {
        if self.shell.take().is_some() {
            processes.kill_all();
        }
    }
}

impl Dialect {
    fn of(shell: &Path) -> Dialect {
        if shell.file_name().is_some_and(|name| name == "bash") { Dialect::Bash } else { Dialect::Posix }
    }

    fn arguments(self) -> Vec<CString> {
        match self {
            Dialect::Bash => vec![c"bash".into(), c"--noprofile".into(), c"--norc".into()],
            Dialect::Posix => vec![c"sh".into()],
        }
    }

    /// The line that reads and evaluates what lies in the memory file, and then writes the marker.
    ///
    /// `builtin` and `command`, because a command may define functions of these names; the last redirection,
    /// because `set -x` would print the marker; the newline before the marker, because a job that has kept the pipe
    /// may have left half a line there.
    fn line(self, marker: &str) -> String {
        match self {
            Dialect::Bash => format!(
                "builtin read -rd '' -u {SCRIPT};builtin eval -- \"$REPLY\" </dev/null {SCRIPT}<&- {END}>&-;\
                 {{ builtin printf '\\n%s %d\\n' {marker} $? >&{END};}} 2>/dev/null\n"
            ),
            // The word is expanded before the descriptors are closed. `-p`, because a command may change PATH.
            Dialect::Posix => format!(
                "eval \"$(command -p cat <&{SCRIPT})\" </dev/null {SCRIPT}<&- {END}>&-;\
                 {{ command printf '\\n%s %d\\n' {marker} $? >&{END};}} 2>/dev/null\n"
            ),
        }
    }
}

impl Shell {
    /// Sends a command; returns the marker that its end will bring.
    fn send(&mut self, command: &str) -> Result<String, Errno> {
        rustix::fs::ftruncate(&self.script, 0)?;
        // The zero byte ends what bash's `read` takes. Without it `read` would fail, and with `set -e` in force
        // that would end the shell.
        let end: &[u8] = match self.dialect {
            Dialect::Bash => b"\0",
            Dialect::Posix => b"",
        };
        for (bytes, start) in [(command.as_bytes(), 0), (end, command.len())] {
            let mut written = 0;
            while written < bytes.len() {
                written += rustix::io::pwrite(&self.script, &bytes[written..], (start + written) as u64)?;
            }
        }
        // The shell reads through a copy of this descriptor, so this is where it starts.
        rustix::fs::seek(&self.script, rustix::fs::SeekFrom::Start(0))?;
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        let marker = format!("{:016x}", u64::from_ne_bytes(random));
        let line = self.dialect.line(&marker);
        // Shorter than a pipe's atomic write: it goes whole or not at all.
        rustix::io::write(&self.control, line.as_bytes())?;
        Ok(marker)
    }

    /// Takes up to so many bytes of what was printed.
    fn take_output(&mut self, bytes_max: usize) {
        let Some(output) = &self.output else { return };
        let mut chunk = vec![0; bytes_max.min(CHUNK_BYTES)];
        match rustix::io::read(output, &mut chunk) {
            // Nobody can print here any more. Polling it further would spin.
            Ok(0) => self.output = None,
            Ok(read) => self.tail.push(&chunk[..read]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.output = None,
        }
    }

    /// Takes what lies in the pipe now and returns all that was printed since the last call's end.
    ///
    /// What the command printed is in the pipe when its marker is. A background job may go on printing;
    /// only what is there at this moment is taken, so that it cannot hold up the call.
    fn printed(&mut self) -> String {
        let mut left =
            self.output.as_ref().and_then(|output| rustix::io::ioctl_fionread(output).ok()).unwrap_or(0);
        while left > 0 && self.output.is_some() {
            let part = left.min(CHUNK_BYTES as u64);
            self.take_output(part as usize);
            left -= part;
        }
        std::mem::take(&mut self.tail).finish()
    }

    /// Takes what lies in the marker pipe; the exit code if the marker is among it.
    fn take_marker(&mut self, expected: Option<&str>) -> Option<i32> {
        let end = self.end.as_ref()?;
        let mut chunk = [0; 256];
        match rustix::io::read(end, &mut chunk) {
            Ok(0) => self.end = None,
            Ok(read) => self.markers.extend_from_slice(&chunk[..read]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.end = None,
        }
        let mut found = None;
        while let Some(newline) = self.markers.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.markers.drain(..=newline).collect();
            let line = std::str::from_utf8(&line).unwrap_or_default().trim_end();
            if let Some((marker, code)) = line.split_once(' ')
                && Some(marker) == expected
            {
                found = code.parse().ok();
            }
        }
        if self.markers.len() > MARKER_BYTES_MAX {
            self.markers.clear();
        }
        found
    }
}
