//! What the model is shown: a view computed from the log.
//!
//! The view only ever grows at its end, so that each request begins with the bytes of the one before and the
//! provider's cache serves it. The log keeps everything; a view may be thrown away and computed again.

use std::collections::HashMap;

use protocol::agent::SessionAgent;
use protocol::content::Content;
use protocol::event::{Answer, Body, Event, RetryStatus};
use protocol::id::EventId;
use protocol::position::Position;
use serde_json::{Map, Value};

use crate::model::{Message, Prompt, ToolResult, UserBlock};
use crate::toolset;

/// The conversation so far, as of a place in the log.
#[derive(Debug, Default)]
pub(crate) struct Transcript {
    position: Position,
    messages: Vec<Message>,
    /// The provider's own id of each call that has no result yet.
    provider_ids: HashMap<EventId, String>,
    /// The inputs of the calls that have no result yet.
    inputs: HashMap<EventId, Map<String, Value>>,
    /// From the moment the server gives up until the session is idle, messages are taken up without being run.
    is_flushing: bool,
}

impl Transcript {
    /// The place up to which the log has been read.
    pub(crate) fn position(&self) -> Position {
        self.position
    }

    /// Takes in the next event of the log, private kinds included.
    pub(crate) fn read(&mut self, position: Position, event: &Event) -> Result<(), serde_json::Error> {
        debug_assert_eq!(position, self.position.next(), "events are read without a gap");
        self.position = position;
        match &event.body {
            Body::UserMessage { content } if !self.is_flushing => {
                self.say(content.iter().cloned().map(UserBlock::Content).collect());
            }
            Body::SystemMessage { content } if !self.is_flushing => {
                self.messages.push(Message::System(text_of(content)));
            }
            Body::Answer(answer) => self.answer(answer)?,
            Body::AgentToolUse { input, .. } | Body::AgentCustomToolUse { input, .. } => {
                self.inputs.insert(event.id.clone(), input.clone());
            }
            Body::AgentToolResult { tool_use_id, content, is_error } => {
                self.resolve(tool_use_id, content, *is_error)
            }
            Body::UserCustomToolResult { custom_tool_use_id, content, is_error } => {
                self.resolve(custom_tool_use_id, content, is_error.unwrap_or(false));
            }
            Body::Error { error } => self.is_flushing |= error.retry_status != RetryStatus::Retrying,
            Body::StatusIdle { .. } => self.is_flushing = false,
            _ => {}
        }
        Ok(())
    }

    fn say(&mut self, blocks: Vec<UserBlock>) {
        self.messages.push(Message::User(blocks));
    }

    fn answer(&mut self, answer: &Answer) -> Result<(), serde_json::Error> {
        if !answer.blocks.is_empty() {
            self.messages.push(Message::assistant(answer.blocks.iter().map(String::as_str))?);
        }
        for call in &answer.calls {
            self.provider_ids.insert(call.event_id.clone(), call.provider_id.clone());
        }
        Ok(())
    }

    fn resolve(&mut self, call: &EventId, content: &[Content], is_error: bool) {
        self.inputs.remove(call);
        let Some(provider_call_id) = self.provider_ids.remove(call) else { return };
        let result = ToolResult { provider_call_id, content: content.to_vec(), is_error };
        self.say(vec![UserBlock::ToolResult(result)]);
    }

    /// The input of a call that has no result yet.
    pub(crate) fn input_of(&self, call: &EventId) -> Option<&Map<String, Value>> {
        self.inputs.get(call)
    }

    /// The request that continues the conversation.
    pub(crate) fn prompt(&self, agent: &SessionAgent) -> Prompt {
        let spec = &agent.spec;
        let mut prompt = Prompt::new(spec.model.id.clone());
        prompt.system = system_of(agent);
        prompt.tools = toolset::specs(spec);
        prompt.messages = self.messages.clone();
        prompt.effort = Some(spec.model.effort.level);
        prompt.speed = spec.model.speed;
        prompt.inference_geo = spec.model.inference_geo.clone();
        prompt
    }
}

fn text_of(content: &[Content]) -> String {
    let texts = content.iter().filter_map(|block| match block {
        Content::Text { text } => Some(text.as_str()),
        _ => None,
    });
    texts.collect::<Vec<_>>().join("\n\n")
}

/// The agent's own prompt and, where it has built-in tools, what it must know of the place they work in.
fn system_of(agent: &SessionAgent) -> Option<String> {
    let place = toolset::has_builtin(&agent.spec).then_some(toolset::PLACE);
    let parts: Vec<&str> =
        agent.spec.system.as_deref().into_iter().chain(place).filter(|part| !part.is_empty()).collect();
    (!parts.is_empty()).then(|| parts.join("\n\n"))
}
