//! Reaching for the socket by which the sandbox is driven, and for the process at its other end.

use sandbox::Resources;

use crate::host::{Host, eventually};

#[tokio::test]
async fn attack_9_the_control_socket_cannot_be_found_or_taken() {
    let host = Host::new();
    let sandbox = host.sandbox(Resources::default()).await;
    let program = r#"
print(attempt(lambda: os.fstat(3)))
names = []
attempt(lambda: names.extend(os.listdir("/proc/1/fd")))
for fd in names or map(str, range(16)):
    # That there are descriptors can be seen, by those of the same id; what they are, and they themselves, cannot.
    for use in (os.readlink, os.stat, lambda path: os.open(path, os.O_RDWR)):
        result = attempt(lambda: use("/proc/1/fd/" + fd))
        if result not in ("EACCES", "EPERM"): print(fd, result)
pidfd = os.pidfd_open(1)
for fd in range(16):
    result = syscall(438, pidfd, fd, 0)
    if result != "EPERM": print(fd, result)
"#;
    assert_eq!(sandbox.python(program).await, "EBADF");
    host.end().await;
}

#[tokio::test]
async fn attack_24_a_killed_supervisor_leaves_no_process_and_no_control_group() {
    let host = Host::new();
    for _ in 0..5 {
        let sandbox = host.sandbox(Resources::default()).await;
        sandbox.bash("for i in 1 2 3; do (setsid sleep 5000 >/dev/null 2>&1 &); done").await;
    }
    let (supervisor, family) = (host.supervisor(), host.family());
    assert!(family.len() >= 25, "{family:?}");
    rustix::process::kill_process(supervisor, rustix::process::Signal::KILL).unwrap();
    eventually("everything is gone", || !family.iter().any(|pid| Host::is_alive(*pid))).await;
    // The next one sweeps the groups; `end` looks.
    assert_eq!(host.provider.list().await.unwrap(), []);
    eventually("no container is left", || host.containers().is_empty()).await;
    let groups = std::fs::read_to_string(host.data().join("supervisor/control-groups")).unwrap();
    let left = groups.lines().flat_map(std::fs::read_dir).flatten().flatten();
    assert_eq!(left.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).count(), 0);
    host.end().await;
}

#[tokio::test]
async fn attack_24_a_sandbox_that_is_being_built_dies_with_the_supervisor_too() {
    let host = Host::new();
    host.report().await;
    // A container takes a hundred times as long to make, and so do the steps in which it can be met.
    let (rounds, scale) = if host.has_containers() { (3, 100) } else { (10, 1) };
    for delay in 0..rounds {
        let supervisor = host.supervisor();
        let resources = Resources::default();
        let id = crate::host::fresh_id();
        let provision = host.provider.provision(&id, 1, &resources);
        let kill = async {
            tokio::time::sleep(std::time::Duration::from_micros(delay * 700 * scale)).await;
            let family = host.family();
            rustix::process::kill_process(supervisor, rustix::process::Signal::KILL).unwrap();
            family
        };
        let (_, family) = tokio::join!(provision, kill);
        eventually("everything is gone", || !family.iter().any(|pid| Host::is_alive(*pid))).await;
        let _ = host.provider.list().await.unwrap();
    }
    host.end().await;
}
