//! The processes under test: two doors and three brains, each with a line of its own to the database.

use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use client::Client;
use rand::rngs::SmallRng;
use rand::seq::IteratorRandom as _;
use rustix::process::{Pid, Signal, kill_process};
use testkit::cut::CutProxy;
use testkit::postgres::Cluster;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Child;
use tokio::sync::watch;

use crate::server::{KEY, posthouse, signal};

const DOORS: usize = 2;
const BRAINS: usize = 3;
/// How long a process may try to start: the database may be away for a part of it.
const START_MAX: Duration = Duration::from_secs(60);
/// How long a process that is told to stop may take.
const STOP_MAX: Duration = Duration::from_secs(30);
const START_PAUSE: Duration = Duration::from_millis(300);
const LOG_LINES_SHOWN: usize = 20;

/// What a process is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Door,
    Brain,
}

/// All processes.
pub(super) struct Fleet {
    dir: PathBuf,
    processes: Vec<Process>,
    doors: watch::Sender<Vec<Option<Door>>>,
    wrongs: Vec<String>,
}

struct Process {
    kind: Kind,
    name: String,
    starts: u32,
    proxy: CutProxy,
    database: String,
    child: Option<Child>,
    is_frozen: bool,
}

/// A process that answers clients.
#[derive(Clone)]
pub(super) struct Door {
    pub(super) url: String,
    pub(super) client: Client,
}

/// Where clients find the doors that are open.
#[derive(Clone)]
pub(super) struct Doors(watch::Receiver<Vec<Option<Door>>>);

impl Doors {
    /// One of those that are open, other than `not` if there is another; waits while there is none.
    pub(super) async fn pick(&mut self, random: &mut SmallRng, not: Option<&str>) -> Door {
        let doors =
            self.0.wait_for(|doors| doors.iter().any(Option::is_some)).await.expect("the fleet is there");
        let open = || doors.iter().flatten();
        let other = open().filter(|door| Some(door.url.as_str()) != not).choose(random);
        other.or_else(|| open().next()).cloned().expect("one is open")
    }
}

impl Fleet {
    pub(super) async fn start(dir: &Path, cluster: &Cluster) -> Self {
        let database = cluster.database();
        let target = SocketAddr::from(([127, 0, 0, 1], cluster.port()));
        let kinds = [vec![Kind::Door; DOORS], vec![Kind::Brain; BRAINS]].concat();
        let mut processes = Vec::new();
        for (index, kind) in kinds.into_iter().enumerate() {
            let proxy = CutProxy::start(target).await.expect("it listens");
            let database = proxy.url(&database);
            let name = format!("{kind:?}-{index}").to_lowercase();
            processes.push(Process { kind, name, starts: 0, proxy, database, child: None, is_frozen: false });
        }
        let doors = watch::Sender::new(vec![None; DOORS]);
        let mut fleet = Self { dir: dir.to_owned(), processes, doors, wrongs: Vec::new() };
        for index in 0..fleet.processes.len() {
            fleet.start_one(index).await;
        }
        fleet
    }

    pub(super) fn doors(&self) -> Doors {
        Doors(self.doors.subscribe())
    }

    /// The places of the processes of a kind that run.
    pub(super) fn running(&self, kind: Kind) -> Vec<usize> {
        let running =
            |process: &Process| process.kind == kind && process.child.is_some() && !process.is_frozen;
        (0..self.processes.len()).filter(|index| running(&self.processes[*index])).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.processes.len()
    }

    pub(super) fn proxy(&self, index: usize) -> &CutProxy {
        &self.processes[index].proxy
    }

    /// Starts a process, again and again while the database is away, as whoever keeps servers running does.
    pub(super) async fn start_one(&mut self, index: usize) {
        let began = Instant::now();
        loop {
            match self.try_start(index).await {
                Ok(url) => {
                    if self.processes[index].kind == Kind::Door {
                        let client = Client::new(&url, KEY).expect("a valid address");
                        self.doors.send_modify(|doors| doors[index] = Some(Door { url, client }));
                    }
                    return;
                }
                Err(log) if began.elapsed() > START_MAX => {
                    panic!("{} does not start: {}", self.processes[index].name, tail(&log));
                }
                Err(_) => tokio::time::sleep(START_PAUSE).await,
            }
        }
    }

    /// Gives its address, or the log of one that ended at once.
    async fn try_start(&mut self, index: usize) -> Result<String, PathBuf> {
        let process = &mut self.processes[index];
        process.starts += 1;
        let log = self.dir.join(format!("{}.{}.log", process.name, process.starts));
        let role = match process.kind {
            Kind::Door => "api",
            Kind::Brain => "brain,background",
        };
        let file = std::fs::File::create(&log).expect("can be made");
        let mut child = posthouse()
            .args(["serve", "--listen", "127.0.0.1:0", "--log", "info", "--role", role])
            .args(["--database", &process.database, "--drain-delay", "0", "--data-dir"])
            .arg(&self.dir)
            .env("POSTHOUSE_API_KEY", KEY)
            .stdout(Stdio::piped())
            .stderr(file)
            .spawn()
            .expect("the binary starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if let Some((_, url)) = line.split_once("listens on ") {
                process.child = Some(child);
                return Ok(url.to_owned());
            }
        }
        // What it says on its standard output ended, so it ended.
        let _ = child.wait().await;
        Err(log)
    }

    /// SIGKILL, also for one that is frozen.
    pub(super) async fn kill(&mut self, index: usize) {
        self.close_door(index);
        let process = &mut self.processes[index];
        process.is_frozen = false;
        let mut child = process.child.take().expect("it runs");
        child.kill().await.expect("it is a child of ours");
    }

    /// SIGTERM, and waits for its end, which has to be peaceful.
    pub(super) async fn terminate(&mut self, index: usize) {
        self.close_door(index);
        let process = &mut self.processes[index];
        let mut child = process.child.take().expect("it runs");
        signal(&child, Signal::TERM);
        match tokio::time::timeout(STOP_MAX, child.wait()).await {
            Ok(status) => {
                let status = status.expect("it is a child of ours");
                if !status.success() {
                    let log = self.log(index);
                    self.wrongs.push(format!(
                        "{} was told to stop and ended with {status}: {}",
                        self.processes[index].name,
                        tail(&log)
                    ));
                }
            }
            Err(_) => {
                let log = self.log(index);
                self.wrongs.push(format!(
                    "{} was told to stop and did not: {}",
                    self.processes[index].name,
                    tail(&log)
                ));
                child.kill().await.expect("it is a child of ours");
            }
        }
    }

    /// SIGSTOP.
    pub(super) fn freeze(&mut self, index: usize) {
        let process = &mut self.processes[index];
        signal(process.child.as_ref().expect("it runs"), Signal::STOP);
        process.is_frozen = true;
    }

    /// SIGCONT.
    pub(super) fn thaw(&mut self, index: usize) {
        let process = &mut self.processes[index];
        if std::mem::take(&mut process.is_frozen) {
            signal(process.child.as_ref().expect("it is frozen"), Signal::CONT);
        }
    }

    /// Kills the supervisor, and with it every sandbox.
    pub(super) fn kill_supervisor(&self) {
        for pid in self.supervisors() {
            // It may end by itself while we look.
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    /// Kills one sandbox.
    pub(super) fn kill_sandbox(&self, random: &mut SmallRng) {
        let supervisors = self.supervisors();
        let sandboxes =
            processes().filter(|(_, parent, _)| supervisors.contains(parent)).map(|(pid, _, _)| pid);
        if let Some(pid) = sandboxes.choose(random) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    /// Those of this fleet's folder: one, or for a moment two.
    fn supervisors(&self) -> Vec<Pid> {
        let end = format!("\0supervisor\0--data-dir\0{}\0", self.dir.display());
        let ours = |command: &str| command.ends_with(&end);
        processes().filter(|(_, _, command)| ours(command)).map(|(pid, _, _)| pid).collect()
    }

    /// Notes who ended without being told, and starts them again.
    pub(super) async fn look(&mut self) {
        for index in 0..self.processes.len() {
            let Some(child) = self.processes[index].child.as_mut() else { continue };
            let Some(status) = child.try_wait().expect("it is a child of ours") else { continue };
            self.close_door(index);
            let log = self.log(index);
            self.processes[index].child = None;
            let how = status.signal().map_or(status.to_string(), |signal| format!("signal {signal}"));
            self.wrongs.push(format!(
                "{} ended by itself, {how}: {}",
                self.processes[index].name,
                tail(&log)
            ));
            self.processes[index].proxy.heal().await;
            self.start_one(index).await;
        }
    }

    /// Everybody runs, and every line is whole.
    pub(super) async fn put_right(&mut self) {
        for index in 0..self.processes.len() {
            self.processes[index].proxy.heal().await;
            self.thaw(index);
        }
        self.look().await;
        for index in 0..self.processes.len() {
            if self.processes[index].child.is_none() {
                self.start_one(index).await;
            }
        }
    }

    /// Ends all in peace.
    pub(super) async fn stop(&mut self) {
        self.look().await;
        for index in 0..self.processes.len() {
            self.terminate(index).await;
        }
    }

    /// What the processes did that they must not do.
    pub(super) fn take_wrongs(&mut self) -> Vec<String> {
        for process in &self.processes {
            for start in 1..=process.starts {
                let log = self.dir.join(format!("{}.{start}.log", process.name));
                let text = std::fs::read_to_string(&log).unwrap_or_default();
                self.wrongs.extend(
                    text.lines()
                        .filter(|line| line.contains("panicked"))
                        .map(|line| format!("{} panicked: {line}", process.name)),
                );
            }
        }
        std::mem::take(&mut self.wrongs)
    }

    fn close_door(&mut self, index: usize) {
        if self.processes[index].kind == Kind::Door {
            self.doors.send_modify(|doors| doors[index] = None);
        }
    }

    fn log(&self, index: usize) -> PathBuf {
        let process = &self.processes[index];
        self.dir.join(format!("{}.{}.log", process.name, process.starts))
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // It would wait a while for other servers, and hundreds of sandboxes with it.
        self.kill_supervisor();
    }
}

/// Every process of this machine: its id, its parent's, and its command.
fn processes() -> impl Iterator<Item = (Pid, Pid, String)> {
    let read = |entry: std::fs::DirEntry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        // `1 (name) state parent …`, and a name may hold anything.
        let parent: i32 = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
        let command = std::fs::read(entry.path().join("cmdline")).ok()?;
        let command = String::from_utf8_lossy(&command).into_owned();
        Some((Pid::from_raw(pid)?, Pid::from_raw(parent)?, command))
    };
    std::fs::read_dir("/proc").expect("there is one").filter_map(Result::ok).filter_map(read)
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(LOG_LINES_SHOWN).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n  ")
}
