//! The private layer of a sandbox, out and in.
//!
//! Everything that a sandbox writes lies in its stage ([`super::root`]): the upper layers of the overlays and the plain folders
//! of its root. That, without what is made anew for each sandbox, is a snapshot. Out: [`pack`] runs in a child of the
//! supervisor, in a user namespace with the sandbox's ids, on the bare stage that the sandbox handed out when it was born.
//! In: [`restore`] runs while the root is being built, in a child that has nothing but the archive and the stage.
//!
//! It trusts neither an archive nor the tree that comes out of it: a tree may hold links where the root is about to be built,
//! and [`clear_way`] moves them aside, because whoever builds would follow them on the host.

use std::fs;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, open, openat, renameat, statat, unlinkat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::process::{chdir, chroot};
use tools::archive::{Bounds, Scope};

use super::child::{Failure, Step};
use super::root::STAGE;
use super::sys;
use crate::archive::{self, Written};
use crate::provider::Limits;

/// What of the stage is the sandbox's own. The folders left out are made anew each time.
const PRIVATE: Scope = Scope { tops: &["u", "r"], except: &["r/dev", "r/proc", "r/sys"] };

/// The step of a [`Failure`] that says: the snapshot cannot be restored, and never will be.
pub(crate) const RESTORE: &str = "restore the snapshot";

/// Where something stands in the way of the root, it gets this name.
pub(super) const ASIDE: &str = ".saved";

/// Takes hold of the bare stage, without what is mounted in it: what the sandbox sees, before its overlays.
pub(crate) fn hold_stage() -> Result<OwnedFd, Failure> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, STAGE, flags).step("take hold of the writable tmpfs")
}

/// Writes the private layer into a file. For a process with the sandbox's ids and nothing else to do.
pub(crate) fn pack(stage: &OwnedFd, into: &File) -> Result<Written, archive::Error> {
    // Whoever waits for an answer comes first.
    let _ = rustix::process::nice(19);
    // Readable, which what the sandbox handed out is not.
    let stage = openat(stage, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(io::Error::from)?;
    archive::save(stage.as_fd(), &PRIVATE, into)
}

/// Opens a snapshot, with the supervisor's ids, before they change.
pub(crate) fn open_snapshot(path: &Path) -> Result<OwnedFd, Failure> {
    open(path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).step(RESTORE)
}

/// Unpacks a snapshot into the mounted stage, in a child that can reach nothing else.
pub(crate) fn restore(snapshot: &OwnedFd, limits: &Limits) -> Result<(), Failure> {
    let (mut reader, writer) = io::pipe().step("make a pipe")?;
    // SAFETY: this process is a copy of the supervisor, which has one thread, and has started none.
    match unsafe { sys::fork() }.step("start the unpacker")? {
        sys::Forked::Child => {
            drop(reader);
            let attempt =
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| unpack(snapshot, &writer, limits)));
            let message = match attempt {
                Ok(Ok(())) => DONE.to_owned(),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "the unpacker panicked".to_owned(),
            };
            let _ = (&writer).write_all(message.as_bytes());
            sys::exit_now(0)
        }
        sys::Forked::Parent(child) => {
            drop(writer);
            let mut message = String::new();
            let heard = reader.read_to_string(&mut message);
            let _ = rustix::process::waitpid(
                rustix::process::Pid::from_raw(child),
                rustix::process::WaitOptions::empty(),
            );
            heard.step("hear the unpacker")?;
            match message.as_str() {
                DONE => Ok(()),
                "" => Err(io::Error::other("the unpacker was killed")).step(RESTORE),
                why => Err(io::Error::other(why.to_owned())).step(RESTORE),
            }
        }
    }
}

/// What the unpacker says when all is well; no error reads like it.
const DONE: &str = "\0done";

fn unpack(snapshot: &OwnedFd, writer: &io::PipeWriter, limits: &Limits) -> Result<(), archive::Error> {
    sys::die_with_parent()?;
    chroot(STAGE).map_err(io::Error::from)?;
    chdir("/").map_err(io::Error::from)?;
    // Other sandboxes' sockets, the supervisor's own: all of it goes.
    sys::close_all_but(&[0, 1, 2, snapshot.as_raw_fd(), writer.as_raw_fd()])?;
    // With these it can make files of other owners in here, and cannot get out.
    sys::keep_file_capabilities()?;
    sys::no_new_privileges()?;
    let root = open("/", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(io::Error::from)?;
    let file = File::from(snapshot.try_clone()?);
    let bounds = Bounds {
        bytes_max: limits.disk_bytes,
        file_bytes_max: limits.file_size_bytes,
        entries_max: super::root::files_max(limits),
    };
    archive::restore(&file, root.as_fd(), &PRIVATE, &bounds).map(drop)
}

/// Clears the place of a folder that somebody has put where a file belongs. An agent's own is kept, out of the way. One that
/// comes from below an overlay cannot be moved; it stays where it comes from, and is not seen.
pub(super) fn move_aside(folder: &Path) -> io::Result<()> {
    let mut aside = folder.as_os_str().to_owned();
    aside.push(ASIDE);
    match fs::rename(folder, aside) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => fs::remove_dir_all(folder),
        moved => moved,
    }
}

/// Makes sure that no step of the way to `path`, below the stage, is anything but a folder: what is, is moved aside. Nobody else
/// is in the stage meanwhile. Missing steps are as good.
pub(crate) fn clear_way(path: &Path) -> Result<(), Failure> {
    const DOING: &str = "clear the way for the root";
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut folder = open(STAGE, flags, Mode::empty()).step(DOING)?;
    for name in path.components() {
        let Component::Normal(name) = name else { continue };
        let found = match statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => found,
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error).step(DOING),
        };
        if FileType::from_raw_mode(found.st_mode) != FileType::Directory {
            let mut aside = name.to_owned();
            aside.push(ASIDE);
            // A folder of that name, or one that would be too long, cannot be had: then it goes.
            return match renameat(&folder, name, &folder, &aside) {
                Ok(()) => Ok(()),
                Err(_) => unlinkat(&folder, name, AtFlags::empty()).step(DOING),
            };
        }
        folder = openat(&folder, name, flags, Mode::empty()).step(DOING)?;
    }
    Ok(())
}
