//! The system call filter: one program, built once, loaded into every sandbox.
//!
//! It denies by name what lets a process leave its namespaces, reach other processes, or touch parts of the kernel that
//! no tool needs and that past exploits went through; and it denies by default what this list has never heard of.
//! Everything else is allowed: the filter is one of several guards, not the only one.
//!
//! `clone3` says "not implemented", because its flags cannot be looked at from here and libc then falls back to `clone`, whose flags
//! can. A process that enters the kernel by another architecture's door (32 bit, x32) is killed.

use libc::{c_long, sock_filter};

/// Which machine's memory accounting the filter can count on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    /// A control group counts every page.
    Counted,
    /// Only the watchdog counts, and it cannot see segments that no process maps: that kind is denied.
    Watched,
}

/// Builds the program.
pub(crate) fn program(memory: Memory) -> Vec<sock_filter> {
    let mut rules: Vec<(u32, Answer)> =
        DENIED.iter().map(|number| (syscall(*number), Answer::Deny)).collect();
    rules.extend(DENIED_HERE.iter().map(|number| (syscall(*number), Answer::Deny)));
    rules.extend([
        (syscall(libc::SYS_clone3), Answer::NotImplemented),
        (syscall(libc::SYS_clone), Answer::Clone),
        (syscall(libc::SYS_socket), Answer::Socket),
        (syscall(libc::SYS_ioctl), Answer::Ioctl),
        (syscall(libc::SYS_personality), Answer::Personality),
    ]);
    if memory == Memory::Watched {
        rules.push((syscall(libc::SYS_shmget), Answer::Deny));
    }
    rules.sort_unstable_by_key(|(number, _)| *number);
    rules.dedup_by_key(|(number, _)| *number);

    // Ranges of numbers with one answer each, from 0 to the highest number there is.
    let mut ranges: Vec<(u32, Answer)> = Vec::new();
    let mut next = 0;
    for (number, answer) in rules {
        if number > next {
            ranges.push((next, Answer::Allow));
        }
        ranges.push((number, answer));
        next = number + 1;
    }
    if next <= KNOWN_MAX {
        ranges.push((next, Answer::Allow));
    }
    ranges.push((KNOWN_MAX.max(next - 1) + 1, Answer::NotImplemented));
    if cfg!(target_arch = "x86_64") {
        ranges.push((X32_BIT, Answer::Kill));
    }

    let mut program = vec![
        load(ARCHITECTURE_OFFSET),
        jump(JEQ, ARCHITECTURE, 1, 0),
        answer(libc::SECCOMP_RET_KILL_PROCESS),
    ];
    program.push(load(NUMBER_OFFSET));
    program.extend(decide(&ranges));
    program
}

/// The same program as bytes, for a `tools` that puts it on by itself. Memory is the container's control group's to count.
pub(crate) fn for_containers() -> Vec<u8> {
    let bytes = |instruction: &sock_filter| {
        let [code_low, code_high] = instruction.code.to_ne_bytes();
        let [k0, k1, k2, k3] = instruction.k.to_ne_bytes();
        [code_low, code_high, instruction.jt, instruction.jf, k0, k1, k2, k3]
    };
    program(Memory::Counted).iter().flat_map(bytes).collect()
}

/// What the filter says to one system call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    Allow,
    Deny,
    NotImplemented,
    Kill,
    /// Allowed without a new namespace.
    Clone,
    /// Allowed for the families and protocols that programs use within an empty network namespace.
    Socket,
    /// Allowed but for what types on, or reprograms, a terminal.
    Ioctl,
    /// Allowed for asking and for the ordinary personality.
    Personality,
}

/// A binary search over the ranges: about ten comparisons a call.
fn decide(ranges: &[(u32, Answer)]) -> Vec<sock_filter> {
    let [_, _, ..] = ranges else { return ranges[0].1.code() };
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let low = decide(low);
    // A conditional jump reaches 255 instructions only, so the far side is reached by an unconditional one.
    let mut code = vec![jump(JGE, high[0].0, 0, 1), skip(low.len())];
    code.extend(low);
    code.extend(decide(high));
    code
}

impl Answer {
    fn code(self) -> Vec<sock_filter> {
        let deny = answer(libc::SECCOMP_RET_ERRNO | libc::EPERM as u32);
        let allow = answer(libc::SECCOMP_RET_ALLOW);
        match self {
            Self::Allow => vec![allow],
            Self::Deny => vec![deny],
            Self::NotImplemented => vec![answer(libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32)],
            Self::Kill => vec![answer(libc::SECCOMP_RET_KILL_PROCESS)],
            Self::Clone => vec![load(argument(0)), jump(JSET, NAMESPACE_FLAGS, 0, 1), deny, allow],
            Self::Socket => {
                let mut code = vec![load(argument(0))];
                // Unix sockets of any type; the kernel looks at the low 32 bits of each argument only, and so do we.
                code.extend([jump(JEQ, libc::AF_UNIX as u32, 0, 1), allow]);
                let netlink = [load(argument(2)), jump(JEQ, libc::NETLINK_ROUTE as u32, 0, 1), allow, deny];
                code.extend([jump(JEQ, libc::AF_NETLINK as u32, 0, netlink.len() as u8)]);
                code.extend(netlink);
                code.extend([
                    jump(JEQ, libc::AF_INET as u32, 2, 0),
                    jump(JEQ, libc::AF_INET6 as u32, 1, 0),
                    deny,
                ]);
                // `SOCK_PACKET` in the internet family is the old name of the packet family.
                code.extend([load(argument(1)), and(SOCKET_TYPE_BITS), jump(JEQ, SOCK_PACKET, 0, 1), deny]);
                code.push(load(argument(2)));
                for protocol in
                    [0, libc::IPPROTO_TCP, libc::IPPROTO_UDP, libc::IPPROTO_ICMP, libc::IPPROTO_ICMPV6]
                {
                    code.extend([jump(JEQ, protocol as u32, 0, 1), allow]);
                }
                code.push(deny);
                code
            }
            Self::Ioctl => vec![
                load(argument(1)),
                jump(JEQ, libc::TIOCSTI as u32, 3, 0),
                jump(JEQ, TIOCLINUX, 2, 0),
                jump(JEQ, TIOCSETD, 1, 0),
                allow,
                deny,
            ],
            Self::Personality => {
                vec![load(argument(0)), jump(JEQ, 0, 1, 0), jump(JEQ, u32::MAX, 0, 1), allow, deny]
            }
        }
    }
}

/// Every flag of `clone` that makes a namespace. (A time namespace cannot be asked for this way.)
const NAMESPACE_FLAGS: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;

const SOCKET_TYPE_BITS: u32 = 0xf;
const SOCK_PACKET: u32 = 10;
const TIOCLINUX: u32 = 0x541c;
/// Changes a terminal's line discipline, which loads old and little-tested kernel code.
const TIOCSETD: u32 = 0x5423;
const X32_BIT: u32 = 0x4000_0000;

/// The highest number that was looked at for this list (Linux 6.18: `file_setattr`).
const KNOWN_MAX: u32 = 469;

/// Numbers that the libc crate does not name; these are the same on every architecture.
const SYS_STATMOUNT: c_long = 457;
const SYS_LISTMOUNT: c_long = 458;
const SYS_LSM_SET_SELF_ATTR: c_long = 460;
const SYS_OPEN_TREE_ATTR: c_long = 467;

/// Denied with "not permitted" on every architecture.
const DENIED: &[c_long] = &[
    // Mounts and roots, old interface and new.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_mount_setattr,
    SYS_OPEN_TREE_ATTR,
    SYS_STATMOUNT,
    SYS_LISTMOUNT,
    // Namespaces.
    libc::SYS_unshare,
    libc::SYS_setns,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    // Parts of the kernel with a record: programs inside it, rings, faults handled outside, keys.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_vmsplice,
    libc::SYS_memfd_secret,
    libc::SYS_fanotify_init,
    libc::SYS_fanotify_mark,
    SYS_LSM_SET_SELF_ATTR,
    // Files by number instead of by name.
    libc::SYS_open_by_handle_at,
    libc::SYS_lookup_dcookie,
    // The machine itself.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_vhangup,
    libc::SYS_nfsservctl,
    libc::SYS_kexec_file_load,
];

/// Denied likewise; these exist on this architecture only.
#[cfg(target_arch = "x86_64")]
const DENIED_HERE: &[c_long] = &[
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_uselib,
    libc::SYS_ustat,
    libc::SYS_sysfs,
    libc::SYS__sysctl,
];

/// Denied likewise; these exist on this architecture only.
#[cfg(not(target_arch = "x86_64"))]
const DENIED_HERE: &[c_long] = &[];

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

const NUMBER_OFFSET: u32 = 0;
const ARCHITECTURE_OFFSET: u32 = 4;

/// Where the low half of an argument lies; both architectures are little-endian.
const fn argument(index: u32) -> u32 {
    16 + 8 * index
}

const JEQ: u16 = 0x15;
const JGE: u16 = 0x35;
const JSET: u16 = 0x45;

const fn load(offset: u32) -> sock_filter {
    sock_filter { code: 0x20, jt: 0, jf: 0, k: offset }
}

const fn and(mask: u32) -> sock_filter {
    sock_filter { code: 0x54, jt: 0, jf: 0, k: mask }
}

const fn jump(code: u16, value: u32, yes: u8, no: u8) -> sock_filter {
    sock_filter { code, jt: yes, jf: no, k: value }
}

fn skip(instructions: usize) -> sock_filter {
    sock_filter { code: 0x05, jt: 0, jf: 0, k: u32::try_from(instructions).expect("a filter is short") }
}

const fn answer(value: u32) -> sock_filter {
    sock_filter { code: 0x06, jt: 0, jf: 0, k: value }
}

fn syscall(number: c_long) -> u32 {
    u32::try_from(number).expect("system call numbers are small and not negative")
}
