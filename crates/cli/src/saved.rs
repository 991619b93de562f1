//! `posthouse snapshots`: what is saved of a running server's sessions, and saving one now.

use std::time::Duration;

use anyhow::bail;
use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use serde_json::Value;

use crate::client_options::ClientOptions;
use crate::out;

/// Between two looks whether a snapshot is there.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Look at saved workspaces, and save one.
#[derive(Args, Debug)]
pub(crate) struct SavedOptions {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Show what is saved of a session's workspace.
    List {
        session: String,
        #[command(flatten)]
        server: ClientOptions,
    },
    /// Save a session's workspace now, and wait until that is done. Its sandbox goes on.
    Create {
        session: String,
        #[command(flatten)]
        server: ClientOptions,
    },
}

pub(crate) async fn saved(options: SavedOptions) -> anyhow::Result<()> {
    match options.command {
        Command::List { session, server } => {
            let listed = server.client()?.list_snapshots(&session).await?;
            show(&server, listed["data"].as_array().map_or(&[], Vec::as_slice))
        }
        Command::Create { session, server } => show(&server, &[create(&server, &session).await?]),
    }
}

/// Saves a session's workspace, and gives the snapshot.
pub(crate) async fn create(server: &ClientOptions, session: &str) -> anyhow::Result<Value> {
    let client = server.client()?;
    let mut made = client.take_snapshot(session).await?;
    let mut looks = tokio::time::interval(LOOK_EVERY);
    while made["status"] == "pending" {
        looks.tick().await;
        let listed = client.list_snapshots(session).await?;
        // What is saved comes first, and what became of the wish behind it.
        match listed["data"].as_array().and_then(|data| data.last()) {
            Some(last) => made = last.clone(),
            None => bail!("the session is saved no more"),
        }
    }
    if made["status"] == "failed" {
        bail!("the workspace was not saved: {}", text(&made["error"]));
    }
    Ok(made)
}

fn show(server: &ClientOptions, snapshots: &[Value]) -> anyhow::Result<()> {
    if server.json {
        for snapshot in snapshots {
            out::line(&snapshot.to_string())?;
        }
        return Ok(());
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(["status", "when", "bytes", "base", "sha256"]);
    for snapshot in snapshots {
        let when = ["created_at", "requested_at", "failed_at"].map(|name| &snapshot[name]);
        let when = when.into_iter().find(|when| when.is_string()).unwrap_or(&Value::Null);
        let base = if snapshot["error"].is_null() { &snapshot["base"] } else { &snapshot["error"] };
        let cells = [&snapshot["status"], when, &snapshot["size_bytes"], base, &snapshot["sha256"]];
        table.add_row(cells.map(text));
    }
    out::line(&table.to_string())?;
    Ok(())
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}
