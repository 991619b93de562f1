//! Running a call in the session's sandbox.
//!
//! The sandbox is provisioned at the first call or ahead of it ([`crate::speculation`]), and recorded in the log before anything runs in it. So a call
//! without a result whose log names no sandbox has not begun; with a sandbox, asking again with the same call id
//! gives the running or finished call; and a sandbox that is gone means that the workspace is lost, which the
//! model is told. Nothing is ever run twice.

use std::path::Path;
use std::time::Duration;

use egress::{Grant, Policy};
use protocol::agent::McpServer;
use protocol::content::{Content, Source};
use protocol::environment::{EnvironmentConfig, Networking, Packages};
use protocol::event::{Body, RetryStatus, SessionError, SessionErrorKind, Snapshot};
use protocol::hands::HandsSettings;
use protocol::id::{EventId, SandboxId, SessionId};
use sandbox::{Base, Call, Error, Network, Provider, Resources, Rights};
use serde_json::{Map, Value};
use session::Record;
use tools::wire;

use crate::{toolset, workspace};

/// How long is waited before a call is asked for again.
const RETRY_PAUSES: [Duration; 3] =
    [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(3)];
/// How long a session waits until its packages are installed. A manager may take three quarters of an hour; whoever waits
/// longer than this is better told.
const PREPARE_MAX: Duration = Duration::from_secs(60 * 60);
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
    let Record { id, agent, environment, hands, .. } = record;
    let mut resources = resources_of(usual, environment, hands);
    if let EnvironmentConfig::Cloud { networking, packages: _ } = environment {
        resources.network = Some(network(id, networking, &agent.spec.mcp_servers));
    }
    resources
}

/// The same for any session of an environment, which is said to reach nothing yet.
pub(crate) fn resources_of(
    usual: &Resources,
    environment: &EnvironmentConfig,
    hands: &HandsSettings,
) -> Resources {
    let HandsSettings { policy: _, image, runtime } = hands;
    let mut resources = usual.clone();
    if let Some(image) = image {
        resources.base.image = Some(image.clone());
    }
    if let Some(runtime) = runtime {
        resources.runtime = Some(runtime.clone());
    }
    match environment {
        EnvironmentConfig::Cloud { networking: _, packages } => {
            let Packages { tag: _, apt, cargo, gem, go, npm, pip } = packages.clone();
            resources.base.packages = sandbox::Packages { apt, cargo, gem, go, npm, pip };
            resources.network = Some(Network(String::new()));
            // Whoever can fetch packages may install them.
            resources.rights = Rights::Install;
        }
        EnvironmentConfig::SelfHosted {} => {}
    }
    resources
}

/// What the egress proxy is to let out of the sandbox.
fn network(session: &SessionId, networking: &Networking, servers: &[McpServer]) -> Network {
    let policy = Policy::new(networking, servers).unwrap_or_else(|error| {
        // The door has checked each host; what the proxy cannot read all the same opens nothing.
        tracing::error!(session.id = %session, %error, "the environment's hosts cannot be read; nothing is allowed");
        Policy::NOTHING
    });
    Network(Grant { session: Some(session.to_string()), policy }.to_text())
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

/// Installs the packages of an environment, or waits for whoever does.
pub(crate) async fn prepare(hands: &dyn Provider, base: &Base) -> Result<(), Outcome> {
    let progress = |line: &str| tracing::info!("a session waits for packages: {line}");
    match tokio::time::timeout(PREPARE_MAX, hands.prepare(base, &progress)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Outcome::Failed { error }),
        Err(_) => {
            let reason = "the packages of its environment were not installed within an hour".to_owned();
            Err(Outcome::Failed { error: Error::Busy { reason } })
        }
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
        // The client is told as well: it is the environment that must be mended. The session goes on without the call, and
        // the next call tries again.
        Outcome::Failed { error: cause @ Error::Packages { .. } } => vec![
            Body::Error {
                error: SessionError::new(
                    SessionErrorKind::UnknownError,
                    format!("environment: {cause}"),
                    RetryStatus::Retrying,
                ),
            },
            error(call, format!("hand: {cause}")),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_chooses_image_and_runtime_and_leaves_the_rest_as_usual() {
        let usual = Resources {
            base: Base { image: Some("usual".to_owned()), ..Base::default() },
            runtime: Some("runc".to_owned()),
            ..Resources::default()
        };
        let chosen = |hands: &HandsSettings| {
            let Resources { base, runtime, .. } =
                resources_of(&usual, &EnvironmentConfig::SelfHosted {}, hands);
            (base.image, runtime)
        };
        let own = |text: &str| Some(text.to_owned());
        assert_eq!(chosen(&HandsSettings::default()), (own("usual"), own("runc")));
        let hands = HandsSettings { image: own("other"), runtime: own("runsc"), ..HandsSettings::default() };
        assert_eq!(chosen(&hands), (own("other"), own("runsc")));
    }

    #[test]
    fn a_failed_install_is_told_to_the_client_and_to_the_model() {
        let error = Error::Packages {
            manager: sandbox::Manager::Pip,
            package: Some("nonesuch".to_owned()),
            lines: vec!["ERROR: No matching distribution found for nonesuch".to_owned()],
        };
        let (call, sandbox) = (EventId::from_text("sevt_a"), SandboxId::from_text("sbx_a"));
        let told = results(&call, &sandbox, None, Outcome::Failed { error });
        let [Body::Error { error }, Body::AgentToolResult { is_error: true, content, .. }] = told.as_slice()
        else {
            panic!("{told:?}")
        };
        let words = "pip could not install nonesuch: ERROR: No matching distribution found for nonesuch";
        assert_eq!(error.message, format!("environment: {words}"));
        assert_eq!(content, &[Content::text(format!("hand: {words}"))]);
    }
}
