//! `GET /v1/sessions/{session_id}/snapshots`: what is saved of the session's workspace. An extension.

use axum::Json;
use axum::extract::State as Given;
use protocol::event::Snapshot;
use protocol::id::SessionId;
use serde_json::{Value, json};
use session::State;
use session::state::Wish;

use super::find;
use crate::Door;
use crate::auth::Caller;
use crate::error::Error;
use crate::extract::{Ids, NoQuery};

pub(crate) async fn snapshots(
    Given(door): Given<Door>,
    caller: Caller,
    Ids(id): Ids<SessionId>,
    _: NoQuery,
) -> Result<Json<Value>, Error> {
    let found = find(&door, &caller, &id).await?;
    // One that is saved so far: each replaces the one before.
    let State { snapshot, wish, .. } = &found.state;
    let data: Vec<Value> = snapshot.iter().map(saved).chain(wish.iter().map(unsaved)).collect();
    Ok(Json(json!({"data": data})))
}

/// Without its key, which says where the operator keeps it.
pub(super) fn saved(snapshot: &Snapshot) -> Value {
    let Snapshot { key: _, size_bytes, sha256, base, saved_at, begun_at, left_out } = snapshot;
    json!({
        "type": "session_snapshot",
        "status": "saved",
        "size_bytes": size_bytes,
        "sha256": sha256,
        "base": base,
        "created_at": saved_at,
        "workspace_created_at": begun_at,
        "left_out": left_out,
    })
}

/// One that was asked for and is not there.
pub(super) fn unsaved(wish: &Wish) -> Value {
    match wish {
        Wish::Pending { since } => {
            json!({"type": "session_snapshot", "status": "pending", "requested_at": since})
        }
        Wish::Failed { at, reason } => {
            json!({"type": "session_snapshot", "status": "failed", "failed_at": at, "error": reason})
        }
    }
}
