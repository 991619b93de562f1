//! A running `tools` in a directory of its own, and short ways to ask it things.

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use tools::wire::{
    self, Content, Op, Output, PROTOCOL, REQUEST_BYTES_MAX, RESPONSE_BYTES_MAX, Reply, Request, Response,
};

/// Longer than anything here takes; a test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Hands {
    pub(crate) directory: TempDir,
    pub(crate) child: Child,
    socket: UnixStream,
    next_id: u64,
    early: HashMap<u64, Reply>,
}

impl Hands {
    pub(crate) fn new() -> Hands {
        Hands::with_environment(&[])
    }

    pub(crate) fn with_environment(variables: &[(&str, &str)]) -> Hands {
        Hands::with(variables, &[])
    }

    /// With another shell than the usual one.
    pub(crate) fn with_shell(shell: &str) -> Hands {
        Hands::with(&[], &["--shell", shell])
    }

    fn with(variables: &[(&str, &str)], arguments: &[&str]) -> Hands {
        let directory = tempfile::tempdir().unwrap();
        for name in ["work", "outputs", "uploads", "tmp", "outside"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tools"));
        for (option, name) in [
            ("--workdir", "work"),
            ("--outputs", "outputs"),
            ("--read-only", "uploads"),
            ("--read-write", "tmp"),
            ("--overflow", "tmp/tool-outputs"),
        ] {
            command.arg(option).arg(directory.path().join(name));
        }
        command.args(arguments);
        command.env_clear().env("PATH", "/usr/bin:/bin").envs(variables.iter().copied());
        command.stdin(Stdio::null());
        pass_as_control_socket(&mut command, theirs.into());
        let child = command.spawn().unwrap();
        // The command keeps the other end open; without it the end of `tools` would not be seen.
        drop(command);
        let mut hands = Hands { directory, child, socket: ours, next_id: 0, early: HashMap::new() };
        assert_eq!(hands.reply(0), Reply::Ready { protocol: PROTOCOL });
        hands
    }

    /// Where `tools` sees one of the directories.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().canonicalize().unwrap().join(name)
    }

    pub(crate) fn put(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    pub(crate) fn get(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// Sends a request and returns its id.
    pub(crate) fn send(&mut self, op: Op) -> u64 {
        self.next_id += 1;
        let request = Request { id: self.next_id, op };
        wire::write_frame(&mut self.socket, &request, REQUEST_BYTES_MAX).unwrap();
        self.next_id
    }

    /// Sends any JSON as a request.
    pub(crate) fn send_raw(&mut self, request: Value, id: u64) -> u64 {
        wire::write_frame(&mut self.socket, &request, REQUEST_BYTES_MAX).unwrap();
        id
    }

    /// Sends a call; its id is also its call id.
    pub(crate) fn call(&mut self, name: &str, input: Value) -> u64 {
        let call_id = format!("call_{}", self.next_id + 1);
        self.send(execute(&call_id, name, input, 0))
    }

    /// Waits for the reply to a request; replies to others are kept for when they are asked for.
    pub(crate) fn reply(&mut self, id: u64) -> Reply {
        if let Some(reply) = self.early.remove(&id) {
            return reply;
        }
        loop {
            let response: Response =
                wire::read_frame(&mut self.socket, RESPONSE_BYTES_MAX).unwrap().expect("tools goes on");
            if response.id == id {
                return response.reply;
            }
            self.early.insert(response.id, response.reply);
        }
    }

    pub(crate) fn ask(&mut self, op: Op) -> Reply {
        let id = self.send(op);
        self.reply(id)
    }

    pub(crate) fn output(&mut self, id: u64) -> Output {
        match self.reply(id) {
            Reply::Output(output) => output,
            other => panic!("{other:?}"),
        }
    }

    /// Runs a tool and returns its only text and whether it is an error.
    pub(crate) fn run(&mut self, name: &str, input: Value) -> (String, bool) {
        let id = self.call(name, input);
        text(self.output(id))
    }

    pub(crate) fn bash(&mut self, command: &str) -> (String, bool) {
        self.run("bash", json!({ "command": command }))
    }

    /// The result of a tool that must succeed.
    pub(crate) fn good(&mut self, name: &str, input: Value) -> String {
        let (text, is_error) = self.run(name, input);
        assert!(!is_error, "{text}");
        text
    }

    /// The result of a tool that must fail.
    pub(crate) fn bad(&mut self, name: &str, input: Value) -> String {
        let (text, is_error) = self.run(name, input);
        assert!(is_error, "{text}");
        text
    }

    /// What a command prints that must succeed.
    pub(crate) fn sh(&mut self, command: &str) -> String {
        self.good("bash", json!({ "command": command }))
    }

    /// Whether a process exists that has not ended.
    pub(crate) fn lives(pid: &str) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
        stat.is_ok_and(|stat| !stat[stat.rfind(')').unwrap()..].starts_with(") Z"))
    }

    /// The resident memory of `tools` in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Ends the control socket and waits for `tools` to end.
    pub(crate) fn hang_up(&mut self) {
        self.socket.shutdown(std::net::Shutdown::Both).unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Hands {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        let _ = self.child.wait();
    }
}

pub(crate) fn execute(call_id: &str, name: &str, input: Value, timeout_ms: u64) -> Op {
    Op::Execute { call_id: call_id.into(), name: name.into(), input, timeout_ms }
}

pub(crate) fn text(output: Output) -> (String, bool) {
    match <[Content; 1]>::try_from(output.content) {
        Ok([Content::Text { text }]) => (text, output.is_error),
        other => panic!("{other:?}"),
    }
}

/// Waits until something that another process does is done.
pub(crate) fn eventually(what: &str, mut is_done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_done() {
        assert!(started.elapsed() < PATIENCE, "still not: {what}");
        std::thread::yield_now();
    }
}

/// A FIFO that a command opens to say that it has come so far. Returns when it has.
pub(crate) fn wait_for(fifo: &Path) {
    loop {
        match fs::read(fifo) {
            Ok(_) => return,
            Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
            Err(cause) => panic!("{cause}"),
        }
    }
}

pub(crate) fn make_fifo(path: &Path) {
    let status = Command::new("mkfifo").arg(path).status().unwrap();
    assert!(status.success());
}

#[expect(unsafe_code, reason = "descriptor 3 can be passed in no other way")]
fn pass_as_control_socket(command: &mut Command, socket: OwnedFd) {
    let place = move || {
        let mut control = rustix::io::fcntl_dupfd_cloexec(socket.as_fd(), 3)?;
        if std::os::fd::AsRawFd::as_raw_fd(&control) != 3 {
            // SAFETY: in the child nothing else uses descriptor 3 between fork and exec; it is leaked below.
            let mut three = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(3) };
            rustix::io::dup2(&control, &mut three)?;
            control = three;
        }
        rustix::io::fcntl_setfd(&control, rustix::io::FdFlags::empty())?;
        std::mem::forget(control);
        Ok(())
    };
    // SAFETY: the closure makes system calls only; it neither allocates nor takes a lock.
    unsafe { command.pre_exec(place) };
}
