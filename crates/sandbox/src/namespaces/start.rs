//! Starting a sandbox: the parent's side.
//!
//! The parent makes the process in its namespaces, gives it ids while it takes its first steps, then lets it go. It never waits itself: the caller watches [`Started::sync`], which ends when the program runs, or says why it
//! does not.

use std::fs;
use std::io::{self, Write};
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use super::cgroups::Group;
use super::child::{self, Failure, Step};
use super::profile::{Ids, Owners, Profile};
use super::root;
use super::stacks::Plan;
use super::sys::{self, Cloned};
use crate::provider::{Access, Resources};
use crate::supervisor::passing;

/// The proof that this process has one thread, without which a copy of it could stand still on a lock for ever.
///
/// It stays in the thread that made it, and a process with this proof starts no other thread.
pub(crate) struct OnlyThread(PhantomData<*const ()>);

impl OnlyThread {
    /// Looks.
    pub(crate) fn prove() -> io::Result<Self> {
        match fs::read_dir("/proc/self/task")?.count() {
            1 => Ok(Self(PhantomData)),
            threads => Err(io::Error::other(format!(
                "sandboxes are started by a process of one thread; this one has {threads}"
            ))),
        }
    }
}

impl OnlyThread {
    /// Splits this process in two.
    pub(crate) fn fork(&self) -> io::Result<sys::Forked> {
        // SAFETY: no other thread exists, so no lock is held in the copy.
        unsafe { sys::fork() }
    }
}

/// A process in namespaces of its own, still building its root.
pub(crate) struct Started {
    /// Process 1 of the sandbox, as the host numbers it.
    pub(crate) pid: i32,
    pub(crate) process: Process,
    /// Speaks [`tools::wire`] once the program runs.
    pub(crate) control: UnixStream,
    /// Ends when the program runs; a message before that is why it does not.
    pub(crate) sync: UnixStream,
}

/// A handle to a process that no reuse of numbers can point elsewhere. Killed and reaped when dropped.
pub(crate) struct Process(OwnedFd);

impl Process {
    /// The handle, readable when the process has ended.
    pub(crate) fn descriptor(&self) -> &OwnedFd {
        &self.0
    }

    /// Kills it, and, as it is process 1 of its namespace, everything in there. Wakes it even if it is stopped.
    pub(crate) fn kill(&self) {
        // The only error is that it is dead already.
        let _ = pidfd_send_signal(&self.0, Signal::KILL);
    }

    /// Collects it if it has ended.
    pub(crate) fn reap(&self) -> bool {
        !matches!(
            waitid(WaitId::PidFd(self.0.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG),
            Ok(None)
        )
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        // After SIGKILL this is short: it waits for the kernel to take the namespaces' processes down.
        let _ = waitid(WaitId::PidFd(self.0.as_fd()), WaitIdOptions::EXITED);
    }
}

/// How long a process may take from its last word to the end of its sockets. Waited for only after a failure.
const GOING_TIME_MAX: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// The namespaces that are made at birth; the control group one follows when the process is in its group.
pub(crate) const NAMESPACES: i32 = libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS;

/// Starts a sandbox in this control group with the id range `slot`. If it cannot be started, the group is empty.
pub(crate) fn start(
    only: &OnlyThread,
    profile: &Profile,
    group: &Group,
    slot: u32,
    resources: &Resources,
    plan: &Plan,
) -> Result<Started, Failure> {
    let (control, inside) = UnixStream::pair().step("make the control socket")?;
    let mut resources = resources.clone();
    if !profile.guards.processes {
        resources.limits.processes = libc::RLIM_INFINITY;
    }
    let namespaces = if profile.guards.network { NAMESPACES } else { NAMESPACES & !libc::CLONE_NEWNET };
    let launched = group.doors().step("open the control group").and_then(|doors| {
        let become_sandbox = |sync| child::become_sandbox(profile, &resources, plan, &doors, &inside, sync);
        launch(only, namespaces, doors.birthplace(), become_sandbox)
    });
    let Launched { pid, process, mut sync } = launched?;
    let equipped = map_ids(pid, profile.ids, slot)
        .and_then(|()| bring_lowers(pid, profile, plan, &sync))
        .and_then(|()| sync.write_all(&[child::GO]).step("let the process go"));
    match equipped {
        Ok(()) => {}
        // It has given up before it got all it needs, and says why itself.
        Err(_) if closes(&sync) => {}
        Err(failure) => return Err(failure),
    }
    Ok(Started { pid, process, control, sync })
}

fn bring_lowers(pid: i32, profile: &Profile, plan: &Plan, sync: &UnixStream) -> Result<(), Failure> {
    if profile.owners != Owners::Mapped || plan.held.is_empty() {
        return Ok(());
    }
    let namespace = user_namespace(pid)?;
    for (number, folder) in plan.held.iter().enumerate() {
        let access = if plan.stage == Some(number) { Access::ReadWrite } else { Access::ReadOnly };
        let lower = hold_mapped(folder, &namespace, access)?;
        passing::send(sync, &[child::LOWER], lower.as_fd()).step("bring a folder below a layer")?;
    }
    Ok(())
}

/// Whether the other end is gone, or is going: a process that ends loses its memory, and with it the owner of its files in
/// `/proc`, some time before its sockets are closed.
fn closes(sync: &UnixStream) -> bool {
    let mut polled = [PollFd::new(sync, PollFlags::empty())];
    poll(&mut polled, Some(&GOING_TIME_MAX)).is_ok() && polled[0].revents().contains(PollFlags::HUP)
}

/// The user namespace of a process whose ids are mapped.
pub(crate) fn user_namespace(pid: i32) -> Result<OwnedFd, Failure> {
    let path = format!("/proc/{pid}/ns/user");
    open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).step("open the user namespace")
}

/// A new mount of this folder, whose owners are those of the namespace.
pub(crate) fn hold_mapped(folder: &Path, namespace: &OwnedFd, access: Access) -> Result<OwnedFd, Failure> {
    let tree = root::hold_lower(folder)?;
    let read_only = if access == Access::ReadOnly { libc::MOUNT_ATTR_RDONLY } else { 0 };
    let attributes = read_only | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    sys::map_owners(tree.as_fd(), namespace.as_fd(), attributes).step("map the owners of a folder")?;
    Ok(tree)
}

/// A copy of this process in new namespaces, waiting for [`child::GO`].
pub(crate) struct Launched {
    pub(crate) pid: i32,
    pub(crate) process: Process,
    pub(crate) sync: UnixStream,
}

/// Runs `inside` in a copy of this process in new namespaces.
pub(crate) fn launch(
    _: &OnlyThread,
    namespaces: i32,
    birthplace: Option<BorrowedFd<'_>>,
    inside: impl FnOnce(UnixStream),
) -> Result<Launched, Failure> {
    let (ours, theirs) = UnixStream::pair().step("make a socket pair")?;
    // SAFETY: `OnlyThread` is the proof that no other thread exists, so no lock is held in the copy.
    match unsafe { sys::clone3(namespaces as u64, birthplace) }.step("make namespaces")? {
        Cloned::Parent { pid, pidfd } => Ok(Launched { pid, process: Process(pidfd), sync: ours }),
        Cloned::Child => {
            // Or the child would hold its own way back open and never learn that the parent is gone.
            drop(ours);
            inside(theirs);
            sys::exit_now(0)
        }
    }
}

/// Says which host ids the ids of the new user namespace stand for.
pub(crate) fn map_ids(pid: i32, ids: Ids, slot: u32) -> Result<(), Failure> {
    let write = |file: &str, text: String| fs::write(format!("/proc/{pid}/{file}"), text).step("map the ids");
    let (uid, gid, length) = match ids {
        Ids::Own { uid, gid } => {
            write("setgroups", "deny".to_owned())?;
            (uid, gid, 1)
        }
        Ids::Ranges { first, length, count: _ } => {
            let first = first + slot * length;
            (first, first, length)
        }
        Ids::HostRoot => (0, 0, 0x1_0000),
    };
    write("uid_map", format!("0 {uid} {length}"))?;
    write("gid_map", format!("0 {gid} {length}"))
}
