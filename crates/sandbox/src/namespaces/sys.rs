//! The system calls that no safe wrapper has, one function each.
//!
//! All `unsafe` of the sandbox lies here. It refuses policy: which flags, which filter, which order is decided by the
//! callers.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// What `clone3` says to whom.
pub(crate) enum Cloned {
    /// In the caller: the new process.
    Parent {
        /// Its process id as the caller sees it.
        pid: i32,
        /// A handle that no other process can inherit by accident of numbers.
        pidfd: OwnedFd,
    },
    /// In the new process.
    Child,
}

/// Starts a copy of this process in new namespaces, in the control group `birthplace` if there is one.
///
/// # Safety
///
/// The child is a copy of the calling thread alone: a lock that another thread holds stays locked in it for ever. The
/// caller must be the only running thread, or the child may use nothing but system calls until it runs another program.
pub(crate) unsafe fn clone3(namespaces: u64, birthplace: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    let mut pidfd: RawFd = -1;
    let into_group = if birthplace.is_some() { CLONE_INTO_CGROUP } else { 0 };
    let mut arguments = libc::clone_args {
        flags: namespaces | into_group | libc::CLONE_PIDFD as u64,
        pidfd: (&raw mut pidfd) as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: birthplace.map_or(0, |group| group.as_raw_fd() as u64),
    };
    // SAFETY: the arguments are valid for the length given, and without CLONE_VM the child has a copy of the memory,
    // its stack included, so both sides return from here.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<libc::clone_args>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Cloned::Child),
        pid => Ok(Cloned::Parent {
            pid: i32::try_from(pid).expect("a process id is an int"),
            // SAFETY: the kernel has just made this descriptor for us.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
        }),
    }
}

/// Too wide for the constant that the libc crate has.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Ends this process without running anything of it any more.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` touches no memory of this process.
    unsafe { libc::_exit(code) }
}

/// Becomes the ids 0 and 0 of this user namespace, without other groups.
pub(crate) fn become_namespace_root(clear_groups: ClearGroups) -> io::Result<()> {
    // The raw calls change this thread only, which is right: it is the only one, and libc's versions would look for
    // others.
    // SAFETY: plain integers and a null list of length 0.
    unsafe {
        done(libc::syscall(libc::SYS_setresgid, 0, 0, 0))?;
        match clear_groups {
            ClearGroups::Yes => done(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()))?,
            ClearGroups::DeniedForThisNamespace => {}
        }
        done(libc::syscall(libc::SYS_setresuid, 0, 0, 0))
    }
}

/// Whether supplementary groups can be dropped.
#[derive(Clone, Copy)]
pub(crate) enum ClearGroups {
    /// The namespace was made by root.
    Yes,
    /// It was made by an ordinary user, for whom the kernel demands that `setgroups` be off for good.
    DeniedForThisNamespace,
}

/// Leaves the control group namespace for a new one whose root is the group that this process is in.
pub(crate) fn unshare_cgroup_namespace() -> io::Result<()> {
    // SAFETY: an integer; nothing in memory changes.
    unsafe { done(i64::from(libc::unshare(libc::CLONE_NEWCGROUP))) }
}

/// Brings this network namespace's loopback interface up.
pub(crate) fn loopback_up() -> io::Result<()> {
    // SAFETY: the socket is checked before it is owned; `request` is a whole, initialised `ifreq` that outlives both calls.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = OwnedFd::from_raw_fd(socket);
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        done(i64::from(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw mut request)))
    }
}

/// Names the host of this uts namespace.
pub(crate) fn set_hostname(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length are those of one string.
    unsafe { done(i64::from(libc::sethostname(name.as_ptr().cast(), name.len()))) }
}

/// Sets one resource limit, soft and hard, but never raises the hard one.
pub(crate) fn limit(resource: libc::__rlimit_resource_t, value: u64) -> io::Result<()> {
    // SAFETY: `limits` is a whole structure that outlives both calls.
    unsafe {
        let mut limits: libc::rlimit = std::mem::zeroed();
        done(i64::from(libc::getrlimit(resource, &raw mut limits)))?;
        let value = value.min(limits.rlim_max);
        limits = libc::rlimit { rlim_cur: value, rlim_max: value };
        done(i64::from(libc::setrlimit(resource, &raw const limits)))
    }
}

/// Gives up every capability in every set, for this process and all it will ever run.
pub(crate) fn drop_capabilities() -> io::Result<()> {
    // SAFETY: prctl takes integers here; capset gets a header and two whole data words that outlive the call.
    unsafe {
        done(i64::from(libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)))?;
        for capability in 0..64 {
            if libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) != 0 {
                // EINVAL: the kernel knows no more capabilities.
                let error = io::Error::last_os_error();
                if error.raw_os_error() == Some(libc::EINVAL) && capability > 0 {
                    break;
                }
                return Err(error);
            }
        }
        // Running a program as the namespace's root would otherwise try to give capabilities back; with an empty
        // bounding set it gets none, with these locked bits it does not even try.
        let bits = libc::SECBIT_NOROOT
            | libc::SECBIT_NOROOT_LOCKED
            | libc::SECBIT_NO_CAP_AMBIENT_RAISE
            | libc::SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED;
        done(i64::from(libc::prctl(libc::PR_SET_SECUREBITS, bits, 0, 0, 0)))?;
        let header = CapabilityHeader { version: 0x2008_0522, pid: 0 };
        let none = [CapabilityWord { effective: 0, permitted: 0, inheritable: 0 }; 2];
        done(libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()))
    }
}

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CapabilityWord {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Sets `no_new_privs` for ever.
pub(crate) fn no_new_privileges() -> io::Result<()> {
    // SAFETY: integers only.
    unsafe { done(i64::from(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))) }
}

/// Gives up every capability but those over files: their owners, modes and contents. Without them nothing can be mounted, and
/// nobody gets out of the root directory that he is in.
pub(crate) fn keep_file_capabilities() -> io::Result<()> {
    // Stable numbers of the kernel: CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER.
    let kept = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 3;
    let header = CapabilityHeader { version: 0x2008_0522, pid: 0 };
    let low = CapabilityWord { effective: kept, permitted: kept, inheritable: 0 };
    let none = CapabilityWord { effective: 0, permitted: 0, inheritable: 0 };
    // SAFETY: a header and two whole data words that outlive the call.
    unsafe { done(libc::syscall(libc::SYS_capset, &raw const header, [low, none].as_ptr())) }
}

/// Closes every descriptor but these, whoever owns it. For a process that uses nothing else from here on.
pub(crate) fn close_all_but(kept: &[RawFd]) -> io::Result<()> {
    let mut kept: Vec<u32> = kept.iter().filter_map(|number| u32::try_from(*number).ok()).collect();
    kept.sort_unstable();
    let mut first = 0;
    for number in kept.into_iter().chain([u32::MAX]) {
        if first < number {
            // SAFETY: closes descriptors that the caller has promised not to use again.
            unsafe { done(libc::syscall(libc::SYS_close_range, first, number - 1, 0))? };
        }
        first = number.saturating_add(1);
    }
    Ok(())
}

/// Asks for SIGKILL when the parent dies. Cleared by any change of ids, so it comes after them.
pub(crate) fn die_with_parent() -> io::Result<()> {
    // SAFETY: integers only.
    unsafe { done(i64::from(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0))) }
}

/// Loads a system call filter for this process and all that it starts.
pub(crate) fn load_filter(program: &[libc::sock_filter]) -> io::Result<()> {
    let length = u16::try_from(program.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    // SAFETY: the kernel reads `len` instructions from `filter` and writes nothing.
    unsafe { done(libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program)) }
}

/// Whether the kernel can return an error from a filter.
pub(crate) fn filter_can_return_errors() -> bool {
    let action: u32 = libc::SECCOMP_RET_ERRNO;
    // SAFETY: the kernel reads one `u32`.
    unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) == 0 }
}

/// Changes the attributes of a mount and of everything mounted below it.
pub(crate) fn mount_attributes(mount: BorrowedFd<'_>, set: u64) -> io::Result<()> {
    let attributes = libc::mount_attr { attr_set: set, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: an empty path and a whole structure of the length given.
    unsafe {
        done(libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        ))
    }
}

/// Closes every descriptor from `first` on, at the latest when another program runs.
pub(crate) fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: marks descriptors only; what owns them stays valid.
    unsafe { done(libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)) }
}

/// Closes whatever this program was started with besides standard input and output. Called before anything is opened.
pub(crate) fn close_inherited() -> io::Result<()> {
    // SAFETY: at the start of the program nothing of it owns a descriptor from 3 on.
    unsafe { done(libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0)) }
}

/// Gives `descriptor` the number `number`, open across programs.
pub(crate) fn place_descriptor(descriptor: BorrowedFd<'_>, number: RawFd) -> io::Result<()> {
    // SAFETY: the caller is about to run another program and owns nothing at `number` that it still uses.
    unsafe { done(i64::from(libc::dup2(descriptor.as_raw_fd(), number))) }
}

/// Runs the program behind a descriptor in place of this one. Returns only if it could not.
pub(crate) fn execute_descriptor(
    program: BorrowedFd<'_>,
    arguments: &[&CStr],
    environment: &[CString],
) -> io::Error {
    let mut argument_pointers: Vec<_> = arguments.iter().map(|text| text.as_ptr()).collect();
    argument_pointers.push(std::ptr::null());
    let mut environment_pointers: Vec<_> = environment.iter().map(|text| text.as_ptr()).collect();
    environment_pointers.push(std::ptr::null());
    // SAFETY: both lists end in null, and every string outlives the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            argument_pointers.as_ptr(),
            environment_pointers.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    io::Error::last_os_error()
}

/// The Landlock ABI of this kernel; 0 without Landlock.
pub(crate) fn landlock_abi() -> u32 {
    const CREATE_RULESET_VERSION: u32 = 1;
    // SAFETY: null and 0 are what the kernel wants for this question.
    let abi = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<RulesetAttributes>(),
            0,
            CREATE_RULESET_VERSION,
        )
    };
    u32::try_from(abi).unwrap_or(0)
}

/// What a Landlock ruleset handles; `scoped` is known from ABI 6 on.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct RulesetAttributes {
    pub(crate) handled_access_fs: u64,
    pub(crate) handled_access_net: u64,
    pub(crate) scoped: u64,
}

/// Makes a Landlock ruleset. `length` is how much of the attributes this kernel knows.
pub(crate) fn landlock_ruleset(attributes: &RulesetAttributes, length: usize) -> io::Result<OwnedFd> {
    assert!(length <= size_of::<RulesetAttributes>(), "the kernel must not read past the attributes");
    // SAFETY: the kernel reads `length` bytes of a structure that is at least as long, and returns a new descriptor.
    unsafe {
        let ruleset = libc::syscall(libc::SYS_landlock_create_ruleset, &raw const *attributes, length, 0);
        done(ruleset)?;
        Ok(OwnedFd::from_raw_fd(i32::try_from(ruleset).expect("a descriptor is an int")))
    }
}

/// Allows `access` beneath `path`.
pub(crate) fn landlock_allow(ruleset: BorrowedFd<'_>, path: BorrowedFd<'_>, access: u64) -> io::Result<()> {
    #[repr(C, packed)]
    struct PathBeneath {
        allowed_access: u64,
        parent_fd: i32,
    }
    const RULE_PATH_BENEATH: u32 = 1;
    let rule = PathBeneath { allowed_access: access, parent_fd: path.as_raw_fd() };
    // SAFETY: the kernel reads one whole packed structure.
    unsafe {
        done(libc::syscall(
            libc::SYS_landlock_add_rule,
            ruleset.as_raw_fd(),
            RULE_PATH_BENEATH,
            &raw const rule,
            0,
        ))
    }
}

/// Puts this process and all that it starts under the ruleset.
pub(crate) fn landlock_restrict(ruleset: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: a descriptor and flags.
    unsafe { done(libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0)) }
}

/// Starts a session without a terminal.
pub(crate) fn new_session() -> io::Result<()> {
    // SAFETY: no arguments.
    unsafe { done(i64::from(libc::setsid())) }
}

/// Which side of a [`fork`] this is.
pub(crate) enum Forked {
    /// The one that was there, and the other's id.
    Parent(i32),
    Child,
}

/// Splits this process in two.
///
/// # Safety
///
/// As for [`clone3`].
pub(crate) unsafe fn fork() -> io::Result<Forked> {
    // SAFETY: no arguments; the caller vouches for the threads.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        child => Ok(Forked::Parent(child)),
    }
}

/// Takes back every signal that whoever started us chose to ignore, because what we start would inherit that. The broken
/// pipe stays ignored: it is an error of a write here.
pub(crate) fn default_signals() {
    for signal in (1..=64).filter(|signal| *signal != libc::SIGPIPE) {
        // SAFETY: installs no code of ours. The kernel refuses the signals that cannot be changed.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

fn done(result: i64) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
