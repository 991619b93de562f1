//! A whole server in one process: store, brain, hands, reaper and door, wired together.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use harness::model::{Listed, Providers};
use harness::{Brain, Options};
use protocol::id::WorkspaceId;
use protocol::model::{Lifecycle, ModelInfo, ModelTag};
use protocol::time::Timestamp;
use sandbox::supervisor::{self, Supervised};
use sandbox::{Provider, Resources};
use store::Store;
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::demo;
use crate::settings::Settings;

/// A server that runs.
pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) store: Store,
    pub(crate) models: Arc<Providers>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
    aborts: [AbortHandle; 3],
}

/// How long a server that is told to stop may take over it. What is under way gets less than that to end by itself.
const STOP_TIME_MAX: Duration = Duration::from_secs(20);

impl Server {
    /// Opens the data directory and starts everything.
    pub(crate) async fn start(settings: &Settings) -> anyhow::Result<Self> {
        let models = Arc::new(providers(settings)?);
        let dir = settings.data_dir.display();
        let options = store::Options { limits: settings.load.sessions(), ..store::Options::default() };
        let store = Store::open(&settings.data_dir, options)
            .with_context(|| format!("the data directory {dir} cannot be opened"))?;
        let listener = TcpListener::bind(settings.listen).await.with_context(|| {
            format!("cannot listen on {}: choose another address with --listen", settings.listen)
        })?;
        let url = format!("http://{}", listener.local_addr()?);
        let hands: Arc<dyn Provider> =
            Arc::new(Supervised::new(supervisor::Settings::new(&settings.data_dir)));
        let options = Options {
            resources: Resources { limits: settings.limits.clone(), ..Resources::default() },
            sessions_max: settings.load.sessions_per_brain(),
            model_limits: settings.load.model_requests(),
            ..Options::new(settings.data_dir.join("outputs"))
        };
        let brain = Arc::new(Brain::new(store.clone(), Arc::clone(&models), Arc::clone(&hands), options));
        let reaper =
            background::Reaper::new(store.clone(), hands).and_outputs(settings.data_dir.join("outputs"));
        let app = api::App { store: store.clone(), models: Arc::new(catalog(&models)) };

        let shutdown = CancellationToken::new();
        let tasks = TaskTracker::new();
        let brain = tasks.spawn(brain.run(shutdown.clone())).abort_handle();
        let reaper = tasks.spawn(reaper.run(shutdown.clone())).abort_handle();
        let door = api::serve(listener, app, shutdown.clone());
        let door = async move {
            if let Err(error) = door.await {
                tracing::error!(%error, "the door closed");
            }
        };
        let door = tasks.spawn(door).abort_handle();
        tasks.close();
        Ok(Self { url, store, models, shutdown, tasks, aborts: [brain, reaper, door] })
    }

    /// The workspace of the first key.
    pub(crate) async fn workspace(&self) -> anyhow::Result<WorkspaceId> {
        Ok(self.store.ensure_workspace().await?)
    }

    /// Stops taking requests, hands sessions over, and waits for what is under way, but not for ever: what does not
    /// end is aborted, and goes on from the log at the next start, as after a crash.
    pub(crate) async fn stop(self) {
        let Self { shutdown, tasks, aborts, store, .. } = self;
        shutdown.cancel();
        let in_order = async {
            tasks.wait().await;
            store.close().await;
        };
        if tokio::time::timeout(STOP_TIME_MAX, in_order).await.is_err() {
            tracing::error!(
                seconds = STOP_TIME_MAX.as_secs(),
                "the server did not stop in time and is aborted; its sessions go on at the next start"
            );
            aborts.iter().for_each(AbortHandle::abort);
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
