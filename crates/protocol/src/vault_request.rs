//! Requests about vaults: what may be asked, and what a vault looks like after a change.

use serde_json::Value;

use crate::id::VaultId;
use crate::metadata::{Metadata, MetadataPatch, patched};
use crate::parse::{Fields, Invalid, Parsed, check_metadata, metadata, metadata_patch, text};
use crate::time::Timestamp;
use crate::vault::{Vault, VaultTag};

const NAME_CHARS_MAX: usize = 255;
/// The `error_code` of what an archived vault refuses.
pub const VAULT_ARCHIVED: &str = "vault_archived";

/// The body of `POST /v1/vaults`.
#[derive(Clone, Debug, PartialEq)]
pub struct VaultCreate {
    display_name: String,
    metadata: Metadata,
}

impl VaultCreate {
    /// Reads the body.
    pub fn parse(body: Value) -> Parsed<Self> {
        let mut fields = Fields::new(body, "")?;
        let create = Self {
            display_name: fields.required("display_name", text(1..=NAME_CHARS_MAX))?,
            metadata: fields.optional("metadata", metadata)?.unwrap_or_default(),
        };
        fields.finish()?;
        Ok(create)
    }

    /// The new vault.
    pub fn into_vault(self, id: VaultId, now: Timestamp) -> Vault {
        let Self { display_name, metadata } = self;
        Vault {
            tag: VaultTag::Vault,
            id,
            display_name,
            metadata,
            created_at: now,
            updated_at: now,
            archived_at: None,
        }
    }
}

/// The body of `POST /v1/vaults/{vault_id}`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VaultUpdate {
    display_name: Option<String>,
    metadata: MetadataPatch,
}

impl VaultUpdate {
    /// Reads the body. What is null is kept.
    pub fn parse(body: Value) -> Parsed<Self> {
        let mut fields = Fields::new(body, "")?;
        let update = Self {
            display_name: fields.optional("display_name", text(1..=NAME_CHARS_MAX))?,
            metadata: fields.optional("metadata", metadata_patch)?.unwrap_or_default(),
        };
        fields.finish()?;
        Ok(update)
    }

    /// The vault after the change, or `None` if nothing would change.
    pub fn apply(self, current: &Vault, now: Timestamp) -> Parsed<Option<Vault>> {
        let Self { display_name, metadata } = self;
        if current.archived_at.is_some() {
            return Err(archived_vault());
        }
        let mut changed = current.clone();
        if let Some(display_name) = display_name {
            changed.display_name = display_name;
        }
        changed.metadata = patched(&current.metadata, &metadata);
        check_metadata(&changed.metadata, "metadata")?;
        if changed == *current {
            return Ok(None);
        }
        changed.updated_at = now;
        Ok(Some(changed))
    }
}

/// The refusal of whatever an archived vault no longer takes.
pub fn archived_vault() -> Invalid {
    Invalid::new("vault_id", "the vault is archived and can no longer be changed").with_code(VAULT_ARCHIVED)
}

#[cfg(test)]
mod tests;
