//! That each guard matters: the same attack against a sandbox with the guard and without it.
//!
//! A profile with a hole can be built here and nowhere else; the product has no switch for it. Where two guards cover an attack, it
//! succeeds only without both, and the test says so. Sandboxes are started by a process of one thread, so each case runs
//! this test program again, alone, and there in a fork (`inside`).

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use serde_json::json;
use tools::wire::{
    Content, Op, REQUEST_BYTES_MAX, RESPONSE_BYTES_MAX, Reply, Request, Response, read_frame, write_frame,
};

use super::cgroups::Groups;
use super::probe::Findings;
use super::profile::{Guards, Ids, Profile, clean_folder};
use super::root::Layout;
use super::stacks::{Found, Plan};
use super::start::{OnlyThread, Started, start};
use super::sys;
use crate::provider::{Limits, Resources};

const WITHOUT: &str = "POSTHOUSE_TEST_WITHOUT";
const PROGRAM: &str = "POSTHOUSE_TEST_PROGRAM";
const FOLDER: &str = "POSTHOUSE_TEST_FOLDER";
const ANSWER: &str = "answer";

/// What a Python program prints in a sandbox that lacks these guards.
fn without(guards: &[&str], program: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    // The sandbox's ids must be able to enter it.
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "namespaces::guards_matter::inside", "--nocapture", "--test-threads=1"])
        .env(WITHOUT, guards.join(","))
        .env(PROGRAM, program)
        .env(FOLDER, folder.path())
        .output()
        .unwrap();
    let printed = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&printed));
    std::fs::read_to_string(folder.path().join(ANSWER)).unwrap().trim().to_owned()
}

/// Not a test of its own: the other half of [`without`]. Alone, it has nothing to do.
#[test]
fn inside() {
    let Some(guards) = std::env::var_os(WITHOUT) else { return };
    // SAFETY: the only other thread is the test harness's, which waits for this one and holds no lock.
    match unsafe { sys::fork() }.unwrap() {
        sys::Forked::Parent(child) => {
            let pid = rustix::process::Pid::from_raw(child);
            let ended =
                rustix::process::waitpid(pid, rustix::process::WaitOptions::empty()).unwrap().unwrap().1;
            assert_eq!(ended.exit_status(), Some(0));
        }
        sys::Forked::Child => {
            let done = std::panic::catch_unwind(|| run_case(guards));
            sys::exit_now(i32::from(done.is_err()));
        }
    }
}

fn run_case(guards: OsString) {
    let (guards, folder) = (guards.into_string().unwrap(), PathBuf::from(std::env::var_os(FOLDER).unwrap()));
    let lacks = |guard: &str| guards.split(',').any(|name| name == guard);
    let only = OnlyThread::prove().unwrap();
    let work = folder.join("work");
    clean_folder(&work).unwrap();
    std::env::set_current_dir(&work).unwrap();
    let groups = match lacks("groups") {
        true => Groups::default(),
        false => Groups::find(&format!("test-{}", std::process::id())),
    };
    let mut profile = Profile::prepare(&Findings::gather(&only), groups).unwrap();
    profile.guards = Guards {
        filter: !lacks("filter"),
        landlock: !lacks("landlock"),
        network: !lacks("network"),
        capabilities: !lacks("capabilities"),
        nesting: !lacks("nesting"),
        processes: !lacks("processes"),
    };
    if lacks("layers") {
        profile.layout = Layout::of_host(|_| false);
    }
    if lacks("masks") {
        profile.layout = profile.layout.without_masks();
    }
    if lacks("own ids") {
        profile.ids = Ids::HostRoot;
    }
    let limits = Limits { memory_bytes: 64 << 20, processes: 64, ..Limits::default() };
    let group = profile.groups.create("case", &limits).unwrap();
    let plan = Plan::over_host(&profile.layout, &Found::default(), false, false).unwrap();
    let Started { pid: _, process, mut control, sync: _sync } =
        start(&only, &profile, &group, 0, &Resources { limits, ..Resources::default() }, &plan).unwrap();
    let program = std::env::var_os(PROGRAM).map(OsString::into_string).unwrap().unwrap();
    let command = format!("cat > program.py <<'END'\n{PRELUDE}\n{program}\nEND\npython3 program.py 2>&1");
    let op = Op::Execute {
        call_id: "a".into(),
        name: "bash".into(),
        input: json!({"command": command}),
        timeout_ms: 30_000,
    };
    write_frame(&mut control, &Request { id: 1, op }, REQUEST_BYTES_MAX).unwrap();
    let output = loop {
        let response: Response =
            read_frame(&mut control, RESPONSE_BYTES_MAX).unwrap().expect("tools answers");
        match response.reply {
            Reply::Output(output) => break output,
            Reply::Ready { .. } => {}
            other => panic!("{other:?}"),
        }
    };
    let text = output.content.iter().map(|block| match block {
        Content::Text { text } => text.as_str(),
        Content::Image { .. } | Content::Document { .. } => "",
    });
    std::fs::write(folder.join(ANSWER), text.collect::<String>()).unwrap();
    drop(process);
    while !group.remove() {
        std::thread::yield_now();
    }
    profile.groups.remove();
}

const PRELUDE: &str = r#"
import ctypes, errno, mmap, os, platform, signal, socket
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
X86 = platform.machine() == "x86_64"
def name(number):
    return errno.errorcode.get(number, str(number))
def syscall(number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    return "ok" if result >= 0 else name(ctypes.get_errno())
def attempt(action):
    try:
        action()
        return "ok"
    except OSError as error:
        return name(error.errno)
"#;

/// The attack fails with every guard and succeeds without these, and only without all of them.
fn each_matters(guards: &[&str], program: &str, held: &str) {
    assert_eq!(without(&[], program), held, "with every guard");
    if let [one, other] = guards {
        assert_eq!(without(&[one], program), without(&[other], program), "each alone is enough");
        assert_ne!(without(&[one], program), "ok");
    }
    assert_eq!(without(guards, program), "ok", "without {guards:?}");
}

#[test]
fn without_the_filter_the_hypervisors_sockets_can_be_made() {
    // Whether there are such sockets at all depends on the kernel; without them there is nothing to guard.
    let program = "print(attempt(lambda: socket.socket(40, socket.SOCK_STREAM)))";
    assert_eq!(without(&[], program), "EPERM");
    let open = without(&["filter"], program);
    assert!(["ok", "EAFNOSUPPORT"].contains(&open.as_str()), "{open}");
}

#[test]
fn without_the_filter_keys_can_be_stored() {
    let program = "print(syscall(248 if X86 else 217, b'user', b'x', b'y', 1, -3))";
    each_matters(&["filter"], program, "EPERM");
}

#[test]
fn without_the_filter_a_ring_can_be_made() {
    let program = "print(syscall(425, 8, ctypes.create_string_buffer(256)))";
    assert_eq!(without(&[], program), "EPERM");
    let disabled =
        std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").is_ok_and(|text| text.trim() != "0");
    assert_eq!(without(&["filter"], program), if disabled { "EPERM" } else { "ok" });
}

#[cfg(target_arch = "x86_64")]
#[test]
fn without_the_filter_the_32_bit_door_is_open() {
    let program = r#"
memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
memory.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
pid = os.fork()
if pid == 0:
    ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))()
    os._exit(0)
status = os.waitpid(pid, 0)[1]
print(signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else "ok")
"#;
    assert_eq!(without(&[], program), "SIGSYS");
    // A kernel without that door answers with another signal.
    let open = without(&["filter"], program);
    assert!(["ok", "SIGSEGV"].contains(&open.as_str()), "{open}");
}

#[test]
fn without_the_filter_and_the_count_a_user_namespace_can_be_nested() {
    let program = "print(syscall(272 if X86 else 97, 0x10000000))";
    assert_eq!(without(&[], program), "EPERM");
    assert_eq!(without(&["filter"], program), "ENOSPC", "the count alone is enough");
    assert_eq!(without(&["nesting"], program), "EPERM", "the filter alone is enough");
    assert_eq!(without(&["filter", "nesting"], program), "ok");
}

#[test]
fn without_the_filter_and_with_capabilities_a_file_system_can_be_mounted() {
    let program = "print(syscall(165 if X86 else 40, b'none', b'/tmp', b'tmpfs', 0, None))";
    assert_eq!(without(&[], program), "EPERM");
    assert_eq!(without(&["filter", "landlock"], program), "EPERM", "having no capabilities is enough");
    assert_eq!(without(&["filter", "landlock", "capabilities"], program), "ok");
}

#[test]
fn with_capabilities_the_host_can_be_renamed_for_itself() {
    each_matters(&["capabilities"], "print(attempt(lambda: socket.sethostname('x')))", "EPERM");
}

#[test]
fn without_the_file_filter_the_root_takes_files() {
    each_matters(&["landlock"], "print(attempt(lambda: os.mkdir('/folder')))", "EACCES");
}

#[test]
fn without_a_network_of_its_own_the_hosts_ports_are_in_reach() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let program = format!("print(attempt(lambda: socket.create_connection(('127.0.0.1', {port}))))");
    each_matters(&["network"], &program, "ECONNREFUSED");
}

#[test]
fn without_a_network_of_its_own_and_the_scopes_abstract_sockets_are_in_reach() {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener};
    let address = format!("posthouse-guard-{}", std::process::id());
    let _listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&address).unwrap()).unwrap();
    let program =
        format!("s = socket.socket(socket.AF_UNIX)\nprint(attempt(lambda: s.connect('\\0{address}')))");
    assert_eq!(without(&["landlock"], &program), "ECONNREFUSED", "the network namespace alone is enough");
    if sys::landlock_abi() >= super::landlock::ABI_WITH_SCOPES {
        assert_eq!(without(&["network"], &program), "EPERM", "the scope alone is enough");
    }
    assert_eq!(without(&["network", "landlock"], &program), "ok");
}

#[test]
fn without_the_masks_the_hosts_start_can_be_read() {
    each_matters(&["masks"], "print('ok' if open('/proc/cmdline').read() else 'empty')", "empty");
}

#[test]
fn with_the_hosts_root_the_machines_settings_can_be_opened() {
    let program = "print(attempt(lambda: open('/proc/sys/kernel/core_pattern', 'r+')))";
    assert_eq!(without(&[], program), "EACCES");
    if !rustix::process::geteuid().is_root() {
        // The kernel lets nobody but root map the host's root.
        return;
    }
    assert_eq!(without(&["landlock"], program), "EACCES", "ids of its own are enough");
    assert_eq!(without(&["landlock", "own ids"], program), "ok");
}

#[test]
fn without_limits_a_fork_bomb_goes_on() {
    let program = r#"
made = 0
try:
    while made < 300:
        if os.fork() == 0:
            signal.pause()
        made += 1
except OSError:
    pass
print("ok" if made == 300 else "stopped", flush=True)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
"#;
    assert_eq!(without(&[], program), "stopped");
    assert_eq!(without(&["groups"], program), "stopped", "the resource limit alone is enough");
    assert_eq!(without(&["groups", "processes"], program), "ok");
}

#[test]
fn without_a_control_group_memory_is_not_counted() {
    let program = "x = bytearray(256 << 20)\nprint('ok')";
    assert_eq!(without(&["groups"], program), "ok", "which is why a watchdog stands in");
    let groups = Groups::find(&format!("look-{}", std::process::id()));
    if groups.limits(super::cgroups::Controller::Memory) {
        assert_ne!(without(&[], program), "ok");
    }
    groups.remove();
}

#[test]
fn a_process_can_be_born_in_a_version_2_group() {
    use std::io::Read;
    use std::os::fd::AsFd;
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let point =
        mounts.lines().filter(|line| line.contains(" cgroup2 ")).find_map(|line| line.split(' ').nth(1));
    let name = format!("posthouse-birth-{}", std::process::id());
    let Some(folder) = point.map(|point| PathBuf::from(point).join(&name)) else { return };
    if std::fs::create_dir(&folder).is_err() {
        // Not root, and nothing was delegated: the doctor's report says that groups cannot be used.
        return;
    }
    let group = std::fs::File::open(&folder).unwrap();
    // SAFETY: the copy uses nothing that another thread of the harness may hold: system calls and libc's own allocator.
    match unsafe { sys::fork() }.unwrap() {
        sys::Forked::Child => {
            let born = std::panic::catch_unwind(|| {
                let only = OnlyThread::prove().unwrap();
                let wait = |mut sync: std::os::unix::net::UnixStream| drop(sync.read(&mut [0]));
                let launched =
                    super::start::launch(&only, libc::CLONE_NEWUSER, Some(group.as_fd()), wait).unwrap();
                std::fs::read_to_string(format!("/proc/{}/cgroup", launched.pid)).unwrap().contains(&name)
            });
            sys::exit_now(i32::from(!born.unwrap_or(false)));
        }
        sys::Forked::Parent(child) => {
            let pid = rustix::process::Pid::from_raw(child);
            let ended =
                rustix::process::waitpid(pid, rustix::process::WaitOptions::empty()).unwrap().unwrap().1;
            std::fs::remove_dir(&folder).unwrap();
            assert_eq!(ended.exit_status(), Some(0));
        }
    }
}

#[test]
fn without_overlays_the_hosts_tools_are_there_but_read_only() {
    let program = r#"
print(attempt(lambda: open("/usr/bin/x", "w")), attempt(lambda: open("/etc/x", "w")), open("/etc/passwd").read()[:4])
"#;
    assert_eq!(without(&[], program), "ok ok root");
    assert_eq!(without(&["layers"], program), "EROFS ok root");
}
