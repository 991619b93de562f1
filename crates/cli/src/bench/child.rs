//! A `posthouse serve` in a process of its own: started, timed, looked at from outside.
//!
//! For what can only be seen so: a process's memory, its start, its death. The models are scripted; everything else is
//! as for anybody who runs the server.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use client::Client;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

const CONFIG: &str = "posthouse.toml";

/// The scripted model that answers a line at once, however long the conversation is.
pub(super) const MODEL: &str = "bench";
/// The one that thinks for as long as [`WORK`] before it says a line.
pub(super) const SLOW_MODEL: &str = "bench-slow";
/// The one that runs a command which takes as long as [`WORK`], then says a line.
pub(super) const TOOL_MODEL: &str = "bench-tool";

/// How long work takes that is to be interrupted: so long that hundreds of sessions are in the middle of theirs at the
/// same moment, and shorter than the lease of a process that dies.
pub(super) const WORK: Duration = Duration::from_secs(6);

/// The configuration of a server with these models.
fn config() -> String {
    let say = r#"{ blocks = [{ text = "That is all there is to say." }] }"#;
    let work_ms = WORK.as_millis();
    let run = format!(
        r#"{{ blocks = [{{ tool = "bash", input = {{ command = "sleep {}" }} }}] }}"#,
        WORK.as_secs()
    );
    let slow = format!(r#"first_token = {{ kind = "fixed", ms = {work_ms} }}, "#);
    let providers = [
        (MODEL, say.to_owned(), ""),
        (SLOW_MODEL, say.to_owned(), slow.as_str()),
        (TOOL_MODEL, format!("{run}, {say}"), ""),
    ];
    let table = |(model, replies, timing): (&str, String, &str)| {
        format!(
            "[[provider]]\nname = \"{model}\"\nkind = \"scripted\"\nmodels = [\"{model}\"]\n\
             script = {{ replies = [{replies}], {timing}on_end = \"repeat\" }}\n\n"
        )
    };
    providers.map(table).concat()
}

/// Where a server works and how it is spoken to.
#[derive(Clone)]
pub(super) struct Ground {
    data: PathBuf,
    key: String,
    database: Option<String>,
}

/// A server that runs. Killed when it is dropped.
pub(super) struct Served {
    pub(super) client: Client,
    /// From the start of the program to its first answered request.
    pub(super) started: Duration,
    process: Process,
}

/// A process of a server. Killed when it is dropped.
pub(super) struct Process(Child);

/// The memory of a process, in bytes, as far as it is resident.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Memory {
    /// Its own: heap and stacks.
    pub(super) anonymous: u64,
    /// Pages of the database that it has mapped, and of the index of its write-ahead log. They belong to the system's
    /// page cache and are given up when somebody needs memory. A page that two connections have mapped counts twice.
    pub(super) database: u64,
    /// Pages of its program and libraries.
    pub(super) program: u64,
}

impl Memory {
    /// What most tools show.
    pub(super) fn resident(&self) -> u64 {
        self.anonymous + self.database + self.program
    }
}

impl Ground {
    /// A data directory, and the configuration of a server on it.
    pub(super) fn prepare(data: PathBuf) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&data)?;
        std::fs::write(data.join(CONFIG), config())?;
        Ok(Self { data, key: crate::keys::mint(), database: None })
    }

    /// The same on a PostgreSQL database, in which many processes meet.
    pub(super) fn on_database(self, url: &str) -> Self {
        Self { database: Some(url.to_owned()), ..self }
    }

    pub(super) fn data(&self) -> &Path {
        &self.data
    }

    /// Starts a server, and returns as soon as it has answered a request that needs the store.
    pub(super) async fn start(&self) -> anyhow::Result<Served> {
        self.serve(&[]).await
    }

    /// Starts a process that does nothing but answer clients.
    pub(super) async fn start_api(&self) -> anyhow::Result<Served> {
        self.serve(&["--role", "api"]).await
    }

    /// Starts a process that does nothing but drive sessions, and returns when it does.
    pub(super) async fn start_brain(&self) -> anyhow::Result<Process> {
        Ok(self.spawn(&["--role", "brain"]).await?.0)
    }

    async fn serve(&self, arguments: &[&str]) -> anyhow::Result<Served> {
        let begun = Instant::now();
        let (process, address) = self.spawn(arguments).await?;
        self.ask(&address).await?;
        let started = begun.elapsed();
        let client = Client::new(&format!("http://{address}"), &self.key)?;
        Ok(Served { client, started, process })
    }

    /// Starts a process; gives its address.
    async fn spawn(&self, arguments: &[&str]) -> anyhow::Result<(Process, String)> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--log", "warn", "--data-dir"])
            .arg(&self.data)
            .arg("--config")
            .arg(self.data.join(CONFIG))
            .args(arguments)
            .env("POSTHOUSE_API_KEY", &self.key)
            .env_remove("POSTHOUSE_ROLE");
        // Not an argument: those can be read by everybody.
        match &self.database {
            Some(url) => command.env("POSTHOUSE_DATABASE", url),
            None => command.env_remove("POSTHOUSE_DATABASE"),
        };
        let mut child = command
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("the server cannot be started")?;
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        loop {
            let Some(line) = lines.next_line().await? else { bail!("the server ended before it listened") };
            if let Some((_, address)) = line.split_once("listens on http://") {
                return Ok((Process(child), address.to_owned()));
            }
        }
    }

    /// One request by hand: making a client with all that belongs to it would take longer than the answer.
    async fn ask(&self, address: &str) -> anyhow::Result<()> {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!(
            "GET /v1/sessions?limit=1 HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\n\
             anthropic-beta: managed-agents-2026-04-01\r\nanthropic-version: 2023-06-01\r\nconnection: close\r\n\r\n",
            self.key
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        let head = String::from_utf8_lossy(&answer);
        ensure!(
            head.starts_with("HTTP/1.1 200 "),
            "the server answered {}",
            head.lines().next().unwrap_or("nothing")
        );
        Ok(())
    }
}

impl Served {
    /// What it has in memory now.
    pub(super) fn memory(&self) -> anyhow::Result<Memory> {
        let pid = self.process.0.id().context("the server is gone")?;
        let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps"))
            .context("the memory of the server cannot be seen")?;
        Ok(memory_of(&maps))
    }

    /// Asks it to stop, and waits.
    pub(super) async fn stop(self) -> anyhow::Result<()> {
        self.process.stop().await
    }
}

impl Process {
    /// Asks it to stop, and waits.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        // A child that was not waited for keeps its number, so nobody else can have it.
        if let Some(pid) = self.0.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw) {
            kill_process(pid, Signal::TERM).context("the server cannot be told to stop")?;
        }
        self.0.wait().await?;
        Ok(())
    }

    /// SIGKILL, as a crash is.
    pub(super) async fn kill(mut self) -> anyhow::Result<()> {
        self.0.kill().await.context("the server cannot be killed")
    }
}

fn memory_of(maps: &str) -> Memory {
    let mut memory = Memory::default();
    let (mut is_file, mut is_database) = (false, false);
    let mut resident = 0;
    for line in maps.lines() {
        let mut words = line.split_ascii_whitespace();
        let first = words.next().unwrap_or_default();
        let Some(field) = first.strip_suffix(':') else {
            // The head of a mapping: range, rights, offset, device, inode, path.
            let path = words.nth(4).unwrap_or_default();
            is_file = path.starts_with('/');
            is_database = is_file && path.contains("/posthouse.db");
            continue;
        };
        let kib: u64 = words.next().and_then(|figure| figure.parse().ok()).unwrap_or_default();
        match field {
            "Rss" => resident = kib << 10,
            // Also of a file's mapping: pages that were written to and are no longer the file's.
            "Anonymous" => {
                let own = kib << 10;
                memory.anonymous += own;
                let others = resident - own.min(resident);
                match (is_file, is_database) {
                    (true, true) => memory.database += others,
                    (true, false) => memory.program += others,
                    // The few pages that the kernel lends to every process.
                    (false, _) => memory.anonymous += others,
                }
            }
            _ => {}
        }
    }
    memory
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_told_apart_by_what_is_mapped() {
        let maps = "55-56 r-xp 00000000 08:01 7 /usr/bin/posthouse\nRss: 100 kB\nAnonymous: 4 kB\n\
                    57-58 rw-p 00000000 00:00 0 [heap]\nRss: 50 kB\nAnonymous: 50 kB\n\
                    59-60 r--s 00000000 08:01 9 /var/x/posthouse.db\nRss: 30 kB\nAnonymous: 0 kB\n\
                    61-62 rw-p 00000000 00:00 0\nRss: 6 kB\nAnonymous: 6 kB\n";
        let memory = memory_of(maps);
        assert_eq!((memory.anonymous, memory.database, memory.program), (60 << 10, 30 << 10, 96 << 10));
        assert_eq!(memory.resident(), 186 << 10);
    }
}
