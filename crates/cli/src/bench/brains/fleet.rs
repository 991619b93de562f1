//! The processes that are measured, and what they cost.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, bail};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdin, Command};

use super::cpu::{Spent, of_process};
use super::member::{DATABASE, READY, Role};

/// One running process.
pub(super) struct Member {
    child: Child,
    /// Closing it ends the process.
    stdin: ChildStdin,
    roles: Vec<Role>,
    /// Where its door is, if it has one.
    pub(super) url: Option<String>,
}

/// Which processes there are: the roles of each.
pub(super) type Shape = &'static [&'static [Role]];

/// Starts them all, on one database or, if none is named, on the data directory.
pub(super) async fn start(shape: Shape, data: &Path, database: Option<&str>) -> anyhow::Result<Vec<Member>> {
    let mut members = Vec::new();
    for roles in shape {
        members.push(Member::start(roles, data.to_owned(), database).await?);
    }
    Ok(members)
}

impl Member {
    async fn start(roles: &[Role], data: PathBuf, database: Option<&str>) -> anyhow::Result<Self> {
        let names: Vec<&str> = roles.iter().map(|role| role.name()).collect();
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["bench", "member", "--roles", &names.join(","), "--data"]).arg(data);
        match database {
            Some(url) => command.env(DATABASE, url),
            None => command.env_remove(DATABASE),
        };
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("a process of the fleet cannot be started")?;
        let stdin = child.stdin.take().expect("it is piped");
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let url = loop {
            let Some(line) = lines.next_line().await? else {
                bail!("a process of the fleet ended before it worked");
            };
            if let Some(url) = line.strip_prefix(READY) {
                break Some(url.to_owned()).filter(|url| !url.is_empty());
            }
        };
        Ok(Self { child, stdin, roles: roles.to_vec(), url })
    }

    pub(super) fn drives_sessions(&self) -> bool {
        self.roles.contains(&Role::Brain)
    }

    /// The processor time that it has spent so far.
    pub(super) fn spent(&self) -> anyhow::Result<Spent> {
        self.child.id().and_then(of_process).context("a process of the fleet is gone")
    }

    /// Ends it in order, and waits.
    pub(super) async fn stop(self) -> anyhow::Result<()> {
        let Self { mut child, stdin, .. } = self;
        drop(stdin);
        child.wait().await?;
        Ok(())
    }
}
