//! Using more than its share: processes, memory, disk, processor, output, time.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use sandbox::doctor::{CPU_LIMIT, MEMORY_LIMIT};
use sandbox::{Error, Limits, Resources};
use serde_json::json;
use testkit::engine::is_podman;

use crate::host::{Host, Sandbox, eventually, text};

fn limited(limits: Limits) -> Resources {
    Resources { limits, ..Resources::default() }
}

fn small() -> Resources {
    limited(Limits { memory_bytes: 128 << 20, processes: 64, disk_bytes: 32 << 20, ..Limits::default() })
}

const FORK: &str = r#"
import time
made = 0
try:
    while made < 2000:
        if os.fork() == 0:
            time.sleep(600)
            os._exit(0)
        made += 1
except OSError as error:
    print(made, name(error.errno), flush=True)
os.kill(os.getpid(), 9) if made == 2000 else os._exit(0)
"#;

#[tokio::test]
async fn attack_1_a_fork_bomb_stops_at_the_limit_and_disturbs_nobody() {
    let host = Host::new();
    let (bomber, neighbour) = (host.sandbox(small()).await, host.sandbox(small()).await);
    let printed = bomber.python(FORK).await;
    let (made, error) = printed.split_once(' ').unwrap();
    assert_eq!(error, "EAGAIN");
    assert!((20..64).contains(&made.parse::<u32>().unwrap()), "{printed}");
    assert_eq!(neighbour.bash("echo fine").await, "fine");
    host.end().await;
}

#[tokio::test]
async fn attack_2_one_sandboxs_processes_do_not_count_for_another() {
    let host = Host::new();
    let (first, second) = (host.sandbox(small()).await, host.sandbox(small()).await);
    let made = async |sandbox: &Sandbox<'_>| {
        sandbox.python(FORK).await.split(' ').next().unwrap().parse::<u32>().unwrap()
    };
    let (one, other) = (made(&first).await, made(&second).await);
    assert!(one.abs_diff(other) <= 4, "{one} {other}");
    host.end().await;
}

/// Each prints "kept" if it got twice the limit and could keep it for longer than a watchdog looks away.
const MEMORY_BOMBS: [(&str, &str); 5] = [
    ("heap", "x = bytearray(256 << 20)\nkeep()"),
    ("shared memory", "import mmap\nm = mmap.mmap(-1, 256 << 20)\nm.write(b'x' * (256 << 20))\nkeep()"),
    ("memory file", "f = os.memfd_create('x')\nfor _ in range(256): os.write(f, b'x' * (1 << 20))\nkeep()"),
    (
        "system v",
        r#"
ids = [libc.shmget(0, 64 << 20, 0o1600) for _ in range(4)]
libc.shmat.restype = ctypes.c_void_p
for i in ids:
    assert i >= 0, name(ctypes.get_errno())
    ctypes.memset(libc.shmat(i, None, 0), 1, 64 << 20)
keep()"#,
    ),
    (
        "page tables",
        r#"
import mmap
maps = []
for _ in range(64):
    m = mmap.mmap(-1, 1 << 40, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
    for at in range(0, 1 << 40, 1 << 28):
        m[at] = 1
    maps.append(m)
keep()"#,
    ),
];

const KEEP: &str = "def keep():\n    import time\n    time.sleep(1.5)\n    print('kept')";

#[tokio::test]
async fn attack_3_no_kind_of_memory_gets_past_the_limit() {
    let host = Host::new();
    let neighbour = host.sandbox(small()).await;
    for (kind, bomb) in MEMORY_BOMBS {
        let sandbox = host.sandbox(small()).await;
        match sandbox.try_python(&format!("{KEEP}\n{bomb}")).await {
            // The process was killed, or denied.
            Ok(printed) => assert!(!printed.contains("kept"), "{kind}: {printed}"),
            // The whole sandbox was, by the watchdog or because there was nobody else left to kill.
            Err(Error::Gone { reason }) => assert!(reason.contains("memory"), "{kind}: {reason}"),
            Err(other) => panic!("{kind}: {other}"),
        }
        assert_eq!(neighbour.bash("echo fine").await, "fine");
        host.provider.destroy(&sandbox.id).await.unwrap();
    }
    // Whoever relies on the watchdog is told so.
    let report = host.report().await;
    assert!(report.holds(MEMORY_LIMIT) || report.guard(MEMORY_LIMIT).unwrap().detail.contains("watchdog"));
    host.end().await;
}

#[tokio::test]
async fn attack_3_what_it_writes_to_files_counts_too() {
    let host = Host::new();
    let limits = Limits { memory_bytes: 64 << 20, disk_bytes: 1 << 40, ..Limits::default() };
    let sandbox = host.sandbox(limited(limits)).await;
    let printed = sandbox.bash("head -c 500M /dev/zero > /dev/shm/x; du -m /dev/shm/x | cut -f1").await;
    let megabytes: u32 = printed.lines().last().unwrap().parse().unwrap();
    assert!(megabytes <= 48, "{printed}");
    host.end().await;
}

#[tokio::test]
async fn attack_4_the_disk_is_full_where_its_limit_is() {
    let host = Host::new();
    // With what the supervisor has made for all sandboxes, and what the first one brings for all.
    host.report().await;
    host.sandbox(small()).await;
    let before = used_bytes(host.data());
    let of_namespaces = ["/root", "/usr/local/lib", "/etc"];
    let of_containers = ["/home/agent", "/run"];
    let own = if host.has_containers() { &of_containers[..] } else { &of_namespaces };
    for place in ["/workspace", "/tmp", "/var/tmp", "/dev/shm", "/mnt/session/outputs"].iter().chain(own) {
        let sandbox = host.sandbox(small()).await;
        let printed = sandbox
            .bash(&format!("head -c 128M /dev/zero > {place}/fill; du -m {place}/fill | cut -f1"))
            .await;
        let megabytes: u32 = printed.lines().last().unwrap().parse().unwrap();
        assert!(printed.contains("No space left") && megabytes <= 32, "{place}: {printed}");
        host.provider.destroy(&sandbox.id).await.unwrap();
    }
    assert!(used_bytes(host.data()) <= before + (1 << 20), "nothing of it reached the host's disk");
    host.end().await;
}

#[tokio::test]
async fn attack_4_all_places_together_hold_no_more_than_the_disk() {
    let host = Host::new();
    let sandbox = host.sandbox(small()).await;
    let fill = "sum=0; for place in /workspace /tmp /var/tmp /dev/shm /mnt/session/outputs /home/agent /root /run; do \
        head -c 128M /dev/zero > $place/fill; sum=$((sum + $(stat -c %s $place/fill 2> /dev/null || echo 0))); \
        done 2> /dev/null; echo $((sum >> 10))";
    let kilobytes: u32 = sandbox.bash(fill).await.parse().unwrap();
    assert!((16 << 10..=32 << 10).contains(&kilobytes), "{kilobytes}");
    host.end().await;
}

#[tokio::test]
async fn attack_4_places_that_are_not_its_own_take_nothing() {
    let host = Host::new();
    let sandbox = host.sandbox(small()).await;
    for place in ["/", "/dev", "/proc", "/sys", "/dev/pts"] {
        let printed = sandbox
            .bash(&format!("echo x > {place}/fill || mkdir {place}/folder; ls {place}/fill {place}/folder"))
            .await;
        assert!(printed.contains("cannot access"), "{place}: {printed}");
        assert!(!printed.lines().any(|line| line.starts_with('/')), "{place}: {printed}");
    }
    host.end().await;
}

#[tokio::test]
async fn attack_4_empty_files_are_bounded_too() {
    let host = Host::new();
    if host.has_containers() && is_podman() {
        // By memory alone: it takes no bound for their number.
        return host.end().await;
    }
    let sandbox = host.sandbox(small()).await;
    let flood = "made = 0\ntry:\n    while made < 100000:\n        os.mknod(f'/tmp/f{made}')\n        made += 1\nexcept OSError as error:\n    print(made, name(error.errno))";
    let printed = sandbox.python(flood).await;
    let (made, error) = printed.split_once(' ').unwrap();
    assert_eq!(error, "ENOSPC");
    assert!(made.parse::<u32>().unwrap() <= 4096, "{printed}");
    host.end().await;
}

#[tokio::test]
async fn attack_4_one_file_and_open_files_are_bounded() {
    let host = Host::new();
    let limits = Limits { file_size_bytes: 1 << 20, open_files: 100, ..Limits::default() };
    let sandbox = host.sandbox(limited(limits)).await;
    let size = sandbox.bash("head -c 5M /dev/zero > big; stat -c %s big").await;
    assert_eq!(size.lines().last(), Some("1048576"), "{size}");
    let opened = sandbox.python("files = []\nprint(attempt(lambda: [files.append(open('/dev/null')) for _ in range(200)]), len(files) < 100)").await;
    assert_eq!(opened, "EMFILE True");
    host.end().await;
}

#[tokio::test]
async fn attack_5_a_processor_hog_gets_its_share_and_no_more() {
    let host = Host::new();
    let sandbox = host.sandbox(limited(Limits { cpu_percent: 20, ..Limits::default() })).await;
    let hog = "import time\nstart, used = time.time(), time.process_time()\nwhile time.time() < start + 2: pass\nprint(time.process_time() - used)";
    let used: f64 = sandbox.python(hog).await.parse().unwrap();
    if host.report().await.holds(CPU_LIMIT) {
        // 0.4 of 2 seconds, and a slice or two.
        assert!(used < 0.8, "{used}");
    } else {
        assert!(!host.report().await.guard(CPU_LIMIT).unwrap().how_to_enable.is_empty());
    }
    host.end().await;
}

#[tokio::test]
async fn attack_23_a_daemon_lives_on_after_its_call_and_dies_with_the_sandbox() {
    let host = Host::new();
    let sandbox = host.sandbox(Resources::default()).await;
    sandbox.bash("(setsid sleep 4444 > /dev/null 2>&1 < /dev/null &) ; sleep 0.1").await;
    assert_eq!(
        sandbox
            .bash("pgrep -fc 'sleep 4444' || cat /proc/*/cmdline | tr '\\0' ' ' | grep -c 'sleep 4444'")
            .await
            .lines()
            .last(),
        Some("1")
    );
    let family = host.family();
    host.provider.destroy(&sandbox.id).await.unwrap();
    assert!(!family.into_iter().any(Host::is_alive), "destroy returns when everything is gone");
    host.end().await;
}

#[tokio::test]
async fn attack_30_a_flood_of_output_is_capped_and_the_sandbox_goes_on() {
    let host = Host::new();
    let sandbox = host.sandbox(Resources::default()).await;
    let floods = [
        "head -c 300M /dev/zero | tr '\\0' 'x'",
        "head -c 50M /dev/urandom",
        "head -c 100M /dev/zero | tr '\\0' '\\n'",
        "head -c 20M /dev/zero | tr '\\0' '\\033' >&2",
    ];
    for flood in floods {
        let printed = sandbox.bash(flood).await;
        assert!(printed.len() < 1 << 20, "{flood}: {}", printed.len());
        assert_eq!(sandbox.bash("echo fine").await, "fine");
    }
    let status = fs::read_to_string(format!("/proc/{}/status", host.supervisor().as_raw_nonzero())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kilobytes: u64 = peak.split_whitespace().next().unwrap().parse().unwrap();
    assert!(kilobytes < 64 << 10, "the supervisor's memory stays flat: {kilobytes} KiB");
    host.end().await;
}

#[tokio::test]
async fn attack_31_a_command_that_will_not_end_is_ended() {
    let host = Host::new();
    let sandbox = host.sandbox(Resources::default()).await;
    let stubborn = [
        "trap '' TERM INT HUP QUIT; while :; do sleep 1; done",
        "kill -STOP $$",
        "sleep 3333",
        "cat",
        "(trap '' TERM; setsid sleep 3333) | cat",
    ];
    for command in stubborn {
        let mut call = sandbox.call("bash", json!({"command": command}));
        call.timeout = Duration::from_secs(1);
        let started = Instant::now();
        let output = host.provider.execute(call).await.unwrap();
        assert!(output.is_error || !command.contains("sleep"), "{command}: {}", text(&output));
        assert!(started.elapsed() < Duration::from_secs(20), "{command}");
        assert_eq!(sandbox.bash("echo fine").await, "fine", "{command}");
    }
    host.end().await;
}

#[tokio::test]
async fn attack_32_races_of_making_and_destroying_leave_nothing() {
    let host = Host::new();
    host.report().await;
    let supervisor = host.supervisor();
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", supervisor.as_raw_nonzero())).unwrap().count();
    let before = descriptors();
    let mut tasks = Vec::new();
    // An engine takes its time; the races are the same.
    let races = if host.has_containers() { 12 } else { 60 };
    for number in 0..races {
        let id = crate::host::fresh_id();
        let provider = &host.provider;
        tasks.push(async move {
            let resources = Resources::default();
            let call = crate::host::call(&id, "bash", json!({"command": "sleep 600"}));
            let made = provider.provision(&id, 1, &resources);
            match number % 4 {
                0 => drop(tokio::join!(made, provider.destroy(&id))),
                1 => drop(tokio::join!(
                    made,
                    provider.destroy(&id),
                    provider.destroy(&id),
                    provider.execute(call)
                )),
                2 => {
                    let _ = made.await;
                    let _ = tokio::join!(provider.execute(call), provider.destroy(&id));
                }
                _ => drop(tokio::time::timeout(Duration::from_millis(3), made).await),
            }
            let _ = provider.destroy(&id).await;
            let after = provider.execute(crate::host::call(&id, "bash", json!({"command": "echo hi"}))).await;
            assert!(matches!(after, Err(Error::Gone { .. })), "{after:?}");
        });
    }
    join_all(tasks).await;
    assert_eq!(host.provider.list().await.unwrap(), []);
    eventually("no process is left", || host.family().is_empty()).await;
    eventually("no container is left", || host.containers().is_empty()).await;
    // `family` opens a connection, which may take a moment to be closed at the other end.
    eventually("no descriptor is left", || descriptors() <= before).await;
    let groups = fs::read_to_string(host.data().join("supervisor/control-groups")).unwrap();
    // One of each kind lies ready for the next sandbox.
    eventually("no control group is left", || {
        let count =
            |folder: &str| fs::read_dir(folder).into_iter().flatten().flatten().filter(is_folder).count();
        groups.lines().all(|folder| count(folder) <= 1)
    })
    .await;
    host.end().await;
}

fn is_folder(entry: &fs::DirEntry) -> bool {
    entry.file_type().is_ok_and(|kind| kind.is_dir())
}

async fn join_all<T>(futures: Vec<impl Future<Output = T>>) {
    let mut futures: Vec<_> = futures.into_iter().map(|future| Some(Box::pin(future))).collect();
    std::future::poll_fn(|context| {
        for slot in &mut futures {
            if let Some(future) = slot
                && future.as_mut().poll(context).is_ready()
            {
                *slot = None;
            }
        }
        if futures.iter().all(Option::is_none) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
}

/// What lies below this folder, in bytes of the disk.
fn used_bytes(folder: &Path) -> u64 {
    let below = |entry: fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => used_bytes(&entry.path()),
        Ok(found) => found.blocks() * 512,
        Err(_) => 0,
    };
    fs::read_dir(folder).into_iter().flatten().flatten().map(below).sum()
}
