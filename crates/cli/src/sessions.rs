//! `posthouse sessions`: looking at a running server's sessions and speaking to them.

use clap::{Args, Subcommand};
use client::Item;
use comfy_table::{Table, presets};
use protocol::position::Position;
use protocol::session::{Session, Waiting, WaitsFor};
use serde_json::{Value, json};

use crate::client_options::ClientOptions;
use crate::out;
use crate::render::{Form, Renderer};
use crate::run::PREVIEWS;

/// Look at sessions of a running server, and speak to them.
#[derive(Args, Debug)]
pub(crate) struct SessionsOptions {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// List sessions, newest first.
    List {
        /// How many.
        #[arg(long, default_value_t = 20)]
        limit: u32,
        /// Only those with this status; may be repeated.
        #[arg(long)]
        status: Vec<String>,
        /// Archived ones, too.
        #[arg(long)]
        archived: bool,
        #[command(flatten)]
        server: ClientOptions,
    },
    /// Show one session.
    Show {
        session: String,
        #[command(flatten)]
        server: ClientOptions,
    },
    /// Show a session's events.
    Events {
        session: String,
        /// With --follow: begin behind this position.
        #[arg(long, value_name = "POSITION", requires = "follow")]
        after: Option<u64>,
        /// Go on showing what happens until the session ends or you stop it.
        #[arg(long, short)]
        follow: bool,
        #[command(flatten)]
        server: ClientOptions,
    },
    /// Send a message.
    Send {
        session: String,
        text: String,
        #[command(flatten)]
        server: ClientOptions,
    },
    /// Interrupt what the session is doing.
    Interrupt {
        session: String,
        #[command(flatten)]
        server: ClientOptions,
    },
    /// Make another session with the same agent, environment and vaults, whose workspace begins with what is saved of this one's.
    Fork {
        session: String,
        /// What to say to it first.
        text: Option<String>,
        /// Save the workspace first, as `posthouse snapshots create` does.
        #[arg(long)]
        save: bool,
        #[command(flatten)]
        server: ClientOptions,
    },
}

pub(crate) async fn sessions(options: SessionsOptions) -> anyhow::Result<()> {
    match options.command {
        Command::List { limit, status, archived, server } => list(&server, limit, &status, archived).await,
        Command::Show { session, server } => show(&server, &session).await,
        Command::Events { session, after, follow, server } => events(&server, &session, after, follow).await,
        Command::Send { session, text, server } => {
            let message = json!({"type": "user.message", "content": [{"type": "text", "text": text}]});
            send(&server, &session, message).await
        }
        Command::Interrupt { session, server } => {
            send(&server, &session, json!({"type": "user.interrupt"})).await
        }
        Command::Fork { session, text, save, server } => {
            if save {
                crate::saved::create(&server, &session).await?;
            }
            fork(&server, &session, text).await
        }
    }
}

async fn list(server: &ClientOptions, limit: u32, statuses: &[String], archived: bool) -> anyhow::Result<()> {
    let limit = limit.to_string();
    let mut query =
        vec![("limit", limit.as_str()), ("include_archived", if archived { "true" } else { "false" })];
    query.extend(statuses.iter().map(|status| ("statuses[]", status.as_str())));
    let page = server.client()?.list_sessions(&query).await?;
    if server.json {
        for session in page.data {
            out::line(&serde_json::to_string(&session)?)?;
        }
        return Ok(());
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(["id", "status", "agent", "title", "created", "tokens"]);
    for session in page.data {
        let tokens = session.usage.input_tokens + session.usage.output_tokens;
        let waits_for = session.waiting.map(|waiting| format!(" ({})", waits_for(waiting)));
        table.add_row([
            session.id.to_string(),
            format!("{}{}", session.status.name(), waits_for.unwrap_or_default()),
            session.agent.spec.name,
            session.title.unwrap_or_default(),
            session.created_at.to_string(),
            tokens.to_string(),
        ]);
    }
    out::line(&table.to_string())?;
    Ok(())
}

async fn show(server: &ClientOptions, session: &str) -> anyhow::Result<()> {
    let session: Session = server.client()?.get_session(session).await?;
    if server.json {
        out::line(&serde_json::to_string(&session)?)?;
        return Ok(());
    }
    let Session {
        id,
        agent,
        environment_id,
        title,
        status,
        usage,
        stats,
        created_at,
        archived_at,
        waiting,
        ..
    } = session;
    let waiting = waiting.map(|waiting| format!("{}, since {}", waits_for(waiting), waiting.since));
    let rows = [
        ("id", id.to_string()),
        ("title", title.unwrap_or_default()),
        ("status", status.name().to_owned()),
        ("waiting", waiting.unwrap_or_default()),
        ("agent", format!("{} ({}, version {})", agent.spec.name, agent.id, agent.version)),
        ("model", agent.spec.model.id),
        ("environment", environment_id.to_string()),
        ("created", created_at.to_string()),
        ("archived", archived_at.map_or_else(String::new, |at| at.to_string())),
        ("tokens", format!("{} in, {} out", usage.input_tokens, usage.output_tokens)),
        ("worked", format!("{:.1} s of {:.1} s", stats.active_seconds, stats.duration_seconds)),
    ];
    for (name, value) in rows.into_iter().filter(|(_, value)| !value.is_empty()) {
        out::line(&format!("{name:<12} {value}"))?;
    }
    Ok(())
}

fn waits_for(waiting: Waiting) -> &'static str {
    match waiting.reason {
        WaitsFor::Brain => "waits for a brain",
        WaitsFor::Model => "waits for the model",
        WaitsFor::Sandbox => "waits for a sandbox",
        WaitsFor::Packages => "waits until the packages of its environment are installed",
    }
}

async fn events(
    server: &ClientOptions,
    session: &str,
    after: Option<u64>,
    follow: bool,
) -> anyhow::Result<()> {
    let client = server.client()?;
    let mut renderer = Renderer::new(if server.json { Form::Json } else { Form::Text });
    if follow {
        // A resumed stream from the start is the whole history, then what follows: one reader serves both.
        let mut stream = client.stream(session, Some(Position(after.unwrap_or(0))), &PREVIEWS).await?;
        while let Some(frame) = stream.next().await? {
            match frame {
                Item::Event { position: _, event } => renderer.event(&event),
                Item::Preview(preview) => renderer.preview(&preview),
            }
            renderer.check()?;
        }
    } else {
        for event in client.all_events(session).await? {
            renderer.event(&event);
            renderer.check()?;
        }
    }
    renderer.finish();
    renderer.check()
}

async fn fork(server: &ClientOptions, session: &str, text: Option<String>) -> anyhow::Result<()> {
    let client = server.client()?;
    let Session { agent, environment_id, title, vault_ids, .. } = client.get_session(session).await?;
    let mut body = json!({
        "agent": {"type": "agent", "id": agent.id, "version": agent.version},
        "environment_id": environment_id,
        "vault_ids": vault_ids,
        "workspace": {"from_session": session},
    });
    if let Some(title) = title {
        body["title"] = title.into();
    }
    let made = client.create_session(body).await?;
    if let Some(text) = &text {
        client.send_message(made.id.as_str(), text).await?;
    }
    if server.json {
        out::line(&serde_json::to_string(&made)?)?;
    } else {
        let id = made.id;
        out::line(&format!("made {id}; follow it with: posthouse sessions events {id} --follow"))?;
    }
    Ok(())
}

async fn send(server: &ClientOptions, session: &str, event: Value) -> anyhow::Result<()> {
    let echoes = server.client()?.send_events(session, json!([event])).await?;
    for echo in echoes {
        if server.json {
            out::line(&serde_json::to_string(&echo)?)?;
        } else {
            let id = echo.id;
            out::line(&format!("sent {id}; follow it with: posthouse sessions events {session} --follow"))?;
        }
    }
    Ok(())
}
