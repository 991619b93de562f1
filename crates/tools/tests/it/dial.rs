//! Dialling: what a `tools` that was told whom to call says first, and what it can no longer do.

use std::collections::VecDeque;
use std::fs;
use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::json;
use tempfile::TempDir;
use tools::wire::dial::{CARGO, CONTROL, EXIT, FILTER, GO};
use tools::wire::{self, PROTOCOL, REQUEST_BYTES_MAX, RESPONSE_BYTES_MAX, Reply, Request, Response};

use crate::hands::{execute, text};

/// Allows everything.
const ALLOW: [u8; 8] = [0x06, 0, 0, 0, 0, 0, 0xff, 0x7f];

struct Door {
    folder: TempDir,
    listener: UnixListener,
    /// The line for files, which it needs to find.
    _cargo: UnixListener,
}

impl Door {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["work", "outputs", "tmp"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        fs::write(folder.path().join(FILTER), ALLOW).unwrap();
        let listener = UnixListener::bind(folder.path().join(CONTROL)).unwrap();
        let cargo = UnixListener::bind(folder.path().join(CARGO)).unwrap();
        Self { folder, listener, _cargo: cargo }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().canonicalize().unwrap().join(name)
    }

    fn start(&self, more: &[&str]) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tools"));
        command.arg("--connect").arg(self.folder.path()).args(more);
        for (option, name) in [
            ("--workdir", "work"),
            ("--outputs", "outputs"),
            ("--read-write", "tmp"),
            ("--overflow", "tmp/o"),
        ] {
            command.arg(option).arg(self.path(name));
        }
        command.env_clear().spawn().unwrap()
    }
}

fn first_byte(socket: &UnixStream) -> (u8, VecDeque<OwnedFd>) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0xff];
    recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::empty()).unwrap();
    let descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    (byte[0], descriptors.flatten().collect())
}

#[test]
fn it_connects_passes_its_exit_over_and_serves() {
    let door = Door::new();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut child = door.start(&["--exit", &port.to_string()]);
    let (mut socket, _) = door.listener.accept().unwrap();
    let (byte, mut descriptors) = first_byte(&socket);
    assert_eq!((byte, descriptors.len()), (EXIT, 1));
    let exit = TcpListener::from(descriptors.pop_front().unwrap());
    assert_eq!(exit.local_addr().unwrap().port(), port);
    TcpStream::connect(("127.0.0.1", port)).unwrap();
    assert_eq!(first_byte(&socket).0, GO);
    let ready: Response = wire::read_frame(&mut socket, RESPONSE_BYTES_MAX).unwrap().unwrap();
    assert_eq!(ready.reply, Reply::Ready { protocol: PROTOCOL });
    let status = "grep -E '^(NoNewPrivs|Seccomp):' /proc/$$/status | tr -d '\\t' | tr '\\n' ' '";
    let request = Request { id: 1, op: execute("a", "bash", json!({"command": status}), 0) };
    wire::write_frame(&mut socket, &request, REQUEST_BYTES_MAX).unwrap();
    let response: Response = wire::read_frame(&mut socket, RESPONSE_BYTES_MAX).unwrap().unwrap();
    let Reply::Output(output) = response.reply else { panic!("{response:?}") };
    assert_eq!(text(output).0.trim(), "NoNewPrivs:1 Seccomp:2");
    drop(socket);
    assert!(child.wait().unwrap().success());
}

#[test]
fn what_it_cannot_do_it_says_instead_of_going_on_without_it() {
    let complaint = |spoil: &dyn Fn(&Path)| {
        let door = Door::new();
        spoil(door.folder.path());
        let mut child = door.start(&[]);
        let mut said = String::new();
        door.listener.accept().unwrap().0.read_to_string(&mut said).unwrap();
        assert!(!child.wait().unwrap().success());
        said
    };
    let missing = complaint(&|folder| fs::remove_file(folder.join(FILTER)).unwrap());
    assert!(missing.starts_with("cannot read the system call filter: "), "{missing}");
    let cut = complaint(&|folder| fs::write(folder.join(FILTER), [0; 12]).unwrap());
    assert_eq!(cut, "cannot apply the system call filter: it is cut off");
    let nonsense = complaint(&|folder| fs::write(folder.join(FILTER), [0xff; 16]).unwrap());
    assert!(nonsense.starts_with("cannot apply the system call filter: "), "{nonsense}");
}

#[test]
fn without_anybody_to_call_it_ends() {
    let door = Door::new();
    fs::remove_file(door.folder.path().join(CONTROL)).unwrap();
    assert!(!door.start(&[]).wait().unwrap().success());
}
