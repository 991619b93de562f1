//! A server as a child process, and the ways in which it ends.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use client::Client;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

pub(crate) const KEY: &str = "ph_test_key_of_sixteen_characters";

/// The binary under test, without the variables of whoever runs the tests.
pub(crate) fn posthouse() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_posthouse"));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if ["POSTHOUSE_", "ANTHROPIC_", "OPENAI_"].iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command.env("NO_COLOR", "1").kill_on_drop(true);
    command
}

/// The command that serves a data directory at a free address, without a key.
pub(crate) fn serve(data_dir: &Path) -> Command {
    serve_at("127.0.0.1:0", data_dir)
}

pub(crate) fn serve_at(address: &str, data_dir: &Path) -> Command {
    let mut command = posthouse();
    command.args(["serve", "--listen", address, "--log", "warn", "--data-dir"]).arg(data_dir);
    command
}

/// A server that listens.
pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) child: Child,
}

impl Server {
    /// Starts a server and waits until it says where it listens.
    pub(crate) async fn start(data_dir: &Path, variables: &[(&str, String)]) -> Self {
        let mut command = serve(data_dir);
        command.env("POSTHOUSE_API_KEY", KEY).envs(variables.iter().map(|(name, value)| (name, value)));
        Self::greet(command).await.0
    }

    /// Starts the server of a command; gives what it goes on to say, too.
    pub(crate) async fn greet(mut command: Command) -> (Self, Lines<BufReader<ChildStdout>>) {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the binary starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        while let Some(line) = lines.next_line().await.expect("readable") {
            if let Some((_, url)) = line.split_once("listens on ") {
                return (Self { url: url.to_owned(), child }, lines);
            }
        }
        panic!("the server ended before it listened: {:?}", child.wait().await);
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(&self.url, KEY).expect("a valid address")
    }

    /// SIGKILL.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.expect("it is a child of ours");
    }

    /// SIGTERM, and waits for it to end.
    pub(crate) async fn stop(mut self) {
        signal(&self.child, Signal::TERM);
        let status = self.child.wait().await.expect("it is a child of ours");
        assert!(status.success(), "a server that is told to stop ends in peace: {status}");
    }
}

/// Sends a signal to a child that runs.
pub(crate) fn signal(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw).expect("it runs");
    kill_process(pid, signal).expect("it is a child of ours");
}

/// Writes a configuration file that serves `model` by this script.
pub(crate) fn scripted(dir: &Path, model: &str, script: &serde_json::Value) -> PathBuf {
    std::fs::create_dir_all(dir).expect("can be made");
    let script_file = dir.join("script.json");
    std::fs::write(&script_file, script.to_string()).expect("writes");
    let config = dir.join("posthouse.toml");
    let text = format!(
        "[[provider]]\nname = \"script\"\nkind = \"scripted\"\nmodels = [\"{model}\"]\nscript_file = {script_file:?}\n"
    );
    std::fs::write(&config, text).expect("writes");
    config
}
