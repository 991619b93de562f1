//! Models, as the wire lists them.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::time::Timestamp;

/// A model that the server's configuration names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// Always `model`.
    #[serde(rename = "type")]
    pub tag: ModelTag,
    /// The name to use in an agent.
    pub id: String,
    /// A name for people.
    pub display_name: String,
    /// When it was released; the epoch where that is not known.
    pub created_at: Timestamp,
    /// Always `active`.
    pub lifecycle: Lifecycle,
    /// Null: not known.
    pub deprecated_at: Option<Timestamp>,
    /// Null: not known.
    pub retires_at: Option<Timestamp>,
    /// Null: not known.
    pub line: Option<String>,
    /// The size of its context, where the configuration says.
    pub max_input_tokens: Option<u64>,
    /// The longest answer, where the configuration says.
    pub max_tokens: Option<u64>,
    /// Null: not known.
    pub capabilities: Option<Value>,
    /// Null: not known.
    pub allowed_fallback_models: Option<Vec<String>>,
}

/// The tag of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelTag {
    /// The only tag there is.
    Model,
}

/// Where a model is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lifecycle {
    /// In use.
    Active,
    /// Still there, not for new work.
    Deprecated,
    /// Gone.
    Retired,
}

/// One page of models. The only list with this shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelPage {
    /// The rows.
    pub data: Vec<ModelInfo>,
    /// Whether more follow.
    pub has_more: bool,
    /// The first row's id.
    pub first_id: Option<String>,
    /// The last row's id.
    pub last_id: Option<String>,
}
