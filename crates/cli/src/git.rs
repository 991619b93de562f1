//! Settings of repositories: which hosts they may come from, and where they are kept.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use clap::Args;
use egress::Guard;
use protocol::resource_request::GitHosts;
use repositories::{Limits, Settings};
use serde::Deserialize;

/// Where repositories come from.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Repositories (docs/configuration.md)")]
pub(crate) struct GitOptions {
    /// Hosts besides github.com from which sessions may take repositories, each with a port if it is not 443, such as
    /// `git.example.com,10.1.0.5:8443`. [default: none]
    #[arg(long, env = "POSTHOUSE_GIT_ALLOW_HOSTS", value_name = "HOSTS")]
    git_allow_hosts: Option<String>,

    /// Authorities that those hosts' certificates may be signed by, besides the system's: a file in PEM. [default: none]
    #[arg(long, env = "POSTHOUSE_GIT_CA_FILE", value_name = "FILE")]
    git_ca_file: Option<PathBuf>,
}

/// The same in the configuration file, and the bounds.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct GitTable {
    allow_hosts: Vec<String>,
    ca_file: Option<PathBuf>,
    cache_bytes_max: Option<u64>,
    repository_bytes_max: Option<u64>,
    history_bytes_max: Option<u64>,
    history_commits: Option<u32>,
}

/// As settled.
#[derive(Clone, Debug, Default)]
pub(crate) struct Git {
    pub(crate) hosts: GitHosts,
    ca_file: Option<PathBuf>,
    limits: Limits,
}

impl GitOptions {
    pub(crate) fn over(self, file: GitTable) -> anyhow::Result<Git> {
        let GitTable {
            allow_hosts,
            ca_file,
            cache_bytes_max,
            repository_bytes_max,
            history_bytes_max,
            history_commits,
        } = file;
        let hosts = self.git_allow_hosts.unwrap_or_else(|| allow_hosts.join(","));
        let hosts = hosts
            .parse()
            .map_err(|error: String| anyhow!(error))
            .context("--git-allow-hosts cannot be used")?;
        let usual = Limits::default();
        let limits = Limits {
            cache_bytes_max: cache_bytes_max.unwrap_or(usual.cache_bytes_max),
            fetch_bytes_max: repository_bytes_max.unwrap_or(usual.fetch_bytes_max),
            history_bytes_max: history_bytes_max.unwrap_or(usual.history_bytes_max),
            history_commits: history_commits.unwrap_or(usual.history_commits).max(1),
            ..usual
        };
        // A variable that is set to nothing is not set.
        let ca_file = self.git_ca_file.filter(|path| !path.as_os_str().is_empty()).or(ca_file);
        Ok(Git { hosts, ca_file, limits })
    }
}

impl Git {
    /// What fetches repositories into that folder.
    pub(crate) fn settings(&self, folder: PathBuf, guard: Arc<Guard>) -> anyhow::Result<Settings> {
        let authorities = match &self.ca_file {
            None => Vec::new(),
            Some(path) => {
                let text = std::fs::read_to_string(path);
                vec![text.with_context(|| format!("the authorities in {} cannot be read", path.display()))?]
            }
        };
        Ok(Settings {
            authorities,
            limits: self.limits.clone(),
            ..Settings::new(folder, self.hosts.clone(), guard)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_come_from_the_file_and_a_flag_wins_over_it() {
        let file = || -> GitTable {
            toml::from_str("allow_hosts = [\"git.example.com\"]\nhistory_commits = 0\n").expect("reads")
        };
        let git = GitOptions::default().over(file()).expect("settles");
        assert_eq!(
            (git.hosts.to_string().as_str(), git.limits.history_commits),
            ("github.com, git.example.com:443", 1)
        );
        let flags =
            GitOptions { git_allow_hosts: Some("127.0.0.1:8443".to_owned()), ..GitOptions::default() };
        assert_eq!(flags.over(file()).expect("settles").hosts.to_string(), "github.com, 127.0.0.1:8443");
        let flags = GitOptions { git_allow_hosts: Some("https://x".to_owned()), ..GitOptions::default() };
        assert!(format!("{:#}", flags.over(file()).expect_err("no host")).contains("https://x"));
    }
}
