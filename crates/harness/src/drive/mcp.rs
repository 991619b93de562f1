//! The part of a drive that concerns MCP servers: when they are connected to, and how a call is made.
//!
//! A server keeps no ledger of calls as a sandbox does. So the intent is recorded just before a call is made
//! (`posthouse.mcp_call`); one that has an intent and no result when the next brain comes may have been made, and
//! `session::next_step` decides what becomes of it.

use std::sync::Arc;

use mcp::Error;
use protocol::content::Content;
use protocol::event::{Body, RetryStatus, SessionError, SessionErrorKind};
use protocol::id::EventId;
use protocol::session::Status;
use session::state::CallKind;
use session::step::{Act, Draft, OUTCOME_UNKNOWN, Step};
use tokio::time::Instant;

use super::{Drive, Halt, Woken, is_interrupted};
use crate::faults::Point;
use crate::mcp_servers::Links;

/// A call of an MCP server's tool.
pub(super) struct McpCall {
    id: EventId,
    server: String,
    tool: String,
    /// Whether its intent is in the log: a brain that is gone may have made it.
    is_begun: bool,
}

impl McpCall {
    /// The result of a call that this brain has not made.
    fn not_made(&self, why: String) -> Body {
        failed(&self.id, if self.is_begun { OUTCOME_UNKNOWN.to_owned() } else { why })
    }

    /// The result of a call that has no output.
    fn without_output(&self, error: &Error) -> Body {
        let is_known = !self.is_begun && !error.may_have_happened();
        let effect = if is_known { "" } else { " It is not known whether this call had any effect." };
        let text = format!("mcp: the server `{}` gave no result: {error}.{effect}", self.server);
        failed(&self.id, text)
    }
}

impl Drive<'_> {
    /// Begins to connect to the agent's servers, if the step leads to something that wants them. Nobody waits for that
    /// here: the step is recorded meanwhile.
    pub(super) fn link(&mut self, step: &Step) {
        let says = |wanted: fn(&Body) -> bool| {
            step.drafts.iter().any(|draft| matches!(draft, Draft::New { id: _, body } if wanted(body)))
        };
        // After a wait before a retry the same turn runs on.
        let was_idle =
            self.view.state.status == Status::Idle || says(|body| matches!(body, Body::StatusIdle { .. }));
        if was_idle && says(|body| matches!(body, Body::StatusRunning {})) {
            self.unlink();
        }
        let wants_servers = match &step.act {
            Act::CallModel { .. } => true,
            Act::Execute { call } => self.mcp_call(call).is_some(),
            Act::Collect | Act::BackOff { .. } | Act::Rest | Act::Stop => false,
        };
        let agent = &self.view.record.agent;
        if self.links.is_some() || !wants_servers || agent.spec.mcp_servers.is_empty() {
            return;
        }
        if let Some(servers) = &self.brain.options.mcp {
            let (tracker, session) = (&self.brain.errands, &self.token.session);
            let links = Links::begin(servers, tracker, session, &agent.id, &agent.spec, self.held_until);
            self.links = Some(links);
        }
    }

    /// Ends the links. A turn that follows has its own.
    pub(super) fn unlink(&mut self) {
        if let Some(links) = self.links.take() {
            links.finish();
        }
    }

    /// The lease is certainly held until then.
    pub(super) fn hold_until(&mut self, held_until: Instant) {
        self.held_until = held_until;
        if let Some(links) = &self.links {
            links.extend(held_until);
        }
    }

    /// Whether the next request must wait until it is known what it can offer.
    pub(super) fn awaits_servers(&self) -> bool {
        self.links.as_ref().is_some_and(Links::is_unsettled)
    }

    /// Waits, within a bound, for the servers' lists; gives what the client is to be told of those that failed.
    pub(super) async fn gather_tools(&mut self) -> Result<Vec<Draft>, Halt> {
        let Some(links) = &self.links else { return Ok(Vec::new()) };
        if links.offer().is_none() {
            let ready = links.ready();
            match self.wait_for(ready).await? {
                Woken::Done(()) => {}
                Woken::Interrupted => return Ok(Vec::new()),
            }
        }
        let record = Arc::clone(&self.view.record);
        let failures = self.links.as_mut().map(|links| links.settle(&record.agent.spec)).unwrap_or_default();
        let errors =
            failures.into_iter().map(|(server, error)| Body::Error { error: error_of(server, &error) });
        Ok(self.drafts(errors.collect()))
    }

    /// The call, if it is one of an MCP server's tool.
    pub(super) fn mcp_call(&self, call: &EventId) -> Option<McpCall> {
        let call = self.view.state.calls.iter().find(|pending| pending.id == *call)?;
        match &call.kind {
            CallKind::Mcp { server, permission: _, confirmed: _, begun } => Some(McpCall {
                id: call.id.clone(),
                server: server.clone(),
                tool: call.name.clone(),
                is_begun: begun.is_some(),
            }),
            CallKind::Custom | CallKind::Builtin { .. } => None,
        }
    }

    /// Makes a call. An interrupt ends it, and so does the end of this brain: nobody else can wait for its answer.
    pub(super) async fn use_mcp(&mut self, call: McpCall) -> Result<Vec<Draft>, Halt> {
        let McpCall { id, server, tool, is_begun } = &call;
        let brain = self.brain;
        let Some(input) = self.input_of(id).await? else { return Ok(Vec::new()) };
        let Some(links) = &mut self.links else {
            let text = format!(
                "The call was not run: this server does not connect to MCP servers such as `{server}`."
            );
            return Ok(self.drafts(vec![call.not_made(text)]));
        };
        let Some(linking) = links.linked(server) else {
            let text = format!("The call was not run: the agent has no MCP server `{server}` any more.");
            return Ok(self.drafts(vec![call.not_made(text)]));
        };
        let linked = match self.wait_for(linking).await? {
            Woken::Done(Ok(linked)) => linked,
            Woken::Done(Err(error)) => {
                let text =
                    format!("The call was not run: the MCP server `{server}` is not connected: {error}.");
                return Ok(self.drafts(vec![call.not_made(text)]));
            }
            Woken::Interrupted => return Ok(Vec::new()),
        };
        if !*is_begun {
            let repeatable = linked.is_repeatable(tool);
            self.record(vec![Body::McpCall { mcp_tool_use_id: id.clone(), repeatable }]).await?;
        }
        if is_interrupted(&self.view) {
            return Ok(Vec::new());
        }
        brain.faults.reached(Point::BeforeCall).await;
        let making = match linked.connection.call(tool, input).await {
            Ok(making) => making,
            Err(error) => return Ok(self.drafts(vec![call.without_output(&error)])),
        };
        let cancel = making.cancel();
        let output = match self.finish(making.output()).await? {
            Woken::Done(output) => output,
            Woken::Interrupted => {
                // The result that the model sees is the interrupt's.
                cancel.send().await;
                return Ok(Vec::new());
            }
        };
        drop(linked);
        brain.faults.reached(Point::CallDone).await;
        let result = match output {
            Ok(mcp::Output { content, is_error }) => {
                Body::AgentMcpToolResult { mcp_tool_use_id: id.clone(), content, is_error }
            }
            Err(error) => call.without_output(&error),
        };
        Ok(self.shown(id, result).await?.map(|result| self.drafts(vec![result])).unwrap_or_default())
    }
}

fn failed(call: &EventId, text: String) -> Body {
    let content = vec![Content::text(text)];
    Body::AgentMcpToolResult { mcp_tool_use_id: call.clone(), content, is_error: true }
}

/// What the client is told of a server that the session goes on without.
fn error_of(server: String, error: &Error) -> SessionError {
    let kind = match error {
        Error::Unauthorized(_) => SessionErrorKind::McpAuthenticationFailedError,
        Error::Unreachable(_) | Error::Broken(_) | Error::Refused(_) | Error::TokenRefused => {
            SessionErrorKind::McpConnectionFailedError
        }
    };
    let message = format!("mcp: the server `{server}` is not connected: {error}");
    SessionError { mcp_server_name: Some(server), ..SessionError::new(kind, message, RetryStatus::Retrying) }
}
