//! What a model says, as events: previews while it speaks, and the one append that records the whole answer.

use protocol::agent::{AgentSpec, BuiltinTool, PermissionPolicy};
use protocol::content::Content;
use protocol::event::{
    Answer, AnswerCall, AutoPermission, Body, Evaluation, Finish, ModelUsage, Permission, Preview,
    PreviewDelta, PreviewEvent, PreviewKind, PreviewText,
};
use protocol::id::EventId;
use protocol::position::Position;
use serde_json::{Map, Value};
use session::step::Draft;

use crate::mcp_servers::{Called, Offer};
use crate::model::{self, Block, Delta, Stop};
use crate::toolset::{self, WebTools};

/// One answer that is being given.
pub(crate) struct Speech {
    request: EventId,
    /// The place in the log behind which the previews stand.
    after: Position,
    /// The message that all of the answer's texts go into, once there is one.
    message: Option<EventId>,
    /// How many texts have begun.
    texts: u32,
    thinking: Option<EventId>,
}

/// What follows from one piece of an answer.
#[derive(Default)]
pub(crate) struct Heard {
    pub(crate) previews: Vec<Preview>,
    /// An event that is complete before the answer is.
    pub(crate) draft: Option<Draft>,
}

impl Speech {
    pub(crate) fn new(request: EventId, after: Position) -> Self {
        Self { request, after, message: None, texts: 0, thinking: None }
    }

    /// The place in the log behind which the next previews stand.
    pub(crate) fn after(&self) -> Position {
        self.after
    }

    /// The log has grown; the next previews stand behind its new end.
    pub(crate) fn follow(&mut self, head: Position) {
        self.after = head;
    }

    /// Takes in a piece that is not the last.
    pub(crate) fn hear(&mut self, delta: Delta, mut new_id: impl FnMut() -> EventId) -> Heard {
        let mut heard = Heard::default();
        match delta {
            Delta::ThinkingStart => {
                let id = new_id();
                self.thinking = Some(id.clone());
                heard.previews.push(start(PreviewKind::Thinking, id));
            }
            Delta::ThinkingEnd => {
                // It has no content, so nothing is lost if the rest of the answer never comes.
                heard.draft = self.thinking.take().map(|id| Draft::New { id, body: Body::AgentThinking {} });
            }
            Delta::TextStart { index: _ } => {
                if self.message.is_none() {
                    let id = new_id();
                    self.message = Some(id.clone());
                    heard.previews.push(start(PreviewKind::Message, id));
                }
                self.texts += 1;
            }
            Delta::Text(text) => {
                if let Some(event_id) = self.message.clone() {
                    let content = PreviewText::Text { text };
                    let index = self.texts.saturating_sub(1);
                    heard.previews.push(Preview::EventDelta {
                        event_id,
                        delta: PreviewDelta::ContentDelta { index, content },
                    });
                }
            }
            Delta::TextEnd | Delta::ToolUseStart { .. } | Delta::ToolUseEnd => {}
            Delta::Done(_) => unreachable!("the whole answer goes to `answered`"),
        }
        heard
    }

    /// The whole answer: its private copy, its public events and the end of the span, to be appended together.
    pub(crate) fn answered(
        self,
        answer: model::Answer,
        spec: &AgentSpec,
        web: WebTools,
        offer: &Offer,
        mut new_id: impl FnMut() -> EventId,
    ) -> Vec<Draft> {
        let model::Answer { blocks, raw, stop, usage, model: _ } = answer;
        let finish = finish_of(stop);
        let is_refused = matches!(finish, Finish::Refused { .. });
        let mut texts = Vec::new();
        let mut calls = Vec::new();
        let mut uses = Vec::new();
        let mut results = Vec::new();
        for block in blocks {
            match block {
                Block::Thinking => {}
                Block::Text(text) => texts.push(Content::Text { text }),
                // A refused answer asks for nothing.
                Block::ToolUse { .. } if is_refused => {}
                Block::ToolUse { provider_id, name, input, input_error } => {
                    let event_id = new_id();
                    calls.push(AnswerCall { provider_id, event_id: event_id.clone() });
                    let (body, refusal) = use_of(spec, web, offer, name, input);
                    let is_mcp = matches!(body, Body::AgentMcpToolUse { .. });
                    uses.push(Draft::New { id: event_id.clone(), body });
                    let refusal =
                        input_error.map(|error| format!("The call was not run: {error}.")).or(refusal);
                    if let Some(refusal) = refusal {
                        let content = vec![Content::text(refusal)];
                        let body = if is_mcp {
                            Body::AgentMcpToolResult { mcp_tool_use_id: event_id, content, is_error: true }
                        } else {
                            Body::AgentToolResult { tool_use_id: event_id, content, is_error: true }
                        };
                        results.push(Draft::New { id: new_id(), body });
                    }
                }
            }
        }
        let blocks = raw
            .iter()
            .map(|block| block.get().to_owned())
            .filter(|block| !is_refused || !is_tool_use(block))
            .collect();
        let private = Answer { model_request_start_id: self.request.clone(), blocks, finish, calls };
        let mut drafts = vec![Draft::New { id: new_id(), body: Body::Answer(private) }];
        if !texts.is_empty() {
            let id = self.message.clone().unwrap_or_else(&mut new_id);
            drafts.push(Draft::New { id, body: Body::AgentMessage { content: texts } });
        }
        drafts.extend(uses);
        drafts.push(Draft::New { id: new_id(), body: self.end(false, usage) });
        drafts.extend(results);
        drafts
    }

    /// The answer will not come: the client has interrupted it.
    pub(crate) fn cut_off(self, mut new_id: impl FnMut() -> EventId) -> Vec<Draft> {
        vec![Draft::New { id: new_id(), body: self.end(true, ModelUsage::default()) }]
    }

    fn end(&self, is_error: bool, model_usage: ModelUsage) -> Body {
        Body::ModelRequestEnd { model_request_start_id: self.request.clone(), is_error, model_usage }
    }
}

fn start(kind: PreviewKind, id: EventId) -> Preview {
    Preview::EventStart { event: PreviewEvent { kind, id } }
}

fn finish_of(stop: Stop) -> Finish {
    match stop {
        Stop::EndTurn | Stop::ToolUse | Stop::MaxTokens | Stop::ContextExceeded | Stop::StopSequence => {
            Finish::Complete
        }
        Stop::PauseTurn => Finish::Paused,
        Stop::Refusal { category, explanation } => Finish::Refused { category, explanation },
    }
}

fn is_tool_use(block: &str) -> bool {
    let head: Result<Map<String, Value>, _> = serde_json::from_str(block);
    head.is_ok_and(|block| block.get("type").and_then(Value::as_str) == Some("tool_use"))
}

/// The event of a call: whose it is, and whether it may run. With it what the model is told at once, if there is nothing to
/// run.
fn use_of(
    spec: &AgentSpec,
    web: WebTools,
    offer: &Offer,
    name: String,
    input: Map<String, Value>,
) -> (Body, Option<String>) {
    if spec.custom_tool(&name).is_some() {
        return (Body::AgentCustomToolUse { name, input }, None);
    }
    if let Some(Called { server, tool, policy, is_there }) = offer.called(&name) {
        let (evaluated_permission, evaluation) = evaluated(policy);
        let refusal = (!is_there).then(|| {
            format!("The call was not run: the MCP server `{server}` offers no tool `{tool}` at the moment.")
        });
        let (mcp_server_name, name) = (server.to_owned(), tool.to_owned());
        let used = Body::AgentMcpToolUse { mcp_server_name, name, input, evaluated_permission, evaluation };
        return (used, refusal);
    }
    let policy = BuiltinTool::from_name(&name).and_then(|tool| toolset::policy_of(spec, tool, web));
    let (evaluated_permission, evaluation) = evaluated(policy);
    (Body::AgentToolUse { name, input, evaluated_permission, evaluation }, None)
}

fn evaluated(policy: Option<PermissionPolicy>) -> (Permission, Option<Evaluation>) {
    match policy {
        None => (Permission::Deny, None),
        Some(PermissionPolicy::AlwaysAllow {}) => (Permission::Allow, Some(Evaluation::AlwaysAllow {})),
        Some(PermissionPolicy::AlwaysAsk {}) => (Permission::Ask, Some(Evaluation::AlwaysAsk {})),
        // There is no judge here, and what nobody judged is never simply allowed.
        Some(PermissionPolicy::Auto {}) => {
            let evaluated_permission = AutoPermission::Ask { reason_code: "indeterminate".to_owned() };
            (Permission::Ask, Some(Evaluation::Auto { evaluated_permission }))
        }
    }
}
