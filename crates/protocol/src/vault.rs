//! Vaults: where credentials are kept.

use serde::{Deserialize, Serialize};

use crate::id::VaultId;
use crate::metadata::Metadata;
use crate::time::Timestamp;

/// A vault, as the wire shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Vault {
    /// Always `vault`.
    #[serde(rename = "type")]
    pub tag: VaultTag,
    /// Its id.
    pub id: VaultId,
    /// 1 to 255 characters; need not be unique.
    pub display_name: String,
    /// What its owner hung on it.
    pub metadata: Metadata,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// When it was archived, if it was: then its credentials hold no secrets any more.
    pub archived_at: Option<Timestamp>,
}

/// The tag of a vault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VaultTag {
    /// The only tag there is.
    Vault,
}
