//! A brain over a real store, a scripted model and pretended hands.

use std::path::Path;
use std::sync::Arc;

use harness::faults::Faults;
use harness::model::{Providers, Script};
use harness::{Brain, Options};
use protocol::agent::{
    AgentSpec, AgentTag, CustomTool, Effort, EffortLevel, ExecutionIdentity, ModelConfig, PermissionPolicy,
    SessionAgent, Speed, Tool, ToolDefaults,
};
use protocol::content::Content;
use protocol::environment::{EnvironmentConfig, Networking, Packages};
use protocol::event::{Body, Event};
use protocol::id::{AgentId, EnvironmentId, SessionId, WorkspaceId};
use protocol::position::Position;
use serde_json::{Value, json};
use session::record::Record;
use session::state::State;
use store::{NewSession, Order, Slice, Store};
use testkit::hands::FakeHands;
use tokio_util::sync::CancellationToken;

#[derive(Clone)]
pub(crate) struct World {
    pub(crate) store: Store,
    pub(crate) hands: Arc<FakeHands>,
    pub(crate) models: Arc<Providers>,
    pub(crate) workspace: WorkspaceId,
}

pub(crate) const MODEL: &str = "scripted";

/// A model that plays these replies (see `harness::model::Script`).
pub(crate) fn scripted(replies: Value) -> Arc<Providers> {
    let script: Script = serde_json::from_value(json!({ "replies": replies })).expect("a valid script");
    let none = Providers::build(Vec::new(), |_| None).expect("nothing to configure");
    Arc::new(none.with_scripted("script", [MODEL], script))
}

impl World {
    pub(crate) async fn open(dir: &Path, models: Arc<Providers>, hands: Arc<FakeHands>) -> Self {
        let store = Store::open(dir, store::Options::default()).expect("opens");
        let workspace = store.ensure_workspace().await.expect("a workspace");
        Self { store, hands, models, workspace }
    }

    /// A session that has just got a message.
    pub(crate) async fn session(&self, policy: PermissionPolicy, text: &str) -> SessionId {
        self.session_of(self.workspace.clone(), policy, text).await
    }

    /// The same, in some workspace.
    pub(crate) async fn session_of(
        &self,
        workspace: WorkspaceId,
        policy: PermissionPolicy,
        text: &str,
    ) -> SessionId {
        self.session_like(workspace, policy, text, |_| {}).await
    }

    /// The same, with other facts.
    pub(crate) async fn session_like(
        &self,
        workspace: WorkspaceId,
        policy: PermissionPolicy,
        text: &str,
        change: impl FnOnce(&mut Record),
    ) -> SessionId {
        let mut record = record(&self.store, policy, MODEL);
        change(&mut record);
        let id = record.id.clone();
        let thread_id = self.store.ids().make();
        let new = NewSession { workspace, record, thread_id, initial: vec![message(text)] };
        self.store.create_session(new).await.expect("created");
        id
    }

    pub(crate) fn brain(&self, faults: Option<Arc<dyn Faults>>) -> Arc<Brain> {
        self.brain_with(|options| {
            if let Some(faults) = faults {
                options.faults = faults;
            }
        })
    }

    pub(crate) fn brain_with(&self, change: impl FnOnce(&mut Options)) -> Arc<Brain> {
        let mut options = Options::new(std::env::temp_dir().join("posthouse-no-outputs"));
        change(&mut options);
        let hands = Arc::clone(&self.hands);
        Arc::new(Brain::new(self.store.clone(), Arc::clone(&self.models), hands, options))
    }

    /// Drives the session until it rests.
    pub(crate) async fn wake(&self, session: &SessionId) {
        self.brain(None).wake(session, &CancellationToken::new()).await.expect("the store works");
    }

    pub(crate) async fn send(&self, session: &SessionId, bodies: Vec<Body>) {
        self.store.send_events(&self.workspace, session, bodies).await.expect("accepted");
    }

    /// The whole log, private kinds included.
    pub(crate) async fn log(&self, session: &SessionId) -> Vec<Event> {
        let slice = Slice {
            after: Position::START,
            order: Order::Asc,
            limit: 10_000,
            private: true,
            ..Slice::default()
        };
        let entries = self.store.get_events(session, slice).await.expect("reads");
        entries.iter().map(|entry| serde_json::from_slice(&entry.json).expect("an event")).collect()
    }

    /// The kinds of the public log, one a line, without what is the same in every turn.
    pub(crate) async fn told(&self, session: &SessionId) -> String {
        let log = self.log(session).await;
        let shown = log.iter().filter(|event| !event.body.is_private()).filter_map(|event| told(&event.body));
        shown.collect::<Vec<_>>().join("\n")
    }

    pub(crate) async fn state(&self, session: &SessionId) -> State {
        self.store.look(session).await.expect("reads").expect("is there").state
    }
}

fn told(body: &Body) -> Option<String> {
    let text = |content: &[Content]| {
        let blocks = content.iter().map(|block| match block {
            Content::Text { text } => text.clone(),
            other => format!("{other:?}"),
        });
        blocks.collect::<Vec<_>>().join("\n")
    };
    Some(match body {
        Body::UserMessage { content } => format!("user: {}", text(content)),
        Body::AgentMessage { content } => format!("agent: {}", text(content)),
        Body::AgentToolUse { name, input, .. } => format!("{name}: {}", json!(input)),
        Body::AgentMcpToolUse { mcp_server_name, name, input, .. } => {
            format!("{mcp_server_name}/{name}: {}", json!(input))
        }
        Body::AgentToolResult { content, is_error, .. }
        | Body::AgentMcpToolResult { content, is_error, .. } => {
            format!("{}: {}", if *is_error { "error" } else { "result" }, text(content))
        }
        Body::StatusIdle { stop_reason, .. } => format!("idle: {}", json!(stop_reason)["type"].as_str()?),
        Body::Error { error } => format!("failed: {}", error.message),
        _ => return None,
    })
}

pub(crate) fn message(text: &str) -> Body {
    Body::UserMessage { content: vec![Content::text(text)] }
}

/// The facts of a new session, whose agent asks this model.
pub(crate) fn record(store: &Store, policy: PermissionPolicy, model: &str) -> Record {
    let now = store.now();
    Record {
        id: store.ids().make(),
        agent: agent(policy, model),
        environment_id: EnvironmentId::from_text("env_1"),
        hands: protocol::hands::HandsSettings::default(),
        environment: EnvironmentConfig::Cloud {
            networking: Networking::Unrestricted {},
            packages: Packages::default(),
        },
        title: None,
        metadata: std::collections::BTreeMap::new(),
        vault_ids: Vec::new(),
        resources: Vec::new(),
        created_at: now,
        updated_at: now,
        archived_at: None,
    }
}

fn agent(policy: PermissionPolicy, model: &str) -> SessionAgent {
    let model = ModelConfig {
        id: model.to_owned(),
        effort: Effort { level: EffortLevel::High },
        speed: Speed::Standard,
        inference_geo: None,
    };
    let schema = json!({"type": "object"});
    let custom = CustomTool {
        name: "weather".to_owned(),
        description: "the weather".to_owned(),
        input_schema: schema.as_object().expect("an object").clone(),
    };
    let toolset = Tool::Toolset {
        default_config: ToolDefaults { enabled: true, permission_policy: policy },
        configs: Vec::new(),
    };
    let spec = AgentSpec {
        name: "helper".to_owned(),
        description: None,
        model,
        system: Some("You help.".to_owned()),
        tools: vec![toolset, Tool::Custom(custom)],
        mcp_servers: Vec::new(),
        skills: Vec::new(),
        multiagent: None,
        execution_identity: ExecutionIdentity::ServiceAccount {},
    };
    SessionAgent { tag: AgentTag::Agent, id: AgentId::from_text("agent_1"), version: 1, spec }
}
