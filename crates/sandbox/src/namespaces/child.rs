//! What the new process does between its birth and the `tools` program: it locks itself in, one guard after the other.
//!
//! The order is the recipe; most steps are possible only before a later one. It runs as a copy of the supervisor, which
//! has one thread, so ordinary code is safe here; it refuses to return: it becomes `tools`, or it says which step failed
//! and exits.

use std::collections::VecDeque;
use std::ffi::CString;
use std::fs;
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};

use super::cgroups::Doors;
use super::profile::{Owners, Profile};
use super::stacks::Plan;
use super::{etc, landlock, root, snapshot, sys};
use crate::provider::{Access, EXIT_PORT, Limits, Mount, Resources};
use crate::supervisor::passing;

/// The step that could not be done, and the kernel's answer.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}: {source}")]
pub(crate) struct Failure {
    pub(crate) step: &'static str,
    pub(crate) source: io::Error,
}

/// Names the step that a result belongs to.
pub(crate) trait Step<T> {
    fn step(self, step: &'static str) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: &'static str) -> Result<T, Failure> {
        self.map_err(|source| Failure { step, source: source.into() })
    }
}

/// The byte with which the parent says that ids and limits are in place.
pub(crate) const GO: u8 = b'g';

/// The byte that brings the exit to the parent.
pub(crate) const EXIT: u8 = 0;
/// The byte that brings the bare stage.
pub(crate) const STAGE: u8 = 1;
/// The byte before a complaint that says: no sandbox can be made of this snapshot.
pub(crate) const UNRESTORABLE: u8 = 2;

/// The byte that brings a folder below a layer from the parent, who comes before [`GO`] with all of them.
pub(crate) const LOWER: u8 = b'l';

/// What a package manager needs: to give files to others, to change those of others, to become others and to end their
/// processes. `CHOWN`, `DAC_OVERRIDE`, `FOWNER`, `FSETID`, `KILL`, `SETGID`, `SETUID`; each only for ids of this sandbox.
const KEPT_FOR_PACKAGES: u32 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7;

/// Where `tools` expects its control socket.
const CONTROL: i32 = 3;

/// The whole environment of `tools`; nothing is inherited.
const ENVIRONMENT: &[&str] = &[
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME=/root",
    "USER=root",
    "LOGNAME=root",
    "SHELL=/bin/bash",
    "LANG=C.UTF-8",
    "TERM=dumb",
];

/// What programs want to know of the exit, besides: each has a name of its own for it.
const EXIT_VARIABLES: &[&str] =
    &["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];
/// What is reached without it: the sandbox itself.
const DIRECT_VARIABLES: &[&str] = &["no_proxy", "NO_PROXY"];
/// Who wants to be told whom the host trusts. Programs that carry a list of their own would not know an authority of the
/// operator's.
const TRUST_VARIABLES: &[&str] = &[
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "NODE_EXTRA_CA_CERTS",
    "CARGO_HTTP_CAINFO",
    "GIT_SSL_CAINFO",
];

/// Becomes a sandbox. `sync` is the child's end of the talk with the parent; it closes when `tools` runs.
pub(crate) fn become_sandbox(
    profile: &Profile,
    resources: &Resources,
    plan: &Plan,
    doors: &Doors,
    control: &UnixStream,
    mut sync: UnixStream,
) -> ! {
    // A panic must not unwind into the copy of the supervisor's loop that lies below on this stack.
    let attempt = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        lock_in(profile, resources, plan, doors, control, &sync)
    }));
    let message = match attempt {
        Ok(Err(failure)) if failure.step == snapshot::RESTORE => {
            format!("{}{}", char::from(UNRESTORABLE), failure.source)
        }
        Ok(Err(failure)) => failure.to_string(),
        Ok(Ok(never)) => match never {},
        Err(_) => "cannot build the sandbox: a step panicked".to_owned(),
    };
    let _ = sync.write_all(message.as_bytes());
    sys::exit_now(1)
}

fn lock_in(
    profile: &Profile,
    resources: &Resources,
    plan: &Plan,
    doors: &Doors,
    control: &UnixStream,
    sync: &UnixStream,
) -> Result<std::convert::Infallible, Failure> {
    let Resources { limits, mounts, hostname, network, rights: _, base: _, runtime: _, restore } = resources;
    sys::die_with_parent().step("tie its life to the supervisor's")?;

    doors.enter_early().step("enter the control group")?;

    // With the supervisor's ids still, so that the way to mounted folders is open.
    root::detach_propagation()?;
    let mounted = root::hold(mounts)?;
    let snapshot = restore.as_ref().map(|restore| snapshot::open_snapshot(&restore.file)).transpose()?;
    let mut lowers = match profile.owners {
        // The parent brings them.
        Owners::Mapped => Vec::new(),
        Owners::AsTheyAre => {
            plan.held.iter().map(|folder| root::hold_lower(folder)).collect::<Result<_, _>>()?
        }
    };
    if profile.guards.network {
        sys::loopback_up().step("bring up the loopback interface")?;
        if network.is_some() {
            open_exit(sync).step("open the exit")?;
        }
    }
    sys::set_hostname(hostname).step("set the host name")?;

    lowers.extend(wait_for_go(sync)?);
    if lowers.len() != plan.held.len() {
        return Err(io::Error::other("not all came")).step("get the folders below layers");
    }

    sys::become_namespace_root(profile.ids.groups()).step("become the namespace's root")?;
    let hand_out = |stage: &OwnedFd| passing::send(sync, &[STAGE], stage.as_fd()).map(drop);
    let parts = root::Parts {
        layout: &profile.layout,
        limits,
        hostname,
        plan,
        lowers,
        mounts: mounted,
        snapshot: snapshot.as_ref(),
    };
    root::build(parts, hand_out)?;
    drop(snapshot);

    limit(limits)?;
    doors.enter_late().step("enter the control group")?;
    sys::unshare_cgroup_namespace().step("make a control group namespace")?;
    if profile.guards.nesting {
        // As seen from this user namespace; the host's figure is another.
        fs::write("/proc/sys/user/max_user_namespaces", "0").step("forbid nested user namespaces")?;
    }
    sys::new_session().step("start a session")?;
    if profile.guards.capabilities {
        sys::drop_capabilities(if plan.installs { KEPT_FOR_PACKAGES } else { 0 })
            .step("drop capabilities")?;
    }
    sys::no_new_privileges().step("set no_new_privs")?;
    // Again: the change of ids cleared it.
    sys::die_with_parent().step("tie its life to the supervisor's")?;
    if has_ended(sync) {
        sys::exit_now(1);
    }

    let null = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).step("open /dev/null")?;
    // Kept clear of the numbers that are about to be given away.
    let control = rustix::io::fcntl_dupfd_cloexec(control, 16).step("keep the control socket")?;
    for number in 0..=2 {
        sys::place_descriptor(null.as_fd(), number).step("close standard input and output")?;
    }
    let agent = rustix::io::fcntl_dupfd_cloexec(&profile.agent, 16).step("keep the program")?;
    let sync = rustix::io::fcntl_dupfd_cloexec(sync, 16).step("keep the way back")?;
    sys::place_descriptor(control.as_fd(), CONTROL).step("place the control socket")?;
    sys::close_on_exec_from(CONTROL as u32 + 1).step("close descriptors")?;

    if profile.guards.landlock && profile.landlock_abi > 0 {
        landlock::restrict(profile.landlock_abi, &writable(mounts)).step("apply the file filter")?;
    }
    // Not before the last file has been opened: until the program runs, everything that the supervisor has open takes numbers
    // here too, and where many sandboxes live those alone may be more.
    sys::limit(libc::RLIMIT_NOFILE, limits.open_files).step("set resource limits")?;
    if let Some(filter) = profile.filter.as_ref().filter(|_| profile.guards.filter) {
        sys::load_filter(filter).step("apply the system call filter")?;
    }
    let environment: Vec<CString> = environment(network.is_some())
        .into_iter()
        .map(|text| CString::new(text).expect("no zero byte in our environment"))
        .collect();
    let error = sys::execute_descriptor(agent.as_fd(), &[c"tools"], &environment);
    // The descriptor that the caller would answer on may have been given away; this one still leads to the parent.
    let failure = Failure { step: "run the tools program", source: error };
    let _ = rustix::io::write(&sync, failure.to_string().as_bytes());
    sys::exit_now(1)
}

/// Makes the socket that is the only way out, and gives it to the supervisor: it stays usable from where it is served, while
/// nothing in here can connect to anything else.
fn open_exit(sync: &UnixStream) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, EXIT_PORT))?;
    listener.set_nonblocking(true)?;
    passing::send(sync, &[EXIT], listener.as_fd())?;
    Ok(())
}

fn environment(has_exit: bool) -> Vec<String> {
    let mut environment: Vec<String> = ENVIRONMENT.iter().map(|text| (*text).to_owned()).collect();
    if has_exit {
        let set = |name: &&str, value: &str| format!("{name}={value}");
        environment.extend(exit_variables());
        let trusted = [etc::HOST_TRUSTED].into_iter().chain(etc::TRUSTED.iter().copied());
        if let Some(trusted) = trusted.into_iter().find(|path| Path::new(path).exists()) {
            environment.extend(TRUST_VARIABLES.iter().map(|name| set(name, trusted)));
        }
    }
    environment
}

/// How programs are told of the exit.
pub(crate) fn exit_variables() -> Vec<String> {
    let exit = format!("http://127.0.0.1:{EXIT_PORT}");
    let proxies = EXIT_VARIABLES.iter().map(|name| format!("{name}={exit}"));
    proxies.chain(DIRECT_VARIABLES.iter().map(|name| format!("{name}=localhost,127.0.0.1,::1"))).collect()
}

/// Waits for the parent's word, and takes what comes before it.
fn wait_for_go(sync: &UnixStream) -> Result<Vec<OwnedFd>, Failure> {
    let mut lowers = VecDeque::new();
    loop {
        let mut byte = [0];
        match passing::receive(sync, &mut byte, &mut lowers) {
            Ok(1) if byte[0] == GO => return Ok(lowers.into()),
            Ok(1) => {}
            // The supervisor has died or given up; nobody is left to tell.
            Ok(_) | Err(_) => sys::exit_now(1),
        }
    }
}

/// Whether the parent's end is closed. Nothing is ever sent after [`GO`], so readable means ended.
fn has_ended(sync: &UnixStream) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut polled = [PollFd::new(sync, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&now)).is_ok_and(|ready| ready > 0)
}

fn limit(limits: &Limits) -> Result<(), Failure> {
    let Limits { memory_bytes: _, processes, file_size_bytes, open_files: _, disk_bytes: _, cpu_percent: _ } =
        *limits;
    let bounds = [
        // Counted for the ids of this user namespace only, so sandboxes do not eat each other's.
        (libc::RLIMIT_NPROC, processes),
        (libc::RLIMIT_FSIZE, file_size_bytes),
        (libc::RLIMIT_CORE, 0),
        (libc::RLIMIT_MEMLOCK, 8 << 20),
        (libc::RLIMIT_SIGPENDING, 4096),
        (libc::RLIMIT_MSGQUEUE, 1 << 20),
    ];
    bounds
        .into_iter()
        .try_for_each(|(resource, value)| sys::limit(resource, value).step("set resource limits"))
}

fn writable(mounts: &[Mount]) -> Vec<PathBuf> {
    mounts
        .iter()
        .filter(|mount| mount.access == Access::ReadWrite)
        .map(|mount| Path::new(&mount.inside).to_owned())
        .collect()
}
