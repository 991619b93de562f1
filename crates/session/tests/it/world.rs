//! A session in memory: the log, the inbox and the rules of the store, with a model and hands that do as told.

use std::collections::HashMap;

use protocol::content::Content;
use protocol::event::{
    Answer, AnswerCall, Body, Evaluation, Event, Finish, ModelUsage, Permission, RetryStatus, SessionError,
    SessionErrorKind, StopReason, Verdict,
};
use protocol::id::{EventId, FromBits, SandboxId, ThreadId};
use protocol::time::Timestamp;
use serde_json::json;
use session::state::{CallKind, State, stamp};
use session::step::{Act, Draft, Failure, FailureKind, Ready, Step, failed, give_up, next_step, run_events};
use session::{Admitted, Refusal, admit};

#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) state: State,
    pub(crate) log: Vec<Event>,
    pub(crate) inbox: Vec<Event>,
    ids: u128,
    now: i64,
    printed: usize,
}

/// What a scripted answer does.
pub(crate) enum Say<'a> {
    Text(&'a str),
    Thinking,
    Bash(&'a str),
    Ask(&'a str),
    Web(&'a str),
    Denied(&'a str),
    Custom(&'a str),
    Mcp(&'a str, Permission),
}

pub(crate) fn message(text: &str) -> Body {
    Body::UserMessage { content: vec![Content::text(text)] }
}

pub(crate) fn system(text: &str) -> Body {
    Body::SystemMessage { content: vec![Content::text(text)] }
}

pub(crate) fn interrupt() -> Body {
    Body::UserInterrupt { session_thread_id: None }
}

pub(crate) fn confirmation(call: &EventId, verdict: Verdict, deny_message: Option<&str>) -> Body {
    Body::UserToolConfirmation {
        tool_use_id: call.clone(),
        result: verdict,
        deny_message: deny_message.map(str::to_owned),
    }
}

pub(crate) fn custom_result(call: &EventId) -> Body {
    Body::UserCustomToolResult {
        custom_tool_use_id: call.clone(),
        content: vec![Content::text("42")],
        is_error: None,
    }
}

impl World {
    pub(crate) fn new() -> Self {
        let created_at = Timestamp::from_micros(1_000_000);
        Self {
            state: State::new(ThreadId::from_text("sthr_P"), "helper".to_owned(), created_at),
            log: Vec::new(),
            inbox: Vec::new(),
            ids: 0,
            now: 1_000_000,
            printed: 0,
        }
    }

    /// A session created with initial events.
    pub(crate) fn with_initial(bodies: Vec<Body>) -> Self {
        let mut world = Self::new();
        for body in run_events(&world.state) {
            let id = world.new_id();
            world.append(id, body);
        }
        for body in bodies {
            world.queue(body);
        }
        world
    }

    pub(crate) fn new_id(&mut self) -> EventId {
        self.ids += 1;
        EventId::from_bits(self.ids)
    }

    fn append(&mut self, id: EventId, body: Body) -> Event {
        self.now += 10;
        let at = self.state.next_time(Timestamp::from_micros(self.now));
        let body = stamp(&self.state, body, at);
        self.state.apply(&id, &body, at);
        let event = Event { body, id, processed_at: Some(at) };
        self.log.push(event.clone());
        event
    }

    fn queue(&mut self, body: Body) -> Event {
        let event = Event { body, id: self.new_id(), processed_at: None };
        self.state.queued.add(&event.body);
        self.inbox.push(event.clone());
        event
    }

    /// What the send endpoint does.
    pub(crate) fn send(&mut self, bodies: Vec<Body>) -> Result<Vec<Event>, Refusal> {
        let admitted = admit(&self.state, &self.inbox, bodies)?;
        Ok(admitted
            .into_iter()
            .map(|admitted| match admitted {
                Admitted::Queue(body) => self.queue(body),
                Admitted::Log(body) => {
                    let id = self.new_id();
                    self.append(id, body)
                }
            })
            .collect())
    }

    /// What a brain does: asks for the next step and appends its drafts.
    pub(crate) fn step(&mut self, facts: Vec<Draft>, ready: Ready) -> Act {
        let mut ids = self.ids;
        let Step { drafts, act } = next_step(&self.state, &self.inbox, facts, ready, || {
            ids += 1;
            EventId::from_bits(ids)
        });
        self.ids = ids;
        for draft in drafts {
            match draft {
                Draft::New { id, body } => {
                    self.append(id, body);
                }
                Draft::Take(id) => {
                    let index = self
                        .inbox
                        .iter()
                        .position(|event| event.id == id)
                        .expect("a take names an inbox event");
                    let event = self.inbox.remove(index);
                    self.state.queued.remove(&event.body);
                    self.append(event.id, event.body);
                }
            }
        }
        act
    }

    pub(crate) fn go(&mut self) -> Act {
        self.step(Vec::new(), Ready::Wait)
    }

    pub(crate) fn retry(&mut self) -> Act {
        self.step(Vec::new(), Ready::Retry)
    }

    fn facts(&mut self, bodies: Vec<Body>) -> Vec<Draft> {
        bodies.into_iter().map(|body| Draft::New { id: self.new_id(), body }).collect()
    }

    /// The model's answer to the open request.
    pub(crate) fn answer(&mut self, says: &[Say<'_>]) -> Act {
        self.answer_with(says, Finish::Complete)
    }

    pub(crate) fn answer_with(&mut self, says: &[Say<'_>], finish: Finish) -> Act {
        let request = self.state.request.clone().expect("an open request");
        let bodies: Vec<Body> = says.iter().map(body_of).collect();
        let drafts = self.facts(bodies);
        let calls =
            drafts
                .iter()
                .filter_map(|draft| match draft {
                    Draft::New {
                        id,
                        body:
                            Body::AgentToolUse { .. }
                            | Body::AgentMcpToolUse { .. }
                            | Body::AgentCustomToolUse { .. },
                    } => Some(AnswerCall { provider_id: format!("toolu_{id}"), event_id: id.clone() }),
                    _ => None,
                })
                .collect();
        let answer = Answer { model_request_start_id: request.clone(), blocks: Vec::new(), finish, calls };
        let mut facts = self.facts(vec![Body::Answer(answer)]);
        facts.extend(drafts);
        let model_usage = ModelUsage { input_tokens: 10, output_tokens: 5, ..ModelUsage::default() };
        let end = Body::ModelRequestEnd { model_request_start_id: request, is_error: false, model_usage };
        facts.extend(self.facts(vec![end]));
        self.step(facts, Ready::Wait)
    }

    /// The open request fails.
    pub(crate) fn fail(&mut self, kind: FailureKind, retryable: bool) -> Act {
        let usage = ModelUsage::default();
        let failure = Failure { kind, message: "model: no".to_owned(), retryable, attempts_max: 3, usage };
        let mut ids = self.ids;
        let facts = failed(&self.state, failure, || {
            ids += 1;
            EventId::from_bits(ids)
        });
        self.ids = ids;
        self.step(facts, Ready::Wait)
    }

    /// The brain gives up.
    pub(crate) fn give_up(&mut self) -> Act {
        let mut ids = self.ids;
        let facts = give_up(&self.state, "harness: no".to_owned(), || {
            ids += 1;
            EventId::from_bits(ids)
        });
        self.ids = ids;
        self.step(facts, Ready::Wait)
    }

    /// A call's result.
    pub(crate) fn result(&mut self, call: &EventId) -> Act {
        let pending =
            self.state.calls.iter().find(|pending| pending.id == *call).expect("it has no result yet");
        let content = vec![Content::text("done")];
        let body = match pending.kind {
            CallKind::Mcp { .. } => {
                Body::AgentMcpToolResult { mcp_tool_use_id: call.clone(), content, is_error: false }
            }
            CallKind::Custom | CallKind::Builtin { .. } => {
                Body::AgentToolResult { tool_use_id: call.clone(), content, is_error: false }
            }
        };
        let facts = self.facts(vec![body]);
        self.step(facts, Ready::Wait)
    }

    /// A call's result, with the sandbox in which it ran.
    pub(crate) fn result_in_sandbox(&mut self, call: &EventId) -> Act {
        let sandbox = Body::Sandbox { sandbox_id: SandboxId::from_text("sbx_1") };
        let facts = self.facts(vec![sandbox]);
        match self.step(facts, Ready::Wait) {
            Act::Execute { call: next } if next == *call => self.result(call),
            other => other,
        }
    }

    /// A brain is about to make a call of an MCP server's tool.
    pub(crate) fn begin(&mut self, call: &EventId, repeatable: bool) {
        let id = self.new_id();
        self.append(id, Body::McpCall { mcp_tool_use_id: call.clone(), repeatable });
    }

    /// An MCP server cannot be reached.
    pub(crate) fn mcp_fails(&mut self) -> Act {
        let error = SessionError {
            mcp_server_name: Some("linear".to_owned()),
            ..SessionError::new(
                SessionErrorKind::McpConnectionFailedError,
                "mcp: no".to_owned(),
                RetryStatus::Retrying,
            )
        };
        let facts = self.facts(vec![Body::Error { error }]);
        self.step(facts, Ready::Wait)
    }

    /// The deliverables are out.
    pub(crate) fn collected(&mut self) -> Act {
        let facts = self.facts(vec![Body::OutputsCollected {}]);
        self.step(facts, Ready::Wait)
    }

    /// The public log since the last call, one event a line, with ids replaced by their place in the log.
    pub(crate) fn news(&mut self) -> String {
        let names: HashMap<String, String> = self
            .log
            .iter()
            .filter(|event| !event.body.is_private())
            .enumerate()
            .map(|(index, event)| (event.id.to_string(), format!("#{}", index + 1)))
            .collect();
        let public: Vec<&Event> = self.log.iter().filter(|event| !event.body.is_private()).collect();
        let lines: Vec<String> = public[self.printed..].iter().map(|event| line_of(event, &names)).collect();
        self.printed = public.len();
        lines.join("\n")
    }

    pub(crate) fn skip_news(&mut self) {
        self.news();
    }

    pub(crate) fn call(&self, index: usize) -> EventId {
        self.state.calls[index].id.clone()
    }
}

fn body_of(say: &Say<'_>) -> Body {
    let input = |command: &str| serde_json::from_value(json!({ "command": command })).expect("an object");
    let builtin = |command: &str, permission, evaluation| Body::AgentToolUse {
        name: "bash".to_owned(),
        input: input(command),
        evaluated_permission: permission,
        evaluation,
    };
    match say {
        Say::Text(text) => Body::AgentMessage { content: vec![Content::text(*text)] },
        Say::Thinking => Body::AgentThinking {},
        Say::Bash(command) => builtin(command, Permission::Allow, Some(Evaluation::AlwaysAllow {})),
        Say::Ask(command) => builtin(command, Permission::Ask, Some(Evaluation::AlwaysAsk {})),
        Say::Denied(command) => builtin(command, Permission::Deny, None),
        Say::Web(name) => Body::AgentToolUse {
            name: (*name).to_owned(),
            input: input("x"),
            evaluated_permission: Permission::Allow,
            evaluation: Some(Evaluation::AlwaysAllow {}),
        },
        Say::Mcp(name, permission) => Body::AgentMcpToolUse {
            mcp_server_name: "linear".to_owned(),
            name: (*name).to_owned(),
            input: input("x"),
            evaluated_permission: *permission,
            evaluation: None,
        },
        Say::Custom(name) => Body::AgentCustomToolUse { name: (*name).to_owned(), input: input("x") },
    }
}

fn line_of(event: &Event, names: &HashMap<String, String>) -> String {
    let name = |id: &EventId| names.get(id.as_str()).cloned().unwrap_or_else(|| "?".to_owned());
    let text = |content: &[Content]| match content {
        [Content::Text { text }] => format!("{text:?}"),
        other => format!("{other:?}"),
    };
    let stop = |reason: &StopReason| match reason {
        StopReason::EndTurn {} => "end_turn".to_owned(),
        StopReason::RequiresAction { event_ids } => {
            format!("requires_action {}", event_ids.iter().map(name).collect::<Vec<_>>().join(" "))
        }
        StopReason::RetriesExhausted {} => "retries_exhausted".to_owned(),
        StopReason::Refusal {} => "refusal".to_owned(),
    };
    let rest = match &event.body {
        Body::UserMessage { content } | Body::SystemMessage { content } | Body::AgentMessage { content } => {
            text(content)
        }
        Body::AgentToolResult { tool_use_id, content, is_error }
        | Body::AgentMcpToolResult { mcp_tool_use_id: tool_use_id, content, is_error } => {
            format!("{} {}{}", name(tool_use_id), text(content), if *is_error { " error" } else { "" })
        }
        Body::UserCustomToolResult { custom_tool_use_id, .. } => name(custom_tool_use_id),
        Body::UserToolConfirmation { tool_use_id, result, .. } => format!("{} {result:?}", name(tool_use_id)),
        Body::AgentToolUse { name, evaluated_permission, .. } => format!("{name} {evaluated_permission:?}"),
        Body::AgentMcpToolUse { name, mcp_server_name, evaluated_permission, .. } => {
            format!("{mcp_server_name} {name} {evaluated_permission:?}")
        }
        Body::AgentCustomToolUse { name, .. } => name.clone(),
        Body::StatusIdle { stop_reason, .. } | Body::ThreadIdle { stop_reason, .. } => stop(stop_reason),
        Body::ModelRequestEnd { model_request_start_id, is_error, .. } => {
            format!("{}{}", name(model_request_start_id), if *is_error { " error" } else { "" })
        }
        Body::Error { error } => format!("{:?} {:?}", error.kind, error.retry_status),
        _ => String::new(),
    };
    format!("{} {rest}", event.body.kind()).trim_end().to_owned()
}
