//! What the reaper takes and what it leaves alone.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use background::Reaper;
use protocol::agent::{
    AgentSpec, AgentTag, Effort, EffortLevel, ExecutionIdentity, ModelConfig, SessionAgent, Speed,
};
use protocol::environment::EnvironmentConfig;
use protocol::event::Body;
use protocol::id::{AgentId, EnvironmentId, SessionId, WorkspaceId};
use sandbox::{
    Call, Collected, Error, Exits, Output, Pool, Provider, Resources, SandboxId, SandboxInfo, Saved,
};
use session::Draft;
use session::record::Record;
use store::{NewSession, Store};
use tempfile::TempDir;
use testkit::hands::FakeHands;
use tokio_util::sync::CancellationToken;

const GRACE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

pub(crate) struct World {
    pub(crate) store: Store,
    pub(crate) hands: Arc<FakeHands>,
    pub(crate) workspace: WorkspaceId,
    pub(crate) dir: TempDir,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(|dir| Store::open(dir, store::Options::default()).expect("opens")).await
    }

    pub(crate) async fn with(store: impl FnOnce(&Path) -> Store) -> Self {
        let dir = TempDir::new().expect("a directory can be made");
        let store = store(dir.path());
        let workspace = store.ensure_workspace().await.expect("a workspace");
        Self { store, hands: Arc::default(), workspace, dir }
    }

    pub(crate) fn reaper(&self) -> Reaper {
        Reaper::new(self.store.clone(), self.hands.clone())
    }

    /// A sandbox that nobody owns.
    async fn orphan(&self, name: &str, age: Duration) -> SandboxId {
        let id = SandboxId::parse(name).expect("an id");
        self.hands.provision(&id, 1, &Resources::default()).await.expect("made");
        self.hands.set_age(&id, age);
        id
    }

    /// An old sandbox, and the session that has it on record.
    pub(crate) async fn owned(&self, name: &str) -> SessionId {
        self.orphan(name, 2 * GRACE).await;
        let session = self.session().await;
        self.record(&session, name).await;
        session
    }

    /// From now on the session has this sandbox.
    async fn record(&self, session: &SessionId, name: &str) {
        let lease = self.store.try_claim(session, "test").await.expect("works").expect("free");
        let head = self.store.look(session).await.expect("works").expect("is there").state.head;
        let body = Body::Sandbox { sandbox_id: protocol::id::SandboxId::from_text(name) };
        let drafts = vec![Draft::New { id: self.store.ids().make(), body }];
        self.store.append(&lease.token, head, drafts).await.expect("appended");
        self.store.release(lease).await.expect("released");
    }

    pub(crate) async fn session(&self) -> SessionId {
        let now = self.store.now();
        let record = Record {
            id: self.store.ids().make(),
            agent: agent(),
            environment_id: EnvironmentId::from_text("env_1"),
            hands: protocol::hands::HandsSettings::default(),
            environment: EnvironmentConfig::SelfHosted {},
            title: None,
            metadata: BTreeMap::new(),
            vault_ids: Vec::new(),
            resources: Vec::new(),
            created_at: now,
            updated_at: now,
            archived_at: None,
        };
        let id = record.id.clone();
        let thread_id = self.store.ids().make();
        let new = NewSession { workspace: self.workspace.clone(), record, thread_id, initial: Vec::new() };
        self.store.create_session(new).await.expect("created");
        id
    }

    pub(crate) async fn archive(&self, session: &SessionId) {
        self.store.archive_session(&self.workspace, session).await.expect("archived");
    }

    pub(crate) async fn delete(&self, session: &SessionId) {
        self.store.delete_session(&self.workspace, session).await.expect("deleted");
    }

    /// The sandboxes that live, in the order of their names.
    pub(crate) async fn living(&self) -> Vec<String> {
        let living = self.hands.list().await.expect("listed");
        let mut names: Vec<_> = living.into_iter().map(|info| info.id.to_string()).collect();
        names.sort();
        names
    }
}

fn agent() -> SessionAgent {
    let model = ModelConfig {
        id: "m".to_owned(),
        effort: Effort { level: EffortLevel::High },
        speed: Speed::Standard,
        inference_geo: None,
    };
    let spec = AgentSpec {
        name: "helper".to_owned(),
        description: None,
        model,
        system: None,
        tools: Vec::new(),
        mcp_servers: Vec::new(),
        skills: Vec::new(),
        multiagent: None,
        execution_identity: ExecutionIdentity::ServiceAccount {},
    };
    SessionAgent { tag: AgentTag::Agent, id: AgentId::from_text("agent_1"), version: 1, spec }
}

#[tokio::test]
async fn an_orphan_is_destroyed_once_it_is_older_than_the_grace() {
    let world = World::new().await;
    let young = world.orphan("young", GRACE - Duration::from_secs(1)).await;
    world.orphan("old", GRACE).await;
    world.reaper().reap(GRACE).await;
    assert_eq!(world.living().await, ["young"]);
    assert_eq!(world.hands.tidied(), 1, "what installs have left goes in the same round");
    world.hands.set_age(&young, GRACE);
    world.reaper().reap(GRACE).await;
    assert_eq!(world.living().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_sandbox_lives_as_long_as_the_session_that_owns_it() {
    let world = World::new().await;
    let archived = world.owned("archived").await;
    let deleted = world.owned("deleted").await;
    world.owned("live").await;
    world.reaper().reap(GRACE).await;
    assert_eq!(world.living().await, ["archived", "deleted", "live"]);
    world.archive(&archived).await;
    world.reaper().reap(GRACE).await;
    assert_eq!(world.living().await, ["deleted", "live"]);
    world.delete(&deleted).await;
    world.reaper().reap(GRACE).await;
    assert_eq!(world.living().await, ["live"]);
}

#[tokio::test]
async fn what_ended_with_its_session_has_no_grace() {
    let world = World::new().await;
    let reaper = world.reaper();
    let (archived, replaced) = (world.owned("archived").await, world.owned("replaced").await);
    world.owned("live").await;
    world.orphan("young", Duration::ZERO).await;
    for name in ["archived", "replaced", "live"] {
        world.hands.set_age(&SandboxId::parse(name).expect("an id"), Duration::from_secs(1));
    }
    reaper.reap(GRACE).await;
    assert_eq!(world.living().await, ["archived", "live", "replaced", "young"]);
    world.archive(&archived).await;
    world.orphan("next", Duration::ZERO).await;
    world.record(&replaced, "next").await;
    reaper.reap(GRACE).await;
    assert_eq!(world.living().await, ["live", "next", "young"]);
}

#[tokio::test]
async fn what_lived_and_ended_between_two_looks_has_no_grace_either() {
    let world = World::new().await;
    let shutdown = CancellationToken::new();
    let reaper = world.reaper().every(Duration::from_secs(1));
    let running = tokio::spawn(reaper.run(shutdown.clone()));
    // Its first look is behind it.
    world.orphan("old", HOUR).await;
    world.hands.until_living(0).await;
    let (archived, deleted) = (world.owned("archived").await, world.owned("deleted").await);
    for name in ["archived", "deleted"] {
        world.hands.set_age(&SandboxId::parse(name).expect("an id"), Duration::ZERO);
    }
    world.archive(&archived).await;
    world.delete(&deleted).await;
    // Of these hands nothing ever grows old.
    tokio::time::timeout(Duration::from_secs(20), world.hands.until_living(0)).await.expect("they go");
    shutdown.cancel();
    running.await.expect("it ends in peace");
}

#[tokio::test]
async fn deliverables_go_with_their_session_and_nothing_else_goes() {
    let world = World::new().await;
    let outputs = world.dir.path().join("outputs");
    let reaper = world.reaper().and_outputs(outputs.clone());
    // Nothing was delivered yet.
    reaper.reap_outputs().await;

    let (live, archived, deleted) = (world.session().await, world.session().await, world.session().await);
    let stranger = format!("{}of_another_store", SessionId::PREFIX);
    for name in [live.as_str(), archived.as_str(), deleted.as_str(), &stranger, "notes of the operator"] {
        fs::create_dir_all(outputs.join(name).join("below")).expect("made");
        fs::write(outputs.join(name).join("below/report.md"), "text").expect("written");
    }
    let elsewhere = TempDir::new().expect("a directory can be made");
    fs::write(elsewhere.path().join("kept"), "text").expect("written");
    let link = format!("{}link", SessionId::PREFIX);
    symlink(elsewhere.path(), outputs.join(&link)).expect("linked");
    symlink(elsewhere.path(), outputs.join(deleted.as_str()).join("link")).expect("linked");

    world.archive(&archived).await;
    world.delete(&deleted).await;
    reaper.reap_outputs().await;
    let mut expected = [live.as_str(), archived.as_str(), "notes of the operator", &link];
    expected.sort_unstable();
    assert_eq!(names(&outputs), expected);
    assert!(outputs.join(live.as_str()).join("below/report.md").exists());
    assert_eq!(names(elsewhere.path()), ["kept"]);
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("listed").map(|entry| entry.expect("listed").file_name());
    let mut names: Vec<_> = entries.map(|name| name.into_string().expect("text")).collect();
    names.sort();
    names
}

/// Hands whose keeper is stuck.
struct Stuck(tokio::sync::Notify);

#[async_trait]
impl Provider for Stuck {
    async fn provision(&self, _: &SandboxId, _: u64, _: &Resources) -> Result<(), Error> {
        std::future::pending().await
    }

    async fn execute(&self, _: Call) -> Result<Output, Error> {
        std::future::pending().await
    }

    async fn cancel(&self, _: &SandboxId, _: u64, _: &str) -> Result<bool, Error> {
        std::future::pending().await
    }

    async fn touch(&self, _: &SandboxId, _: u64) -> Result<(), Error> {
        std::future::pending().await
    }

    async fn collect_outputs(&self, _: &SandboxId, _: &Path) -> Result<Vec<Collected>, Error> {
        std::future::pending().await
    }

    async fn save(&self, _: &SandboxId, _: u64, _: &Path) -> Result<Saved, Error> {
        std::future::pending().await
    }

    async fn destroy(&self, _: &SandboxId) -> Result<(), Error> {
        std::future::pending().await
    }

    async fn list(&self) -> Result<Vec<SandboxInfo>, Error> {
        self.0.notify_one();
        std::future::pending().await
    }

    async fn keep_ready(&self, _: &[Pool]) -> Result<(), Error> {
        std::future::pending().await
    }

    fn exits(&self) -> Exits {
        Exits::none()
    }
}

#[tokio::test]
async fn shutdown_does_not_wait_for_a_look_that_is_stuck() {
    let world = World::new().await;
    let stuck = Arc::new(Stuck(tokio::sync::Notify::new()));
    let shutdown = CancellationToken::new();
    let reaper = Reaper::new(world.store.clone(), stuck.clone());
    let running = tokio::spawn(reaper.run(shutdown.clone()));
    stuck.0.notified().await;
    shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(20), running).await.expect("in time").expect("no panic");
}
