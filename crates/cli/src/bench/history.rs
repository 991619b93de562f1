//! Sessions with a past: logs as brains write them, made without a brain.
//!
//! What is appended follows from the rules of the core (`session::next_step`), so a log made here is one that a brain
//! could have written, private kinds included; only what the user, the model and the tools say is made up, from a
//! seed. Nothing is run, and many turns go into one append: a past of a hundred thousand events takes seconds.

use std::collections::BTreeMap;

use protocol::agent::{
    AgentSpec, AgentTag, Effort, EffortLevel, ExecutionIdentity, ModelConfig, PermissionPolicy, SessionAgent,
    Speed, Tool, ToolDefaults,
};
use protocol::content::Content;
use protocol::environment::{EnvironmentConfig, Networking, Packages};
use protocol::event::{Answer, AnswerCall, Body, Evaluation, Event, Finish, ModelUsage, Permission};
use protocol::id::{AgentId, EnvironmentId, EventId, SessionId, WorkspaceId};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Map, Value, json};
use session::step::{Act, Draft, Ready, next_step};
use session::{Record, State};
use store::{Ids, NewSession, Store};

/// Events in one append while a past is written.
const APPEND_EVENTS: usize = 1_000;

/// What happened in a session so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Past {
    /// At least so many events, in whole turns.
    pub(super) events: u64,
    /// Rounds of tools in each turn, one call each.
    pub(super) rounds: usize,
}

/// An agent that has the built-in tools, all allowed.
pub(super) fn agent_with_tools(model: &str) -> AgentSpec {
    let policy = PermissionPolicy::AlwaysAllow {};
    let toolset = Tool::Toolset {
        default_config: ToolDefaults { enabled: true, permission_policy: policy },
        configs: Vec::new(),
    };
    AgentSpec { tools: vec![toolset], ..agent(model) }
}

/// An agent without tools.
pub(super) fn agent(model: &str) -> AgentSpec {
    AgentSpec {
        name: "bench".to_owned(),
        description: None,
        model: ModelConfig {
            id: model.to_owned(),
            effort: Effort { level: EffortLevel::High },
            speed: Speed::Standard,
            inference_geo: None,
        },
        system: None,
        tools: Vec::new(),
        mcp_servers: Vec::new(),
        skills: Vec::new(),
        multiagent: None,
        execution_identity: ExecutionIdentity::ServiceAccount {},
    }
}

/// An empty session, as the API would make it.
pub(super) async fn make_session(
    store: &Store,
    workspace: &WorkspaceId,
    spec: AgentSpec,
) -> anyhow::Result<SessionId> {
    let record = record(store, spec);
    let id = record.id.clone();
    let (workspace, thread_id) = (workspace.clone(), store.ids().make());
    store.create_session(NewSession { workspace, record, thread_id, initial: Vec::new() }).await?;
    Ok(id)
}

/// Gives a session its past. It is idle afterwards.
pub(super) async fn write(store: &Store, id: &SessionId, past: Past, seed: u64) -> anyhow::Result<()> {
    let lease = store.try_claim(id, "bench").await?;
    let lease = lease.ok_or_else(|| anyhow::anyhow!("somebody else holds {id}"))?;
    let view = store.look(id).await?.ok_or_else(|| anyhow::anyhow!("{id} is gone"))?;
    let mut author = Author {
        state: view.state,
        drafts: Vec::new(),
        ids: store.ids().clone(),
        random: SmallRng::seed_from_u64(seed),
        rounds: past.rounds,
    };
    let mut head = author.state.head;
    loop {
        let is_written = author.state.head.0 >= past.events;
        if is_written || author.drafts.len() >= APPEND_EVENTS {
            let drafts = std::mem::take(&mut author.drafts);
            head = store.append(&lease.token, head, drafts).await?.state.head;
            anyhow::ensure!(head == author.state.head, "the store and the rules disagree about {id}");
        }
        if is_written {
            break;
        }
        author.turn(store);
    }
    Ok(store.release(lease).await?)
}

/// Writes turns into drafts.
struct Author {
    /// As it will be once the drafts are in the log.
    state: State,
    drafts: Vec<Draft>,
    ids: Ids,
    random: SmallRng,
    rounds: usize,
}

impl Author {
    fn turn(&mut self, store: &Store) {
        let content = vec![Content::Text { text: self.text(40..400) }];
        let message = Event { body: Body::UserMessage { content }, id: self.ids.make(), processed_at: None };
        let mut inbox = vec![message];
        let mut facts = Vec::new();
        let mut rounds_left = self.rounds;
        loop {
            let ids = self.ids.clone();
            let step = next_step(&self.state, &inbox, facts, Ready::Wait, || ids.make());
            for draft in step.drafts {
                let (id, body) = match draft {
                    Draft::New { id, body } => (id, body),
                    // The message is never in the store's inbox: here it goes straight into the log.
                    Draft::Take(id) => {
                        let index = inbox.iter().position(|event| event.id == id);
                        (id, inbox.remove(index.expect("only what waits is taken up")).body)
                    }
                };
                self.state.apply(&id, &body, store.now());
                self.drafts.push(Draft::New { id, body });
            }
            facts = match step.act {
                Act::CallModel { request } => {
                    let calls_tool = rounds_left > 0;
                    rounds_left = rounds_left.saturating_sub(1);
                    self.answer(request, calls_tool)
                }
                Act::Execute { call } => self.result(call),
                Act::Collect => vec![self.draft(Body::OutputsCollected {})],
                Act::Rest => return,
                Act::BackOff { .. } | Act::Stop => unreachable!("nothing fails in a past that is made up"),
            };
        }
    }

    /// The same events, in the same order, as a brain records for a model's answer.
    fn answer(&mut self, request: EventId, calls_tool: bool) -> Vec<Draft> {
        let text = self.text(30..300);
        let mut blocks = vec![json!({"type": "text", "text": text}).to_string()];
        let mut calls = Vec::new();
        let mut uses = Vec::new();
        if calls_tool {
            let event_id: EventId = self.ids.make();
            let provider_id = format!("toolu_{}", &event_id.as_str()["sevt_".len()..]);
            let input: Map<String, Value> =
                Map::from_iter([("command".to_owned(), self.text(20..160).into())]);
            blocks.push(
                json!({"type": "tool_use", "id": provider_id, "name": "bash", "input": input}).to_string(),
            );
            calls.push(AnswerCall { provider_id, event_id: event_id.clone() });
            let body = Body::AgentToolUse {
                name: "bash".to_owned(),
                input,
                evaluated_permission: Permission::Allow,
                evaluation: Some(Evaluation::AlwaysAllow {}),
            };
            uses.push(Draft::New { id: event_id, body });
        }
        let answer =
            Answer { model_request_start_id: request.clone(), blocks, finish: Finish::Complete, calls };
        let model_usage = ModelUsage { input_tokens: 1_000, output_tokens: 100, ..ModelUsage::default() };
        let end = Body::ModelRequestEnd { model_request_start_id: request, is_error: false, model_usage };
        let mut drafts = vec![
            self.draft(Body::Answer(answer)),
            self.draft(Body::AgentMessage { content: vec![Content::Text { text }] }),
        ];
        drafts.extend(uses);
        drafts.push(self.draft(end));
        drafts
    }

    fn result(&mut self, call: EventId) -> Vec<Draft> {
        let mut bodies = Vec::new();
        if self.state.sandbox.is_none() {
            bodies.push(Body::Sandbox { sandbox_id: self.ids.make() });
        }
        let content = vec![Content::Text { text: self.text(50..1_000) }];
        bodies.push(Body::AgentToolResult { tool_use_id: call, content, is_error: false });
        bodies.into_iter().map(|body| self.draft(body)).collect()
    }

    fn draft(&self, body: Body) -> Draft {
        Draft::New { id: self.ids.make(), body }
    }

    /// Lines of words, as people and programs write them.
    fn text(&mut self, length: std::ops::Range<usize>) -> String {
        let length = self.random.random_range(length);
        let mut text = String::with_capacity(length + 16);
        while text.len() < length {
            for _ in 0..self.random.random_range(2..10) {
                text.push(char::from(self.random.random_range(b'a'..=b'z')));
            }
            text.push(if self.random.random_range(0..10) == 0 { '\n' } else { ' ' });
        }
        text.truncate(length);
        text
    }
}

/// A session's facts.
pub(super) fn record(store: &Store, spec: AgentSpec) -> Record {
    let now = store.now();
    Record {
        id: store.ids().make(),
        agent: SessionAgent { tag: AgentTag::Agent, id: AgentId::from_text("agent_bench"), version: 1, spec },
        environment_id: EnvironmentId::from_text("env_bench"),
        hands: protocol::hands::HandsSettings::default(),
        environment: EnvironmentConfig::Cloud {
            networking: Networking::Unrestricted {},
            packages: Packages::default(),
        },
        title: None,
        metadata: BTreeMap::new(),
        vault_ids: Vec::new(),
        resources: Vec::new(),
        created_at: now,
        updated_at: now,
        archived_at: None,
    }
}
