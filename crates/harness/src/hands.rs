//! Running a call in the session's sandbox.
//!
//! The sandbox is provisioned at the first call and recorded in the log before anything runs in it. So a call
//! without a result whose log names no sandbox has not begun; with a sandbox, asking again with the same call id
//! gives the running or finished call; and a sandbox that is gone means that the workspace is lost, which the
//! model is told. Nothing is ever run twice.

use protocol::content::{Content, Source};
use protocol::event::Body;
use protocol::id::{EventId, SandboxId};
use sandbox::{Call, Error, Provider, Resources};
use serde_json::{Map, Value};
use tools::wire;

use crate::toolset;

/// What a call came to.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The tool's output.
    Output(wire::Output),
    /// The sandbox is gone.
    Gone { reason: String },
    /// Somebody with a newer lease drives this session.
    Fenced,
    /// No sandbox could do it.
    Failed { error: Error },
}

/// Makes a sandbox. Asking again with the same id gives the same sandbox.
pub(crate) async fn provision(
    hands: &dyn Provider,
    id: &SandboxId,
    fence: u64,
    resources: &Resources,
) -> Result<(), Outcome> {
    match hands.provision(&handle(id), fence, resources).await {
        Ok(()) => Ok(()),
        Err(Error::Fenced { .. }) => Err(Outcome::Fenced),
        Err(error) => Err(Outcome::Failed { error }),
    }
}

/// Runs a call, or waits for it where it runs already.
pub(crate) async fn execute(
    hands: &dyn Provider,
    id: &SandboxId,
    fence: u64,
    call: &EventId,
    name: &str,
    input: Map<String, Value>,
) -> Outcome {
    let call = Call {
        sandbox: handle(id),
        call_id: call.to_string(),
        fence,
        name: name.to_owned(),
        input: Value::Object(input),
        timeout: toolset::timeout_of(name),
    };
    match hands.execute(call).await {
        Ok(output) => Outcome::Output(output),
        Err(Error::Gone { reason }) => Outcome::Gone { reason },
        Err(Error::Fenced { .. }) => Outcome::Fenced,
        Err(error) => Outcome::Failed { error },
    }
}

/// The provider's form of a sandbox's id.
pub(crate) fn handle(id: &SandboxId) -> sandbox::SandboxId {
    sandbox::SandboxId::parse(id.as_str()).expect("an id of ours is letters, digits and an underscore")
}

/// The events that say what a call came to.
pub(crate) fn results(call: &EventId, sandbox: &SandboxId, outcome: Outcome) -> Vec<Body> {
    match outcome {
        Outcome::Output(wire::Output { content, is_error }) => {
            let content = content.into_iter().map(content_of).collect();
            vec![Body::AgentToolResult { tool_use_id: call.clone(), content, is_error }]
        }
        Outcome::Gone { reason } => vec![
            error(
                call,
                format!(
                    "hand: the sandbox is gone and its workspace with it ({reason}). It is not known whether this \
                     call had any effect. The next call gets a new, empty workspace."
                ),
            ),
            Body::SandboxLost { sandbox_id: sandbox.clone() },
        ],
        Outcome::Failed { error: cause } => vec![error(call, format!("hand: {cause}"))],
        Outcome::Fenced => Vec::new(),
    }
}

fn error(call: &EventId, text: String) -> Body {
    Body::AgentToolResult { tool_use_id: call.clone(), content: vec![Content::text(text)], is_error: true }
}

fn content_of(content: wire::Content) -> Content {
    match content {
        wire::Content::Text { text } => Content::Text { text },
        wire::Content::Image { source } => Content::Image { source: source_of(source) },
        wire::Content::Document { source } => {
            Content::Document { source: source_of(source), title: None, context: None }
        }
    }
}

fn source_of(source: wire::Source) -> Source {
    match source {
        wire::Source::Base64 { media_type, data } => Source::Base64 { media_type, data },
    }
}
