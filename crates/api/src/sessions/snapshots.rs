//! `GET /v1/sessions/{session_id}/snapshots`: what is saved of the session's workspace. An extension.

use axum::Json;
use axum::extract::State;
use protocol::event::Snapshot;
use protocol::id::SessionId;
use serde_json::{Value, json};

use super::find;
use crate::Door;
use crate::auth::Caller;
use crate::error::Error;
use crate::extract::{Ids, NoQuery};

pub(crate) async fn snapshots(
    State(door): State<Door>,
    caller: Caller,
    Ids(id): Ids<SessionId>,
    _: NoQuery,
) -> Result<Json<Value>, Error> {
    let found = find(&door, &caller, &id).await?;
    // One so far: each replaces the one before.
    let data: Vec<Value> = found.state.snapshot.iter().map(shown).collect();
    Ok(Json(json!({"data": data})))
}

/// Without its key, which says where the operator keeps it.
fn shown(snapshot: &Snapshot) -> Value {
    let Snapshot { key: _, size_bytes, sha256, base, saved_at, begun_at } = snapshot;
    json!({
        "type": "session_snapshot",
        "size_bytes": size_bytes,
        "sha256": sha256,
        "base": base,
        "created_at": saved_at,
        "workspace_created_at": begun_at,
    })
}
