//! Admission: which client events a session accepts now.
//!
//! Called inside the store's transaction, so that what is admitted is decided on the state that the events meet.
//! All or nothing: one refused event refuses the request.

use protocol::content::Content;
use protocol::event::{Body, Event, Permission};
use protocol::id::EventId;
use protocol::parse::Invalid;
use protocol::session::Status;

use crate::state::{CallKind, State};

/// Where an accepted event goes.
#[derive(Clone, Debug, PartialEq)]
pub enum Admitted {
    /// Into the inbox, until the brain takes it up.
    Queue(Body),
    /// Into the log at once: it is processed on receipt.
    Log(Body),
}

/// Why something is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A field, or this session in this state, does not allow it.
    Invalid(Invalid),
    /// The session is over: nothing is accepted any more.
    Over,
}

impl From<Invalid> for Refusal {
    fn from(invalid: Invalid) -> Self {
        Self::Invalid(invalid)
    }
}

/// How many client events may wait in one session's inbox. Far above what people or programs send ahead; a bound
/// on what one client can make the server keep.
pub const QUEUED_MAX: u32 = 1_000;

/// How much content may wait in one session's inbox, in bytes: two of the largest requests.
pub const QUEUED_BYTES_MAX: usize = 64 << 20;

/// Decides on the events of one request, in order.
pub fn admit(state: &State, inbox: &[Event], sent: Vec<Body>) -> Result<Vec<Admitted>, Refusal> {
    if state.status == Status::Terminated {
        return Err(Refusal::Over);
    }
    if state.queued.all as usize + sent.len() > QUEUED_MAX as usize {
        let rule =
            format!("the session already has {} events waiting (at most {QUEUED_MAX})", state.queued.all);
        return Err(Invalid::new("events", rule).into());
    }
    let waiting: usize = inbox.iter().map(|event| size_of(&event.body)).chain(sent.iter().map(size_of)).sum();
    if waiting > QUEUED_BYTES_MAX {
        let rule =
            format!("too much content would be waiting in the session (at most {QUEUED_BYTES_MAX} bytes)");
        return Err(Invalid::new("events", rule).into());
    }
    let count = sent.len();
    let mut desk = Desk::new(state, inbox);
    let mut previous = Previous::Nothing;
    let mut admitted = Vec::with_capacity(count);
    for (index, body) in sent.into_iter().enumerate() {
        let place = Place { index, is_last: index + 1 == count };
        let (accepted, this) = desk.decide(body, place, previous)?;
        previous = this;
        admitted.push(accepted);
    }
    Ok(admitted)
}

/// What stood before an event in its request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Previous {
    Nothing,
    ToolResult,
    Other,
}

#[derive(Clone, Copy)]
struct Place {
    index: usize,
    is_last: bool,
}

impl Place {
    fn path(self) -> String {
        format!("events[{}]", self.index)
    }

    fn field(self, name: &str) -> String {
        format!("events[{}].{name}", self.index)
    }
}

/// The session as the events before in the same request have left it.
struct Desk<'a> {
    state: &'a State,
    /// Calls that only the client can move on and that nobody has answered yet, inbox and request included.
    unanswered: Vec<EventId>,
    confirmed: Vec<EventId>,
    is_waiting: bool,
}

impl<'a> Desk<'a> {
    fn new(state: &'a State, inbox: &[Event]) -> Self {
        let confirmed: Vec<EventId> = inbox
            .iter()
            .filter_map(|event| match &event.body {
                Body::UserToolConfirmation { tool_use_id, .. } => Some(tool_use_id.clone()),
                _ => None,
            })
            .collect();
        let unanswered =
            state.blocked().map(|call| call.id.clone()).filter(|id| !confirmed.contains(id)).collect();
        let is_interrupted = inbox.iter().any(|event| matches!(event.body, Body::UserInterrupt { .. }));
        Self { state, unanswered, confirmed, is_waiting: state.is_waiting() && !is_interrupted }
    }

    fn decide(
        &mut self,
        body: Body,
        place: Place,
        previous: Previous,
    ) -> Result<(Admitted, Previous), Refusal> {
        match &body {
            Body::UserMessage { .. } => {
                self.refuse_while_waiting(&body, place)?;
                Ok((Admitted::Queue(body), Previous::Other))
            }
            Body::UserInterrupt { session_thread_id } => {
                if let Some(thread) = session_thread_id
                    && *thread != self.state.thread_id
                {
                    let rule = format!("Thread not found: {thread}");
                    return Err(Invalid::new(place.field("session_thread_id"), rule).into());
                }
                self.is_waiting = false;
                self.unanswered.clear();
                Ok((Admitted::Queue(body), Previous::Other))
            }
            Body::UserToolConfirmation { tool_use_id, .. } => {
                self.check_confirmation(tool_use_id, place)?;
                self.confirmed.push(tool_use_id.clone());
                self.answer(&tool_use_id.clone());
                Ok((Admitted::Queue(body), Previous::Other))
            }
            Body::UserCustomToolResult { custom_tool_use_id, .. } => {
                self.check_result(custom_tool_use_id, place)?;
                self.answer(&custom_tool_use_id.clone());
                Ok((Admitted::Log(body), Previous::ToolResult))
            }
            Body::SystemMessage { .. } => {
                if !place.is_last {
                    let rule = "`system.message` must be the last event of its request";
                    return Err(Invalid::new(place.path(), rule).into());
                }
                if previous != Previous::ToolResult {
                    self.refuse_while_waiting(&body, place)?;
                }
                Ok((Admitted::Queue(body), Previous::Other))
            }
            other => {
                let rule = format!("`{}` cannot be sent by a client", other.kind());
                Err(Invalid::new(place.field("type"), rule).into())
            }
        }
    }

    /// While the session waits for answers, only answers and interrupts are taken.
    fn refuse_while_waiting(&self, body: &Body, place: Place) -> Result<(), Refusal> {
        if !self.is_waiting || self.unanswered.is_empty() {
            return Ok(());
        }
        let ids = self.unanswered.iter().map(EventId::as_str).collect::<Vec<_>>().join(", ");
        // Official clients match on the words "waiting on responses to events".
        let rule = format!(
            "Invalid {} event at events[{}]: waiting on responses to events [{ids}]; only user.tool_confirmation, \
             user.custom_tool_result, user.tool_result and user.interrupt events are accepted until then",
            body.kind(),
            place.index,
        );
        Err(Invalid::new(place.path(), rule).into())
    }

    fn check_confirmation(&self, id: &EventId, place: Place) -> Result<(), Invalid> {
        let path = place.field("tool_use_id");
        let Some(call) = self.state.calls.iter().find(|call| call.id == *id) else {
            return Err(Invalid::new(path, format!("no pending call has the id {id}")));
        };
        match call.verdicts() {
            Some((Permission::Ask, confirmed)) => {
                if confirmed.is_some() || self.confirmed.contains(id) {
                    return Err(Invalid::new(path, format!("the call {id} is already confirmed")));
                }
                Ok(())
            }
            Some((Permission::Allow | Permission::Deny, _)) => {
                Err(Invalid::new(path, format!("the call {id} does not ask for a confirmation")))
            }
            None => Err(Invalid::new(
                path,
                format!("the call {id} is of a custom tool: answer it with user.custom_tool_result"),
            )),
        }
    }

    fn check_result(&self, id: &EventId, place: Place) -> Result<(), Invalid> {
        let path = place.field("custom_tool_use_id");
        let call = self.state.calls.iter().find(|call| call.id == *id);
        match call.map(|call| &call.kind) {
            Some(CallKind::Custom) if self.unanswered.contains(id) => Ok(()),
            Some(CallKind::Custom) => Err(Invalid::new(path, format!("the call {id} is already answered"))),
            Some(CallKind::Builtin { .. } | CallKind::Mcp { .. }) => {
                Err(Invalid::new(path, format!("the call {id} is not of a custom tool")))
            }
            None => Err(Invalid::new(path, format!("no pending call has the id {id}"))),
        }
    }

    fn answer(&mut self, id: &EventId) {
        self.unanswered.retain(|unanswered| unanswered != id);
    }
}

/// The bytes of an event's content. What else an event holds is bounded by its shape.
fn size_of(body: &Body) -> usize {
    match body {
        Body::UserMessage { content }
        | Body::SystemMessage { content }
        | Body::UserCustomToolResult { custom_tool_use_id: _, content, is_error: _ } => {
            content.iter().map(Content::size_bytes).sum()
        }
        _ => 0,
    }
}
