//! What the model is shown: a view computed from the log.
//!
//! The view only ever grows at its end, so that each request begins with the bytes of the one before and the
//! provider's cache serves it. The log keeps everything; a view may be thrown away and computed again.
//!
//! It is computed anew for each turn, however long the session is, so it takes in what it shows and nothing else: only
//! [`KINDS`] are read, of each only the fields that are shown, and the messages are never copied. What the brain has
//! just appended itself goes in directly ([`Transcript::append`]) and comes to the same as reading it.

use std::collections::HashMap;

use protocol::agent::SessionAgent;
use protocol::content::Content;
use protocol::environment::EnvironmentConfig;
use protocol::event::{AnswerCall, Body, RetryStatus};
use protocol::id::EventId;
use protocol::position::Position;
use protocol::resource::Resource;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::mcp_servers::Offer;
use crate::model::{Message, Prompt, ToolResult, UserBlock};
use crate::toolset::{self, WebTools};

/// The kinds that the view is computed from. Of the others nothing is shown.
pub(crate) const KINDS: [&str; 8] = [
    "user.message",
    "system.message",
    "posthouse.answer",
    "agent.tool_result",
    "agent.mcp_tool_result",
    "user.custom_tool_result",
    "session.error",
    "session.status_idle",
];

/// The conversation so far, as of a place in the log.
#[derive(Debug)]
pub(crate) struct Transcript {
    position: Position,
    prompt: Prompt,
    /// The provider's own id of each call that has no result yet.
    provider_ids: HashMap<EventId, String>,
    /// The inputs of the calls that this brain has appended and that have no result yet.
    inputs: HashMap<EventId, Map<String, Value>>,
    /// From the moment the server gives up until the session is idle, messages are taken up without being run.
    is_flushing: bool,
}

// What is read of each kind; the other fields are skipped without being looked at.

#[derive(Deserialize)]
struct Said {
    content: Vec<Content>,
}

#[derive(Deserialize)]
struct Answered {
    blocks: Vec<String>,
    calls: Vec<AnswerCall>,
}

#[derive(Deserialize)]
struct Resulted {
    #[serde(alias = "custom_tool_use_id", alias = "mcp_tool_use_id")]
    tool_use_id: EventId,
    content: Vec<Content>,
    #[serde(default)]
    is_error: Option<bool>,
}

#[derive(Deserialize)]
struct Failed {
    error: Failure,
}

#[derive(Deserialize)]
struct Failure {
    retry_status: RetryStatus,
}

impl Transcript {
    /// The transcript of an empty log.
    pub(crate) fn new() -> Self {
        Self {
            position: Position::START,
            prompt: Prompt::new(String::new()),
            provider_ids: HashMap::new(),
            inputs: HashMap::new(),
            is_flushing: false,
        }
    }

    /// The place up to which the log has been taken in.
    pub(crate) fn position(&self) -> Position {
        self.position
    }

    /// Takes in the event at `position` as it lies in the store. Those between the last and this one are not shown.
    pub(crate) fn read(
        &mut self,
        position: Position,
        kind: &str,
        json: &[u8],
    ) -> Result<(), serde_json::Error> {
        debug_assert!(position > self.position, "events are read in order");
        match kind {
            "user.message" => {
                let Said { content } = serde_json::from_slice(json)?;
                self.user_message(content);
            }
            "system.message" => {
                let Said { content } = serde_json::from_slice(json)?;
                self.system_message(&content);
            }
            "posthouse.answer" => {
                let Answered { blocks, calls } = serde_json::from_slice(json)?;
                self.answer(&blocks, calls)?;
            }
            "agent.tool_result" | "agent.mcp_tool_result" | "user.custom_tool_result" => {
                let Resulted { tool_use_id, content, is_error } = serde_json::from_slice(json)?;
                self.resolve(&tool_use_id, content, is_error.unwrap_or(false));
            }
            "session.error" => {
                let Failed { error: Failure { retry_status } } = serde_json::from_slice(json)?;
                self.fail(retry_status);
            }
            "session.status_idle" => self.is_flushing = false,
            _ => debug_assert!(false, "{kind} is not asked for"),
        }
        self.position = position;
        Ok(())
    }

    /// Takes in the next event of the log, which this brain has appended.
    pub(crate) fn append(&mut self, id: &EventId, body: Body) -> Result<(), serde_json::Error> {
        match body {
            Body::UserMessage { content } => self.user_message(content),
            Body::SystemMessage { content } => self.system_message(&content),
            Body::Answer(answer) => self.answer(&answer.blocks, answer.calls)?,
            Body::AgentToolUse { input, .. }
            | Body::AgentMcpToolUse { input, .. }
            | Body::AgentCustomToolUse { input, .. } => {
                self.inputs.insert(id.clone(), input);
            }
            Body::AgentToolResult { tool_use_id: call, content, is_error }
            | Body::AgentMcpToolResult { mcp_tool_use_id: call, content, is_error } => {
                self.resolve(&call, content, is_error);
            }
            Body::UserCustomToolResult { custom_tool_use_id, content, is_error } => {
                self.resolve(&custom_tool_use_id, content, is_error.unwrap_or(false));
            }
            Body::Error { error } => self.fail(error.retry_status),
            Body::StatusIdle { .. } => self.is_flushing = false,
            Body::UserInterrupt { .. }
            | Body::UserToolConfirmation { .. }
            | Body::AgentMessage { .. }
            | Body::AgentThinking {}
            | Body::StatusRunning {}
            | Body::StatusRescheduled {}
            | Body::StatusTerminated {}
            | Body::Updated { .. }
            | Body::Usage { .. }
            | Body::Deleted {}
            | Body::ThreadRunning { .. }
            | Body::ThreadIdle { .. }
            | Body::ThreadRescheduled { .. }
            | Body::ThreadTerminated { .. }
            | Body::ModelRequestStart {}
            | Body::ModelRequestEnd { .. }
            | Body::McpCall { .. }
            | Body::Sandbox { .. }
            | Body::SandboxLost { .. }
            | Body::Snapshot { .. }
            | Body::SnapshotLost { .. }
            | Body::SnapshotWanted {}
            | Body::SnapshotUnsaved { .. }
            | Body::RestorationTold {}
            | Body::OutputsCollected {}
            | Body::Unknown(_) => {}
        }
        self.position = self.position.next();
        Ok(())
    }

    /// Nothing up to `position` is left to be shown.
    pub(crate) fn skip_to(&mut self, position: Position) {
        self.position = self.position.max(position);
    }

    fn user_message(&mut self, content: Vec<Content>) {
        if !self.is_flushing {
            self.say(content.into_iter().map(UserBlock::Content).collect());
        }
    }

    fn system_message(&mut self, content: &[Content]) {
        if !self.is_flushing {
            self.prompt.messages.push(Message::System(text_of(content)));
        }
    }

    fn say(&mut self, blocks: Vec<UserBlock>) {
        self.prompt.messages.push(Message::User(blocks));
    }

    fn answer(&mut self, blocks: &[String], calls: Vec<AnswerCall>) -> Result<(), serde_json::Error> {
        if !blocks.is_empty() {
            self.prompt.messages.push(Message::assistant(blocks.iter().map(String::as_str))?);
        }
        self.provider_ids.extend(calls.into_iter().map(|call| (call.event_id, call.provider_id)));
        Ok(())
    }

    fn resolve(&mut self, call: &EventId, content: Vec<Content>, is_error: bool) {
        self.inputs.remove(call);
        let Some(provider_call_id) = self.provider_ids.remove(call) else { return };
        let result = ToolResult { provider_call_id, content, is_error };
        self.say(vec![UserBlock::ToolResult(result)]);
    }

    fn fail(&mut self, retry_status: RetryStatus) {
        self.is_flushing |= retry_status != RetryStatus::Retrying;
    }

    /// The input of a call that has no result yet, if this brain has appended it.
    pub(crate) fn input_of(&self, call: &EventId) -> Option<&Map<String, Value>> {
        self.inputs.get(call)
    }

    /// The request that continues the conversation.
    pub(crate) fn prompt(
        &mut self,
        agent: &SessionAgent,
        environment: &EnvironmentConfig,
        resources: &[Resource],
        web: WebTools,
        offer: &Offer,
    ) -> &Prompt {
        let spec = &agent.spec;
        let messages = std::mem::take(&mut self.prompt.messages);
        self.prompt = Prompt {
            model: spec.model.id.clone(),
            system: system_of(agent, environment, resources),
            tools: toolset::specs(spec, web, offer),
            messages,
            effort: Some(spec.model.effort.level),
            speed: spec.model.speed,
            inference_geo: spec.model.inference_geo.clone(),
        };
        &self.prompt
    }
}

fn text_of(content: &[Content]) -> String {
    let texts = content.iter().filter_map(|block| match block {
        Content::Text { text } => Some(text.as_str()),
        _ => None,
    });
    texts.collect::<Vec<_>>().join("\n\n")
}

/// The agent's own prompt and, where it has tools that work there, what it must know of the place they work in.
fn system_of(
    agent: &SessionAgent,
    environment: &EnvironmentConfig,
    resources: &[Resource],
) -> Option<String> {
    let place = toolset::uses_sandbox(&agent.spec).then(|| {
        let place = toolset::place(environment, !agent.spec.mcp_servers.is_empty());
        place + &toolset::repositories(resources)
    });
    let parts: Vec<&str> = agent
        .spec
        .system
        .as_deref()
        .into_iter()
        .chain(place.as_deref())
        .filter(|part| !part.is_empty())
        .collect();
    (!parts.is_empty()).then(|| parts.join("\n\n"))
}

#[cfg(test)]
mod tests {
    use protocol::event::{Answer, Event, Finish, Permission, SessionError, SessionErrorKind, StopReason};
    use protocol::id::FromBits as _;

    use super::*;

    fn id(number: u128) -> EventId {
        EventId::from_bits(number)
    }

    /// One event of each kind that counts, and some that do not.
    fn log() -> Vec<Body> {
        let text = |text: &str| vec![Content::text(text)];
        let error = |retry_status| Body::Error {
            error: SessionError::new(
                SessionErrorKind::ModelOverloadedError,
                "model: busy".to_owned(),
                retry_status,
            ),
        };
        let call = |number| AnswerCall { provider_id: format!("toolu_{number}"), event_id: id(number) };
        let input: Map<String, Value> = Map::from_iter([("command".to_owned(), "ls \"x\"".into())]);
        vec![
            Body::StatusRunning {},
            Body::UserMessage { content: text("say \u{1f40e} \"hello\"\n") },
            Body::SystemMessage { content: text("be brief") },
            Body::ModelRequestStart {},
            error(RetryStatus::Retrying),
            Body::Answer(Answer {
                model_request_start_id: id(3),
                blocks: vec![
                    r#"{"type":"text" , "text":"h\u00e9"}"#.to_owned(),
                    r#"{"b": 1, "a":2.0}"#.to_owned(),
                ],
                finish: Finish::Complete,
                calls: vec![call(6), call(7), call(8)],
            }),
            Body::AgentCustomToolUse { name: "one".to_owned(), input: input.clone() },
            Body::AgentMcpToolUse {
                mcp_server_name: "linear".to_owned(),
                name: "three".to_owned(),
                input: input.clone(),
                evaluated_permission: Permission::Allow,
                evaluation: None,
            },
            Body::AgentCustomToolUse { name: "two".to_owned(), input },
            Body::AgentMcpToolResult { mcp_tool_use_id: id(8), content: text("found"), is_error: false },
            Body::AgentToolResult { tool_use_id: id(6), content: text("done"), is_error: true },
            Body::UserCustomToolResult { custom_tool_use_id: id(7), content: text("well"), is_error: None },
            error(RetryStatus::Exhausted),
            Body::UserMessage { content: text("never run") },
            Body::StatusIdle { stop_reason: StopReason::RetriesExhausted {}, stop_details: None },
            Body::UserMessage { content: text("again") },
            Body::ModelRequestStart {},
        ]
    }

    fn shown(transcript: &Transcript) -> String {
        format!("{:?} {:?}", transcript.prompt.messages, transcript.provider_ids)
    }

    #[test]
    fn what_a_brain_appends_comes_to_the_same_as_reading_it() {
        let (mut appended, mut read) = (Transcript::new(), Transcript::new());
        for (index, body) in log().into_iter().enumerate() {
            let (position, id) = (Position(index as u64 + 1), id(index as u128));
            let event = Event { body: body.clone(), id: id.clone(), processed_at: None };
            if KINDS.contains(&body.kind()) {
                let json = serde_json::to_vec(&event).expect("an event is JSON");
                read.read(position, body.kind(), &json).expect("it can be read");
            }
            appended.append(&id, body).expect("it can be read");
        }
        read.skip_to(Position(log().len() as u64));
        assert_eq!(shown(&appended), shown(&read));
        assert_eq!(appended.position(), read.position());
        let shown = shown(&read);
        assert!(shown.contains("again") && !shown.contains("never run"), "{shown}");
    }
}
