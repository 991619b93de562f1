//! `posthouse serve`: the server, until it is told to stop.

use std::io::Write as _;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::server::Server;
use crate::settings::{LogFormat, ServerOptions, Settings};

/// Run the server.
#[derive(Args, Debug)]
pub(crate) struct ServeOptions {
    #[command(flatten)]
    server: ServerOptions,
}

pub(crate) async fn serve(options: ServeOptions) -> anyhow::Result<()> {
    let settings = options.server.settle()?;
    start_log(&settings)?;
    let server = Server::start(&settings).await?;
    let minted = first_key(&server, settings.api_key.as_deref()).await?;
    // Whoever started this may read one line and close the pipe: that is no reason to end.
    let _ = std::io::stdout().write_all(greeting(&server, &settings, minted).as_bytes());
    stop_signal().await?;
    tracing::info!("stopping: sessions are handed over; a second signal ends at once");
    tokio::select! {
        () = server.stop() => Ok(()),
        second = stop_signal() => second,
    }
}

fn greeting(server: &Server, settings: &Settings, minted: Option<String>) -> String {
    let mut text = format!("Posthouse {} listens on {}\n", env!("CARGO_PKG_VERSION"), server.url);
    text += &format!("  data: {}\n", settings.data_dir.display());
    if let Some(key) = minted {
        text += &format!("  first API key: {key}\n");
        text += "  It is stored hashed and not shown again; `posthouse keys create` makes others.\n";
    }
    let is_only_demonstration = server.models.iter().count() == 1;
    if is_only_demonstration {
        let file = settings.data_dir.join("posthouse.toml");
        text +=
            "  No model is configured: set ANTHROPIC_API_KEY, OPENAI_API_KEY or OPENAI_BASE_URL, or write\n";
        text += &format!("  {} (see docs/configuration.md).\n", file.display());
    }
    text
}

/// The key that scripts name, or a minted one, if the data directory has none yet.
async fn first_key(server: &Server, named: Option<&str>) -> anyhow::Result<Option<String>> {
    let workspace = server.workspace().await?;
    if !server.store.list_keys(&workspace).await?.is_empty() {
        return Ok(None);
    }
    let key = named.map_or_else(crate::keys::mint, str::to_owned);
    server.store.create_key(&workspace, "first key", store::hash_key(&key)).await?;
    Ok(named.is_none().then_some(key))
}

/// Writes log lines to standard error.
pub(crate) fn start_log(settings: &Settings) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&settings.log)
        .map_err(|error| anyhow::anyhow!("the log filter `{}` cannot be read: {error}", settings.log))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match settings.log_format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().init(),
    }
    Ok(())
}

async fn stop_signal() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
