//! A server in one process: store, brain, hands, reaper and door, wired together, as far as its roles ask for them.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use api::{Condition, Health};
use background::{Saver, SaverOptions};
use broker::Broker;
use harness::mcp_servers::VaultCredentials;
use harness::model::{Listed, ProviderConfig, Providers};
use harness::web::{SearchProvider, Web};
use harness::{Brain, McpServers, Options, Snapshots};
use protocol::id::WorkspaceId;
use protocol::model::{Lifecycle, ModelInfo, ModelTag};
use protocol::time::Timestamp;
use repositories::Repositories;
use sandbox::supervisor;
use sandbox::{Base, Network, Provider, Resources};
use store::Store;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::demo;
use crate::exits;
use crate::hands::Hands;
use crate::settings::{Database, DatabaseUrl, Role, Settings};
use crate::snapshots::SnapshotSettings;

/// A server that runs.
pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) store: Store,
    pub(crate) models: Arc<Providers>,
    /// The process was told to stop: it is not ready, and begins nothing.
    draining: CancellationToken,
    /// Nobody is listened to any more.
    closing: CancellationToken,
    /// What runs until `draining`, each by its name.
    work: JoinSet<&'static str>,
    /// What runs until `closing`.
    door: JoinSet<&'static str>,
    serves_api: bool,
    drain_delay: Duration,
    drain_timeout: Duration,
}

/// Of the time for the drain, what is left for handing over and closing once requests had their time to end.
const HAND_OVER: Duration = Duration::from_secs(5);
/// How long the supervisor may take to answer a probe. It may have to be started for it; then the next one knows.
const HANDS_LOOK_MAX: Duration = Duration::from_millis(1_500);
/// How often it is looked whether the store can be used at all.
const STORE_LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often in a row it may say that it cannot before that is believed.
const STORE_FAILURES_MAX: u32 = 3;

impl Server {
    /// Opens the store and starts what the roles ask for.
    pub(crate) async fn start(settings: &Settings) -> anyhow::Result<Self> {
        let roles = &settings.roles;
        // Whoever asks no model needs nobody's keys.
        let models = match roles.has(Role::Brain) {
            true => Arc::new(providers(settings)?),
            false => Arc::new(catalogue(settings)?),
        };
        let store = open(settings).await?;
        let listener = TcpListener::bind(settings.listen).await.with_context(|| {
            format!("cannot listen on {}: choose another address with --listen", settings.listen)
        })?;
        let url = format!("http://{}", listener.local_addr()?);
        let hands = (roles.has(Role::Brain) || roles.has(Role::Background))
            .then(|| Hands::kept_by(supervisor_settings(settings), &settings.sandboxes));
        let (draining, closing) = (CancellationToken::new(), CancellationToken::new());
        let health = health(settings, &store, hands.as_ref(), &draining);

        let credentials = vault::Credentials::new(store.clone(), settings.vault.clone())
            .reaching(Arc::new(settings.network.guard()))
            .context("no client for token endpoints can be made")?;
        look_at_vault(&credentials, settings).await;
        let repositories = repositories(settings, &store, &credentials)?;
        let broker = Broker::new(credentials.clone()).serving(repositories.clone());
        let (mut work, mut door) = (JoinSet::new(), JoinSet::new());
        if let Some(hands) = hands {
            let hands: Arc<dyn Provider> = hands.provider();
            let served = exits::serve(
                Arc::clone(&hands),
                Arc::new(settings.network.guard()),
                Some(broker.clone()),
                settings.network.tls.clone(),
                closing.clone(),
            );
            door.spawn(async move {
                served.await;
                "egress"
            });
            let blobs = settings.snapshots.open()?;
            if roles.has(Role::Brain) {
                let snapshots =
                    Snapshots { blobs: blobs.clone(), scratch: settings.snapshots.scratch.clone() };
                let options = Options {
                    snapshots: Some(snapshots),
                    broker: Some(broker),
                    repositories: Some(repositories),
                    web: Some(web(settings)?),
                    mcp: Some(mcp_servers(settings, &store, &credentials)?),
                    ..brain_options(settings)
                };
                let brain = Brain::new(store.clone(), Arc::clone(&models), Arc::clone(&hands), options);
                let brain = Arc::new(brain).run(draining.clone());
                work.spawn(async move {
                    brain.await;
                    "brain"
                });
            }
            if roles.has(Role::Background) {
                let image = settings.usual_image();
                let installer = background::Installer::new(store.clone(), Arc::clone(&hands), image);
                let installer = installer.run(draining.clone());
                work.spawn(async move {
                    installer.await;
                    "installer"
                });
                let reaper =
                    background::Reaper::new(store.clone(), Arc::clone(&hands)).every(settings.reap_every);
                let reaper = reaper.and_outputs(settings.data_dir.join("outputs")).run(draining.clone());
                let saver =
                    Saver::new(store.clone(), hands, blobs, saver_options(settings)).run(draining.clone());
                work.spawn(async move {
                    tokio::join!(reaper, saver);
                    "background"
                });
            }
        }
        let serves_api = roles.has(Role::Api);
        let stop = closing.clone();
        let app = api::App {
            store: store.clone(),
            credentials,
            models: Arc::new(catalog(&models)),
            health,
            git_hosts: settings.git.hosts.clone(),
            default_networking: settings.network.default_networking.clone(),
        };
        door.spawn(async move {
            let served = match serves_api {
                true => api::serve(listener, app, stop).await,
                false => api::serve_health(listener, app.health, stop).await,
            };
            if let Err(error) = served {
                tracing::error!(%error, "the door closed");
            }
            "api"
        });
        let Settings { drain_delay, drain_timeout, .. } = *settings;
        Ok(Self { url, store, models, draining, closing, work, door, serves_api, drain_delay, drain_timeout })
    }

    /// The workspace of the first key.
    pub(crate) async fn workspace(&self) -> anyhow::Result<WorkspaceId> {
        Ok(self.store.ensure_workspace().await?)
    }

    /// Returns only when the process can do its work no more, so that whoever started it can start another: a role has
    /// ended by itself, or the store has failed for good.
    pub(crate) async fn failed(&mut self) -> anyhow::Error {
        let ended = tokio::select! {
            Some(ended) = self.work.join_next() => ended,
            Some(ended) = self.door.join_next() => ended,
            error = lost(&self.store) => return anyhow!(error).context("the store has failed for good"),
        };
        match ended {
            Ok(name) => anyhow!("the role `{name}` ended though nobody told it to"),
            Err(error) => anyhow!(error).context("a role of the server failed"),
        }
    }

    /// Stops: not ready any more, and nothing is begun; the API goes on for the delay, so that load balancers notice.
    /// Then streams end, sessions are handed over, and what is under way is waited for, but not for ever: what does not
    /// end is aborted, and goes on from the log, as after a crash.
    pub(crate) async fn stop(self) {
        let Self { draining, closing, mut work, mut door, store, serves_api, drain_delay, .. } = self;
        draining.cancel();
        if serves_api {
            tokio::time::sleep(drain_delay).await;
            closing.cancel();
        }
        let in_order = async {
            while work.join_next().await.is_some() {}
            // Without the API it is only probes, which are answered to the end.
            closing.cancel();
            while door.join_next().await.is_some() {}
            store.close().await;
        };
        if tokio::time::timeout(self.drain_timeout, in_order).await.is_err() {
            tracing::error!(
                seconds = self.drain_timeout.as_secs_f64(),
                "the server did not stop in time and is aborted; its sessions go on from their logs"
            );
            work.abort_all();
            door.abort_all();
        }
    }
}

/// Opens the database that the settings name.
pub(crate) async fn open(settings: &Settings) -> anyhow::Result<Store> {
    let options = store::Options { limits: settings.load.sessions(), ..store::Options::default() };
    match &settings.database {
        None => Store::open(&settings.data_dir, options)
            .with_context(|| format!("the data directory {} cannot be opened", settings.data_dir.display())),
        Some(Database { url, listen }) => {
            Store::connect(url.expose(), listen.as_ref().map(DatabaseUrl::expose), options)
                .await
                .with_context(|| format!("the database {url} cannot be opened"))
        }
    }
}

/// The same, to be read only, whoever serves it; as it is, whatever its format.
pub(crate) async fn open_beside(settings: &Settings) -> anyhow::Result<Store> {
    match &settings.database {
        None => Store::open_beside(&settings.data_dir, store::Options::default())
            .with_context(|| format!("the data directory {} cannot be read", settings.data_dir.display())),
        Some(Database { url, .. }) => {
            store::check_format(url.expose())
                .await
                .with_context(|| format!("the database {url} cannot be read"))?;
            open(settings).await
        }
    }
}

/// Brings the database that the settings name to this version's format; gives the format found and the one reached.
pub(crate) async fn migrate(settings: &Settings) -> anyhow::Result<(u32, u32)> {
    match &settings.database {
        None => store::migrate_directory(&settings.data_dir).with_context(|| {
            format!("the data directory {} cannot be migrated", settings.data_dir.display())
        }),
        Some(Database { url, .. }) => store::migrate(url.expose())
            .await
            .with_context(|| format!("the database {url} cannot be migrated")),
    }
}

/// A supervisor whose builders reach package registries and nothing else.
fn supervisor_settings(settings: &Settings) -> supervisor::Settings {
    let policy =
        egress::Policy::Limited { allowed_hosts: vec![], mcp_hosts: vec![], allow_package_managers: true };
    let grant = egress::Grant { session: None, policy };
    supervisor::Settings {
        capacity: settings.capacity.clone(),
        registries: Some(Network(grant.to_text())),
        ..supervisor::Settings::new(&settings.data_dir)
    }
}

fn brain_options(settings: &Settings) -> Options {
    let timeout = settings.drain_timeout;
    Options {
        resources: Resources {
            limits: settings.limits.clone(),
            base: Base { image: settings.usual_image(), ..Base::default() },
            ..Resources::default()
        },
        holder: holder(),
        sessions_max: settings.load.sessions_per_brain(),
        model_limits: settings.load.model_requests(),
        // Of a short time for the drain three quarters, of a long one all but what handing over takes.
        finish_time_max: timeout.saturating_sub(HAND_OVER.min(timeout / 4)),
        ..Options::new(settings.data_dir.join("outputs"))
    }
}

/// What connects sessions to their agents' MCP servers.
fn mcp_servers(
    settings: &Settings,
    store: &Store,
    credentials: &vault::Credentials,
) -> anyhow::Result<Arc<McpServers>> {
    harness::model::install_crypto();
    let guard = Arc::new(settings.network.guard());
    let credentials = VaultCredentials::new(store.clone(), credentials.clone());
    let proxy = mcp::Proxy::new(guard, Arc::new(credentials), mcp::Times::default());
    Ok(Arc::new(McpServers::new(proxy.context("no client for MCP servers can be made")?)))
}

/// What runs the web tools.
fn web(settings: &Settings) -> anyhow::Result<Web> {
    let search = settings.search.clone();
    let search = search.map(|search| SearchProvider::build(search, &|name: &str| std::env::var(name).ok()));
    let search = search.transpose()?;
    if search.is_none() {
        tracing::info!("no search provider is configured: models are not offered web_search");
    }
    Web::new(Arc::new(settings.network.guard()), search).context("no client for fetching pages can be made")
}

/// What fetches repositories, and spends their tokens.
fn repositories(
    settings: &Settings,
    store: &Store,
    credentials: &vault::Credentials,
) -> anyhow::Result<Repositories> {
    let guard = Arc::new(settings.network.guard());
    let settings = settings.git.settings(settings.data_dir.join("repositories"), guard)?;
    Repositories::new(store.clone(), credentials.clone(), settings).context("repositories cannot be fetched")
}

fn saver_options(settings: &Settings) -> SaverOptions {
    let SnapshotSettings { idle, keep, session_bytes_max, total_bytes_max, scratch, .. } =
        &settings.snapshots;
    SaverOptions {
        idle: *idle,
        keep: *keep,
        session_bytes_max: *session_bytes_max,
        total_bytes_max: *total_bytes_max,
        scratch: scratch.clone(),
        holder: holder(),
    }
}

/// Names this process among those of all machines, for people who read leases.
fn holder() -> String {
    let machine = rustix::system::uname();
    format!("{}-{}", machine.nodename().to_string_lossy(), std::process::id())
}

/// Says at the start what would otherwise be found out by the first who needs a secret. Everything else works without.
async fn look_at_vault(credentials: &vault::Credentials, settings: &Settings) {
    // The key of a fleet is not made here: whoever seals the first secret makes it, and the others need the same.
    let is_begun = match credentials.store().vault_master().await {
        Ok(master) => master.is_some() || settings.database.is_none(),
        Err(_) => false,
    };
    if is_begun && let Err(error) = credentials.check().await {
        tracing::error!(error = format!("{:#}", anyhow!(error)), "vaults cannot be used");
    }
}

/// What the probes look at.
fn health(settings: &Settings, store: &Store, hands: Option<&Hands>, draining: &CancellationToken) -> Health {
    let asked = store.clone();
    let mut health = Health::new(draining.clone()).with("database", move || database(asked.clone()));
    if settings.database.is_some() {
        let asked = store.clone();
        health = health.with("listener", move || {
            std::future::ready(match asked.is_listening() {
                true => Condition::Ok,
                false => Condition::Degraded("it is not connected: changes are seen late, by polling"),
            })
        });
    }
    if let Some(hands) = hands.filter(|_| settings.roles.has(Role::Brain)) {
        let hands = hands.clone();
        // Clients are served without hands, and a brain can do little without them.
        let without = match settings.roles.has(Role::Api) {
            true => Condition::Degraded,
            false => Condition::Down,
        };
        health = health.with("hands", move || look_at_hands(hands.clone(), without));
    }
    health
}

async fn database(store: Store) -> Condition {
    match store.ping().await {
        Ok(()) => Condition::Ok,
        Err(error) => {
            tracing::debug!(%error, "the database does not answer");
            Condition::Down("it does not answer")
        }
    }
}

async fn look_at_hands(hands: Hands, without: fn(&'static str) -> Condition) -> Condition {
    match tokio::time::timeout(HANDS_LOOK_MAX, hands.report()).await {
        Ok(Ok(report)) if report.refusal().is_none() => Condition::Ok,
        Ok(Ok(_)) => Condition::Degraded("this machine allows no sandbox; `posthouse doctor` says why"),
        Ok(Err(error)) => {
            tracing::debug!(%error, "the supervisor does not answer");
            without("what keeps the sandboxes can neither be reached nor started")
        }
        Err(_) => without("what keeps the sandboxes does not answer in time"),
    }
}

/// Returns when the store has said again and again what will not pass: its writer is gone, or the database is damaged.
/// What may pass is waited for; the probes tell of it.
async fn lost(store: &Store) -> store::Error {
    let mut failures = 0;
    loop {
        tokio::time::sleep(STORE_LOOK_EVERY).await;
        match store.ping().await {
            Err(error) if !error.may_try_again() => {
                failures += 1;
                if failures == STORE_FAILURES_MAX {
                    return error;
                }
            }
            Ok(()) | Err(_) => failures = 0,
        }
    }
}

/// The models of the file, the demonstration's script, then the models of the environment, whose patterns may take
/// every name.
pub(crate) fn providers(settings: &Settings) -> anyhow::Result<Providers> {
    let lookup = |name: &str| std::env::var(name).ok();
    let context = "the models cannot be used as configured";
    let of_file = Providers::build(settings.providers.clone(), lookup).context(context)?;
    let of_environment = Providers::from_env(lookup).context(context)?;
    Ok(of_file.with_scripted("demonstration", [demo::MODEL], demo::script()).then(of_environment))
}

/// The names of those models, for a process that asks none: it needs the same file as the others, but neither keys nor
/// scripts. What only the environment names is known only if the process has those variables.
fn catalogue(settings: &Settings) -> anyhow::Result<Providers> {
    let named = settings.providers.iter().cloned().map(ProviderConfig::named_only).collect();
    providers(&Settings { providers: named, ..settings.clone() })
}

fn catalog(models: &Providers) -> api::Catalog {
    let info = |listed: Listed| ModelInfo {
        tag: ModelTag::Model,
        display_name: listed.id.clone(),
        id: listed.id,
        created_at: Timestamp::default(),
        lifecycle: Lifecycle::Active,
        deprecated_at: None,
        retires_at: None,
        line: None,
        max_input_tokens: listed.context_tokens,
        max_tokens: listed.max_output_tokens.map(u64::from),
        capabilities: None,
        allowed_fallback_models: None,
    };
    let rules = models.iter().flat_map(|provider| {
        let has_mid_conversation_system = provider.takes_system_messages();
        provider
            .patterns()
            .map(move |pattern| api::ModelRule { pattern: pattern.to_owned(), has_mid_conversation_system })
    });
    api::Catalog { models: models.list().into_iter().map(info).collect(), rules: rules.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_store_that_is_lost_is_noticed() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Store::open(dir.path(), store::Options::default()).expect("opens");
        store.clone().close().await;
        let error = lost(&store).await;
        assert!(matches!(error, store::Error::Closed), "{error}");
    }
}
