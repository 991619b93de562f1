//! `GET /health`: whether the process answers. No key, no store, nothing that could be secret.

use axum::Json;
use serde_json::{Value, json};

pub(crate) async fn health() -> Json<Value> {
    Json(json!({"status": "ok"}))
}
