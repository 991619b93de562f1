//! What is true of every session's log, whatever happened to the processes that wrote it.
//!
//! The invariants bear the names that the reference gives them, G1 to G13. They speak only of what is public: the
//! list of events as clients get it, and what a stream showed. Two of them need a server to ask and are left to the
//! tests that have one: that a session reads idle once its idle event was seen (G10), and that what a stream showed is
//! in the list already (G12).

use std::collections::{HashMap, HashSet};

use protocol::time::Timestamp;
use serde_json::Value;

/// Kinds that streams show and lists never hold.
const STREAM_ONLY: [&str; 3] = ["event_start", "event_delta", "session.deleted"];

/// What a rule found: its name, and what is wrong where.
pub type Verdict = Result<(), String>;

/// Checks a whole log, oldest event first; what is only queued comes last.
pub fn check(list: &[Value]) -> Verdict {
    let done = done_of(list);
    if list[done.len()..].iter().any(|event| !is_queued(event)) {
        return Err("a queued event stands before one that was taken up".to_owned());
    }
    check_order(list)?;
    check_threads(done)?;
    check_runs(done)?;
    check_model_requests(done)?;
    check_calls(done)?;
    check_pairs(done)
}

/// Checks a log as [`check`] does, and that its session rests with nothing left to do.
pub fn check_at_rest(list: &[Value]) -> Verdict {
    check(list)?;
    let done = done_of(list);
    if let Some(queued) = list.get(done.len()) {
        return Err(format!("{} is queued and nobody takes it up", name(queued)));
    }
    match done.last() {
        Some(last) if !is_at_rest(done) => Err(format!("the log ends with {}, which is no rest", name(last))),
        Some(_) | None => Ok(()),
    }
}

/// Whether the session rests after these events of its log. One that only ever was changed or interrupted has never left
/// its rest.
pub fn is_at_rest(done: &[Value]) -> bool {
    done.iter().all(leaves_at_rest) || rest_of(done).is_some()
}

/// G2: what streams showed of a session, put together from wherever they were opened and resumed, is its list: the
/// same events, each once, in the same order. `shown` has only what has a position.
pub fn check_stream(list: &[Value], shown: &[Value]) -> Verdict {
    let done = done_of(list);
    for (index, event) in shown.iter().enumerate() {
        match done.get(index) {
            None => return Err(format!("G2: the stream shows {} behind the list's end", name(event))),
            Some(listed) if listed != event => {
                return Err(format!(
                    "G2: in place {index} the list has {}, the stream {}",
                    name(listed),
                    name(event)
                ));
            }
            Some(_) => {}
        }
    }
    match done.get(shown.len()) {
        None => Ok(()),
        Some(missed) => Err(format!("G2: the stream never showed {}", name(missed))),
    }
}

fn done_of(list: &[Value]) -> &[Value] {
    let count = list.iter().take_while(|event| !is_queued(event)).count();
    &list[..count]
}

/// G1, G3, G8, G13.
fn check_order(list: &[Value]) -> Verdict {
    let mut ids = HashSet::new();
    let mut last_time = None;
    let mut terminated = false;
    for event in list {
        if !ids.insert(text(event, "id")) {
            return Err(format!("G3: {} is there twice", name(event)));
        }
        if STREAM_ONLY.contains(&kind(event)) {
            return Err(format!("G8: {} is in a list", name(event)));
        }
        if terminated && !kind(event).starts_with("workflow_run.") {
            return Err(format!("G13: {} comes behind the termination", name(event)));
        }
        terminated |= kind(event) == "session.status_terminated";
        if is_queued(event) {
            continue;
        }
        let time = Timestamp::parse(text(event, "processed_at"))
            .ok_or_else(|| format!("G1: {} has no time that can be read", name(event)))?;
        if last_time.is_some_and(|last| last >= time) {
            return Err(format!("G1: {} is not later than the event before it", name(event)));
        }
        last_time = Some(time);
    }
    Ok(())
}

/// G4: the primary thread is named first, and every other one only once it was announced.
fn check_threads(done: &[Value]) -> Verdict {
    let mut known = HashSet::new();
    for event in done {
        let thread = text(event, "session_thread_id");
        if kind(event) == "session.thread_created" {
            known.insert(thread);
        } else if kind(event).starts_with("session.thread_status_") {
            if known.is_empty() {
                known.insert(thread);
            }
            if !known.contains(thread) {
                return Err(format!("G4: {} names a thread that nobody announced", name(event)));
            }
        }
    }
    Ok(())
}

/// G6, G9, and the head of a run.
fn check_runs(done: &[Value]) -> Verdict {
    let mut running = false;
    let mut before = "";
    for event in done {
        if before == "session.status_running" && kind(event) != "session.thread_status_running" {
            return Err(format!(
                "{} follows the session's running event instead of the thread's",
                name(event)
            ));
        }
        match kind(event) {
            "session.status_running" if running => {
                return Err(format!("G9: {} begins a run within a run", name(event)));
            }
            "session.status_running" => running = true,
            "session.status_rescheduled" | "session.status_terminated" => running = false,
            "session.status_idle" if before != "session.usage" => {
                return Err(format!("G6: {} comes without its usage", name(event)));
            }
            "session.status_idle" => running = false,
            _ => {}
        }
        before = kind(event);
    }
    Ok(())
}

/// G5, for each thread.
fn check_model_requests(done: &[Value]) -> Verdict {
    let mut open: HashMap<&str, &str> = HashMap::new();
    for event in done {
        let thread = text(event, "session_thread_id");
        match kind(event) {
            "span.model_request_start" => {
                let earlier = open.insert(thread, text(event, "id"));
                if earlier.is_some() {
                    return Err(format!("G5: {} begins within another model request", name(event)));
                }
            }
            "span.model_request_end"
                if open.remove(thread) != Some(text(event, "model_request_start_id")) =>
            {
                return Err(format!("G5: {} ends what is not open", name(event)));
            }
            _ => {}
        }
    }
    match rest_of(done) {
        Some(rest) if !open.is_empty() => {
            Err(format!("G5: the session rests at {} with a model request open", name(rest)))
        }
        Some(_) | None => Ok(()),
    }
}

/// G7. A session at rest waits for exactly the calls that it says it waits for.
fn check_calls(done: &[Value]) -> Verdict {
    let mut open = HashSet::new();
    let mut answered = HashSet::new();
    for event in done {
        match kind(event) {
            "agent.tool_use" | "agent.mcp_tool_use" | "agent.custom_tool_use" => {
                open.insert(text(event, "id"));
            }
            "agent.tool_result"
            | "agent.mcp_tool_result"
            | "user.tool_result"
            | "user.custom_tool_result" => {
                let fields = ["tool_use_id", "mcp_tool_use_id", "custom_tool_use_id"];
                let call = fields.iter().map(|field| text(event, field)).find(|id| !id.is_empty());
                let call = call.ok_or_else(|| format!("G7: {} names no call", name(event)))?;
                if answered.contains(call) {
                    return Err(format!("G7: {} is the second result of {call}", name(event)));
                }
                if !open.remove(call) {
                    return Err(format!("G7: {} answers {call}, which nobody called", name(event)));
                }
                answered.insert(call);
            }
            _ => {}
        }
    }
    let Some(rest) = rest_of(done).filter(|rest| kind(rest) == "session.status_idle") else { return Ok(()) };
    let awaited: HashSet<&str> =
        rest["stop_reason"]["event_ids"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if awaited != open {
        return Err(format!(
            "G7: the session rests, waits for {awaited:?}, and has {open:?} without a result"
        ));
    }
    Ok(())
}

/// G11: what begins ends once, if the session rests: evaluations of outcomes, phases of workflow runs.
fn check_pairs(done: &[Value]) -> Verdict {
    let mut evaluations = HashSet::new();
    let mut phases = HashSet::new();
    for event in done {
        let is_paired = match kind(event) {
            "span.outcome_evaluation_start" => evaluations.insert(text(event, "id")),
            "span.outcome_evaluation_end" => {
                let start = text(event, "outcome_evaluation_start_id");
                start.is_empty() || evaluations.remove(start)
            }
            "workflow_run.phase_started" => phases.insert(text(event, "id")),
            "workflow_run.phase_ended" => phases.remove(text(event, "phase_started_id")),
            _ => true,
        };
        if !is_paired {
            return Err(format!("G11: {} has no beginning", name(event)));
        }
    }
    match rest_of(done) {
        Some(rest) if !evaluations.is_empty() || !phases.is_empty() => {
            Err(format!("G11: the session rests at {} with something open", name(rest)))
        }
        Some(_) | None => Ok(()),
    }
}

fn is_queued(event: &Value) -> bool {
    event["processed_at"].is_null()
}

/// The event with which the session came to rest, if it rests.
fn rest_of(done: &[Value]) -> Option<&Value> {
    let last = done.iter().rfind(|event| !leaves_at_rest(event))?;
    matches!(kind(last), "session.status_idle" | "session.status_terminated").then_some(last)
}

/// A client that changes or interrupts a session that rests leaves it at rest.
fn leaves_at_rest(event: &Value) -> bool {
    matches!(kind(event), "session.updated" | "user.interrupt")
}

fn kind(event: &Value) -> &str {
    text(event, "type")
}

fn text<'a>(event: &'a Value, field: &str) -> &'a str {
    event[field].as_str().unwrap_or_default()
}

fn name(event: &Value) -> String {
    format!("{} {}", kind(event), text(event, "id"))
}
