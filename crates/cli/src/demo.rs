//! The demonstration: what `posthouse run` plays where no model is configured.
//!
//! Only the model is scripted. The server is a child process, the session is in a real store, and the commands run
//! in a real sandbox. Halfway the server is killed with SIGKILL; another is started on the same data directory and
//! carries on.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use client::{Client, Item};
use harness::model::{Providers, Script};
use protocol::event::Body;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::keys;
use crate::render::{Form, Renderer};
use crate::run::{Ended, Summary, Watch, conclude, ended, outputs, prepare};
use crate::settings::Settings;

/// The name of the scripted model. Every server knows it.
pub(crate) const MODEL: &str = "posthouse-demo";

const SCRIPT: &str = include_str!("demo.json");
const TASK: &str = "Count to eight slowly, survive a crash, and write a report about it.";
/// How long the slow command runs before the server is killed: long enough to see it counting.
const KILL_AFTER: Duration = Duration::from_millis(1500);

/// What the scripted model says.
pub(crate) fn script() -> Script {
    serde_json::from_str(SCRIPT).expect("the demonstration's script is valid")
}

/// Whether there is no model but the demonstration's.
pub(crate) fn is_all(models: &Providers) -> bool {
    models.iter().all(|provider| provider.patterns().eq([MODEL]))
}

/// Plays the demonstration.
pub(crate) async fn play(settings: &Settings, form: Form) -> anyhow::Result<()> {
    let key = keys::mint();
    let mut store = store::Keys::open(&settings.data_dir, store::Options::default())?;
    let workspace = store.ensure_workspace()?;
    let made = store.create_key(&workspace, keys::INTERNAL, store::hash_key(&key))?;
    let mut server = None;
    let summary = tokio::select! {
        summary = on_servers(settings, &key, form, &mut server) => summary,
        _ = tokio::signal::ctrl_c() => Err(anyhow!("left; the demonstration's session is kept")),
    };
    // However that ended, no server of ours is to run any more. One that was stopped is not there to be killed.
    if let Some(mut server) = server {
        let _ = server.kill().await;
    }
    store.revoke_key(&workspace, &made.id)?;
    conclude(&summary?, form)
}

/// Leaves the server that runs in `current`, so that the caller ends it if this does not come so far.
async fn on_servers(
    settings: &Settings,
    key: &str,
    form: Form,
    current: &mut Option<Child>,
) -> anyhow::Result<Summary> {
    let mut renderer = Renderer::new(form);
    renderer.announce(
        "No model is configured, so this is the scripted demonstration: a scripted model, but a real",
    );
    renderer.announce("server, a real session and real commands in a real sandbox.");
    renderer.note(
        "To run your own task: set ANTHROPIC_API_KEY, OPENAI_API_KEY or OPENAI_BASE_URL and try again.\n",
    );
    let (server, url) = start(settings, key).await?;
    let server = current.insert(server);
    let client = Client::new(&url, key)?;
    renderer.note(&format!("server {} listens on {url}", pid(server)));
    let session = prepare(&client, TASK, MODEL, None).await?;
    renderer.note(&format!("session {}\n\n> {TASK}", session.id));

    let mut watch = Watch::begin(&client, &session.id, TASK).await?;
    until_slow_command(&mut watch, &mut renderer).await?;
    tokio::time::sleep(KILL_AFTER).await;
    renderer
        .announce(&format!("\n✗ kill -9 {}: the server is dead in the middle of the command.", pid(server)));
    server.kill().await?;

    let (server, url) = start(settings, key).await?;
    let server = current.insert(server);
    renderer.announce(&format!("✓ server {} carries on with the same session, from its log.\n", pid(server)));
    let client = Client::new(&url, key)?;
    watch.resume(&client).await?;
    let ended = watch.until_idle(&mut renderer).await?;
    renderer.finish();
    renderer.check()?;
    if ended == Ended::Over {
        bail!("the demonstration failed; posthouse doctor says what this machine's sandboxes lack");
    }
    let session = client.get_session(session.id.as_str()).await?;
    let summary = Summary {
        outputs: outputs(settings, &session.id),
        first_token: watch.first_token,
        took: watch.began.elapsed(),
        session,
    };
    stop(server).await?;
    Ok(summary)
}

/// Shows everything until the slow command runs.
async fn until_slow_command(watch: &mut Watch<'_>, renderer: &mut Renderer) -> anyhow::Result<()> {
    while let Some(frame) = watch.next().await? {
        match frame {
            Item::Preview(preview) => renderer.preview(&preview),
            Item::Event { position: None, .. } => {}
            Item::Event { position: Some(_), event } => {
                renderer.event(&event);
                renderer.check()?;
                if matches!(event.body, Body::AgentToolUse { .. }) {
                    return Ok(());
                }
                if ended(&event.body).is_some() {
                    bail!("the demonstration ended before its first command");
                }
            }
        }
    }
    bail!("the server closed the stream")
}

/// Starts a server as a child, and waits until it says where it listens.
async fn start(settings: &Settings, key: &str) -> anyhow::Result<(Child, String)> {
    let mut server = Command::new(std::env::current_exe()?)
        .arg("serve")
        // Whatever the environment and the file say of a fleet: this one is alone.
        .args(["--role", "api,brain,background"])
        .args(["--listen", "127.0.0.1:0", "--log", &settings.log, "--data-dir"])
        .arg(&settings.data_dir)
        // The server takes it for a key that it is to know, and mints none that nobody would see.
        .env("POSTHOUSE_API_KEY", key)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("the server cannot be started")?;
    let stdout = server.stdout.take().expect("it is piped");
    let mut lines = BufReader::new(stdout).lines();
    while let Some(line) = lines.next_line().await? {
        if let Some((_, url)) = line.split_once("listens on ") {
            return Ok((server, url.to_owned()));
        }
    }
    bail!("the server ended before it listened")
}

/// Asks the server to stop, and waits.
async fn stop(server: &mut Child) -> anyhow::Result<()> {
    // A child that was not waited for keeps its number, so nobody else can have it.
    if let Some(pid) = server.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw) {
        kill_process(pid, Signal::TERM).context("the server cannot be told to stop")?;
    }
    server.wait().await?;
    Ok(())
}

fn pid(server: &Child) -> String {
    server.id().map_or_else(|| "?".to_owned(), |pid| pid.to_string())
}
