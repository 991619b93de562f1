//! Which events show that a session got on.
//!
//! A session whose brains die one after the other without getting anywhere is likely the reason that they die. So the
//! store counts, beside each lease, how many holders in a row died; an append that holds progress starts the count
//! again.

use protocol::event::Body;

/// Whether a brain that recorded this got the session on: an answer of the model, a result of a call, an error that
/// it lived to tell, or rest. What a brain writes before it acts is none, and neither is the end of a span: the next
/// brain closes the span that a dead one left open.
pub fn is_progress(body: &Body) -> bool {
    match body {
        Body::Answer(_)
        | Body::AgentToolResult { .. }
        | Body::AgentMcpToolResult { .. }
        | Body::StatusIdle { .. }
        | Body::StatusTerminated {} => true,
        // Said before the turn goes on, and again by each brain that tries to connect.
        Body::Error { error } => !error.kind.is_aside(),
        Body::UserMessage { .. }
        | Body::UserInterrupt { .. }
        | Body::UserToolConfirmation { .. }
        | Body::UserCustomToolResult { .. }
        | Body::SystemMessage { .. }
        | Body::AgentMessage { .. }
        | Body::AgentThinking {}
        | Body::AgentToolUse { .. }
        | Body::AgentMcpToolUse { .. }
        | Body::AgentCustomToolUse { .. }
        | Body::StatusRunning {}
        | Body::StatusRescheduled {}
        | Body::Updated { .. }
        | Body::Usage { .. }
        | Body::Deleted {}
        | Body::ThreadRunning { .. }
        | Body::ThreadIdle { .. }
        | Body::ThreadRescheduled { .. }
        | Body::ThreadTerminated { .. }
        | Body::ModelRequestStart {}
        | Body::ModelRequestEnd { .. }
        | Body::McpCall { .. }
        | Body::Sandbox { .. }
        | Body::SandboxLost { .. }
        | Body::Snapshot { .. }
        | Body::SnapshotLost { .. }
        | Body::SnapshotWanted {}
        | Body::SnapshotUnsaved { .. }
        | Body::RestorationTold {}
        | Body::OutputsCollected {}
        | Body::Unknown(_) => false,
    }
}
