//! Settings: a flag wins over the environment, the environment over the file, the file over the default.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use serde::Deserialize;

use crate::load::{Load, LoadOptions};

/// The settings of a server. Every one is a flag, a variable `POSTHOUSE_…` and a key of the file.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct ServerOptions {
    /// The configuration file (TOML). The models are configured there; see docs/configuration.md.
    /// [default: posthouse.toml in the data directory, if it exists]
    #[arg(long, env = "POSTHOUSE_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Where everything lasts: the database, the sandboxes' socket, the deliverables.
    /// [default: posthouse in $XDG_DATA_HOME or ~/.local/share]
    #[arg(long, env = "POSTHOUSE_DATA_DIR", value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,

    /// Where to listen; port 0 takes a free one. [default: 127.0.0.1:8400]
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

    #[command(flatten)]
    pub(crate) load: LoadOptions,

    #[command(flatten)]
    pub(crate) sandbox: SandboxOptions,
}

/// What each sandbox may use.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Sandboxes (what each may use)")]
pub(crate) struct SandboxOptions {
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
}

impl SandboxOptions {
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
    listen: Option<SocketAddr>,
    log: Option<String>,
    log_format: Option<LogFormat>,
    provider: Vec<harness::model::ProviderConfig>,
    limits: Load,
    sandbox: sandbox::Limits,
}

/// What a server runs with.
pub(crate) struct Settings {
    pub(crate) data_dir: PathBuf,
    pub(crate) listen: SocketAddr,
    pub(crate) api_key: Option<String>,
    pub(crate) log: String,
    pub(crate) log_format: LogFormat,
    pub(crate) providers: Vec<harness::model::ProviderConfig>,
    pub(crate) load: Load,
    pub(crate) limits: sandbox::Limits,
}

const DEFAULT_LISTEN: &str = "127.0.0.1:8400";
const FILE_NAME: &str = "posthouse.toml";

impl ServerOptions {
    /// Reads the file, if there is one, and fills in what is left.
    pub(crate) fn settle(self) -> anyhow::Result<Settings> {
        self.settle_with("info")
    }

    /// As [`Self::settle`], but logs only what is wrong, unless somebody asks for more.
    pub(crate) fn settle_quiet(self) -> anyhow::Result<Settings> {
        self.settle_with("warn")
    }

    fn settle_with(self, log: &str) -> anyhow::Result<Settings> {
        let (file, path) = self.read_file()?;
        let data_dir = match self.data_dir.or(file.data_dir) {
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
        Ok(Settings {
            data_dir,
            listen: self
                .listen
                .or(file.listen)
                .unwrap_or_else(|| DEFAULT_LISTEN.parse().expect("a valid address")),
            api_key: self.api_key,
            log: self.log.or(file.log).unwrap_or_else(|| log.to_owned()),
            log_format: self.log_format.or(file.log_format).unwrap_or_default(),
            providers: file.provider,
            load: self.load.over(file.limits),
            limits: self.sandbox.over(file.sandbox),
        })
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
}
