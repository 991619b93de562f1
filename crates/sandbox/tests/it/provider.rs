//! The contract, kept by the sandboxes of namespaces.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex};

use sandbox::{Error, ExitNews, Limits, Resources, SandboxId, conformance};

use crate::host::{Host, fresh_id};

#[tokio::test]
async fn sandboxes_of_namespaces_keep_the_contract() {
    let host = Host::new();
    conformance::suite(&*host.provider, "suite").await;
    conformance::exits_suite(&*host.provider, "suite").await;
    let authority = egress::Authority::from_seed("suite", &[1; 32]).unwrap();
    conformance::equipment_suite(&*host.provider, "suite", authority.certificate()).await;
    let tree = crate::host::tree();
    conformance::trees_suite(&*host.provider, "suite", &tree.path().join("archive")).await;
    conformance::snapshots_suite(&*host.provider, "suite").await;
    host.end().await;
}

#[tokio::test]
async fn a_sandbox_with_a_network_is_told_of_its_exit_and_of_whom_the_host_trusts() {
    let host = Host::new();
    let network = Some(sandbox::Network("anything".to_owned()));
    let sandbox = host.sandbox(Resources { network, ..Resources::default() }).await;
    let told =
        sandbox.bash("echo $http_proxy $HTTPS_PROXY $no_proxy; test -z $PIP_CERT || test -r $PIP_CERT");
    assert_eq!(told.await, "http://127.0.0.1:3128 http://127.0.0.1:3128 localhost,127.0.0.1,::1");
    let alone = host.sandbox(Resources::default()).await;
    assert_eq!(alone.bash("env | grep -ic proxy").await, "0");
    host.end().await;
}

#[tokio::test]
async fn a_runtime_is_for_containers_and_refused_elsewhere() {
    let host = Host::new();
    let runtime = Some("runsc".to_owned());
    let refused =
        host.provider.provision(&fresh_id(), 1, &Resources { runtime, ..Resources::default() }).await;
    let reason = if host.has_containers() { "[sandbox.docker] runtimes" } else { "provider = \"docker\"" };
    assert!(matches!(&refused, Err(Error::Refused { reason: said }) if said.contains(reason)), "{refused:?}");
    host.end().await;
}

#[tokio::test]
async fn exits_come_from_the_next_supervisor_too() {
    let host = Host::new();
    let mut exits = host.provider.exits();
    let resources = Resources { network: Some(sandbox::Network("x".to_owned())), ..Resources::default() };
    let first = host.sandbox(resources.clone()).await;
    let is_opened =
        |news, wanted: &SandboxId| matches!(news, Some(ExitNews::Opened(exit)) if exit.sandbox == *wanted);
    assert!(is_opened(exits.next().await, &first.id));
    host.provider.end().await.expect("it ends");
    assert!(matches!(exits.next().await, Some(ExitNews::Ended(sandbox)) if sandbox == first.id));
    let second = host.sandbox(resources).await;
    assert!(is_opened(exits.next().await, &second.id));
    host.end().await;
}

#[tokio::test]
async fn the_working_folder_and_the_tools_are_where_an_agent_expects_them() {
    let host = Host::new();
    let sandbox = host.sandbox(Resources::default()).await;
    if host.has_containers() {
        let told = sandbox
            .bash("pwd; hostname; echo $HOME; test $(id -u) != 0 && touch ~/x /workspace/x && stat -c %u x")
            .await;
        assert_eq!(told, format!("/workspace\nsandbox\n/home/agent\n{}", sandbox.bash("id -u").await));
        let folders = sandbox.bash("ls -d /mnt/session/outputs /mnt/session/uploads /tmp").await;
        assert_eq!(folders.lines().count(), 3);
        return host.end().await;
    }
    assert_eq!(sandbox.bash("pwd; id -u; hostname; echo $HOME").await, "/workspace\n0\nsandbox\n/root");
    assert_eq!(sandbox.bash("ls -d /mnt/session/outputs /mnt/session/uploads /tmp").await.lines().count(), 3);
    let written = sandbox.bash("echo x > /usr/local/bin/x && echo y > /etc/y && echo z > /tmp/z && rm /usr/bin/env && cat /usr/local/bin/x");
    assert_eq!(written.await, "x");
    assert!(std::path::Path::new("/usr/bin/env").exists(), "the host keeps its own");
    assert_eq!(sandbox.bash("getent hosts example.com || echo unknown at once").await, "unknown at once");
    host.end().await;
}

#[tokio::test]
async fn limits_that_make_no_sense_are_refused() {
    let host = Host::new();
    let limits = Limits { processes: 1, ..Limits::default() };
    let refused =
        host.provider.provision(&fresh_id(), 1, &Resources { limits, ..Resources::default() }).await;
    assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
    host.end().await;
}

#[tokio::test]
async fn a_mounted_folder_can_be_read_and_not_written() {
    use sandbox::{Access, Mount};
    let host = Host::new();
    let folder = host.open_folder();
    std::fs::write(folder.path().join("file"), "hello").unwrap();
    let mount =
        |inside: &str, access| Mount { host: folder.path().to_owned(), inside: inside.into(), access };
    let mounts = vec![mount("/data/deep", Access::ReadOnly)];
    let sandbox = host.sandbox(Resources { mounts, ..Resources::default() }).await;
    assert_eq!(sandbox.bash("cat /data/deep/file").await, "hello");
    let refused = sandbox.bash("echo x > /data/deep/file || echo refused").await;
    assert!(refused.ends_with("refused"), "{refused}");
    let over_proc = Resources { mounts: vec![mount("/proc", Access::ReadOnly)], ..Resources::default() };
    assert!(host.provider.provision(&fresh_id(), 1, &over_proc).await.is_err());
    host.end().await;
}

#[tokio::test]
async fn a_host_name_of_its_own_is_known_inside() {
    let host = Host::new();
    let sandbox = host.sandbox(Resources { hostname: "build-7".to_owned(), ..Resources::default() }).await;
    assert_eq!(
        sandbox.bash("hostname; echo $(cat /etc/hostname); getent hosts build-7 | wc -l").await,
        "build-7\nbuild-7\n1"
    );
    host.end().await;
}

#[tokio::test]
async fn many_files_and_large_ones_are_collected_whole() {
    let host = Host::new();
    let sandbox = host.sandbox(Resources::default()).await;
    let make = "cd /mnt/session/outputs && mkdir -p a/b && head -c 9000000 /dev/urandom > a/b/large && : > empty \
        && ln -s /etc/passwd link && mkfifo pipe && sha256sum a/b/large | cut -c-64";
    let sum = sandbox.bash(make).await;
    let into = tempfile::tempdir().unwrap();
    let mut collected = host.provider.collect_outputs(&sandbox.id, into.path()).await.unwrap();
    collected.sort_by(|one, other| one.path.cmp(&other.path));
    let paths: Vec<_> = collected.iter().map(|file| (file.path.to_str().unwrap(), file.size_bytes)).collect();
    assert_eq!(paths, [("a/b/large", 9_000_000), ("empty", 0)]);
    let copied = std::process::Command::new("sha256sum").arg(into.path().join("a/b/large")).output().unwrap();
    assert!(String::from_utf8(copied.stdout).unwrap().starts_with(&sum));
    host.end().await;
}

#[tokio::test]
async fn only_what_changed_is_copied_again() {
    let host = Host::new();
    let sandbox = host.sandbox(Resources::default()).await;
    let old = "touch -d 2020-01-01T00:00:00.5 same changed";
    sandbox.bash(&format!("cd /mnt/session/outputs && echo one | tee same changed && {old}")).await;
    let into = tempfile::tempdir().unwrap();
    let collect = async || {
        let mut collected = host.provider.collect_outputs(&sandbox.id, into.path()).await.unwrap();
        collected.sort_by(|one, other| one.path.cmp(&other.path));
        collected
    };
    let inode = |name: &str| fs::metadata(into.path().join(name)).unwrap().ino();
    let first = collect().await;
    let (same, changed) = (inode("same"), inode("changed"));

    sandbox.bash("echo two > /mnt/session/outputs/changed").await;
    assert_eq!(collect().await, first, "all is told, copied or not");
    assert_eq!(inode("same"), same);
    assert_ne!(inode("changed"), changed);
    assert_eq!(fs::read_to_string(into.path().join("same")).unwrap(), "one\n");
    assert_eq!(fs::read_to_string(into.path().join("changed")).unwrap(), "two\n");

    // What is no longer there is brought again.
    fs::remove_file(into.path().join("same")).unwrap();
    assert_eq!(collect().await, first);
    assert_eq!(fs::read_to_string(into.path().join("same")).unwrap(), "one\n");
    host.end().await;
}

#[tokio::test]
async fn what_is_too_much_to_collect_is_told() {
    let host = Host::new();
    let sandbox = host.sandbox(Resources::default()).await;
    sandbox.bash("cd /mnt/session/outputs && seq 1001 | xargs touch && touch $'0\\n1'").await;
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(log.clone()).finish();
    let told = tracing::subscriber::set_default(subscriber);
    let into = tempfile::tempdir().unwrap();
    let collected = host.provider.collect_outputs(&sandbox.id, into.path()).await.unwrap();
    drop(told);
    assert_eq!((collected.len(), fs::read_dir(into.path()).unwrap().count()), (999, 999));
    let log = log.text();
    for expected in
        ["not all deliverables were copied", "files.copied=999 ", "files.left_out=1 ", "files.unlisted=true"]
    {
        assert!(log.contains(expected), "{expected}: {log}");
    }
    host.end().await;
}

/// What is logged, kept.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl tracing_subscriber::fmt::MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}
