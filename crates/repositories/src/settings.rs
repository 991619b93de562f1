//! What an operator decides, and the bounds.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use egress::Guard;
use protocol::resource_request::GitHosts;

/// How repositories are fetched, and where they lie meanwhile.
#[derive(Clone, Debug)]
pub struct Settings {
    /// A folder of this machine for the cache and for what is being made; made when it is needed.
    pub folder: PathBuf,
    /// The program.
    pub git: PathBuf,
    /// The hosts besides GitHub.
    pub hosts: GitHosts,
    /// What may be connected to.
    pub guard: Arc<Guard>,
    /// Authorities that are trusted besides the system's, in PEM.
    pub authorities: Vec<String>,
    /// The bounds.
    pub limits: Limits,
}

impl Settings {
    /// The usual ones.
    pub fn new(folder: PathBuf, hosts: GitHosts, guard: Arc<Guard>) -> Self {
        let (git, authorities, limits) = (PathBuf::from("git"), Vec::new(), Limits::default());
        Self { folder, git, hosts, guard, authorities, limits }
    }
}

/// Bounds of time and size.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How long fetching one repository may take, and how long others are waited for before that. By default 10 minutes.
    pub time_max: Duration,
    /// How long a host may be silent. By default 2 minutes: it may be packing.
    pub silence_max: Duration,
    /// What one fetch may bring, and one request of an agent. By default 2 GiB.
    pub fetch_bytes_max: u64,
    /// What one push may take along. By default 2 GiB.
    pub push_bytes_max: u64,
    /// Files of one checkout together. By default 1 GiB.
    pub tree_bytes_max: u64,
    /// Files of one checkout. By default half a million.
    pub tree_files_max: u64,
    /// A repository that takes more than this is brought with its last commits only. By default 256 MiB: what is brought
    /// takes a sandbox's memory.
    pub history_bytes_max: u64,
    /// How many commits are brought then. By default 100.
    pub history_commits: u32,
    /// What all kept repositories may take. By default 20 GiB.
    pub cache_bytes_max: u64,
    /// How long one is kept that nobody uses. By default two weeks.
    pub cache_time_max: Duration,
    /// How many repositories are fetched at once; further ones wait. By default 32: most wait for their hosts.
    pub clones_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            time_max: Duration::from_secs(600),
            silence_max: Duration::from_secs(120),
            fetch_bytes_max: 2 << 30,
            push_bytes_max: 2 << 30,
            tree_bytes_max: 1 << 30,
            tree_files_max: 500_000,
            history_bytes_max: 256 << 20,
            history_commits: 100,
            cache_bytes_max: 20 << 30,
            cache_time_max: Duration::from_secs(14 * 24 * 3600),
            clones_max: 32,
        }
    }
}
