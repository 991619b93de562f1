//! One session, timed.
//!
//! ```text
//!   decoupled              sent ──▶ accepted ─────────────▶ first token ─▶ … idle
//!   coupled    begun ──▶ set up ──▶ sent ──▶ accepted ────▶ first token ─▶ … idle
//! ```
//!
//! *Accepted* is when the client has the whole answer to its POST, which the server gives once the event is durable.
//! *First token* is when the client has read the first `event_delta` frame from its stream, which was open before.
//! A coupled design would accept the message at *begun* and ask its model once all is set up; what the message's own
//! way into the log takes is therefore counted as much as in the decoupled case: not at all.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use protocol::event::PreviewKind;
use sandbox::{Access, Call, Mount, Provider, Resources, SandboxId};
use serde_json::json;
use tokio::sync::oneshot;

use super::model::Plan;
use super::served::Served;
use super::task::{INSIDE, READY, SET_UP};
use crate::bench::first_token::{signed, watch};
use crate::bench::samples::millis;

/// What happens before the model is asked.
#[derive(Clone, Debug)]
pub(super) enum Before {
    /// Nothing: as built.
    Nothing,
    /// The default sandbox.
    Sandbox,
    /// The default sandbox, and the set-up of the task in it.
    Task { mount: Mount },
}

/// Where a session's time went, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    /// What was done before the model was asked.
    pub(super) set_up: f64,
    /// From acceptance to the first token, without the set-up. Below zero if the token was there before the answer.
    pub(super) after_acceptance: f64,
    /// From the beginning of the POST to the first token, without the set-up.
    pub(super) after_sending: f64,
}

impl Timing {
    /// The time to the first token as it is defined: from acceptance.
    pub(super) fn first_token(&self) -> f64 {
        self.set_up + self.after_acceptance
    }
}

/// Runs one session from its making to its end.
pub(super) async fn play(served: &Served, plan: Plan, text: &str, before: &Before) -> anyhow::Result<Timing> {
    let session = served.session(plan).await?;
    let stream = served.client.stream(session.as_str(), None, &[PreviewKind::Message]).await?;
    let (tell, told) = oneshot::channel();
    // On a task of its own: the token may come before the answer to the POST.
    let watching = tokio::spawn(watch(stream, tell));

    let begun = Instant::now();
    let own_sandbox = match before {
        Before::Nothing => None,
        Before::Sandbox => Some(sandbox(served, session.as_str(), Resources::default()).await?),
        Before::Task { mount } => {
            let resources = Resources { mounts: vec![mount.clone()], ..Resources::default() };
            let id = sandbox(served, session.as_str(), resources).await?;
            set_up(served, &id).await?;
            Some(id)
        }
    };
    let sent = Instant::now();
    served.client.send_message(session.as_str(), text).await?;
    let accepted = Instant::now();
    let first = told.await.context("the session ended without a token")?;
    watching.await??;

    served.forget(&session).await?;
    if let Some(id) = own_sandbox {
        served.hands.destroy(&id).await?;
    }
    Ok(Timing {
        set_up: if matches!(before, Before::Nothing) { 0.0 } else { millis(sent.duration_since(begun)) },
        after_acceptance: signed(accepted, first),
        after_sending: signed(sent, first),
    })
}

async fn sandbox(served: &Served, session: &str, resources: Resources) -> anyhow::Result<SandboxId> {
    let id = SandboxId::parse(&format!("coupled_{session}")).context("an id of ours fits")?;
    served.hands.provision(&id, 1, &resources).await?;
    Ok(id)
}

/// Sets the task up in a sandbox.
async fn set_up(served: &Served, id: &SandboxId) -> anyhow::Result<()> {
    let call = Call {
        sandbox: id.clone(),
        call_id: "set-up".to_owned(),
        fence: 1,
        name: "bash".to_owned(),
        input: json!({"command": SET_UP, "timeout_ms": 600_000}),
        timeout: Duration::from_secs(600),
    };
    let output = served.hands.execute(call).await?;
    let text = format!("{output:?}");
    anyhow::ensure!(!output.is_error && text.contains(READY), "the set-up failed: {text}");
    Ok(())
}

/// Whether the task can be set up here at all. Also warms what any second task finds warm: the page cache.
pub(super) async fn try_set_up(served: &Served, mount: &Mount) -> anyhow::Result<()> {
    let resources = Resources { mounts: vec![mount.clone()], ..Resources::default() };
    let id = sandbox(served, "trial", resources).await?;
    let outcome = set_up(served, &id).await;
    served.hands.destroy(&id).await?;
    outcome
}

/// The repository as sandboxes see it.
pub(super) fn mount(host: std::path::PathBuf) -> Mount {
    Mount { host, inside: INSIDE.into(), access: Access::ReadOnly }
}
