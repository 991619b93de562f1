//! `posthouse serve`: the server, until it is told to stop.

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::keys::Known;
use crate::server::Server;
use crate::settings::{FleetOptions, LogFormat, Role, ServerOptions, Settings};

/// Run the server.
#[derive(Args, Debug)]
pub(crate) struct ServeOptions {
    #[command(flatten)]
    server: ServerOptions,
    #[command(flatten)]
    fleet: FleetOptions,
}

pub(crate) async fn serve(options: ServeOptions) -> anyhow::Result<()> {
    let settings = options.server.settle(options.fleet)?;
    start_log(&settings)?;
    settings.check_roles()?;
    crate::descriptors::raise();
    let mut server = Server::start(&settings).await?;
    let known = match settings.roles.has(Role::Api) {
        true => crate::keys::ensure_some(&server.store, &settings).await?,
        // Nobody comes here with a key.
        false => Known::Some,
    };
    if known == Known::Revoked {
        tracing::warn!("the key in POSTHOUSE_API_KEY was revoked: it does not work");
    }
    // Before it says that it listens: who reads that may tell it to stop at once.
    let mut signals = StopSignals::catch()?;
    // Whoever started this may read one line and close the pipe: that is no reason to end.
    let _ = crate::out::print(&greeting(&server, &settings, known));
    let ended = tokio::select! {
        () = signals.next() => Ok(()),
        error = server.failed() => Err(error),
    };
    tracing::info!("stopping: sessions are handed over; a second signal ends at once");
    tokio::select! {
        () = server.stop() => {}
        () = signals.next() => {}
    }
    ended
}

fn greeting(server: &Server, settings: &Settings, known: Known) -> String {
    let mut text = format!("Posthouse {} listens on {}\n", env!("CARGO_PKG_VERSION"), server.url);
    if !settings.roles.are_all() {
        text += &format!("  roles: {}\n", settings.roles);
    }
    if !settings.roles.has(Role::Api) {
        text += "  Only /livez, /readyz and /health are answered there.\n";
    }
    match &settings.database {
        Some(database) => text += &format!("  database: {}\n", database.url),
        None => text += &format!("  data: {}\n", settings.data_dir.display()),
    }
    match known {
        Known::Named | Known::Some => {}
        Known::Minted(key) => {
            text += &format!("  API key: {key}\n");
            text += "  It is stored hashed and not shown again; `posthouse keys create` makes others.\n";
        }
        Known::Revoked => {
            text += "  The key in POSTHOUSE_API_KEY was revoked and does not work; `posthouse keys create` makes others.\n";
        }
    }
    let names_models = settings.roles.has(Role::Api) || settings.roles.has(Role::Brain);
    if names_models && crate::demo::is_all(&server.models) {
        let file = settings.data_dir.join("posthouse.toml");
        text +=
            "  No model is configured: set ANTHROPIC_API_KEY, OPENAI_API_KEY or OPENAI_BASE_URL, or write\n";
        text += &format!("  {} (see docs/configuration.md).\n", file.display());
    }
    text
}

/// Writes log lines to standard error.
pub(crate) fn start_log(settings: &Settings) -> anyhow::Result<()> {
    // rmcp logs whole messages of servers, which are content. Whoever wants them asks for them by name.
    let filter = EnvFilter::try_new(format!("rmcp=off,{}", settings.log))
        .map_err(|error| anyhow::anyhow!("the log filter `{}` cannot be read: {error}", settings.log))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match settings.log_format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().init(),
    }
    Ok(())
}

/// The signals that end a server.
struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// From now on they do not end the process by themselves.
    fn catch() -> anyhow::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
