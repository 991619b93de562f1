//! The process: it outlives servers, nothing outlives it, and there is one of it.

use std::fs;
use std::time::Duration;

use sandbox::{Error, Limits, Program, Provider, Resources, Settings, Supervised};

use crate::host::{Host, Stopped, call, eventually, fresh_id, text};

#[tokio::test]
async fn a_call_goes_on_when_its_server_dies_and_another_gets_its_output() {
    let host = Host::new();
    let sandbox = host.sandbox(Resources::default()).await;
    let call = sandbox.call("bash", serde_json::json!({"command": "echo ran >> runs; sleep 1; cat runs"}));
    let asked = tokio::time::timeout(Duration::from_millis(300), host.provider.execute(call.clone())).await;
    assert!(asked.is_err(), "it still runs");
    let second = host.another();
    assert_eq!(text(&second.execute(call).await.unwrap()), "ran");
    host.end().await;
}

#[tokio::test]
async fn a_server_that_comes_back_finds_its_sandboxes() {
    let mut host = Host::new();
    let id = fresh_id();
    host.provider.provision(&id, 1, &Resources::default()).await.unwrap();
    let pid = host.supervisor();
    host.reconnect();
    assert_eq!(
        host.provider.list().await.unwrap().iter().map(|info| info.id.clone()).collect::<Vec<_>>(),
        [id]
    );
    assert_eq!(host.supervisor(), pid);
    host.end().await;
}

#[tokio::test]
async fn sandboxes_die_with_a_supervisor_that_is_killed() {
    let host = Host::new();
    let sandbox = host.sandbox(Resources::default()).await;
    sandbox.bash("setsid sleep 5555 >/dev/null 2>&1 &").await;
    let supervisor = host.supervisor();
    let family = host.family();
    assert!(family.len() >= 3, "tools, bash and sleep: {family:?}");
    let running = sandbox.try_bash("sleep 600");
    let kill = async { rustix::process::kill_process(supervisor, rustix::process::Signal::KILL).unwrap() };
    let (lost, ()) = tokio::join!(running, kill);
    assert!(matches!(lost, Err(Error::Gone { .. })), "{lost:?}");
    eventually("every process of the sandbox is gone", || !family.iter().any(|pid| Host::is_alive(*pid)))
        .await;
    // A new supervisor has taken its place and swept up.
    assert_ne!(host.supervisor(), supervisor);
    assert_eq!(host.provider.list().await.unwrap(), []);
    let another = host.sandbox(Resources::default()).await;
    assert_eq!(another.bash("echo fresh").await, "fresh");
    host.end().await;
}

#[tokio::test]
async fn nobody_waits_for_ever_for_a_supervisor_that_is_stopped() {
    let host = Host::new();
    let sandbox = host.sandbox(Resources::default()).await;
    let (id, into) = (&sandbox.id, tempfile::tempdir().unwrap());
    let connected = host.impatient();
    connected.list().await.unwrap();
    let stopped = Stopped::stop([host.supervisor()]);
    // First with a connection, then without one.
    for provider in [&connected, &connected, &host.impatient()] {
        let call = sandbox::Call {
            timeout: Duration::from_millis(200),
            ..call(id, "bash", serde_json::json!({"command": "echo hi"}))
        };
        let resources = Resources::default();
        let fresh = fresh_id();
        let asked = async {
            tokio::join!(
                async { provider.provision(&fresh, 1, &resources).await.err() },
                async { provider.execute(call).await.err() },
                async { provider.cancel(id, 1, "call").await.err() },
                async { provider.collect_outputs(id, into.path()).await.err() },
                async { provider.destroy(&fresh).await.err() },
                async { provider.list().await.err() },
                async { provider.report().await.err() },
            )
        };
        let (a, b, c, d, e, f, g) = tokio::time::timeout(Duration::from_secs(15), asked).await.unwrap();
        for error in [a, b, c, d, e, f, g] {
            assert!(matches!(error, Some(Error::Unavailable { .. })), "{error:?}");
        }
    }
    // When it goes on, so does the server that gave its connection up.
    drop(stopped);
    let answered = async { while connected.list().await.is_err() {} };
    tokio::time::timeout(Duration::from_secs(15), answered).await.unwrap();
    assert_eq!(sandbox.bash("echo still here").await, "still here");
    host.end().await;
}

#[tokio::test]
async fn a_slow_sandbox_does_not_cost_the_others_their_connection() {
    let host = Host::new();
    let slow = host.sandbox(Resources::default()).await;
    let stopped = Stopped::stop(host.family());
    let quick = host.sandbox(Resources::default()).await;
    let impatient = host.impatient();
    let long = quick.call("bash", serde_json::json!({"command": "sleep 3; echo done"}));
    let collect = async {
        // More often than a call is asked again on a new connection.
        for _ in 0..4 {
            let into = tempfile::tempdir().unwrap();
            let collected = impatient.collect_outputs(&slow.id, into.path()).await;
            assert!(matches!(collected, Err(Error::Unavailable { .. })), "{collected:?}");
        }
        drop(stopped);
    };
    let (output, ()) = tokio::join!(impatient.execute(long), collect);
    assert_eq!(text(&output.unwrap()), "done");
    host.end().await;
}

#[tokio::test]
async fn a_supervisor_without_servers_ends_and_takes_its_sandboxes_along() {
    let mut host = Host::with_idle_exit(Duration::from_millis(300));
    let id = fresh_id();
    host.provider.provision(&id, 1, &Resources::default()).await.unwrap();
    let (supervisor, family) = (host.supervisor(), host.family());
    host.disconnect();
    eventually("it ends", || !Host::is_alive(supervisor) && !family.iter().any(|pid| Host::is_alive(*pid)))
        .await;
    let executed = host
        .provider
        .execute(crate::host::call(&id, "bash", serde_json::json!({"command": "echo hi"})))
        .await;
    assert!(matches!(executed, Err(Error::Gone { .. })), "{executed:?}");
    host.end().await;
}

#[tokio::test]
async fn a_supervisor_whose_data_directory_is_deleted_ends() {
    let mut host = Host::new();
    let id = fresh_id();
    host.provider.provision(&id, 1, &Resources::default()).await.unwrap();
    let (supervisor, family) = (host.supervisor(), host.family());
    fs::remove_dir_all(host.data()).unwrap();
    host.disconnect();
    eventually("it ends", || !Host::is_alive(supervisor) && !family.iter().any(|pid| Host::is_alive(*pid)))
        .await;
}

#[tokio::test]
async fn servers_that_start_at_once_share_one_supervisor() {
    let host = Host::new();
    let servers: Vec<_> = (0..8).map(|_| host.another()).collect();
    let mut reports = tokio::task::JoinSet::new();
    for server in servers {
        reports.spawn(async move { (server.report().await.map(|_| ()), server) });
    }
    let done = reports.join_all().await;
    assert!(
        done.iter().all(|(report, _)| report.is_ok()),
        "{:?}",
        done.iter().map(|(report, _)| report).collect::<Vec<_>>()
    );
    let id = fresh_id();
    done[0].1.provision(&id, 1, &Resources::default()).await.unwrap();
    for (_, server) in &done {
        assert_eq!(server.list().await.unwrap().len(), 1);
    }
    drop(done);
    host.end().await;
}

#[tokio::test]
async fn a_stale_socket_and_a_long_path_do_not_matter() {
    let parent = tempfile::tempdir().unwrap();
    let data = parent.path().join("x".repeat(200));
    fs::create_dir_all(data.join("supervisor")).unwrap();
    fs::write(data.join("supervisor/supervisor.sock"), "left over").unwrap();
    let host = Host::at(data, Some(parent));
    host.provider.report().await.unwrap();
    host.end().await;
}

#[tokio::test]
async fn the_folder_and_the_socket_are_closed_to_others() {
    use std::os::unix::fs::PermissionsExt;
    let host = Host::new();
    host.provider.report().await.unwrap();
    let mode = |name: &str| fs::metadata(host.data().join(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("supervisor"), mode("supervisor/supervisor.sock")), (0o700, 0o600));
    host.end().await;
}

#[tokio::test]
async fn the_supervisor_has_nothing_of_the_server() {
    let host = Host::new();
    host.provider.report().await.unwrap();
    let pid = host.supervisor().as_raw_nonzero();
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    assert_eq!(read("environ"), "", "a bare environment");
    assert_eq!(read("stat").split(' ').nth(5), Some(pid.to_string().as_str()), "a session of its own");
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let targets: Vec<_> = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok()).collect();
    let known = |target: &std::path::Path| {
        let target = target.to_string_lossy();
        ["/dev/null", "socket:", "anon_inode:", "/memfd:tools"].iter().any(|start| target.starts_with(start))
            || target.contains("supervisor/supervisor.")
    };
    assert!(targets.iter().all(|target| known(target)), "{targets:?}");
    host.end().await;
}

#[tokio::test]
async fn a_supervisor_of_another_version_is_retired_with_its_sandboxes() {
    // One that speaks an older version: it says so, and ends when it is told to.
    let host = Host::new();
    fs::create_dir_all(host.data().join("supervisor")).unwrap();
    let old = crate::host::OldSupervisor::start(&host.data().join("supervisor/supervisor.sock"));
    host.provider.report().await.unwrap();
    assert!(old.was_told_to_end());
    host.end().await;
}

#[tokio::test]
async fn a_supervisor_that_cannot_start_says_why() {
    let data = tempfile::tempdir().unwrap();
    let program = Program { path: "/nonexistent/posthouse".into(), arguments: Vec::new() };
    let provider = Supervised::new(Settings { program, ..Settings::new(data.path()) });
    let refused = provider.report().await;
    assert!(matches!(&refused, Err(Error::Unavailable { .. })), "{refused:?}");
}

#[tokio::test]
async fn a_sandbox_whose_first_process_is_killed_is_gone_and_says_so() {
    let host = Host::new();
    let sandbox = host.sandbox(Resources::default()).await;
    let first = host.family()[0];
    let kill = async { rustix::process::kill_process(first, rustix::process::Signal::KILL).unwrap() };
    let (lost, ()) = tokio::join!(sandbox.try_bash("sleep 600"), kill);
    assert_eq!(lost.unwrap_err().to_string(), "the sandbox is gone: its first process has ended");
    host.end().await;
}

#[tokio::test]
async fn a_machine_below_the_floor_gets_no_sandbox_and_learns_why() {
    // A namespace in which no other can be made stands for such a machine.
    let host = Host::new();
    let inner = host.program();
    let forbid = "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$0\" \"$@\"";
    let arguments = ["-Ur", "sh", "-c", forbid].map(Into::into).into_iter().chain([inner.into_os_string()]);
    let program = Program { path: "unshare".into(), arguments: arguments.collect() };
    let provider = Supervised::new(Settings { program, ..Settings::new(host.data()) });
    let report = provider.report().await.unwrap();
    assert_eq!(report.level, sandbox::doctor::Level::Unavailable, "{report}");
    let refused = provider.provision(&fresh_id(), 1, &Resources::default()).await.unwrap_err();
    assert!(matches!(refused, Error::Refused { .. }), "{refused}");
    assert!(
        refused.to_string().contains("user namespace") && refused.to_string().contains("max_user_namespaces"),
        "{refused}"
    );
    provider.end().await.unwrap();
}

#[tokio::test]
async fn the_report_says_what_holds_and_what_to_enable() {
    let host = Host::new();
    let report = host.report().await;
    for guard in &report.guards {
        assert!(guard.holds || !guard.how_to_enable.is_empty(), "{}", guard.name);
        assert!(report.to_string().contains(&guard.name));
    }
    let missing = report.guards.iter().filter(|guard| !guard.holds).count();
    assert_eq!(report.level == sandbox::doctor::Level::Full, missing == 0);
    host.end().await;
}

#[tokio::test]
async fn a_sandbox_that_idles_holds_few_descriptors_of_the_supervisor() {
    const SANDBOXES: usize = 16;
    let host = Host::new();
    // The first brings what all of them share.
    let first = host.sandbox(Resources::default()).await;
    first.bash("echo ready").await;
    let supervisor = host.supervisor().as_raw_nonzero();
    let held = || -> Vec<String> {
        let entries = fs::read_dir(format!("/proc/{supervisor}/fd")).unwrap().flatten();
        entries.filter_map(|entry| Some(fs::read_link(entry.path()).ok()?.display().to_string())).collect()
    };
    let before = held().len();
    let network = Some(sandbox::Network("x".to_owned()));
    for _ in 0..SANDBOXES {
        let resources = Resources { network: network.clone(), ..Resources::default() };
        host.sandbox(resources).await.bash("echo ready").await;
    }
    let after = held();
    // The process, the way to it, what it writes, and its exit.
    assert!(after.len() <= before + 4 * SANDBOXES, "{} after {before}: {after:#?}", after.len());
    // One that may have few open itself does not mind how many those are.
    let limits = Limits { open_files: 64, ..Limits::default() };
    assert!(after.len() > 64);
    let frugal = host.sandbox(Resources { limits, ..Resources::default() }).await;
    assert_eq!(frugal.bash("ulimit -n; ulimit -Hn").await, "64\n64");
    host.end().await;
}
