//! Running a call in the session's sandbox.
//!
//! The sandbox is provisioned at the first call and recorded in the log before anything runs in it. So a call
//! without a result whose log names no sandbox has not begun; with a sandbox, asking again with the same call id
//! gives the running or finished call; and a sandbox that is gone means that the workspace is lost, which the
//! model is told. Nothing is ever run twice.

use std::path::Path;
use std::time::Duration;

use protocol::content::{Content, Source};
use protocol::event::{Body, Snapshot};
use protocol::id::{EventId, SandboxId};
use sandbox::{Call, Error, Provider, Resources};
use serde_json::{Map, Value};
use session::Record;
use tools::wire;

use crate::{toolset, workspace};

/// How long is waited before a call is asked for again.
const RETRY_PAUSES: [Duration; 3] =
    [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(3)];
/// How long an interrupt waits for the call that it ends.
const CANCEL_MAX: Duration = Duration::from_secs(5);

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

/// What a session's sandbox gets: what the operator gives every sandbox, and what its environment says.
pub(crate) fn resources(usual: &Resources, record: &Record) -> Resources {
    let Record { environment: _, hands: _, .. } = record;
    usual.clone()
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

/// Runs a call, or waits for it where it runs already. Where the keeper of the sandboxes is out of reach it is asked
/// again: the call's id makes that harmless.
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
    let mut pauses = RETRY_PAUSES.iter();
    loop {
        match hands.execute(call.clone()).await {
            Ok(output) => return Outcome::Output(output),
            Err(Error::Gone { reason }) => return Outcome::Gone { reason },
            Err(Error::Fenced { .. }) => return Outcome::Fenced,
            Err(error) => match pauses.next() {
                Some(pause) if error.may_retry() => tokio::time::sleep(*pause).await,
                _ => return Outcome::Failed { error },
            },
        }
    }
}

/// Ends a running call. That it could not be ended is for the operator: nobody waits for its result any more.
pub(crate) async fn cancel(hands: &dyn Provider, id: &SandboxId, fence: u64, call: &EventId) {
    let id = handle(id);
    match tokio::time::timeout(CANCEL_MAX, hands.cancel(&id, fence, call.as_str())).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::warn!(sandbox.id = %id, %error, "a call could not be cancelled"),
        Err(_) => tracing::warn!(sandbox.id = %id, "a call was not cancelled in time"),
    }
}

/// Copies the deliverables into a folder, which is there afterwards only if there are any.
pub(crate) async fn collect(hands: &dyn Provider, id: &SandboxId, into: &Path) {
    let id = handle(id);
    if let Err(error) = hands.collect_outputs(&id, into).await {
        tracing::warn!(sandbox.id = %id, %error, "the outputs could not be collected");
    }
}

/// The provider's form of a sandbox's id.
pub(crate) fn handle(id: &SandboxId) -> sandbox::SandboxId {
    sandbox::SandboxId::parse(id.as_str()).expect("an id of ours is letters, digits and an underscore")
}

/// The events that say what a call came to.
pub(crate) fn results(
    call: &EventId,
    sandbox: &SandboxId,
    snapshot: Option<&Snapshot>,
    outcome: Outcome,
) -> Vec<Body> {
    match outcome {
        Outcome::Output(wire::Output { content, is_error }) => {
            let content = content.into_iter().map(content_of).collect();
            vec![Body::AgentToolResult { tool_use_id: call.clone(), content, is_error }]
        }
        Outcome::Gone { reason } => vec![
            error(
                call,
                format!(
                    "hand: the sandbox is gone ({reason}). It is not known whether this call had any effect. {}",
                    workspace::what_is_left(snapshot)
                ),
            ),
            Body::SandboxLost { sandbox_id: sandbox.clone() },
        ],
        Outcome::Failed { error: cause } if cause.may_have_happened() => {
            vec![error(call, format!("hand: {cause}. It is not known whether this call had any effect."))]
        }
        Outcome::Failed { error: cause } => vec![error(call, format!("hand: {cause}"))],
        Outcome::Fenced => Vec::new(),
    }
}

pub(crate) fn error(call: &EventId, text: String) -> Body {
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
