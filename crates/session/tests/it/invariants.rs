//! The invariants G1 to G13 of the reference, as far as a log alone shows them. (G2, G8, G10 and G12 are about the
//! stream and the store, and are asserted there.)

use std::collections::HashSet;

use protocol::event::{Body, Event};
use protocol::session::Status;
use session::State;
use session::state::Queued;

use crate::world::World;

pub(crate) fn check(world: &World) {
    let log: Vec<&Event> = world.log.iter().filter(|event| !event.body.is_private()).collect();
    check_order(&log);
    check_ids(&world.log);
    check_spans(&log);
    check_idles(&log);
    check_results(&log, world);
    check_fold(world);
}

/// G1.
fn check_order(log: &[&Event]) {
    assert!(
        log.windows(2).all(|pair| pair[0].processed_at < pair[1].processed_at),
        "G1: times strictly increase"
    );
    assert!(log.iter().all(|event| event.processed_at.is_some()), "G1: what is in the log has a time");
}

/// G3.
fn check_ids(log: &[Event]) {
    let mut seen = HashSet::new();
    assert!(log.iter().all(|event| seen.insert(event.id.clone())), "G3: each id once");
}

/// G5.
fn check_spans(log: &[&Event]) {
    let mut open = None;
    for event in log {
        match &event.body {
            Body::ModelRequestStart {} => {
                assert!(open.is_none(), "G5: spans do not nest");
                open = Some(event.id.clone());
            }
            Body::ModelRequestEnd { model_request_start_id, .. } => {
                assert_eq!(
                    open.take().as_ref(),
                    Some(model_request_start_id),
                    "G5: an end closes the open start"
                );
            }
            _ => {}
        }
    }
}

/// G4, G6, G9, G13.
fn check_idles(log: &[&Event]) {
    let mut is_running = false;
    let mut is_over = false;
    for (index, event) in log.iter().enumerate() {
        assert!(!is_over, "G13: nothing follows session.status_terminated");
        match &event.body {
            Body::StatusIdle { .. } => {
                let before = index.checked_sub(1).map(|before| log[before].body.kind());
                assert_eq!(before, Some("session.usage"), "G6");
                is_running = false;
            }
            Body::StatusRunning {} => {
                assert!(!is_running, "G9: something ends a stretch of running");
                is_running = true;
            }
            Body::StatusRescheduled {} => is_running = false,
            Body::StatusTerminated {} => is_over = true,
            _ => {}
        }
    }
    let first_thread = log.iter().find_map(|event| match &event.body {
        Body::ThreadRunning { session_thread_id, .. } | Body::ThreadIdle { session_thread_id, .. } => {
            Some(session_thread_id.as_str())
        }
        _ => None,
    });
    assert!(matches!(first_thread, None | Some("sthr_P")), "G4");
}

/// G7.
fn check_results(log: &[&Event], world: &World) {
    let mut open: Vec<&str> = Vec::new();
    for event in log {
        match &event.body {
            Body::AgentToolUse { .. } | Body::AgentMcpToolUse { .. } | Body::AgentCustomToolUse { .. } => {
                open.push(event.id.as_str())
            }
            Body::AgentToolResult { tool_use_id: call, .. }
            | Body::AgentMcpToolResult { mcp_tool_use_id: call, .. }
            | Body::UserCustomToolResult { custom_tool_use_id: call, .. } => {
                let index = open.iter().position(|id| *id == call.as_str());
                open.remove(index.expect("G7: a result answers an open call, once"));
            }
            _ => {}
        }
    }
    let is_at_rest = world.state.status == Status::Idle && world.state.announced.is_empty();
    assert!(!is_at_rest || open.is_empty(), "G7: a finished turn leaves no call without a result");
}

/// Replaying the log gives the projection.
fn check_fold(world: &World) {
    let start = &world.state;
    let mut state = State::new(start.thread_id.clone(), start.agent_name.clone(), start.created_at);
    for event in &world.log {
        state.apply(&event.id, &event.body, event.processed_at.expect("in the log"));
    }
    state.queued = Queued::count(world.inbox.iter().map(|event| &event.body));
    assert_eq!(state, world.state, "the fold of the log is the projection");
}
