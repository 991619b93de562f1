//! Settings: a flag wins over the environment, the environment over the file, the file over the default.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::{Args, ValueEnum};
use harness::web::{self, SearchConfig};
use serde::Deserialize;

use crate::git::{Git, GitOptions, GitTable};
use crate::load::{Load, LoadOptions};
use crate::network::{Network, NetworkFile, NetworkOptions};
use crate::snapshots::{SnapshotOptions, SnapshotSettings, SnapshotTable};
use crate::vaults::{VaultOptions, VaultTable};

/// Where everything lasts. For every command that opens a store.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct PlaceOptions {
    /// The configuration file (TOML). The models are configured there; see docs/configuration.md.
    /// [default: posthouse.toml in the data directory, if it exists]
    #[arg(long, env = "POSTHOUSE_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Where everything lasts: the embedded database, the sandboxes' socket, the deliverables.
    /// [default: posthouse in $XDG_DATA_HOME or ~/.local/share]
    #[arg(long, env = "POSTHOUSE_DATA_DIR", value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,

    /// A PostgreSQL database (postgres://…) for many processes, instead of the embedded one; see docs/fleet.md. Whatever
    /// is on a command line can be read by every user of the machine: name a password in the variable or the file.
    #[arg(long, env = "POSTHOUSE_DATABASE", value_name = "URL", hide_env_values = true)]
    pub(crate) database: Option<String>,

    /// Where that database can be listened to, if --database is a pooler in transaction mode. [default: --database]
    #[arg(long, env = "POSTHOUSE_DATABASE_LISTEN", value_name = "URL", hide_env_values = true)]
    pub(crate) database_listen: Option<String>,
}

/// The settings of a server. Every one is a flag, a variable `POSTHOUSE_…` and a key of the file.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct ServerOptions {
    #[command(flatten)]
    pub(crate) place: PlaceOptions,

    /// Where to listen; port 0 takes a free one. A process without the API answers its probes there.
    /// [default: 127.0.0.1:8400; without the API 127.0.0.1:0]
    #[arg(long, env = "POSTHOUSE_LISTEN", value_name = "ADDRESS")]
    pub(crate) listen: Option<SocketAddr>,

    /// An API key that is to work, instead of a minted one. Made at the start if the data directory has it not.
    #[arg(long, env = "POSTHOUSE_API_KEY", value_name = "KEY", hide_env_values = true)]
    pub(crate) api_key: Option<String>,

    /// What to log, such as `info` or `info,harness=debug`. [default: info]
    #[arg(long, env = "POSTHOUSE_LOG", value_name = "FILTER")]
    pub(crate) log: Option<String>,

    /// How to log. [default: text]
    #[arg(long, env = "POSTHOUSE_LOG_FORMAT", value_name = "FORMAT")]
    pub(crate) log_format: Option<LogFormat>,

    /// How often it is looked for sandboxes that no session owns any more; those are destroyed. [default: 30]
    #[arg(long, env = "POSTHOUSE_REAP_EVERY", value_name = "SECONDS")]
    pub(crate) reap_every: Option<f64>,

    #[command(flatten)]
    pub(crate) load: LoadOptions,

    #[command(flatten)]
    pub(crate) network: NetworkOptions,

    #[command(flatten)]
    pub(crate) git: GitOptions,

    #[command(flatten)]
    pub(crate) sandbox: SandboxOptions,

    #[command(flatten)]
    pub(crate) web: WebOptions,

    #[command(flatten)]
    pub(crate) snapshots: SnapshotOptions,

    #[command(flatten)]
    pub(crate) vault: VaultOptions,
}

/// What `web_search` asks.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "The web (docs/configuration.md)")]
pub(crate) struct WebOptions {
    /// The search provider behind `web_search`: `searxng` or `brave`. A key comes from the file, or for Brave from the
    /// variable BRAVE_SEARCH_API_KEY. [default: searxng if --search-url is given, else none]
    #[arg(long, env = "POSTHOUSE_SEARCH_KIND", value_name = "KIND")]
    search_kind: Option<SearchKind>,

    /// Where the search provider is. [default for brave: the public service]
    #[arg(long, env = "POSTHOUSE_SEARCH_URL", value_name = "URL", hide_env_values = true)]
    search_url: Option<String>,
}

/// The search providers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SearchKind {
    /// A SearXNG server.
    Searxng,
    /// The Brave Search API.
    Brave,
}

/// The variable that has a key for the Brave Search API, unless the file names another place.
const BRAVE_KEY: &str = "BRAVE_SEARCH_API_KEY";

impl WebOptions {
    /// The search provider: the file's, with what flags and variables say of it; another kind has nothing of it.
    fn search(&self, file: Option<SearchConfig>) -> Option<SearchConfig> {
        // A variable that is set to nothing is not set.
        let url = self.search_url.clone().filter(|url| !url.trim().is_empty());
        let kind = match self.search_kind {
            Some(SearchKind::Searxng) => Some(web::SearchKind::Searxng),
            Some(SearchKind::Brave) => Some(web::SearchKind::Brave),
            None => None,
        };
        let mut config = match (file, kind) {
            (Some(file), None) => file,
            (Some(file), Some(kind)) if file.kind == kind => file,
            (_, Some(kind)) => SearchConfig::new(kind, None),
            (None, None) if url.is_some() => SearchConfig::new(web::SearchKind::Searxng, None),
            (None, None) => return None,
        };
        config.base_url = url.or(config.base_url);
        let has_key =
            config.api_key.is_some() || config.api_key_env.is_some() || config.api_key_file.is_some();
        if config.kind == web::SearchKind::Brave && !has_key {
            config.api_key_env = Some(BRAVE_KEY.to_owned());
        }
        Some(config)
    }
}

/// What a process of a fleet does, and how it ends.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Many processes (docs/fleet.md)")]
pub(crate) struct FleetOptions {
    /// What this process does; several, with commas. With the embedded database one process does everything.
    /// [default: api,brain,background]
    #[arg(
        long,
        env = "POSTHOUSE_ROLE",
        value_name = "ROLES",
        value_delimiter = ',',
        hide_possible_values = true
    )]
    role: Vec<Role>,

    /// How long the API is served on when the process is told to stop, while `/readyz` says that it drains: the time that
    /// load balancers take to notice. [default: 0]
    #[arg(long, env = "POSTHOUSE_DRAIN_DELAY", value_name = "SECONDS")]
    drain_delay: Option<f64>,

    /// How long it may take after that to finish or hand over what is under way. [default: 20]
    #[arg(long, env = "POSTHOUSE_DRAIN_TIMEOUT", value_name = "SECONDS")]
    drain_timeout: Option<f64>,
}

/// What a process does. Each may be done by any number of processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    /// Answers clients.
    Api,
    /// Drives sessions.
    Brain,
    /// Tidies up.
    Background,
}

/// Some of the roles, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Roles(BTreeSet<Role>);

impl Roles {
    pub(crate) fn all() -> Self {
        Self(Role::value_variants().iter().copied().collect())
    }

    pub(crate) fn are_all(&self) -> bool {
        *self == Self::all()
    }

    pub(crate) fn has(&self, role: Role) -> bool {
        self.0.contains(&role)
    }
}

impl fmt::Display for Roles {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.0.iter().filter_map(|role| Some(role.to_possible_value()?.get_name().to_owned()));
        formatter.write_str(&names.collect::<Vec<_>>().join(","))
    }
}

/// The address of a database. It may hold a password, so what is shown of it is only where it is.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct DatabaseUrl(String);

impl DatabaseUrl {
    /// The refusal does not repeat what was given.
    fn parse(name: &str, text: String) -> anyhow::Result<Self> {
        let is_known = ["postgres://", "postgresql://"].iter().any(|scheme| text.starts_with(scheme));
        ensure!(is_known, "{name} must be the address of a PostgreSQL database: postgres://user@host/name");
        Ok(Self(text))
    }

    /// The whole address, for the store alone.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (_, rest) = self.0.split_once("://").expect("checked when it was parsed");
        // A password may hold any sign, a host none of these.
        let place = rest.rsplit_once('@').map_or(rest, |(_, place)| place);
        let place = place.split('?').next().unwrap_or_default();
        write!(formatter, "postgres://{place}")
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// A database that many processes share.
#[derive(Clone, Debug)]
pub(crate) struct Database {
    pub(crate) url: DatabaseUrl,
    /// For the one connection that listens, if it is another.
    pub(crate) listen: Option<DatabaseUrl>,
}

/// What sandboxes are, what each may use, and how many this machine holds.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Sandboxes (what they are, and what each may use)")]
pub(crate) struct SandboxOptions {
    /// What a sandbox is: Linux namespaces, or a container of an engine on this machine. [default: namespaces]
    #[arg(long, env = "POSTHOUSE_SANDBOX_PROVIDER", value_name = "KIND")]
    sandbox_provider: Option<SandboxProvider>,

    /// Containers: the engine's socket, Docker's or Podman's. [default: $DOCKER_HOST, or /var/run/docker.sock]
    #[arg(long, env = "POSTHOUSE_SANDBOX_DOCKER_HOST", value_name = "SOCKET")]
    sandbox_docker_host: Option<String>,

    /// Containers: the image, which is never pulled. [default: debian:stable-slim]
    #[arg(long, env = "POSTHOUSE_SANDBOX_DOCKER_IMAGE", value_name = "IMAGE")]
    sandbox_docker_image: Option<String>,

    /// Containers: the runtime, such as runc, crun or runsc. [default: the engine's]
    #[arg(long, env = "POSTHOUSE_SANDBOX_DOCKER_RUNTIME", value_name = "NAME")]
    sandbox_docker_runtime: Option<String>,

    /// Memory, files included. [default: 2147483648]
    #[arg(long, env = "POSTHOUSE_SANDBOX_MEMORY_BYTES", value_name = "BYTES")]
    sandbox_memory_bytes: Option<u64>,

    /// Processes and threads. [default: 512]
    #[arg(long, env = "POSTHOUSE_SANDBOX_PROCESSES", value_name = "COUNT")]
    sandbox_processes: Option<u64>,

    /// One file. [default: 1073741824]
    #[arg(long, env = "POSTHOUSE_SANDBOX_FILE_SIZE_BYTES", value_name = "BYTES")]
    sandbox_file_size_bytes: Option<u64>,

    /// Open files of one process. [default: 4096]
    #[arg(long, env = "POSTHOUSE_SANDBOX_OPEN_FILES", value_name = "COUNT")]
    sandbox_open_files: Option<u64>,

    /// All files together; at most three quarters of the memory. [default: 2147483648]
    #[arg(long, env = "POSTHOUSE_SANDBOX_DISK_BYTES", value_name = "BYTES")]
    sandbox_disk_bytes: Option<u64>,

    /// Processor time, in hundredths of one processor. [default: 200]
    #[arg(long, env = "POSTHOUSE_SANDBOX_CPU_PERCENT", value_name = "PERCENT")]
    sandbox_cpu_percent: Option<u32>,

    /// Sandboxes at once on this machine; further ones wait for room. [default: 4096]
    #[arg(long, env = "POSTHOUSE_SANDBOXES_MAX", value_name = "COUNT")]
    sandboxes_max: Option<usize>,

    /// Free memory below which no sandbox is started. [default: 268435456]
    #[arg(long, env = "POSTHOUSE_SANDBOXES_MEMORY_RESERVE_BYTES", value_name = "BYTES")]
    sandboxes_memory_reserve_bytes: Option<u64>,

    /// Sandboxes kept ready for pools, of all environments together. [default: 64]
    #[arg(long, env = "POSTHOUSE_SANDBOXES_READY_MAX", value_name = "COUNT")]
    sandboxes_ready_max: Option<usize>,
}

/// What a sandbox is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SandboxProvider {
    /// Namespaces, made by the supervisor.
    #[default]
    Namespaces,
    /// A container, made by an engine that speaks the Docker API.
    Docker,
}

/// What sandboxes are.
#[derive(Clone, Debug)]
pub(crate) enum Sandboxes {
    Namespaces,
    Docker(sandbox::docker::Settings),
}

impl SandboxOptions {
    fn sandboxes(&self, kind: Option<SandboxProvider>, file: DockerFile) -> Sandboxes {
        match self.sandbox_provider.or(kind).unwrap_or_default() {
            SandboxProvider::Namespaces => Sandboxes::Namespaces,
            SandboxProvider::Docker => {
                let DockerFile { host, image, runtime, images, runtimes } = file;
                let usual = sandbox::docker::Settings::default();
                let of_docker = || std::env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty());
                let host = self.sandbox_docker_host.clone().or(host).or_else(of_docker);
                let image = self.sandbox_docker_image.clone().or(image);
                Sandboxes::Docker(sandbox::docker::Settings {
                    host: host.unwrap_or(usual.host),
                    image: image.unwrap_or(usual.image),
                    runtime: self.sandbox_docker_runtime.clone().or(runtime),
                    images,
                    runtimes,
                    registries: None,
                    provision_time_max: usual.provision_time_max,
                })
            }
        }
    }

    fn over(self, file: sandbox::Limits) -> sandbox::Limits {
        sandbox::Limits {
            memory_bytes: self.sandbox_memory_bytes.unwrap_or(file.memory_bytes),
            processes: self.sandbox_processes.unwrap_or(file.processes),
            file_size_bytes: self.sandbox_file_size_bytes.unwrap_or(file.file_size_bytes),
            open_files: self.sandbox_open_files.unwrap_or(file.open_files),
            disk_bytes: self.sandbox_disk_bytes.unwrap_or(file.disk_bytes),
            cpu_percent: self.sandbox_cpu_percent.unwrap_or(file.cpu_percent),
        }
    }

    fn capacity_over(&self, file: sandbox::Capacity) -> sandbox::Capacity {
        sandbox::Capacity {
            sandboxes_max: self.sandboxes_max.unwrap_or(file.sandboxes_max),
            memory_reserve_bytes: self.sandboxes_memory_reserve_bytes.unwrap_or(file.memory_reserve_bytes),
            ready_max: self.sandboxes_ready_max.unwrap_or(file.ready_max),
            ..file
        }
    }
}

/// The section `sandbox` of the configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(try_from = "SandboxTable")]
struct SandboxFile {
    provider: Option<SandboxProvider>,
    docker: DockerFile,
    limits: sandbox::Limits,
    capacity: sandbox::Capacity,
}

/// The same as it is written: keys of several kinds side by side, and what is left over is a mistake.
#[derive(Default, Deserialize)]
#[serde(default)]
struct SandboxTable {
    provider: Option<SandboxProvider>,
    docker: DockerFile,
    #[serde(flatten)]
    limits: sandbox::Limits,
    #[serde(flatten)]
    capacity: sandbox::Capacity,
    #[serde(flatten)]
    unknown: BTreeMap<String, serde::de::IgnoredAny>,
}

impl TryFrom<SandboxTable> for SandboxFile {
    type Error = String;

    fn try_from(table: SandboxTable) -> Result<Self, String> {
        let SandboxTable { provider, docker, limits, capacity, unknown } = table;
        match unknown.into_keys().next() {
            Some(key) => Err(format!("unknown field `{key}` in `sandbox`")),
            None => Ok(Self { provider, docker, limits, capacity }),
        }
    }
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For machines, one object a line.
    Json,
}

/// The configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    data_dir: Option<PathBuf>,
    database: Option<String>,
    database_listen: Option<String>,
    role: Vec<Role>,
    listen: Option<SocketAddr>,
    drain_delay: Option<f64>,
    drain_timeout: Option<f64>,
    log: Option<String>,
    log_format: Option<LogFormat>,
    reap_every: Option<f64>,
    provider: Vec<harness::model::ProviderConfig>,
    limits: Load,
    network: NetworkFile,
    git: GitTable,
    sandbox: SandboxFile,
    search: Option<SearchConfig>,
    images: ImagesFile,
    blobs: Option<String>,
    snapshots: SnapshotTable,
    vault: VaultTable,
}

/// What the configuration file says of images.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ImagesFile {
    default: Option<String>,
}

/// `[sandbox.docker]` of the configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct DockerFile {
    host: Option<String>,
    image: Option<String>,
    runtime: Option<String>,
    images: Vec<String>,
    runtimes: Vec<String>,
}

/// What a server runs with.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) data_dir: PathBuf,
    /// `None` for the embedded one in the data directory.
    pub(crate) database: Option<Database>,
    pub(crate) roles: Roles,
    pub(crate) listen: SocketAddr,
    pub(crate) drain_delay: Duration,
    pub(crate) drain_timeout: Duration,
    pub(crate) api_key: Option<String>,
    pub(crate) log: String,
    pub(crate) log_format: LogFormat,
    pub(crate) reap_every: Duration,
    pub(crate) providers: Vec<harness::model::ProviderConfig>,
    pub(crate) load: Load,
    pub(crate) network: Network,
    pub(crate) git: Git,
    pub(crate) sandboxes: Sandboxes,
    pub(crate) limits: sandbox::Limits,
    pub(crate) search: Option<SearchConfig>,
    pub(crate) capacity: sandbox::Capacity,
    /// The image that sandboxes start from whose environments name none; the host's tools if `None`.
    pub(crate) image: Option<String>,
    pub(crate) snapshots: SnapshotSettings,
    /// Where the master key of the vaults comes from.
    pub(crate) vault: vault::Source,
}

impl Settings {
    /// The image that sandboxes start from whose environments name none. That of containers is their engine's affair.
    pub(crate) fn usual_image(&self) -> Option<String> {
        match self.sandboxes {
            Sandboxes::Namespaces => self.image.clone(),
            Sandboxes::Docker(_) => None,
        }
    }
}

const DEFAULT_LISTEN: &str = "127.0.0.1:8400";
/// For probes alone: two processes on one machine do not get into each other's way.
const DEFAULT_LISTEN_PROBES: &str = "127.0.0.1:0";
const DEFAULT_DRAIN_TIMEOUT: Duration = Duration::from_secs(20);
const FILE_NAME: &str = "posthouse.toml";

impl PlaceOptions {
    /// Reads the file, if there is one, and fills in what is left.
    pub(crate) fn settle(self) -> anyhow::Result<Settings> {
        ServerOptions { place: self, ..ServerOptions::default() }.settle(FleetOptions::default())
    }

    fn read_file(&self) -> anyhow::Result<(File, Option<PathBuf>)> {
        let path = match &self.config {
            Some(path) => path.clone(),
            None => {
                let dir = match &self.data_dir {
                    Some(dir) => dir.clone(),
                    None => default_data_dir()?,
                };
                let path = dir.join(FILE_NAME);
                if !path.exists() {
                    return Ok((File::default(), None));
                }
                path
            }
        };
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        let file = parse(&text, &path)?;
        Ok((file, Some(path)))
    }
}

impl ServerOptions {
    /// Reads the file, if there is one, and fills in what is left.
    pub(crate) fn settle(self, fleet: FleetOptions) -> anyhow::Result<Settings> {
        self.settle_with("info", fleet)
    }

    /// For a server of a command's own: it has all roles, and logs only what is wrong, unless somebody asks for more.
    pub(crate) fn settle_quiet(self) -> anyhow::Result<Settings> {
        let settings = self.settle_with("warn", FleetOptions::default())?;
        Ok(Settings { roles: Roles::all(), ..settings })
    }

    fn settle_with(self, log: &str, fleet: FleetOptions) -> anyhow::Result<Settings> {
        let (file, path) = self.place.read_file()?;
        let PlaceOptions { config: _, data_dir, database, database_listen } = self.place;
        let data_dir = match data_dir.or(file.data_dir) {
            Some(dir) => dir,
            None => default_data_dir()?,
        };
        // Relative to where the command was started, and the same for the supervisor, which is started elsewhere.
        let data_dir = std::path::absolute(&data_dir)
            .with_context(|| format!("the data directory {} cannot be used", data_dir.display()))?;
        if let Some(key) = &self.api_key
            && key.len() < 16
        {
            bail!("POSTHOUSE_API_KEY must have at least 16 characters; a key is all that keeps others out");
        }
        if let Some(path) = path {
            tracing::debug!(path = %path.display(), "read the configuration file");
        }
        let roles = roles([fleet.role, file.role]);
        let listen = match roles.has(Role::Api) {
            true => DEFAULT_LISTEN,
            false => DEFAULT_LISTEN_PROBES,
        };
        Ok(Settings {
            snapshots: self.snapshots.over(file.snapshots, file.blobs, &data_dir)?,
            vault: self.vault.over(file.vault, &data_dir)?,
            data_dir,
            database: shared_database(database.or(file.database), database_listen.or(file.database_listen))?,
            listen: self.listen.or(file.listen).unwrap_or_else(|| listen.parse().expect("a valid address")),
            roles,
            drain_delay: seconds("--drain-delay", fleet.drain_delay.or(file.drain_delay), Duration::ZERO)?,
            drain_timeout: seconds(
                "--drain-timeout",
                fleet.drain_timeout.or(file.drain_timeout),
                DEFAULT_DRAIN_TIMEOUT,
            )?,
            api_key: self.api_key,
            log: self.log.or(file.log).unwrap_or_else(|| log.to_owned()),
            log_format: self.log_format.or(file.log_format).unwrap_or_default(),
            reap_every: reap_every(self.reap_every.or(file.reap_every))?,
            providers: file.provider,
            load: self.load.over(file.limits),
            network: self.network.over(file.network)?,
            git: self.git.over(file.git)?,
            sandboxes: self.sandbox.sandboxes(file.sandbox.provider, file.sandbox.docker),
            capacity: self.sandbox.capacity_over(file.sandbox.capacity),
            limits: self.sandbox.over(file.sandbox.limits),
            search: self.web.search(file.search),
            image: file.images.default,
        })
    }
}

impl Settings {
    /// Whether a process may do this with this database. To be asked before anything is opened.
    pub(crate) fn check_roles(&self) -> anyhow::Result<()> {
        ensure!(
            self.database.is_some() || self.roles.are_all(),
            "`--role {}` needs --database: the embedded database belongs to one process, which does everything. Name a \
             PostgreSQL database with --database postgres://…, or leave --role away",
            self.roles
        );
        Ok(())
    }
}

/// The first of these that names any; all, if none does.
fn roles(named: [Vec<Role>; 2]) -> Roles {
    named
        .into_iter()
        .find(|roles| !roles.is_empty())
        .map_or_else(Roles::all, |roles| Roles(roles.into_iter().collect()))
}

fn shared_database(url: Option<String>, listen: Option<String>) -> anyhow::Result<Option<Database>> {
    // A variable that is set to nothing is not set.
    let given = |text: &String| !text.trim().is_empty();
    let listen =
        listen.filter(given).map(|text| DatabaseUrl::parse("--database-listen", text)).transpose()?;
    match url.filter(given) {
        Some(url) => Ok(Some(Database { url: DatabaseUrl::parse("--database", url)?, listen })),
        None if listen.is_some() => bail!("--database-listen without --database says nothing: name both"),
        None => Ok(None),
    }
}

fn seconds(name: &str, given: Option<f64>, default: Duration) -> anyhow::Result<Duration> {
    match given {
        Some(seconds) => Duration::try_from_secs_f64(seconds)
            .ok()
            .filter(|time| *time <= DRAIN_MAX)
            .with_context(|| format!("{name} must be from 0 to {} seconds", DRAIN_MAX.as_secs())),
        None => Ok(default),
    }
}

fn reap_every(given: Option<f64>) -> anyhow::Result<Duration> {
    let every = seconds("--reap-every", given, DEFAULT_REAP_EVERY)?;
    ensure!(
        every >= REAP_EVERY_MIN,
        "--reap-every must be at least {} seconds",
        REAP_EVERY_MIN.as_secs_f64()
    );
    Ok(every)
}

const DEFAULT_REAP_EVERY: Duration = Duration::from_secs(30);
/// What nobody has asked for in two looks is taken away; a brain asks every five seconds for what it has not recorded.
const REAP_EVERY_MIN: Duration = Duration::from_secs(8);

/// Nobody waits longer for a process to end.
const DRAIN_MAX: Duration = Duration::from_secs(3600);

fn parse(text: &str, path: &Path) -> anyhow::Result<File> {
    // The parser's message quotes the line in question, and a line may hold a key: only its place and its reason
    // are shown.
    toml::from_str(text).map_err(|error| {
        let line =
            error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        anyhow::anyhow!("{}, line {line}: {}", path.display(), error.message())
    })
}

/// Where the data is if nobody says otherwise.
pub(crate) fn default_data_dir() -> anyhow::Result<PathBuf> {
    let base = match (std::env::var_os("XDG_DATA_HOME"), std::env::var_os("HOME")) {
        (Some(dir), _) if !dir.is_empty() => PathBuf::from(dir),
        (_, Some(home)) if !home.is_empty() => Path::new(&home).join(".local/share"),
        _ => bail!("neither XDG_DATA_HOME nor HOME is set: say where the data is to be with --data-dir"),
    };
    Ok(base.join("posthouse"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_file_names_the_line_and_does_not_quote_it() {
        let error =
            parse("listen = \"127.0.0.1:1\"\n[[provider]]\napi_keys = \"secret\"\n", Path::new("p.toml"));
        let text = error.expect_err("unknown key").to_string();
        assert!(text.starts_with("p.toml, line 3: unknown field `api_keys`"), "{text}");
        assert!(!text.contains("secret"));
    }

    #[test]
    fn a_search_provider_is_the_files_with_what_flags_say_of_it() {
        let file = "[search]\nkind = \"brave\"\napi_key_file = \"/run/key\"\n";
        let file = || parse(file, Path::new("p.toml")).expect("valid");
        let options =
            |kind, url: Option<&str>| WebOptions { search_kind: kind, search_url: url.map(str::to_owned) };
        assert!(options(None, Some(" ")).search(None).is_none());
        let searxng = options(None, Some("http://127.0.0.1:1")).search(None).expect("a provider");
        assert_eq!((searxng.kind, searxng.api_key_env), (web::SearchKind::Searxng, None));
        let brave = options(Some(SearchKind::Brave), None).search(None).expect("a provider");
        assert_eq!(brave.api_key_env.as_deref(), Some(BRAVE_KEY));
        let both = options(None, Some("http://127.0.0.1:1")).search(file().search).expect("a provider");
        assert_eq!((both.kind, both.api_key_env), (web::SearchKind::Brave, None));
        assert!(both.base_url.is_some() && both.api_key_file.is_some());
        let other = options(Some(SearchKind::Searxng), None).search(file().search).expect("a provider");
        assert_eq!((other.base_url, other.api_key_file), (None, None), "another kind has nothing of it");
    }

    #[test]
    fn the_section_of_sandboxes_says_what_each_may_use_and_how_many_there_may_be() {
        let text = "[sandbox]\nprocesses = 99\nsandboxes_max = 7\nwaiting_seconds_max = 5\n";
        let File { sandbox: SandboxFile { limits, capacity, .. }, .. } =
            parse(text, Path::new("p.toml")).expect("reads");
        assert_eq!(limits, sandbox::Limits { processes: 99, ..sandbox::Limits::default() });
        let expected = sandbox::Capacity {
            sandboxes_max: 7,
            waiting_time_max: Duration::from_secs(5),
            ..sandbox::Capacity::default()
        };
        assert_eq!(capacity, expected);
        let flags = SandboxOptions { sandboxes_max: Some(9), ..SandboxOptions::default() };
        assert_eq!(flags.capacity_over(capacity).sandboxes_max, 9);
    }

    #[test]
    fn an_unknown_key_of_the_section_of_sandboxes_is_named() {
        let text = "listen = \"127.0.0.1:1\"\n[sandbox]\nprocesses = 99\nmemory = \"secret\"\n";
        let error = parse(text, Path::new("p.toml")).expect_err("unknown key").to_string();
        assert!(error.ends_with(": unknown field `memory` in `sandbox`"), "{error}");
    }

    #[test]
    fn containers_are_chosen_in_the_file_and_a_flag_wins_over_it() {
        let text = "[sandbox]\nprovider = \"docker\"\nprocesses = 64\n[sandbox.docker]\nimage = \"a\"\nruntime = \"runsc\"\nimages = [\"c\"]\n";
        let SandboxFile { provider, docker, limits, .. } =
            parse(text, Path::new("p.toml")).expect("reads").sandbox;
        assert_eq!((limits.processes, limits.open_files), (64, sandbox::Limits::default().open_files));
        let flags =
            SandboxOptions { sandbox_docker_image: Some("b".to_owned()), ..SandboxOptions::default() };
        let Sandboxes::Docker(settings) = flags.sandboxes(provider, docker) else { panic!("containers") };
        assert_eq!((settings.image.as_str(), settings.runtime.as_deref()), ("b", Some("runsc")));
        assert_eq!(settings.images, ["c"]);
        assert!(matches!(flags.sandboxes(None, DockerFile::default()), Sandboxes::Namespaces));
        let error = parse("[sandbox.docker]\nimagine = 1\n", Path::new("p.toml")).expect_err("unknown key");
        assert!(error.to_string().contains("imagine"), "{error}");
    }

    #[test]
    fn what_is_shown_of_a_database_is_where_it_is() {
        let shown =
            |text: &str| DatabaseUrl::parse("--database", text.to_owned()).expect("an address").to_string();
        assert_eq!(shown("postgres://host:5432/name"), "postgres://host:5432/name");
        assert_eq!(shown("postgresql://me:se@cr/et@host/name?password=x"), "postgres://host/name");
        assert_eq!(shown("postgres:///name?host=/run/postgresql"), "postgres:///name");
        let refused = DatabaseUrl::parse("--database", "mysql://me:secret@host".to_owned());
        assert!(!format!("{:?}", refused.expect_err("unknown")).contains("secret"));
    }

    #[test]
    fn the_embedded_database_is_for_one_process_that_does_everything() {
        let settle = |role: Vec<Role>, database: Option<&str>| {
            let place = PlaceOptions {
                data_dir: Some("/nowhere".into()),
                database: database.map(str::to_owned),
                ..PlaceOptions::default()
            };
            let fleet = FleetOptions { role, ..FleetOptions::default() };
            ServerOptions { place, ..ServerOptions::default() }.settle(fleet).expect("settles")
        };
        assert!(settle(Vec::new(), None).check_roles().is_ok());
        assert!(settle(vec![Role::Background, Role::Api, Role::Brain], None).check_roles().is_ok());
        let refused = settle(vec![Role::Brain, Role::Api], None).check_roles().expect_err("refused");
        assert!(refused.to_string().starts_with("`--role api,brain` needs --database"), "{refused}");
        let brain = settle(vec![Role::Brain], Some("postgres://host/name"));
        assert!(brain.check_roles().is_ok());
        assert_eq!(brain.listen.port(), 0, "probes take any free port");
    }
}
