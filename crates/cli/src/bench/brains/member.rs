//! One process of the fleet that is measured: a door, a brain, or both, over one store.
//!
//! Wired as `serve` wires it, but for two things: the model is scripted and takes no time, and the hands are pretended:
//! they answer at once, in this process. So what is left of a turn is the store, the brain and the door. The process
//! ends when its parent closes the pipe, or is gone.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use clap::{Args, ValueEnum};
use harness::model::{Providers, Script};
use harness::{Brain, Options};
use protocol::environment::Networking;
use sandbox::{
    Call, Collected, Error, Exits, Output, Pool, Provider, Resources, SandboxId, SandboxInfo, Saved,
};
use store::Store;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The scripted model: says something and runs a command, then says what came of it.
pub(super) const MODEL: &str = "bench";

const SCRIPT: &str = r#"{
    "replies": [
        {"blocks": [{"text": "I will look at it in the sandbox."}, {"tool": "bash", "input": {"command": "ls -l"}}]},
        {"blocks": [{"text": "That is done; there is nothing more to say about it."}]}
    ],
    "on_end": "repeat"
}"#;

/// What the child prints once it works, and its address behind it if it has a door.
pub(super) const READY: &str = "ready ";
/// The variable with the address of the database. Not an argument: those can be read by everybody.
pub(super) const DATABASE: &str = "POSTHOUSE_DATABASE";

/// How the names of threads begin that do nothing but wait for the store's reads.
pub(super) const READING: &str = "reads";

/// One process of a fleet that is measured. Started by `bench brains`.
#[derive(Args, Debug)]
pub(crate) struct MemberOptions {
    /// Where the embedded database is, and the deliverables.
    #[arg(long)]
    data: PathBuf,
    #[arg(long, env = DATABASE, hide_env_values = true)]
    database: Option<String>,
    #[arg(long, value_delimiter = ',')]
    roles: Vec<Role>,
}

/// What a member does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Role {
    /// Answers clients.
    Api,
    /// Drives sessions.
    Brain,
}

impl Role {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Brain => "brain",
        }
    }
}

/// The store of a data directory, or of a database if one is named.
pub(super) async fn open(data: &Path, database: Option<&str>) -> anyhow::Result<Store> {
    let options = store::Options::default();
    match database {
        None => Ok(Store::open(data, options)?),
        Some(url) => Ok(Store::connect(url, None, options).await?),
    }
}

/// The child: returns when nobody holds the other end of its standard input.
pub(crate) fn member(options: &MemberOptions) -> anyhow::Result<()> {
    harness::model::install_crypto();
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let started = AtomicUsize::new(0);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(workers)
        // The runtime starts its workers first and threads for what blocks as they are needed: here, reads.
        .thread_name_fn(move || {
            let is_worker = started.fetch_add(1, Ordering::Relaxed) < workers;
            if is_worker { "worker" } else { READING }.to_owned()
        })
        // So that the time of each can be seen until the end.
        .thread_keep_alive(Duration::from_secs(3_600))
        .build()?;
    runtime.block_on(run(options))
}

async fn run(options: &MemberOptions) -> anyhow::Result<()> {
    let MemberOptions { data, database, roles } = options;
    let store = open(data, database.as_deref()).await?;
    let shutdown = CancellationToken::new();
    let tasks = TaskTracker::new();
    if roles.contains(&Role::Brain) {
        let script: Script = serde_json::from_str(SCRIPT)?;
        let models = Providers::build(Vec::new(), |_| None)?.with_scripted("bench", [MODEL], script);
        let options = Options::new(data.join("outputs"));
        let brain = Arc::new(Brain::new(store.clone(), Arc::new(models), Arc::new(Pretended), options));
        tasks.spawn(brain.run(shutdown.clone()));
    }
    let mut url = String::new();
    if roles.contains(&Role::Api) {
        let rule = api::ModelRule { pattern: MODEL.to_owned(), has_mid_conversation_system: false };
        let catalog = api::Catalog { models: Vec::new(), rules: vec![rule] };
        let app = api::App {
            store: store.clone(),
            credentials: vault::Credentials::new(store.clone(), vault::Source::File(data.join("vault.key"))),
            models: Arc::new(catalog),
            health: api::Health::default(),
            git_hosts: protocol::resource_request::GitHosts::default(),
            default_networking: Networking::default(),
        };
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        url = format!("http://{}", listener.local_addr()?);
        let door = api::serve(listener, app, shutdown.clone());
        tasks.spawn(async move {
            if let Err(error) = door.await {
                tracing::error!(%error, "the door closed");
            }
        });
    }
    tasks.close();
    println!("{READY}{url}");
    std::io::stdout().flush()?;
    // Nothing is ever written there: this returns when the pipe is closed.
    let _ = tokio::task::spawn_blocking(|| std::io::stdin().read(&mut [0])).await;
    shutdown.cancel();
    tasks.wait().await;
    store.close().await;
    Ok(())
}

/// Hands that do what they are asked in no time, and nothing else.
struct Pretended;

#[async_trait]
impl Provider for Pretended {
    async fn provision(&self, _: &SandboxId, _: u64, _: &Resources) -> Result<(), Error> {
        Ok(())
    }

    async fn execute(&self, _: Call) -> Result<Output, Error> {
        Ok(Output::text("total 0\n"))
    }

    async fn cancel(&self, _: &SandboxId, _: u64, _: &str) -> Result<bool, Error> {
        Ok(false)
    }

    async fn touch(&self, _: &SandboxId, _: u64) -> Result<(), Error> {
        Ok(())
    }

    async fn collect_outputs(&self, _: &SandboxId, _: &Path) -> Result<Vec<Collected>, Error> {
        Ok(Vec::new())
    }

    async fn save(&self, _: &SandboxId, _: u64, _: &Path) -> Result<Saved, Error> {
        Err(Error::Refused { reason: "there is nothing to save".to_owned() })
    }

    async fn destroy(&self, _: &SandboxId) -> Result<(), Error> {
        Ok(())
    }

    async fn list(&self) -> Result<Vec<SandboxInfo>, Error> {
        Ok(Vec::new())
    }

    async fn keep_ready(&self, _: &[Pool]) -> Result<(), Error> {
        Ok(())
    }

    fn exits(&self) -> Exits {
        Exits::none()
    }
}
