//! Sandboxes that somebody else starts: the supervisor opens a door for each, and adopts whoever comes through it.
//!
//! A door is a folder with two listening sockets, the system call filter and the `tools` program. The server has an engine of
//! containers start that program with the folder mounted; `tools` connects ([`tools::dial`]), hands over its exit, takes the
//! files of a snapshot if there is one, and says that it is ready. One connection is taken at each socket, one for words and one
//! for files; then the folder is removed, so that nothing of it is left to be found.
//!
//! ```text
//! Listening ──connect──▶ Greeting ──GO──▶ a sandbox like any other
//!     └── no one in time, destroyed ──┴── a complaint, the end ──▶ dismissed
//! ```
//!
//! Nobody but this user and what the folder is mounted into can reach the socket. Where the engine does not translate ids,
//! whoever connects must have the very id that the door was opened for.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, open};
use tools::wire::dial::{CARGO, CONTROL, EXIT, FILTER, GO, UNRESTORABLE};

use super::cargo::Feeding;
use super::keeper::Waiter;
use super::passing;
use super::protocol::Answer;
use crate::namespaces::agent;
use crate::namespaces::start::OnlyThread;
use crate::provider::{Base, Error, Resources, Restore, SandboxId, SandboxInfo};

/// The name of the `tools` program in each door's folder.
pub(crate) const PROGRAM: &str = "tools";

/// How long a door stays open. Longer than any server waits for an engine, so that its own word comes first.
pub(crate) const OPEN_TIME_MAX: Duration = Duration::from_secs(90);

/// Ids for what comes from outside: one each, as many as there may be sandboxes.
pub(crate) const SLOTS: u32 = 4096;

/// What restoring a snapshot may add.
pub(crate) const RESTORE_TIME_MAX: Duration = Duration::from_secs(300);

/// A complaint is a sentence.
const COMPLAINT_BYTES_MAX: usize = 1024;

/// Where doors are made.
pub(crate) struct Doors {
    folder: PathBuf,
    /// The filter as it lies in each door's folder; `None` where the kernel has none.
    filter: Option<Vec<u8>>,
    /// Each supervisor's doors have other names than its predecessors': a container that was made for one of theirs is known
    /// by it.
    epoch: u64,
    next: u64,
}

impl Doors {
    /// Nothing is made before the first door. What lies in `folder` is an earlier supervisor's and goes.
    pub(crate) fn new(folder: PathBuf, filter: Option<Vec<u8>>) -> io::Result<Self> {
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        Ok(Self { folder, filter, epoch: u64::from_ne_bytes(random), next: 0 })
    }

    /// Makes a folder with everything in it, and listens there.
    fn open(&mut self) -> Result<(PathBuf, Listeners), Error> {
        let Some(filter) = &self.filter else {
            return Err(Error::refused("this kernel has no system call filter (CONFIG_SECCOMP_FILTER)"));
        };
        let program = self.folder.join(PROGRAM);
        let door = self.folder.join(format!("{:016x}-{}", self.epoch, self.next));
        self.next += 1;
        let made = (|| -> io::Result<Listeners> {
            if !program.exists() {
                // Ours alone. What is mounted are the folders below, which anybody may enter who can see them.
                fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
                write_file(&program, agent::program(), 0o755)?;
            }
            fs::create_dir(&door)?;
            fs::set_permissions(&door, fs::Permissions::from_mode(0o755))?;
            write_file(&door.join(FILTER), filter, 0o444)?;
            // Another name of the one file, unless the file system has only one name for each.
            fs::hard_link(&program, door.join(PROGRAM))
                .or_else(|_| write_file(&door.join(PROGRAM), agent::program(), 0o755))?;
            Ok(Listeners { cargo: listen(&door, CARGO)?, control: listen(&door, CONTROL)? })
        })();
        match made {
            Ok(listeners) => Ok((door, listeners)),
            Err(error) => {
                let _ = fs::remove_dir_all(&door);
                Err(Error::unavailable(format!("cannot open a door for a container: {error}")))
            }
        }
    }

    /// Removes all of them.
    pub(crate) fn remove(&self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn write_file(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    file.set_permissions(fs::Permissions::from_mode(mode))
}

/// Where a container calls.
struct Listeners {
    control: UnixListener,
    /// Called first; what it is for comes later.
    cargo: UnixListener,
}

/// Listens in this folder, for whoever can see it.
fn listen(folder: &Path, name: &str) -> io::Result<UnixListener> {
    // Socket addresses end at 108 bytes, whatever the folder's path is.
    let held = open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let listener = UnixListener::bind(format!("/proc/self/fd/{}/{name}", held.as_raw_fd()))?;
    fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o666))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Somebody who is expected.
pub(crate) struct Guest {
    pub(crate) id: SandboxId,
    pub(crate) fence: u64,
    pub(crate) born: Instant,
    pub(crate) used: Instant,
    pub(crate) slot: u32,
    pub(crate) resources: Resources,
    pub(crate) exit: Option<OwnedFd>,
    /// Those who wait for it to be ready.
    pub(crate) waiters: Vec<Waiter>,
    /// Who may come.
    peer: Option<u32>,
    folder: PathBuf,
    stage: Stage,
    complaint: Vec<u8>,
    /// What it is to start with.
    snapshot: Option<fs::File>,
    /// Brings that.
    feeding: Option<Feeding>,
}

enum Stage {
    Listening(Listeners),
    Greeting(Lines),
}

/// The two connections of a container.
pub(crate) struct Lines {
    pub(crate) control: UnixStream,
    /// Blocking: only children of the supervisor use it.
    pub(crate) cargo: UnixStream,
}

/// What a guest has said so far.
pub(crate) enum Heard {
    /// Nothing that is final.
    Open,
    /// Frames follow.
    Ready(Lines),
    /// Why there will be none.
    Failed(Error),
}

/// What is to be opened a door for.
pub(crate) struct Expected {
    pub(crate) id: SandboxId,
    pub(crate) fence: u64,
    pub(crate) slot: u32,
    pub(crate) resources: Resources,
    /// Who may come; anybody who can, if `None`.
    pub(crate) peer: Option<u32>,
}

impl Guest {
    /// Opens a door.
    pub(crate) fn expect(doors: &mut Doors, expected: Expected, now: Instant) -> Result<Self, Error> {
        let Expected { id, fence, slot, resources, peer } = expected;
        let snapshot =
            resources.restore.as_ref().map(|restore| open_snapshot(restore, &resources.base)).transpose()?;
        let (folder, listeners) = doors.open()?;
        Ok(Self {
            id,
            fence,
            born: now,
            used: now,
            slot,
            resources,
            exit: None,
            waiters: Vec::new(),
            peer,
            folder,
            stage: Stage::Listening(listeners),
            complaint: Vec::new(),
            snapshot,
            feeding: None,
        })
    }

    /// Where to come in.
    pub(crate) fn door(&self) -> Answer {
        Answer::Door { folder: self.folder.clone(), slot: self.slot }
    }

    /// What to wait for.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        match &self.stage {
            Stage::Listening(listeners) => listeners.control.as_fd(),
            Stage::Greeting(lines) => lines.control.as_fd(),
        }
    }

    /// Whether it should have come by now.
    pub(crate) fn is_late(&self, now: Instant) -> bool {
        let restoring = if self.resources.restore.is_some() { RESTORE_TIME_MAX } else { Duration::ZERO };
        now > self.born + OPEN_TIME_MAX + restoring
    }

    /// Somebody is at the door: the first whom it was opened for comes in, and nobody after.
    pub(crate) fn answer(&mut self) -> Option<Lines> {
        let Stage::Listening(Listeners { control, cargo }) = &self.stage else { return None };
        let control = self.welcome(control).filter(|stream| stream.set_nonblocking(true).is_ok())?;
        // It has called here before. One that has not is nobody of ours, and the door stays open.
        let cargo = self.welcome(cargo).filter(|stream| stream.set_nonblocking(false).is_ok())?;
        Some(Lines { control, cargo })
    }

    fn welcome(&self, listener: &UnixListener) -> Option<UnixStream> {
        while let Ok((stream, _)) = listener.accept() {
            let seen = rustix::net::sockopt::socket_peercred(&stream).map(|peer| peer.uid.as_raw());
            if self.peer.is_none_or(|expected| seen == Ok(expected)) {
                return Some(stream);
            }
        }
        None
    }

    /// Goes on with whoever came in, and begins to bring what it is to start with.
    pub(crate) fn greet(&mut self, lines: Lines, only: &OnlyThread) -> Result<(), Error> {
        if let Some(snapshot) = self.snapshot.take() {
            self.feeding = Some(Feeding::start(only, &snapshot, &lines.cargo)?);
        }
        self.stage = Stage::Greeting(lines);
        let _ = fs::remove_file(self.folder.join(CONTROL));
        let _ = fs::remove_file(self.folder.join(CARGO));
        Ok(())
    }

    /// Takes in what whoever came in says.
    pub(crate) fn hear(&mut self) -> Heard {
        let Stage::Greeting(Lines { control: stream, cargo }) = &self.stage else { return Heard::Open };
        let mut descriptors = VecDeque::new();
        let mut byte = [0];
        let ended = loop {
            // One at a time: what follows the greeting is for somebody else to read.
            match passing::receive(stream, &mut byte, &mut descriptors) {
                Ok(0) => break "it ended before it was ready".to_owned(),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Heard::Open,
                Err(error) => break format!("it cannot be heard: {error}"),
            }
            match byte[0] {
                EXIT if self.complaint.is_empty() => match descriptors.pop_front() {
                    Some(exit) => drop(self.exit.get_or_insert(exit)),
                    None => break "its exit came without a socket".to_owned(),
                },
                GO if self.complaint.is_empty() => match (stream.try_clone(), cargo.try_clone()) {
                    (Ok(control), Ok(cargo)) => return Heard::Ready(Lines { control, cargo }),
                    (Err(error), _) | (_, Err(error)) => break format!("it cannot be kept: {error}"),
                },
                other if self.complaint.len() < COMPLAINT_BYTES_MAX => self.complaint.push(other),
                _ => break "it complains without end".to_owned(),
            }
        };
        let text = |words: &[u8]| String::from_utf8_lossy(words).into_owned();
        Heard::Failed(match self.complaint.strip_prefix(&[UNRESTORABLE]) {
            // Of one that was to have none, that would be an odd thing to say.
            Some(why) if self.resources.restore.is_some() => Error::Unrestorable { reason: text(why) },
            Some(_) | None if self.complaint.is_empty() => Error::unavailable(ended),
            Some(_) | None => Error::unavailable(text(&self.complaint)),
        })
    }

    pub(crate) fn info(&self, now: Instant) -> SandboxInfo {
        SandboxInfo {
            id: self.id.clone(),
            age: now.duration_since(self.born),
            // Its own deadline ends it.
            idle: Duration::ZERO,
            fence: self.fence,
            memory_bytes: None,
            calls: 0,
        }
    }
}

fn open_snapshot(restore: &Restore, on: &Base) -> Result<fs::File, Error> {
    let Restore { file, base } = restore;
    if *base != on.name() {
        let reason = format!("it was saved on {base}, and this would be built on {}", on.name());
        return Err(Error::Unrestorable { reason });
    }
    let opened = open(file, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
    opened.map(fs::File::from).map_err(|error| Error::Unrestorable {
        reason: format!("the snapshot cannot be opened: {}", io::Error::from(error)),
    })
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Whoever is inside has what it needs: the program runs, the filter is on.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(folder: &Path, peer: Option<u32>) -> Guest {
        let mut doors = Doors::new(folder.join("doors"), Some(vec![1, 2, 3])).unwrap();
        let id = SandboxId::parse("a").unwrap();
        let expected = Expected { id, fence: 1, slot: 0, resources: Resources::default(), peer };
        Guest::expect(&mut doors, expected, Instant::now()).unwrap()
    }

    #[test]
    fn only_the_expected_id_comes_in_and_the_door_is_gone_afterwards() {
        let folder = tempfile::tempdir().unwrap();
        let own = rustix::process::geteuid().as_raw();
        let mut stranger = guest(folder.path(), Some(own + 1));
        let _cargo = UnixStream::connect(stranger.folder.join(CARGO)).unwrap();
        let _knock = UnixStream::connect(stranger.folder.join(CONTROL)).unwrap();
        assert!(stranger.answer().is_none());
        let mut expected = guest(folder.path(), Some(own));
        let path = expected.folder.to_owned();
        assert_eq!(fs::read(path.join(FILTER)).unwrap(), [1, 2, 3]);
        let _cargo = UnixStream::connect(path.join(CARGO)).unwrap();
        let mut inside = UnixStream::connect(path.join(CONTROL)).unwrap();
        let lines = expected.answer().unwrap();
        expected.stage = Stage::Greeting(lines);
        fs::remove_file(path.join(CONTROL)).unwrap();
        assert!(UnixStream::connect(path.join(CONTROL)).is_err(), "nobody comes after it");
        assert!(matches!(expected.hear(), Heard::Open));
        inside.write_all(&[GO]).unwrap();
        assert!(matches!(expected.hear(), Heard::Ready(_)));
        drop(expected);
        assert!(!path.exists());
    }

    #[test]
    fn a_complaint_is_heard_to_its_end_and_an_exit_without_a_socket_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let said = |words: &[u8]| {
            let mut guest = guest(folder.path(), None);
            let _cargo = UnixStream::connect(guest.folder.join(CARGO)).unwrap();
            let mut inside = UnixStream::connect(guest.folder.join(CONTROL)).unwrap();
            guest.stage = Stage::Greeting(guest.answer().unwrap());
            inside.write_all(words).unwrap();
            drop(inside);
            match guest.hear() {
                Heard::Failed(Error::Unavailable { reason }) => reason,
                Heard::Failed(other) => panic!("{other:?}"),
                Heard::Open | Heard::Ready(_) => panic!("it is over"),
            }
        };
        assert_eq!(said(b"cannot go on"), "cannot go on");
        assert_eq!(said(b""), "it ended before it was ready");
        assert_eq!(said(&[EXIT]), "its exit came without a socket");
        assert_eq!(said(&[b'x'; 5000]), "x".repeat(COMPLAINT_BYTES_MAX));
    }
}
