//! A private PostgreSQL for tests, and a connection pooler in front of it.
//!
//! [`Cluster`] runs the server programs that the machine has, in a folder of its own, at a free port of the loopback
//! and a Unix socket, and trusts whoever connects. It is stopped and removed when it is dropped or when the test
//! process ends, in whatever way. It speaks to the server with PostgreSQL's own programs: what is under test is not
//! what prepares the test.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::guard::{Guard, User};
pub use crate::process::Error;
use crate::process::{ask, free_port};

/// The superuser of every cluster.
const USER: &str = "posthouse";
/// Somebody else may take a port between its choice and its use.
const PORT_ATTEMPTS_MAX: u32 = 10;
const INSTALL: &str = "install it with `apt-get install postgresql`, or put its programs on PATH";
const INSTALL_POOLER: &str = "install it with `apt-get install pgbouncer`, or put it on PATH";

/// How a cluster runs. Read at each start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whether a commit survives the loss of the machine, or only that of the server's processes.
    pub durability: Durability,
    /// How many connections it takes.
    pub connections_max: u32,
    /// More of `postgresql.conf`: name and value.
    pub parameters: Vec<(String, String)>,
}

/// What a commit survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The death of the server's processes: commits reach the kernel and are not synced.
    Processes,
    /// The loss of power: every commit is synced.
    Machine,
}

impl Default for Settings {
    fn default() -> Self {
        Self { durability: Durability::Processes, connections_max: 300, parameters: Vec::new() }
    }
}

impl Settings {
    /// As in production: every commit is synced.
    pub fn durable() -> Self {
        Self { durability: Durability::Machine, ..Self::default() }
    }
}

/// How a server is told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Connections are ended, everything is written out.
    Fast,
    /// Like a crash: the next start recovers from the log.
    Immediate,
}

impl Stop {
    fn name(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Immediate => "immediate",
        }
    }
}

/// A PostgreSQL server of one's own.
#[derive(Debug)]
pub struct Cluster {
    /// How it runs; a change has effect at the next start.
    pub settings: Settings,
    programs: PathBuf,
    user: User,
    folder: PathBuf,
    port: u16,
    databases: AtomicU32,
    /// Stops the server and removes the folder.
    _guard: Guard,
}

impl Cluster {
    /// Makes a cluster and starts its server.
    pub fn new(settings: Settings) -> Result<Self, Error> {
        let programs = server_programs()?;
        let user = User::unprivileged()?;
        let folder = user.folder("posthouse-pg-")?;
        let stop = format!(
            "[ ! -e data/postmaster.pid ] || '{}' stop --silent -D data -m immediate",
            programs.join("pg_ctl").display()
        );
        let guard = Guard::new(user, &folder, &stop)?;
        let mut cluster =
            Self { settings, programs, user, folder, port: 0, databases: AtomicU32::new(0), _guard: guard };
        let init = ["-D", "data", "-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"];
        ask(cluster.program("initdb").args(init))?;
        for _ in 1..PORT_ATTEMPTS_MAX {
            cluster.port = free_port();
            match cluster.start() {
                Err(_) if cluster.log().contains("Address already in use") => {}
                Err(error) => return Err(error),
                Ok(()) => return Ok(cluster),
            }
        }
        Err(Error::new("no free port was found for PostgreSQL".to_owned()))
    }

    /// The cluster that all tests of a process share. Nobody may stop it.
    ///
    /// # Panics
    /// If the machine cannot run one; the message says what to install.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(|| match Self::new(Settings::default()) {
            Ok(cluster) => cluster,
            Err(error) => panic!("{error}"),
        })
    }

    /// Makes a database; gives its address.
    ///
    /// # Panics
    /// If the server does not answer.
    pub fn database(&self) -> String {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let made = ask(self
            .program("createdb")
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string()])
            .args(["-U", USER, "-T", "template0", &name]));
        if let Err(error) = made {
            panic!("a database cannot be made: {error}");
        }
        self.url(&name)
    }

    /// The address of a database, whether it exists or not.
    pub fn url(&self, database: &str) -> String {
        url(self.port, database)
    }

    /// Runs statements in the database at this address; gives the rows, with `|` between columns.
    pub fn psql(&self, url: &str, statements: &str) -> Result<String, Error> {
        let text = ask(self
            .program("psql")
            .args(["--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "-v", "ON_ERROR_STOP=1"])
            .args(["-c", statements, url]))?;
        Ok(text.trim_end().to_owned())
    }

    /// The port at the loopback address.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder of the Unix socket.
    pub fn socket_folder(&self) -> &Path {
        &self.folder
    }

    /// What the server has logged so far.
    pub fn log(&self) -> String {
        std::fs::read(self.folder.join("log"))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Starts the server and waits until it takes connections.
    pub fn start(&self) -> Result<(), Error> {
        ask(self
            .program("pg_ctl")
            .args(["start", "--silent", "--wait", "-t", "60", "-D", "data", "-l", "log", "-o"])
            .arg(self.options()))
        .map_err(|error| Error::new(format!("{error}\n{}", self.log())))?;
        Ok(())
    }

    /// Stops the server and waits until it is gone. Its folder and its port stay.
    pub fn stop(&self, how: Stop) -> Result<(), Error> {
        ask(self.program("pg_ctl").args(["stop", "--silent", "--wait", "-D", "data", "-m", how.name()]))?;
        Ok(())
    }

    /// Stops the server and starts it again, at the same port.
    pub fn restart(&self, how: Stop) -> Result<(), Error> {
        self.stop(how)?;
        self.start()
    }

    fn options(&self) -> String {
        let Settings { durability, connections_max, parameters } = &self.settings;
        let mut options = format!("-p {} -k {}", self.port, self.folder.display());
        let mut set = |name: &str, value: &str| options.push_str(&format!(" -c {name}='{value}'"));
        set("listen_addresses", "127.0.0.1");
        set("max_connections", &connections_max.to_string());
        set("shared_buffers", "64MB");
        set("wal_level", "minimal");
        set("max_wal_senders", "0");
        match durability {
            // A commit still is in the kernel before it is acknowledged, so that an immediate stop loses nothing.
            Durability::Processes => {
                set("fsync", "off");
                set("full_page_writes", "off");
            }
            Durability::Machine => {}
        }
        for (name, value) in parameters {
            set(name, value);
        }
        options
    }

    fn program(&self, name: &str) -> std::process::Command {
        let mut command = self.user.command(self.programs.join(name));
        command.current_dir(&self.folder);
        // What an operator set for psql must not lead a test elsewhere.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PG") {
                command.env_remove(name);
            }
        }
        command
    }
}

/// A pgbouncer in front of a cluster: a pooler in transaction mode, which keeps no prepared statements.
#[derive(Debug)]
pub struct PgBouncer {
    port: u16,
    pooler: Child,
    /// Kills the pooler and removes its folder. None once that is done.
    guard: Option<Guard>,
}

impl PgBouncer {
    /// Starts a pooler for all databases of a cluster, with at most `connections_max` connections to each.
    pub fn new(cluster: &Cluster, connections_max: u32) -> Result<Self, Error> {
        let program = pooler_program()?;
        let user = User::unprivileged()?;
        for _ in 1..PORT_ATTEMPTS_MAX {
            if let Some(pooler) = Self::at(free_port(), user, &program, cluster, connections_max)? {
                return Ok(pooler);
            }
        }
        Err(Error::new("no free port was found for pgbouncer".to_owned()))
    }

    /// None if somebody else has the port.
    fn at(
        port: u16,
        user: User,
        program: &Path,
        cluster: &Cluster,
        connections_max: u32,
    ) -> Result<Option<Self>, Error> {
        let folder = user.folder("posthouse-pooler-")?;
        let guard = Guard::new(user, &folder, "kill -9 $(cat pid)")?;
        // Older ones know no prepared statements, nor the setting.
        let prepared = if knows_prepared_statements(&ask(user.command(program).arg("--version"))?) {
            "max_prepared_statements = 0\n"
        } else {
            ""
        };
        let settings = format!(
            "[databases]\n* = host=127.0.0.1 port={} user={USER}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nauth_type = any\npool_mode = transaction\n\
             max_client_conn = 1000\ndefault_pool_size = {connections_max}\npidfile = pid\n{prepared}",
            cluster.port
        );
        std::fs::write(folder.join("pgbouncer.ini"), settings)
            .map_err(|error| Error::new(format!("pgbouncer's settings cannot be written: {error}")))?;
        let mut pooler = user
            .command(program)
            .arg("pgbouncer.ini")
            .current_dir(&folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| Error::new(format!("pgbouncer cannot be started: {error}")))?;
        let mut lines = BufReader::new(pooler.stderr.take().expect("it is piped")).lines();
        let mut said = String::new();
        for line in lines.by_ref().map_while(Result::ok) {
            if line.contains("process up") {
                // It goes on to say things, and must find a reader.
                std::thread::spawn(move || lines.for_each(drop));
                return Ok(Some(Self { port, pooler, guard: Some(guard) }));
            }
            said.push_str(&line);
            said.push('\n');
        }
        // Its log ended, so it ended.
        let _ = pooler.wait();
        if said.contains("Address already in use") {
            return Ok(None);
        }
        Err(Error::new(format!("pgbouncer does not run: {said}")))
    }

    /// The address, through the pooler, of the database that has this address at the cluster.
    pub fn url(&self, url_at_cluster: &str) -> String {
        let database = url_at_cluster.rsplit_once('/').map_or(url_at_cluster, |(_, database)| database);
        url(self.port, database)
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        // In this order: until we have waited for it, its process id is nobody else's.
        drop(self.guard.take());
        let _ = self.pooler.wait();
    }
}

fn url(port: u16, database: &str) -> String {
    format!("postgres://{USER}@127.0.0.1:{port}/{database}")
}

/// The folder with `initdb`, `pg_ctl` and the rest: from PATH, or the newest of Debian's.
fn server_programs() -> Result<PathBuf, Error> {
    let has_all = |folder: &PathBuf| {
        ["initdb", "pg_ctl", "postgres", "psql", "createdb"].iter().all(|name| folder.join(name).is_file())
    };
    if let Some(folder) = path_folders().into_iter().find(has_all) {
        return Ok(folder);
    }
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, folder)| has_all(folder))
        .collect();
    versions.sort();
    match versions.pop() {
        Some((_, folder)) => Ok(folder),
        None => Err(Error::new(format!("these tests need PostgreSQL's server programs: {INSTALL}"))),
    }
}

fn pooler_program() -> Result<PathBuf, Error> {
    // Debian keeps it where only root's PATH may look.
    let folders = path_folders().into_iter().chain([PathBuf::from("/usr/sbin")]);
    folders
        .map(|folder| folder.join("pgbouncer"))
        .find(|program| program.is_file())
        .ok_or_else(|| Error::new(format!("these tests need pgbouncer: {INSTALL_POOLER}")))
}

fn path_folders() -> Vec<PathBuf> {
    std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default()
}

/// Whether the version that pgbouncer tells is 1.21 or later.
fn knows_prepared_statements(said: &str) -> bool {
    let version = said.split_whitespace().nth(1).unwrap_or_default();
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or_default());
    (numbers.next(), numbers.next()) >= (Some(1), Some(21))
}
