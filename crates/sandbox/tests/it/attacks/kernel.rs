//! Turning to the kernel: system calls that undo namespaces, old and little-tested corners, devices, the machine's settings.

use sandbox::Resources;
use sandbox::doctor::PACKAGES;
use testkit::engine::is_crun;

use crate::host::{Host, installs};

/// Runs a program and compares all that it printed.
async fn prints(program: &str, expected: &str) {
    prints_either(program, expected, expected).await;
}

/// The same where a container legitimately says something else.
async fn prints_either(program: &str, expected: &str, in_containers: &str) {
    let host = Host::new();
    let expected = if host.has_containers() { in_containers } else { expected };
    let sandbox = host.sandbox(Resources::default()).await;
    assert_eq!(sandbox.python(program).await, expected.trim());
    assert_eq!(sandbox.bash("echo fine").await, "fine");
    host.end().await;
}

#[tokio::test]
async fn attack_8_the_agents_process_cannot_be_traced_or_read() {
    let program = r#"
buffer = ctypes.create_string_buffer(8)
class iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
local = iovec(ctypes.addressof(buffer), 8)
remote = iovec(0x400000, 8)
read, trace = (310, 101) if X86 else (270, 117)
print(syscall(trace, 16, 1, 0, 0), syscall(trace, 0x4206, 1, 0, 0))
print(syscall(read, 1, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0))
print(syscall(438, syscall_fd, 0, 0) if (syscall_fd := os.pidfd_open(1)) else "")
print(attempt(lambda: open("/proc/1/mem", "rb")))
"#;
    prints(program, "EPERM EPERM\nEPERM\nEPERM\nEACCES").await;
}

#[tokio::test]
async fn attack_9_the_agents_process_cannot_be_killed_or_stopped() {
    let host = Host::new();
    let sandbox = host.sandbox(Resources::default()).await;
    sandbox.bash("for signal in KILL STOP TERM INT HUP QUIT USR1 USR2 SEGV ALRM PIPE CHLD TSTP; do kill -$signal 1; done; true").await;
    assert_eq!(sandbox.bash("echo fine").await, "fine");
    // Everything it may signal, it included; the shell goes, the sandbox stays.
    let _ = sandbox.try_bash("kill -KILL -1").await;
    assert_eq!(sandbox.bash("echo fine").await, "fine");
    host.end().await;
}

#[tokio::test]
async fn attack_17_only_families_of_sockets_that_stay_inside_exist() {
    let program = r#"
SOCK_PACKET = 10
for family, kind, protocol in [(40, 1, 0), (17, 3, 768), (38, 5, 0), (44, 3, 0), (21, 5, 0), (31, 3, 1), (29, 3, 1), (15, 3, 2), (30, 5, 0), (9, 5, 0), (3, 5, 0), (4, 1, 0), (2, 3, 1), (2, 3, 255), (10, 3, 58), (2, SOCK_PACKET, 768), (2, 1, 132), (2, 1, 262), (16, 3, 12), (16, 3, 15), (16, 3, 16), (16, 3, 4)]:
    result = attempt(lambda: socket.socket(family, kind, protocol))
    if result != "EPERM": print(family, kind, protocol, result)
for family, kind, protocol in [(1, 1, 0), (1, 2, 0), (1, 5, 0), (2, 1, 0), (2, 2, 0), (2, 1, 6), (2, 2, 17), (10, 1, 0), (10, 2, 0), (16, 3, 0)]:
    result = attempt(lambda: socket.socket(family, kind, protocol))
    if result != "ok": print(family, kind, protocol, result)
print("done")
"#;
    prints(program, "done").await;
}

#[tokio::test]
async fn attack_18_keyrings_are_closed() {
    let program = r#"
add, request, control = (248, 249, 250) if X86 else (217, 218, 219)
print(syscall(add, b"user", b"x", b"y", 1, -4), syscall(add, b"user", b"x", b"y", 1, -3), syscall(request, b"user", b"x", None, -3), syscall(control, 0, -4, 1))
"#;
    prints(program, "EPERM EPERM EPERM EPERM").await;
}

#[tokio::test]
async fn attack_19_rings_programs_and_faults_are_closed() {
    let program = r#"
buffer = ctypes.create_string_buffer(256)
print("io_uring", syscall(425, 8, buffer), syscall(426, 0, 0, 0, 0, 0), syscall(427, 0, 0, 0, 0))
print("bpf", syscall(321 if X86 else 280, 0, buffer, 128))
print("perf", syscall(298 if X86 else 241, buffer, 0, -1, -1, 0))
print("userfaultfd", syscall(323 if X86 else 282, 1))
print("fanotify", syscall(300 if X86 else 262, 0, 0))
print("by handle", syscall(304 if X86 else 265, -100, buffer, 0))
print("secret memory", syscall(447, 0))
print("unheard of", syscall(9999), syscall(600))
"#;
    prints(program, "io_uring EPERM EPERM EPERM\nbpf EPERM\nperf EPERM\nuserfaultfd EPERM\nfanotify EPERM\nby handle EPERM\nsecret memory EPERM\nunheard of ENOSYS ENOSYS").await;
}

#[tokio::test]
async fn attack_20_no_namespace_can_be_made_inside() {
    let program = r#"
NEW = {"mount": 0x20000, "cgroup": 0x2000000, "uts": 0x4000000, "ipc": 0x8000000, "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000, "time": 0x80}
unshare, clone, setns = (272, 56, 308) if X86 else (97, 220, 268)
for kind, flag in NEW.items():
    results = {syscall(unshare, flag)}
    if kind != "time":
        results.add(syscall(clone, flag | 17, 0, 0, 0, 0))
    if results != {"EPERM"}: print(kind, results)
arguments = (ctypes.c_uint64 * 11)(0x10000000, 0, 0, 0, 17)
print(syscall(435, arguments, 88))
for kind in ["user", "mnt", "net", "pid"]:
    fd = os.open(f"/proc/self/ns/{kind}", os.O_RDONLY)
    print(syscall(setns, fd, 0))
print(open("/proc/sys/user/max_user_namespaces").read().strip())
"#;
    // In a container the figure is the machine's. It would count for whoever got past the refusals above.
    let figure = std::fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap();
    let refused = "ENOSYS\nEPERM\nEPERM\nEPERM\nEPERM";
    prints_either(program, &format!("{refused}\n0"), &format!("{refused}\n{}", figure.trim())).await;
}

#[tokio::test]
async fn attack_21_mounts_cannot_be_touched() {
    let program = r#"
mount, umount, pivot, chroot = (165, 166, 155, 161) if X86 else (40, 39, 41, 51)
print(syscall(mount, b"none", b"/tmp", b"tmpfs", 0, None), syscall(mount, None, b"/", None, 32, None), syscall(mount, b"proc", b"/tmp", b"proc", 0, None))
print(syscall(mount, b"/", b"/tmp", None, 4096, None), syscall(umount, b"/proc/cmdline", 2), syscall(umount, b"/dev/null", 0), syscall(pivot, b".", b"."), syscall(chroot, b"/tmp"))
print(*[syscall(number, 0, 0, 0, 0, 0) for number in (428, 429, 430, 431, 432, 433, 442, 457, 458, 467)])
print(attempt(lambda: os.rename("/proc/self", "/proc/other")) != "ok", attempt(lambda: os.rename("/usr", "/usr2")) != "ok")
"#;
    prints(program, "EPERM EPERM EPERM\nEPERM EPERM EPERM EPERM EPERM\nEPERM EPERM EPERM EPERM EPERM EPERM EPERM EPERM EPERM EPERM\nTrue True").await;
}

#[cfg(target_arch = "x86_64")]
#[tokio::test]
async fn attack_22_other_doors_into_the_kernel_are_shut() {
    // `getpid` by the 32 bit door and by the x32 numbers: both are harmless, and both end the process.
    let program = r#"
import mmap, signal
def call(code):
    memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(code)
    pid = os.fork()
    if pid == 0:
        ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))()
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else "survived"
print(call(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3"))
print(call(b"\xb8\x27\x00\x00\x40\x0f\x05\xc3"))
print(call(b"\xb8\x27\x00\x00\x00\x0f\x05\xc3"))
"#;
    prints(program, "SIGSYS\nSIGSYS\nsurvived").await;
}

#[tokio::test]
async fn attack_25_nothing_can_be_typed_into_a_terminal() {
    let program = r#"
import fcntl, pty
master, slave = pty.openpty()
for request in (0x5412, 0x541C, 0x5423, 0x5412 | 1 << 40):
    print(syscall(16 if X86 else 29, slave, request, b"\x03"))
print(attempt(lambda: os.open("/dev/tty", os.O_RDWR)))
print(attempt(lambda: fcntl.ioctl(slave, 0x5401, b"\0" * 64)))
"#;
    // Engines make the device, and it leads to no terminal.
    prints_either(program, "EPERM\nEPERM\nEPERM\nEPERM\nENOENT\nok", "EPERM\nEPERM\nEPERM\nEPERM\nENXIO\nok")
        .await;
}

#[tokio::test]
async fn attack_26_no_program_gives_privileges() {
    let host = Host::new();
    let sandbox = host.sandbox(Resources::default()).await;
    let status = sandbox
        .bash("grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status | tr -d '\\t' | tr '\\n' ' '")
        .await;
    let few = installs() && host.report().await.can(PACKAGES);
    let (none, kept) = ("0000000000000000", if few { "00000000000000fb" } else { "0000000000000000" });
    assert_eq!(
        status,
        format!(
            "CapInh:{none} CapPrm:{kept} CapEff:{kept} CapBnd:{kept} CapAmb:{none} NoNewPrivs:1 Seccomp:2"
        )
    );
    let program = r#"
import shutil, subprocess
shutil.copy("/usr/bin/id", "/workspace/id")
os.chmod("/workspace/id", 0o6755)
print(subprocess.run(["/workspace/id", "-u"], capture_output=True, text=True).stdout.strip())
print(attempt(lambda: os.setuid(1)), attempt(lambda: os.chown("/workspace/id", 1, 1)), attempt(lambda: os.setxattr("/workspace/id", "security.capability", b"\x01\x00\x00\x02" + b"\xff" * 16)))
print(attempt(lambda: open("/etc/shadow")))
"#;
    let printed = sandbox.python(program).await;
    let mut lines = printed.lines();
    assert_eq!(lines.next(), Some(sandbox.bash("id -u").await.as_str()));
    // Other ids are the sandbox's own, where it has any; who has become another is not even that.
    let others = lines.next().unwrap();
    assert!(!others.replace("ok", if few { "" } else { "ok" }).contains("ok"), "{printed}");
    assert!(!others.ends_with("ok"), "{printed}");
    assert_eq!(lines.next(), Some("ENOENT"));
    if host.has_containers() {
        // An image's root is mounted as it is; nobody in it gets privileges, as above, and nobody is root to begin with.
        assert_ne!(sandbox.bash("id -u").await, "0");
        return host.end().await;
    }
    let flags = sandbox.bash("grep -v -e ' /dev/' -e ' /proc/' /proc/self/mountinfo | grep -vc nosuid").await;
    assert_eq!(flags, "0");
    host.end().await;
}

#[tokio::test]
async fn attack_27_devices_cannot_be_made_or_opened() {
    let program = r#"
import stat
for path, kind, major, minor in [("/tmp/disk", stat.S_IFBLK, 8, 0), ("/tmp/mem", stat.S_IFCHR, 1, 1), ("/dev/kvm2", stat.S_IFCHR, 10, 232), ("/workspace/null", stat.S_IFCHR, 1, 3)]:
    print(attempt(lambda: os.mknod(path, kind | 0o666, os.makedev(major, minor))) in ("EPERM", "EACCES"))
print(sorted(os.listdir("/dev")))
"#;
    let devices = "['fd', 'full', 'null', 'ptmx', 'pts', 'random', 'shm', 'stderr', 'stdin', 'stdout', 'urandom', 'zero']";
    // Engines make two more: the terminal that there is not, and the container's own message queues.
    let in_containers =
        devices.replace("'null'", "'mqueue', 'null'").replace("'urandom'", "'tty', 'urandom'");
    // `crun` a third: a link to the masked image of the kernel's memory.
    let in_containers =
        if is_crun() { in_containers.replace("['fd'", "['core', 'fd'") } else { in_containers };
    let made = "True\nTrue\nTrue\nTrue";
    prints_either(program, &format!("{made}\n{devices}"), &format!("{made}\n{in_containers}")).await;
}

#[tokio::test]
async fn attack_28_the_machines_settings_cannot_be_changed() {
    let program = r#"
for path in ["kernel/core_pattern", "kernel/sysrq", "kernel/modprobe", "kernel/hostname", "kernel/randomize_va_space", "user/max_user_namespaces", "net/ipv4/ip_forward", "fs/binfmt_misc/register", "vm/overcommit_memory", "kernel/shmmax", "kernel/ns_last_pid"]:
    result = attempt(lambda: open("/proc/sys/" + path, "r+"))
    if result not in ("EACCES", "EPERM", "ENOENT", "EROFS"): print(path, result)
print(attempt(lambda: open("/proc/sysrq-trigger", "w").write("h")) == "ok", os.path.exists("/sys/kernel"))
for path, text in [("oom_score_adj", b"-1000"), ("uid_map", b"0 0 1")]:
    print(attempt(lambda: os.write(os.open("/proc/self/" + path, os.O_WRONLY), text)) in ("EACCES", "EPERM"))
print(attempt(lambda: socket.sethostname("x")))
"#;
    prints(program, "False False\nTrue\nTrue\nEPERM").await;
}

#[tokio::test]
async fn attack_29_the_agents_program_cannot_be_overwritten() {
    let program = r#"
print(attempt(lambda: os.open("/proc/1/exe", os.O_WRONLY)), attempt(lambda: os.open("/proc/1/exe", os.O_RDWR | os.O_TRUNC)), attempt(lambda: os.readlink("/proc/1/exe")))
for fd in range(3, 64):
    assert attempt(lambda: os.fstat(fd)) == "EBADF"
"#;
    prints(program, "EACCES EACCES EACCES").await;
}

#[tokio::test]
async fn threads_and_children_work_in_spite_of_the_filter() {
    // The other side of the coin: what programs need every day is allowed.
    let host = Host::new();
    let sandbox = host.sandbox(Resources::default()).await;
    let program = r#"
import concurrent.futures, multiprocessing, subprocess, tempfile, threading
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    print(sum(pool.map(lambda x: x * x, range(100))))
with multiprocessing.Pool(2) as pool:
    print(pool.map(abs, [-1, -2]))
print(subprocess.run(["sh", "-c", "echo child | cat"], capture_output=True, text=True).stdout.strip())
with tempfile.NamedTemporaryFile() as f: f.write(b"x")
a, b = socket.socketpair(); a.send(b"x"); print(b.recv(1))
"#;
    assert_eq!(sandbox.python(program).await, "328350\n[1, 2]\nchild\nb'x'");
    let _ = host.provider.list().await.unwrap();
    host.end().await;
}
