//! The system calls that rustix does not have, and the only `unsafe` of this crate.
//!
//! Each function is one call with its arguments checked by type; nothing here decides anything.
#![expect(unsafe_code, reason = "calls into libc that have no safe form")]

use std::ffi::{CString, c_char, c_int};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::process::{Pid, Signal};

/// Takes over a descriptor that the parent process passed by its number.
///
/// Returns `None` when no such descriptor is open.
pub fn inherited(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: F_GETFD only asks about a number; it touches no memory and changes nothing.
    let open = unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0;
    // SAFETY: the descriptor is open, and `main` calls this once per number before it opens anything
    // of its own, so nobody else owns it.
    open.then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Closes every descriptor from `first` on. For the start of `main`, before anything is open.
pub fn close_from(first: u32) {
    // SAFETY: `main` owns nothing from `first` on yet, so no live descriptor is closed under its owner.
    // A kernel without the call leaves them open, and they are then the parent's choice.
    unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
}

/// Puts this process and all that it starts under a system call filter: instructions of eight bytes each, as
/// the kernel takes them.
///
/// An error says that nothing has changed. `no_new_privs` must be set.
pub fn load_filter(program: &[u8]) -> io::Result<()> {
    let (instructions, []) = program.as_chunks::<8>() else {
        return Err(io::Error::other("it is cut off"));
    };
    let mut filter: Vec<libc::sock_filter> = instructions
        .iter()
        .map(|[code_low, code_high, jt, jf, k @ ..]| libc::sock_filter {
            code: u16::from_ne_bytes([*code_low, *code_high]),
            jt: *jt,
            jf: *jf,
            k: u32::from_ne_bytes(*k),
        })
        .collect();
    let len = u16::try_from(filter.len()).map_err(|_| io::Error::other("it is too long"))?;
    let program = libc::sock_fprog { len, filter: filter.as_mut_ptr() };
    // SAFETY: the kernel reads `len` instructions from `filter`, which lives on, checks each, and writes nothing.
    let loaded =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    if loaded == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Keeps the heap of an idle process small.
pub fn keep_the_heap_small() {
    // SAFETY: mallopt sets numbers inside the allocator and is called before any other thread exists.
    unsafe {
        // One arena: a second one costs each short-lived thread pages of its own.
        libc::mallopt(libc::M_ARENA_MAX, 1);
        // Fixed thresholds: left alone they grow with the first large file and its memory stays.
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 << 10);
    }
}

/// Ignores the signals that end a process politely, or because a file grew over the limit: that is the
/// error of one call. Only the control socket's end ends this process.
pub fn ignore_polite_signals() {
    for signal in [
        libc::SIGTERM,
        libc::SIGINT,
        libc::SIGHUP,
        libc::SIGQUIT,
        libc::SIGPIPE,
        libc::SIGTTOU,
        libc::SIGXFSZ,
    ] {
        // SAFETY: SIG_IGN is a valid disposition for each of these, and no handler is involved.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Blocks `SIGCHLD` and returns a descriptor that is readable when one is pending.
///
/// Threads started later inherit the block; call it before the first.
pub fn child_signals() -> io::Result<OwnedFd> {
    let mut mask = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set that the calls after it read; the set lives on this stack
    // frame for the length of the block; signalfd's result is checked before it becomes an owner.
    unsafe {
        libc::sigemptyset(mask.as_mut_ptr());
        libc::sigaddset(mask.as_mut_ptr(), libc::SIGCHLD);
        let blocked = libc::pthread_sigmask(libc::SIG_BLOCK, mask.as_ptr(), ptr::null_mut());
        if blocked != 0 {
            return Err(io::Error::from_raw_os_error(blocked));
        }
        let fd = libc::signalfd(-1, mask.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Sends a signal to every process of this pid namespace but process 1.
///
/// Does nothing unless the caller *is* process 1: anywhere else it would reach the whole machine.
pub fn signal_all_others(signal: Signal) {
    if !rustix::process::getpid().is_init() {
        return;
    }
    // SAFETY: kill touches no memory. The check above keeps -1 inside our own pid namespace.
    unsafe { libc::kill(-1, signal.as_raw()) };
}

/// A program to start, and what it gets.
pub struct Program<'a> {
    /// The file to execute.
    pub path: &'a CString,
    /// Its arguments, the name first.
    pub arguments: &'a [CString],
    /// Its whole environment, as `NAME=value`.
    pub environment: &'a [CString],
    /// Its descriptors: the number there, the descriptor here. Every source must have a higher number
    /// than every target, so that no target overwrites a source that is still needed.
    pub descriptors: &'a [(RawFd, BorrowedFd<'a>)],
}

/// Starts a program in a session of its own, with default signals, in this process's working directory.
///
/// The directory is not set by the call that glibc has for it: the standard library refers to that one weakly,
/// and link-time optimisation of a static program then takes the weak reference for ours too and leaves it null.
pub fn spawn(program: &Program<'_>) -> io::Result<Pid> {
    let arguments = pointers(program.arguments);
    let environment = pointers(program.environment);
    let mut actions = MaybeUninit::<libc::posix_spawn_file_actions_t>::uninit();
    let mut attributes = MaybeUninit::<libc::posix_spawnattr_t>::uninit();
    let mut none = MaybeUninit::<libc::sigset_t>::uninit();
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    let flags =
        libc::POSIX_SPAWN_SETSID | libc::POSIX_SPAWN_SETSIGMASK as i16 | libc::POSIX_SPAWN_SETSIGDEF as i16;
    let mut pid: libc::pid_t = 0;
    // SAFETY: `actions`, `attributes` and the signal sets are initialised by their init calls before any
    // other use and destroyed once at the end; the strings behind every pointer are borrowed from
    // `program` and outlive the call; both arrays end with a null pointer. posix_spawn shares no memory
    // with the program once it returns.
    let result = unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigfillset(all.as_mut_ptr());
        libc::posix_spawn_file_actions_init(actions.as_mut_ptr());
        libc::posix_spawnattr_init(attributes.as_mut_ptr());
        let spawned = check(libc::posix_spawnattr_setflags(attributes.as_mut_ptr(), flags))
            .and_then(|()| check(libc::posix_spawnattr_setsigmask(attributes.as_mut_ptr(), none.as_ptr())))
            .and_then(|()| check(libc::posix_spawnattr_setsigdefault(attributes.as_mut_ptr(), all.as_ptr())))
            .and_then(|()| {
                program.descriptors.iter().try_for_each(|(target, source)| {
                    let source = source.as_raw_fd();
                    check(libc::posix_spawn_file_actions_adddup2(actions.as_mut_ptr(), source, *target))
                })
            })
            .and_then(|()| {
                check(libc::posix_spawn(
                    &mut pid,
                    program.path.as_ptr(),
                    actions.as_ptr(),
                    attributes.as_ptr(),
                    arguments.as_ptr(),
                    environment.as_ptr(),
                ))
            });
        libc::posix_spawnattr_destroy(attributes.as_mut_ptr());
        libc::posix_spawn_file_actions_destroy(actions.as_mut_ptr());
        spawned
    };
    result?;
    Pid::from_raw(pid).ok_or_else(|| io::Error::other("posix_spawn gave no process id"))
}

fn pointers(strings: &[CString]) -> Vec<*mut c_char> {
    let pointers = strings.iter().map(|string| string.as_ptr().cast_mut());
    pointers.chain([ptr::null_mut()]).collect()
}

fn check(result: c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(result)) }
}
