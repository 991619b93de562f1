//! Where the supervisor lives: its folder, its lock, its socket, and the program that it is started from.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};

use crate::shelf::Shelf;

const SOCKET: &str = "supervisor.sock";
const LOCK: &str = "supervisor.lock";
const LOG: &str = "supervisor.log";
/// Which control groups the last supervisor used, for the one that cleans up after it.
const GROUPS: &str = "control-groups";
/// Where sandboxes are put together.
const WORK: &str = "work";

/// Where containers are let in.
const DOORS: &str = "doors";

/// A log larger than this is started anew.
const LOG_BYTES_MAX: u64 = 1 << 20;

/// How to start the supervisor: a program and the arguments that make it call [`crate::supervisor::main`] with those that follow.
#[derive(Clone, Debug)]
pub struct Program {
    /// The program, usually this one.
    pub path: PathBuf,
    /// What comes before our own arguments, usually the hidden subcommand.
    pub arguments: Vec<OsString>,
}

impl Program {
    /// This very program, with a subcommand. By the kernel's link rather than by name, so that an upgrade on disk does not
    /// mix versions.
    #[must_use]
    pub fn this(subcommand: &str) -> Self {
        Self { path: PathBuf::from("/proc/self/exe"), arguments: vec![subcommand.into()] }
    }
}

/// The folder `supervisor` in a data directory. Nobody but its owner can enter it.
pub(crate) struct Place {
    folder: PathBuf,
    /// Device and inode of the folder when it was opened.
    identity: (u64, u64),
}

/// Held by the one supervisor of a data directory; let go by the kernel however it ends.
pub(crate) struct Lock {
    _file: fs::File,
}

impl Place {
    /// Makes the folder if need be and insists that it is ours alone.
    pub(crate) fn open(data: &Path) -> io::Result<Self> {
        let folder = data.join("supervisor");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let metadata = fs::symlink_metadata(&folder)?;
        if !metadata.is_dir() || metadata.uid() != rustix::process::geteuid().as_raw() {
            return Err(io::Error::other(format!("{} is not a folder of this user", folder.display())));
        }
        if metadata.mode() & 0o077 != 0 {
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?;
        }
        Ok(Self { folder: folder.canonicalize()?, identity: (metadata.dev(), metadata.ino()) })
    }

    /// Whether the folder still stands where servers look for it. If not, nobody will ever come.
    pub(crate) fn exists(&self) -> bool {
        fs::symlink_metadata(&self.folder).is_ok_and(|found| (found.dev(), found.ino()) == self.identity)
    }

    /// A short name for this place, different from every other's on this machine.
    pub(crate) fn instance(&self) -> String {
        // FNV-1a: names control groups, guards nothing.
        let hash = self.folder.as_os_str().as_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        format!("{hash:016x}")
    }

    /// The images and layers of this data directory.
    pub(crate) fn shelf(&self) -> Shelf {
        Shelf::new(self.folder.parent().unwrap_or(Path::new("/")))
    }

    pub(crate) fn work(&self) -> PathBuf {
        self.folder.join(WORK)
    }

    pub(crate) fn doors(&self) -> PathBuf {
        self.folder.join(DOORS)
    }

    /// Becomes the supervisor of this place; `None` if there is one.
    pub(crate) fn lock(&self) -> io::Result<Option<Lock>> {
        let file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.folder.join(LOCK))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Lock { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Listens in place of whoever listened here before. Only the holder of the lock may.
    pub(crate) fn listen(&self, _: &Lock) -> io::Result<UnixListener> {
        let (folder, path) = self.socket()?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let before = rustix::process::umask(Mode::from_raw_mode(0o177));
        let listener = UnixListener::bind(&path);
        rustix::process::umask(before);
        drop(folder);
        let listener = listener?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    /// Connects to the supervisor and makes sure that it is this user's.
    pub(crate) fn connect(&self) -> io::Result<UnixStream> {
        let (_folder, path) = self.socket()?;
        let stream = UnixStream::connect(path)?;
        if !peer_is_own_user(&stream)? {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "the supervisor's socket belongs to another user",
            ));
        }
        stream.set_nonblocking(true)?;
        Ok(stream)
    }

    /// A path for the socket that is short whatever the folder's is: socket addresses end at 108 bytes.
    fn socket(&self) -> io::Result<(OwnedFd, PathBuf)> {
        let folder = open(&self.folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", folder.as_fd().as_raw_fd()));
        Ok((folder, path))
    }

    /// Forgets the socket, so that nobody connects to a supervisor that is ending.
    pub(crate) fn remove_socket(&self) {
        let _ = fs::remove_file(self.folder.join(SOCKET));
    }

    /// The control groups that the last supervisor wrote down.
    pub(crate) fn recorded_groups(&self) -> Vec<PathBuf> {
        fs::read_to_string(self.folder.join(GROUPS)).unwrap_or_default().lines().map(PathBuf::from).collect()
    }

    /// Writes down which control groups must be cleared after us.
    pub(crate) fn record_groups<'a>(&self, groups: impl Iterator<Item = &'a Path>) -> io::Result<()> {
        let lines: String = groups.map(|group| format!("{}\n", group.display())).collect();
        fs::write(self.folder.join(GROUPS), lines)
    }

    /// Starts a supervisor here and waits until it listens, or until it has found another one at work.
    pub(crate) fn start(&self, program: &Program) -> io::Result<()> {
        let log = self.folder.join(LOG);
        let append = fs::metadata(&log).is_ok_and(|metadata| metadata.len() < LOG_BYTES_MAX);
        let log = fs::OpenOptions::new()
            .create(true)
            .write(true)
            .append(append)
            .truncate(!append)
            .mode(0o600)
            .open(log)?;
        let data = self.folder.parent().unwrap_or(Path::new("/"));
        // Nothing of the server's environment, no descriptor of the server's, no terminal. The program goes into the
        // background by itself and this one ends, so there is nobody to reap later.
        let output = Command::new(&program.path)
            .args(&program.arguments)
            .arg("--data-dir")
            .arg(data)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .status()?;
        if output.success() {
            return Ok(());
        }
        let log = fs::read_to_string(self.folder.join(LOG)).unwrap_or_default();
        let last: Vec<&str> = log.lines().rev().take(2).collect();
        Err(io::Error::other(format!("the supervisor did not start: {}", last.join("; "))))
    }
}

/// Whether the process at the other end runs as this user.
pub(crate) fn peer_is_own_user(stream: &UnixStream) -> io::Result<bool> {
    let peer = rustix::net::sockopt::socket_peercred(stream)?;
    Ok(peer.uid == rustix::process::geteuid())
}
