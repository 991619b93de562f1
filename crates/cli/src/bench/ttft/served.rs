//! The server that is measured: wired as `posthouse serve` wires it, with scripted models, and a client of it over
//! real HTTP.

use std::path::Path;
use std::sync::Arc;

use client::Client;
use harness::model::Providers;
use harness::{Brain, Options};
use protocol::environment::Networking;
use protocol::id::SessionId;
use sandbox::supervisor::Supervised;
use sandbox::{Provider, Resources};
use serde_json::json;
use store::Store;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::model::Plan;
use crate::bench::sandbox::supervised;

/// A server, and what a client needs to know of it.
pub(in crate::bench) struct Served {
    pub(in crate::bench) client: Client,
    pub(in crate::bench) hands: Arc<Supervised>,
    pub(in crate::bench) models: Arc<Providers>,
    store: Store,
    /// The agent of each plan.
    agents: Vec<(Plan, String)>,
    environment: String,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

impl Served {
    pub(in crate::bench) async fn start(
        data: &Path,
        models: Providers,
        resources: Resources,
    ) -> anyhow::Result<Self> {
        let store = Store::open(data, store::Options::default())?;
        let models = Arc::new(models);
        let hands = Arc::new(supervised(data));
        let provider: Arc<dyn Provider> = hands.clone();
        let options = Options { resources, ..Options::new(data.join("outputs")) };
        let brain = Arc::new(Brain::new(store.clone(), models.clone(), provider.clone(), options));
        let reaper = background::Reaper::new(store.clone(), provider);
        let rules = Plan::ALL.map(|plan| api::ModelRule {
            pattern: plan.model().to_owned(),
            has_mid_conversation_system: false,
        });
        let catalog = api::Catalog { models: Vec::new(), rules: rules.into() };
        let app = api::App {
            store: store.clone(),
            credentials: vault::Credentials::new(store.clone(), vault::Source::File(data.join("vault.key"))),
            models: Arc::new(catalog),
            health: api::Health::default(),
            git_hosts: protocol::resource_request::GitHosts::default(),
            default_networking: Networking::default(),
        };
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let url = format!("http://{}", listener.local_addr()?);

        let shutdown = CancellationToken::new();
        let tasks = TaskTracker::new();
        tasks.spawn(brain.run(shutdown.clone()));
        tasks.spawn(reaper.run(shutdown.clone()));
        let door = api::serve(listener, app, shutdown.clone());
        tasks.spawn(async move {
            if let Err(error) = door.await {
                tracing::error!(%error, "the door closed");
            }
        });
        tasks.close();

        let workspace = store.ensure_workspace().await?;
        let key = crate::keys::mint();
        store.create_key(&workspace, "bench", store::hash_key(&key)).await?;
        let client = Client::new(&url, &key)?;
        // The bench compares with a sandbox before the model, so its own sessions have one only when a call asks.
        let lazy = json!({"name": "bench", "metadata": {"posthouse.policy": "lazy"}});
        let environment = client.create_environment(lazy).await?.id.to_string();
        let mut agents = Vec::new();
        for plan in Plan::ALL {
            let tools = json!([{"type": "agent_toolset_20260401"}]);
            let agent =
                client.create_agent(json!({"name": "bench", "model": plan.model(), "tools": tools})).await?;
            agents.push((plan, agent.id.to_string()));
        }
        Ok(Self { client, hands, models, store, agents, environment, shutdown, tasks })
    }

    /// An idle session.
    pub(in crate::bench) async fn session(&self, plan: Plan) -> anyhow::Result<SessionId> {
        self.session_in(plan, &self.environment).await
    }

    /// The same in another environment.
    pub(in crate::bench) async fn session_in(
        &self,
        plan: Plan,
        environment: &str,
    ) -> anyhow::Result<SessionId> {
        let agent = self.agents.iter().find(|(of, _)| *of == plan).map(|(_, agent)| agent);
        let agent = agent.expect("each plan has its agent");
        let body = json!({"agent": agent, "environment_id": environment});
        Ok(self.client.create_session(body).await?.id)
    }

    /// Removes a session and its sandbox at once: the reaper comes too seldom for a bench's memory.
    pub(in crate::bench) async fn forget(&self, session: &SessionId) -> anyhow::Result<()> {
        let view = self.store.look(session).await?;
        let sandbox = view.and_then(|view| view.state.sandbox);
        if let Some(id) = sandbox.and_then(|id| sandbox::SandboxId::parse(id.as_str())) {
            self.hands.destroy(&id).await?;
        }
        self.client.delete_session(session.as_str()).await?;
        Ok(())
    }

    pub(in crate::bench) async fn stop(self) -> anyhow::Result<()> {
        self.shutdown.cancel();
        self.tasks.wait().await;
        self.store.close().await;
        self.hands.end().await?;
        Ok(())
    }
}
