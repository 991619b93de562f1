//! Running git: with an environment that is written out in full, bounded in time and output, and with everything that it
//! starts ended together.
//!
//! What comes out of a repository is data of strangers. No configuration of the machine is read, no hook, filter, submodule
//! or helper runs, and nothing is spoken but HTTP to our own socket and the cache's own files.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process_group, prlimit};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;

/// What is kept of what git says on its standard error.
const SAID_BYTES_MAX: usize = 16 << 10;
/// The longest list that is read: of half a million files.
const OUTPUT_BYTES_MAX: usize = 128 << 20;

/// What every git is told.
const CONFIG: &[(&str, &str)] = &[
    ("core.hooksPath", "/dev/null"),
    ("core.fsmonitor", "false"),
    // A log of a branch would begin with a path of this machine.
    ("core.logAllRefUpdates", "false"),
    ("core.askPass", ""),
    ("credential.helper", ""),
    ("init.templateDir", ""),
    ("init.defaultBranch", "main"),
    ("protocol.allow", "never"),
    ("http.followRedirects", "false"),
    ("http.proxy", ""),
    ("fetch.recurseSubmodules", "false"),
    ("submodule.recurse", "false"),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    // What is fetched stays one pack, which is linked and not copied.
    ("fetch.unpackLimit", "1"),
    ("pack.threads", "2"),
    // Larger ones are not held in memory as a whole.
    ("core.bigFileThreshold", "32m"),
    ("advice.detachedHead", "false"),
    ("safe.directory", "*"),
];

/// What one run is allowed besides.
#[derive(Clone, Copy, Default)]
pub(crate) struct Allowed<'a> {
    /// The header for our own socket: then it may speak HTTP.
    pub(crate) header: Option<&'a str>,
    /// Whether it may read another repository's files.
    pub(crate) files: bool,
    /// The largest file that it may write, and the largest piece of memory that it may take: a few bytes of a pack may be
    /// an object of many gigabytes.
    pub(crate) file_bytes_max: Option<u64>,
}

/// Git did not do it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// It cannot be started.
    #[error("git cannot be run: {0}")]
    Start(io::Error),
    /// It said no. The text is its last word, if that is its own and not the host's.
    #[error("git gave up{}", .0.as_deref().map(|said| format!(": {said}")).unwrap_or_default())]
    Failed(Option<String>),
    /// It said more than anybody wants to hear.
    #[error("git said too much")]
    TooMuch,
}

/// The program, run in one folder.
#[derive(Clone, Copy)]
pub(crate) struct Git<'a> {
    pub(crate) program: &'a Path,
    /// Made before; also its home, in which there is nothing.
    pub(crate) folder: &'a Path,
}

impl Git<'_> {
    /// Runs to the end, and gives what it printed.
    pub(crate) async fn run(
        &self,
        allowed: Allowed<'_>,
        args: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Result<Vec<u8>, Error> {
        let mut command = Command::new(self.program);
        command
            .args(args)
            .current_dir(self.folder)
            .env_clear()
            .envs(self.environment(allowed))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Of its own, so that what it starts ends with it. Nothing here keeps the standard library from `posix_spawn`:
            // a large server is not copied for it.
            .process_group(0)
            .kill_on_drop(true);
        let mut child = command.spawn().map_err(Error::Start)?;
        let group = Group(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
        if let (Some(pid), Some(bytes)) = (group.0, allowed.file_bytes_max) {
            // What it has started by now has it as well, or is too young to have written so much.
            let _ =
                prlimit(Some(pid), Resource::Fsize, Rlimit { current: Some(bytes), maximum: Some(bytes) });
        }
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (printed, said) = tokio::join!(read(stdout, OUTPUT_BYTES_MAX), read_last(stderr));
        let printed = printed.ok_or(Error::TooMuch)?;
        let status = child.wait().await.map_err(Error::Start)?;
        std::mem::forget(group);
        if status.success() { Ok(printed) } else { Err(Error::Failed(own_word(&said))) }
    }

    fn environment(&self, allowed: Allowed<'_>) -> Vec<(OsString, OsString)> {
        let Allowed { header, files, file_bytes_max } = allowed;
        let mut config: Vec<(&str, &str)> = CONFIG.to_vec();
        if let Some(header) = header {
            config.push(("protocol.http.allow", "always"));
            config.push(("http.extraHeader", header));
        }
        if files {
            config.push(("protocol.file.allow", "always"));
        }
        let around = self.folder.parent().unwrap_or(self.folder);
        let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
        let mut all: Vec<(OsString, OsString)> = vec![
            ("PATH".into(), path),
            ("HOME".into(), self.folder.into()),
            ("LC_ALL".into(), "C".into()),
            ("TZ".into(), "UTC".into()),
            ("GIT_CONFIG_NOSYSTEM".into(), "1".into()),
            ("GIT_CONFIG_SYSTEM".into(), "/dev/null".into()),
            ("GIT_CONFIG_GLOBAL".into(), "/dev/null".into()),
            ("GIT_ATTR_NOSYSTEM".into(), "1".into()),
            // No repository is looked for in what lies around the server's folder.
            ("GIT_CEILING_DIRECTORIES".into(), around.into()),
            ("GIT_TERMINAL_PROMPT".into(), "0".into()),
            ("GIT_ASKPASS".into(), "/bin/false".into()),
            ("GIT_LFS_SKIP_SMUDGE".into(), "1".into()),
            ("GIT_CONFIG_COUNT".into(), config.len().to_string().into()),
        ];
        if let Some(bytes) = file_bytes_max {
            all.push(("GIT_ALLOC_LIMIT".into(), bytes.to_string().into()));
        }
        for (index, (key, value)) in config.into_iter().enumerate() {
            all.push((format!("GIT_CONFIG_KEY_{index}").into(), key.into()));
            all.push((format!("GIT_CONFIG_VALUE_{index}").into(), value.into()));
        }
        all
    }
}

/// The group of a git and of what it started. Ended when whoever waits for it does not any more.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

async fn read(from: Option<impl AsyncRead + Unpin>, bytes_max: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut bounded = from?.take(bytes_max as u64 + 1);
    bounded.read_to_end(&mut bytes).await.ok()?;
    (bytes.len() <= bytes_max).then_some(bytes)
}

/// Reads to the end, and keeps what came last.
async fn read_last(from: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let (mut last, mut chunk) = (Vec::new(), vec![0; 4096]);
    let Some(mut from) = from else { return last };
    while let Ok(count @ 1..) = from.read(&mut chunk).await {
        last.extend_from_slice(&chunk[..count]);
        if last.len() > SAID_BYTES_MAX * 2 {
            last.drain(..last.len() - SAID_BYTES_MAX);
        }
    }
    last
}

/// The last line that git itself said. What the host said is not repeated: nobody knows what it may hold.
fn own_word(said: &[u8]) -> Option<String> {
    let said = String::from_utf8_lossy(said);
    let lines = said.lines().rev().filter_map(|line| {
        let word = line.strip_prefix("fatal: ").or_else(|| line.strip_prefix("error: "))?;
        (!word.contains("remote") && !word.contains("127.0.0.1"))
            .then(|| without_paths(word).chars().take(200).collect())
    });
    lines.take(1).next()
}

/// Without paths of this machine, which git quotes or not. Names in the repository stay: they begin with no slash.
fn without_paths(word: &str) -> String {
    let is_path = |text: &str| text.trim_start_matches(['"', '(']).starts_with('/') || text.contains(":/");
    let plain = |text: &str| {
        let words = text.split(' ').map(|word| if is_path(word) { "…" } else { word });
        words.collect::<Vec<_>>().join(" ")
    };
    // What follows a quotation mark goes as a whole: a path may have spaces.
    let mut parts = word.split('\'');
    let first = parts.next().map(plain);
    let others = parts.map(|part| if is_path(part) { "…".to_owned() } else { plain(part) });
    first.into_iter().chain(others).collect::<Vec<_>>().join("'")
}

/// A path as an argument.
pub(crate) fn argument(path: &Path) -> OsString {
    PathBuf::from(path).into_os_string()
}
