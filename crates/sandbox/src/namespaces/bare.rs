//! The yardstick for provisioning: a new process in the same namespaces that runs a static program and ends.
//!
//! No root, no limits, no filter, no talk: the floor under every sandbox of namespaces. The clone shares the caller's memory until the
//! program runs, so that the caller's size does not count.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use super::agent;
use super::start::NAMESPACES;

/// What a bare start needs, made once.
pub struct Bare {
    program: OwnedFd,
    null: File,
}

/// Two pages more than the child's few system calls need.
const STACK_BYTES: usize = 16 << 10;

impl Bare {
    /// Prepares the same static program that sandboxes run.
    pub fn new() -> io::Result<Self> {
        Ok(Self { program: agent::tools()?, null: File::options().write(true).open("/dev/null")? })
    }

    /// How long it takes to clone into new namespaces, run the program, which ends at once because nobody speaks to it, and collect it.
    pub fn clone_exec(&self) -> io::Result<Duration> {
        let descriptors = Descriptors { program: self.program.as_raw_fd(), null: self.null.as_raw_fd() };
        let mut stack = vec![0_u128; STACK_BYTES / size_of::<u128>()];
        let flags = NAMESPACES | libc::CLONE_NEWCGROUP | libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        let started = Instant::now();
        // SAFETY: the stack is aligned, ours alone and outlives the child, because with CLONE_VFORK this thread stands still until the
        // child has ended or runs another program; `run` makes nothing but system calls on memory that it only reads.
        let pid = unsafe {
            let top = stack.as_mut_ptr().add(stack.len());
            libc::clone(run, top.cast(), flags, (&raw const descriptors).cast_mut().cast())
        };
        if pid == -1 {
            return Err(io::Error::last_os_error());
        }
        let mut status = 0;
        // SAFETY: `status` is one int. The child is ours and nobody else collects it.
        if unsafe { libc::waitpid(pid, &raw mut status, 0) } != pid {
            return Err(io::Error::last_os_error());
        }
        let taken = started.elapsed();
        if libc::WIFEXITED(status) && libc::WEXITSTATUS(status) != NOT_RUN {
            Ok(taken)
        } else {
            Err(io::Error::other("the static program was not run"))
        }
    }
}

struct Descriptors {
    program: i32,
    null: i32,
}

const NOT_RUN: i32 = 121;

extern "C" fn run(descriptors: *mut c_void) -> i32 {
    let nothing: [*const libc::c_char; 1] = [std::ptr::null()];
    // SAFETY: `descriptors` is what `clone_exec` passed, alive while its thread stands still; the lists end in null.
    unsafe {
        let descriptors = &*descriptors.cast::<Descriptors>();
        libc::syscall(libc::SYS_dup3, descriptors.null, 2, 0);
        libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
        libc::syscall(
            libc::SYS_execveat,
            descriptors.program,
            c"".as_ptr(),
            nothing.as_ptr(),
            nothing.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
        libc::syscall(libc::SYS_exit, NOT_RUN);
    }
    NOT_RUN
}
