//! The part of a drive that keeps long results out of the conversation.

use protocol::agent::BuiltinTool;
use protocol::content::Content;
use protocol::event::Body;
use protocol::id::EventId;

use super::{Drive, Halt, Obtained, Woken};
use crate::hands::{self, Outcome};
use crate::spill::{self, Spilt};
use crate::toolset;

impl Drive<'_> {
    /// A result as the model is shown it: one that is too long goes to a file of the sandbox, which is made for it if the
    /// agent has tools that can read there. `None`: an interrupt has come, and the result is the interrupt's.
    pub(super) async fn shown(&mut self, call: &EventId, result: Body) -> Result<Option<Body>, Halt> {
        let content = match &result {
            Body::AgentToolResult { content, .. } | Body::AgentMcpToolResult { content, .. } => {
                content.clone()
            }
            _ => return Ok(Some(result)),
        };
        let Ok(spilt) = spill::too_long(content) else { return Ok(Some(result)) };
        let Some(saved) = self.saved(call, &spilt).await? else { return Ok(None) };
        Ok(Some(with_content(result, spilt.shown(&saved))))
    }

    /// Where all of it is, as a half-sentence.
    async fn saved(&mut self, call: &EventId, spilt: &Spilt) -> Result<Option<String>, Halt> {
        const NOWHERE: &str = "all of it could not be kept";
        let spec = &self.view.record.agent.spec;
        let can_read = [BuiltinTool::Read, BuiltinTool::Bash, BuiltinTool::Grep];
        if !toolset::uses_sandbox(spec) || !can_read.iter().any(|tool| spec.policy_of(*tool).is_some()) {
            return Ok(Some("there is no place where all of it could be kept".to_owned()));
        }
        let sandbox = match self.view.state.sandbox.clone() {
            Some(sandbox) => sandbox,
            None => match self.obtain(call).await? {
                Obtained::Recorded(sandbox) => sandbox,
                Obtained::Not(results) if results.is_empty() => return Ok(None),
                Obtained::Not(_) => return Ok(Some(NOWHERE.to_owned())),
            },
        };
        let (hands, fence) = (&*self.brain.hands, self.token.epoch);
        // Another id than the call's, which may be known in this sandbox already.
        let write = EventId::from_text(format!("{call}_output"));
        let input = spilt.input(call);
        let written = hands::execute(hands, &sandbox, fence, &write, BuiltinTool::Write.name(), input);
        Ok(match self.wait_for(written).await? {
            Woken::Done(Outcome::Output(output)) if !output.is_error => {
                Some(format!("all of it is in {}", Spilt::path(call)))
            }
            Woken::Done(Outcome::Fenced) => return Err(Halt::Lost),
            Woken::Done(outcome) => {
                tracing::warn!(session.id = %self.token.session, ?outcome, "a long result could not be kept");
                Some(NOWHERE.to_owned())
            }
            Woken::Interrupted => None,
        })
    }
}

/// The same result with other content.
fn with_content(mut result: Body, shown: Vec<Content>) -> Body {
    if let Body::AgentToolResult { content, .. } | Body::AgentMcpToolResult { content, .. } = &mut result {
        *content = shown;
    }
    result
}
