//! Where the tools may act and what a command's environment is. Decided once, at the start.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Variables that never reach a command: credentials and settings of the server, and the files that a
/// shell would run on its own.
const SCRUBBED_PREFIXES: [&str; 3] = ["ANTHROPIC_", "OPENAI_", "POSTHOUSE_"];
const SCRUBBED_NAMES: [&str; 2] = ["BASH_ENV", "ENV"];

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What `tools` needs to know about the place it runs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The working directory: relative paths start here, and so does every shell.
    pub workdir: PathBuf,
    /// Where deliverables are left for the user.
    pub outputs: PathBuf,
    /// Where else the file tools may act.
    pub extra_roots: Vec<Root>,
    /// Where outputs go that are too long to be shown. Should lie below a root, so that `read` finds them.
    pub overflow: PathBuf,
    /// The shell: `bash`, or one that knows what POSIX says and no more.
    pub shell: PathBuf,
    /// The whole environment of a shell.
    pub environment: Vec<(OsString, OsString)>,
}

/// A directory that the file tools may reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// Absolute, without symlinks.
    pub path: PathBuf,
    /// Whether they may change what is below.
    pub access: Access,
}

/// What the file tools may do below a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Look.
    Read,
    /// Look and change.
    Write,
}

impl Config {
    /// Reads the command line. Without arguments it is the layout of every sandbox.
    ///
    /// `--workdir DIR`, `--outputs DIR`, `--overflow DIR` replace one directory each; `--read-only DIR`
    /// and `--read-write DIR` may be repeated and replace the extra roots; `--shell FILE` is the shell.
    pub fn parse(
        arguments: impl IntoIterator<Item = OsString>,
        inherited: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Config, String> {
        let mut workdir = PathBuf::from("/workspace");
        let mut outputs = PathBuf::from("/mnt/session/outputs");
        let mut overflow = PathBuf::from(crate::preview::OVERFLOW_DIR);
        let mut extra_roots = Vec::new();
        let mut shell = None;
        let mut arguments = arguments.into_iter();
        while let Some(name) = arguments.next() {
            let value = arguments.next().map(PathBuf::from).filter(|path| path.is_absolute());
            let value = value.ok_or_else(|| format!("{} needs an absolute path", name.display()))?;
            match name.as_bytes() {
                b"--workdir" => workdir = value,
                b"--outputs" => outputs = value,
                b"--overflow" => overflow = value,
                b"--read-only" => extra_roots.push(Root { path: value, access: Access::Read }),
                b"--read-write" => extra_roots.push(Root { path: value, access: Access::Write }),
                b"--shell" => shell = Some(value),
                _ => return Err(format!("unknown argument {}", name.display())),
            }
        }
        if extra_roots.is_empty() {
            extra_roots = vec![
                Root { path: "/mnt/session/uploads".into(), access: Access::Read },
                Root { path: "/tmp".into(), access: Access::Write },
            ];
        }
        let workdir = settled(workdir);
        let extra_roots =
            extra_roots.into_iter().map(|root| Root { path: settled(root.path), ..root }).collect();
        let environment = environment(inherited, &workdir);
        Ok(Config {
            outputs: settled(outputs),
            overflow: settled(overflow),
            shell: shell.unwrap_or_else(usual_shell),
            workdir,
            extra_roots,
            environment,
        })
    }

    /// Makes the folders that are not there yet. Where something else has made them already, nothing is left to do.
    pub fn make_folders(&self) -> Result<(), String> {
        let roots = self.extra_roots.iter().map(|root| &root.path);
        [&self.workdir, &self.outputs].into_iter().chain(roots).try_for_each(|folder| {
            fs::create_dir_all(folder).map_err(|cause| format!("cannot make {}: {cause}", folder.display()))
        })
    }
}

/// Not every image has a `bash`.
fn usual_shell() -> PathBuf {
    let bash = Path::new("/bin/bash");
    if bash.exists() || !Path::new("/bin/sh").exists() { bash.into() } else { "/bin/sh".into() }
}

/// The path without symlinks, or as given where nothing is there yet. Done once, before any command has
/// run, so that no command can make a root point elsewhere.
fn settled(path: PathBuf) -> PathBuf {
    fs::canonicalize(&path).unwrap_or(path)
}

fn environment(
    inherited: impl IntoIterator<Item = (OsString, OsString)>,
    workdir: &Path,
) -> Vec<(OsString, OsString)> {
    let mut environment: Vec<(OsString, OsString)> =
        inherited.into_iter().filter(|(name, _)| !is_scrubbed(name)).collect();
    for (name, value) in [("PATH", PATH), ("HOME", "/root"), ("LANG", "C.UTF-8")] {
        if environment.iter().all(|(existing, _)| existing != name) {
            environment.push((name.into(), value.into()));
        }
    }
    for (name, value) in [("TERM", OsStr::new("dumb")), ("PWD", workdir.as_os_str())] {
        environment.retain(|(existing, _)| existing != name);
        environment.push((name.into(), value.into()));
    }
    environment
}

fn is_scrubbed(name: &OsStr) -> bool {
    SCRUBBED_NAMES.iter().any(|scrubbed| name == *scrubbed)
        || SCRUBBED_PREFIXES.iter().any(|prefix| name.as_bytes().starts_with(prefix.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(values: &[&str]) -> Vec<OsString> {
        values.iter().map(OsString::from).collect()
    }

    #[test]
    fn secrets_and_startup_files_never_reach_a_command() {
        let given = [
            ("ANTHROPIC_API_KEY", "x"),
            ("POSTHOUSE_API_KEY", "x"),
            ("OPENAI_API_KEY", "x"),
            ("BASH_ENV", "/tmp/x"),
            ("PATH", "/bin"),
            ("TERM", "xterm"),
        ];
        let given = given.map(|(name, value)| (name.into(), value.into()));
        let config = Config::parse(strings(&["--workdir", "/nowhere"]), given).unwrap();
        let expected =
            [("PATH", "/bin"), ("HOME", "/root"), ("LANG", "C.UTF-8"), ("TERM", "dumb"), ("PWD", "/nowhere")];
        assert_eq!(config.environment, expected.map(|(name, value)| (name.into(), value.into())));
    }

    #[test]
    fn a_relative_or_missing_or_unknown_argument_is_refused() {
        for arguments in [&["--workdir", "x"][..], &["--workdir"], &["--what", "/"]] {
            assert!(Config::parse(strings(arguments), []).is_err(), "{arguments:?}");
        }
    }
}
