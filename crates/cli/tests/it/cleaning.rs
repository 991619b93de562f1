//! Nothing survives its session: processes, mounts, namespaces, control groups, descriptors and files are counted before
//! and after two hundred sessions, with servers and a supervisor that are killed in between.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use client::Client;
use protocol::session::Status;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::server::{KEY, Server, serve_at};

const SESSIONS: usize = 200;
/// At once; and after so many somebody is killed.
const ROUND: usize = 25;
/// How often the reaper looks.
const REAP_EVERY: Duration = Duration::from_secs(8);
/// What ended with its session goes at the reaper's first look; the rest is for a machine that has other things to do.
const GONE_BY: Duration = Duration::from_secs(30);
/// By then a server or a supervisor that was killed is there again.
const PATIENCE: Duration = Duration::from_secs(90);

const CONFIG: &str = r#"
[[provider]]
name = "script"
kind = "scripted"
models = ["script"]

[provider.script]
on_end = "repeat"

[[provider.script.replies]]
blocks = [{ tool = "bash", input = { command = "mkdir -p a/b; head -c 100000 /dev/zero > a/b/c; sleep 1000 & echo $!" } }]

[[provider.script.replies]]
blocks = [{ text = "done" }]
"#;

/// What a data directory's servers and sandboxes take of a machine.
#[derive(Debug, PartialEq, Eq)]
struct Taken {
    processes: usize,
    mounts: usize,
    namespaces: usize,
    groups: usize,
    server_descriptors: usize,
    supervisor_descriptors: usize,
    files: usize,
}

impl Taken {
    fn count(data: &Path, server: u32) -> Self {
        let supervisor = supervisor(data).expect("a supervisor runs");
        let family = family(supervisor);
        let namespaces: BTreeSet<PathBuf> = family.iter().filter_map(|pid| link(*pid, "ns/net")).collect();
        let mounts = fs::read_to_string(format!("/proc/{supervisor}/mountinfo")).expect("readable");
        let recorded = fs::read_to_string(data.join("supervisor/control-groups")).unwrap_or_default();
        Self {
            processes: family.len(),
            mounts: mounts.lines().filter(|line| line.contains(&*data.to_string_lossy())).count(),
            namespaces: namespaces.len(),
            // One group may be ready for the next sandbox in each hierarchy; what is below that is a sandbox's.
            groups: recorded.lines().map(|folder| below(Path::new(folder)).saturating_sub(1)).sum(),
            server_descriptors: descriptors(server),
            supervisor_descriptors: descriptors(supervisor),
            files: entries(&data.join("supervisor")),
        }
    }

    /// Whether nothing is left over what there was: fewer of something is no loss.
    fn is_within(&self, before: &Self) -> bool {
        let Self { processes, mounts, namespaces, groups, server_descriptors, supervisor_descriptors, files } =
            self;
        *processes <= before.processes
            && *mounts <= before.mounts
            && *namespaces <= before.namespaces
            && *groups <= before.groups
            // A few connections come and go.
            && *server_descriptors <= before.server_descriptors + 8
            && *supervisor_descriptors <= before.supervisor_descriptors + 2
            && *files <= before.files
    }
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").expect("readable").flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn link(pid: u32, name: &str) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/{name}")).ok()
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(1)?.parse().ok()
}

/// The supervisor of a data directory: it works in a folder below it, as do those of its children that have no program of
/// their own yet.
fn supervisor(data: &Path) -> Option<u32> {
    let work = data.join("supervisor/work").canonicalize().ok()?;
    let works_there = |pid: u32| link(pid, "cwd").as_deref() == Some(&work);
    pids().find(|pid| {
        works_there(*pid) && parent(*pid).is_some_and(|parent| parent != 0 && !works_there(parent))
    })
}

fn family(root: u32) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = pids().filter_map(|pid| Some((pid, parent(pid)?))).collect();
    let mut family = vec![root];
    let mut next = 0;
    while next < family.len() {
        let of = family[next];
        family.extend(parents.iter().filter(|(_, parent)| *parent == of).map(|(pid, _)| *pid));
        next += 1;
    }
    family
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Folders below this one.
fn below(folder: &Path) -> usize {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries.flatten().filter(|entry| entry.path().is_dir()).map(|entry| 1 + below(&entry.path())).sum()
}

fn entries(folder: &Path) -> usize {
    let Ok(entries_here) = fs::read_dir(folder) else { return 0 };
    let count = |path: PathBuf| if path.is_dir() { 1 + entries(&path) } else { 1 };
    entries_here.flatten().map(|entry| count(entry.path())).sum()
}

/// Asks until there is an answer: servers come and go.
async fn patiently<T, Asked: Future<Output = Result<T, client::Error>>>(ask: impl Fn() -> Asked) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(error) => assert!(Instant::now() < deadline, "no answer: {error}"),
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// One session, to its rest; gives its id.
async fn live(client: Client, agent: String, environment: String) -> String {
    let body = json!({"agent": agent, "environment_id": environment});
    let session = patiently(|| client.create_session(body.clone())).await.id.to_string();
    patiently(|| client.send_message(&session, "go")).await;
    while patiently(|| client.get_session(&session)).await.status != Status::Idle {
        sleep(Duration::from_millis(50)).await;
    }
    session
}

/// Its client archives or deletes it.
async fn go(client: &Client, session: &str, number: usize) {
    match number % 2 {
        0 => client.archive_session(session).await.map(drop).expect("archived"),
        _ => client.delete_session(session).await.map(drop).expect("deleted"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_of_two_hundred_sessions_and_of_those_who_were_killed() {
    let dir = tempfile::tempdir().expect("a folder");
    fs::write(dir.path().join("posthouse.toml"), CONFIG).expect("written");
    let variables = [("POSTHOUSE_REAP_EVERY", REAP_EVERY.as_secs().to_string())];
    let mut server = Server::start(dir.path(), &variables).await;
    let address = server.url.trim_start_matches("http://").to_owned();
    let client = server.client();
    let agent = json!({"name": "a", "model": "script", "tools": [{"type": "agent_toolset_20260401"}]});
    let agent = client.create_agent(agent).await.expect("made").id.to_string();
    let environment = client.create_environment(json!({"name": "e"})).await.expect("made").id.to_string();

    // The first session brings what stays: the supervisor, its connections, the database's files.
    let first = live(client.clone(), agent.clone(), environment.clone()).await;
    go(&client, &first, 0).await;
    let deadline = Instant::now() + GONE_BY;
    while family(supervisor(dir.path()).expect("it runs")).len() > 1 && Instant::now() < deadline {
        sleep(Duration::from_millis(100)).await;
    }
    let before = Taken::count(dir.path(), server.child.id().expect("it runs"));
    assert_eq!(before.processes, 1, "the supervisor alone: {before:?}");

    for round in 0..SESSIONS / ROUND {
        let mut sessions = tokio::task::JoinSet::new();
        for _ in 0..ROUND {
            sessions.spawn(live(client.clone(), agent.clone(), environment.clone()));
        }
        let mut rested = Vec::new();
        while let Some(session) = sessions.join_next().await {
            rested.push(session.expect("it came to its end"));
            // While others are at work.
            match (rested.len() == ROUND / 3, round % 3) {
                (true, 0) => {
                    server.child.kill().await.expect("killed");
                    let mut command = serve_at(&address, dir.path());
                    command.env("POSTHOUSE_API_KEY", KEY).envs(variables.clone());
                    server = Server::greet(command).await.0;
                }
                (true, 1) => {
                    let pid = supervisor(dir.path()).expect("it runs");
                    let pid = Pid::from_raw(pid.cast_signed()).expect("a process id");
                    kill_process(pid, Signal::KILL).expect("killed");
                }
                (true, _) | (false, _) => {}
            }
        }
        for (number, session) in rested.iter().enumerate() {
            go(&client, session, number).await;
        }
    }

    // A last one, so that there is a supervisor to be looked at.
    let last = live(client.clone(), agent, environment).await;
    go(&client, &last, 1).await;
    // And with it the connections that it keeps for later.
    drop(client);
    // The last supervisor was killed after the last server: what nobody had recorded has gone with it.
    let deadline = Instant::now() + GONE_BY;
    loop {
        let after = Taken::count(dir.path(), server.child.id().expect("it runs"));
        if after.is_within(&before) {
            break;
        }
        assert!(Instant::now() < deadline, "left over: {after:?}, before: {before:?}");
        sleep(Duration::from_millis(250)).await;
    }
}
