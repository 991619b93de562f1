//! Whoever cleans up after this process, however it ends.
//!
//! Values in statics are not dropped at the end of a process, and nothing is dropped when it is killed. So each server
//! that tests start has a small shell beside it, which waits for the end of a pipe that only this process holds, runs
//! the clean-up and goes. The shell has a process group of its own: Ctrl-C must not end it before its work is done.

use std::os::unix::fs::{MetadataExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::process::{Error, ask};

/// Runs a clean-up when it is dropped, or when this process ends in another way.
#[derive(Debug)]
pub(crate) struct Guard {
    shell: Child,
}

impl Guard {
    /// Watches over a folder: at the end the shell runs `clean_up`, in which `$1` is the folder, and removes it.
    pub(crate) fn new(user: User, folder: &Path, clean_up: &str) -> Result<Self, Error> {
        let script = format!("read -r _; {clean_up}\ncd /; rm -rf \"$1\"");
        let shell = user
            .command("sh")
            .args(["-c", &script, "sh"])
            .arg(folder)
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|error| Error::new(format!("sh cannot be started: {error}")))?;
        Ok(Self { shell })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        // It ends by itself; waiting only means that the clean-up is over when this returns.
        let _ = self.shell.wait();
    }
}

/// The user that runs a server which refuses to run as root.
#[derive(Clone, Copy, Debug)]
pub(crate) struct User {
    /// None: whoever runs the tests.
    ids: Option<(u32, u32)>,
}

impl User {
    /// Whoever runs the tests; for root, `postgres` or else `nobody`.
    pub(crate) fn unprivileged() -> Result<Self, Error> {
        let me = std::fs::metadata("/proc/self")
            .map_err(|error| Error::new(format!("/proc/self cannot be read: {error}")))?;
        if me.uid() != 0 {
            return Ok(Self { ids: None });
        }
        let ids = ["postgres", "nobody"].iter().find_map(|name| Some((id("-u", name)?, id("-g", name)?)));
        match ids {
            Some(ids) => Ok(Self { ids: Some(ids) }),
            None => {
                Err(Error::new("root needs a user `postgres` or `nobody` to run the server as".to_owned()))
            }
        }
    }

    /// A command that this user runs.
    pub(crate) fn command(self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        if let Some((user, group)) = self.ids {
            // Without root's other groups: `Command` drops them when root sets the user.
            command.uid(user).gid(group);
        }
        command
    }

    /// A new folder that belongs to this user.
    pub(crate) fn folder(self, prefix: &str) -> Result<PathBuf, Error> {
        let folder = tempfile::Builder::new()
            .prefix(prefix)
            .tempdir()
            .map_err(|error| Error::new(format!("no temporary folder can be made: {error}")))?
            .keep();
        if let Some((user, group)) = self.ids {
            chown(&folder, Some(user), Some(group))
                .map_err(|error| Error::new(format!("{} cannot be given away: {error}", folder.display())))?;
        }
        Ok(folder)
    }
}

fn id(which: &str, name: &str) -> Option<u32> {
    ask(Command::new("id").args([which, name])).ok()?.trim().parse().ok()
}
