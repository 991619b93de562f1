//! Vaults, credentials, and the keys that secrets are sealed with.

use std::collections::BTreeMap;
use std::time::Duration;

use protocol::credential::Credential;
use protocol::id::{CredentialId, VaultId, WorkspaceId};
use protocol::time::Timestamp;
use protocol::vault::Vault;

use crate::error::ChangeError;
use crate::memory::sessions::newest;
use crate::rules::leases::micros;
use crate::vaults::{Added, CredentialQuery, KeptCredential, Sealed, VaultKey, VaultQuery, Wanted, may_join};

#[derive(Default)]
pub(super) struct Vaults {
    vaults: BTreeMap<VaultId, (WorkspaceId, Vault)>,
    credentials: BTreeMap<CredentialId, Row>,
    master: Option<String>,
    keys: BTreeMap<WorkspaceId, VaultKey>,
}

struct Row {
    workspace: WorkspaceId,
    kept: KeptCredential,
    refresher: Option<(String, Timestamp)>,
}

impl Row {
    fn is_active_in(&self, vault: &VaultId) -> bool {
        self.kept.credential.vault_id == *vault && self.kept.credential.archived_at.is_none()
    }
}

impl Vaults {
    /// False if its id is taken.
    pub(super) fn create(&mut self, workspace: &WorkspaceId, vault: &Vault) -> bool {
        let is_new = !self.vaults.contains_key(&vault.id);
        if is_new {
            self.vaults.insert(vault.id.clone(), (workspace.clone(), vault.clone()));
        }
        is_new
    }

    pub(super) fn get(&self, workspace: &WorkspaceId, id: &VaultId) -> Option<&Vault> {
        let (owner, vault) = self.vaults.get(id)?;
        (owner == workspace).then_some(vault)
    }

    pub(super) fn list(&self, workspace: &WorkspaceId, query: &VaultQuery) -> Vec<Vault> {
        let VaultQuery { include_archived, after, limit } = query;
        let owned = self.vaults.values().filter(|(owner, _)| owner == workspace);
        let shown =
            owned.map(|(_, vault)| vault).filter(|vault| *include_archived || vault.archived_at.is_none());
        let cursor = |vault: &&Vault| (vault.created_at, vault.id.to_string());
        newest(shown, cursor, after.as_ref(), *limit).into_iter().cloned().collect()
    }

    pub(super) fn replace(&mut self, vault: &Vault) {
        let (_, kept) = self.vaults.get_mut(&vault.id).expect("just seen");
        *kept = vault.clone();
    }

    pub(super) fn archive(&mut self, workspace: &WorkspaceId, id: &VaultId, now: Timestamp) -> Option<Vault> {
        let vault = self.get(workspace, id)?.clone();
        if vault.archived_at.is_some() {
            return Some(vault);
        }
        let archived = Vault { archived_at: Some(now), updated_at: now, ..vault };
        self.replace(&archived);
        for row in self.credentials.values_mut().filter(|row| row.is_active_in(id)) {
            row.kept.credential.archived_at = Some(now);
            row.kept.credential.updated_at = now;
            row.kept.sealed = Sealed::new();
            row.refresher = None;
        }
        Some(archived)
    }

    /// False if there is no such vault.
    pub(super) fn delete(&mut self, workspace: &WorkspaceId, id: &VaultId) -> bool {
        let is_there = self.get(workspace, id).is_some();
        if is_there {
            self.vaults.remove(id);
            self.credentials.retain(|_, row| row.kept.credential.vault_id != *id);
        }
        is_there
    }

    pub(super) fn create_credential(
        &mut self,
        workspace: &WorkspaceId,
        kept: &KeptCredential,
    ) -> Result<(), ChangeError> {
        let (vault, key) = (&kept.credential.vault_id, kept.credential.auth.key());
        let is_archived = self.get(workspace, vault).map(|vault| vault.archived_at.is_some());
        let active: Vec<&Row> = self.credentials.values().filter(|row| row.is_active_in(vault)).collect();
        let is_taken = active.iter().any(|row| row.kept.credential.auth.key() == key);
        may_join(is_archived, active.len(), is_taken)?;
        let row = Row { workspace: workspace.clone(), kept: kept.clone(), refresher: None };
        self.credentials.insert(kept.credential.id.clone(), row);
        Ok(())
    }

    pub(super) fn credential(
        &self,
        workspace: &WorkspaceId,
        vault: &VaultId,
        id: &CredentialId,
    ) -> Option<&KeptCredential> {
        let row = self.credentials.get(id)?;
        (row.workspace == *workspace && row.kept.credential.vault_id == *vault).then_some(&row.kept)
    }

    pub(super) fn credentials(
        &self,
        workspace: &WorkspaceId,
        vault: &VaultId,
        query: &CredentialQuery,
    ) -> Option<Vec<Credential>> {
        self.get(workspace, vault)?;
        let CredentialQuery { include_archived, after, limit } = query;
        let all = self.credentials.values().map(|row| &row.kept.credential);
        let shown = all.filter(|credential| {
            credential.vault_id == *vault && (*include_archived || credential.archived_at.is_none())
        });
        let cursor = |credential: &&Credential| (credential.created_at, credential.id.to_string());
        Some(newest(shown, cursor, after.as_ref(), *limit).into_iter().cloned().collect())
    }

    pub(super) fn replace_credential(&mut self, changed: &KeptCredential) {
        let row = self.credentials.get_mut(&changed.credential.id).expect("just seen");
        row.kept = changed.clone();
    }

    /// False if there is no such credential.
    pub(super) fn delete_credential(
        &mut self,
        workspace: &WorkspaceId,
        vault: &VaultId,
        id: &CredentialId,
    ) -> bool {
        let is_there = self.credential(workspace, vault, id).is_some();
        if is_there {
            self.credentials.remove(id);
        }
        is_there
    }

    pub(super) fn spendable(
        &self,
        workspace: &WorkspaceId,
        vaults: &[VaultId],
        wanted: &Wanted,
    ) -> Vec<KeptCredential> {
        let (first, last) = wanted.range();
        let is_wanted = |row: &&Row| {
            let key = row.kept.credential.auth.key();
            row.workspace == *workspace
                && vaults.iter().any(|vault| row.is_active_in(vault))
                && (first.as_str()..=last.as_str()).contains(&key.as_str())
        };
        self.credentials.values().filter(is_wanted).map(|row| row.kept.clone()).collect()
    }

    pub(super) fn claim_refresh(
        &mut self,
        id: &CredentialId,
        holder: &str,
        now: Timestamp,
        time: Duration,
    ) -> bool {
        let Some(row) = self.credentials.get_mut(id) else { return false };
        let is_free = row.refresher.as_ref().is_none_or(|(other, until)| other == holder || *until <= now);
        if !is_free || row.kept.credential.archived_at.is_some() {
            return false;
        }
        let until = Timestamp::from_micros(now.as_micros().saturating_add(micros(time)));
        row.refresher = Some((holder.to_owned(), until));
        true
    }

    pub(super) fn release_refresh(&mut self, id: &CredentialId, holder: &str) {
        if let Some(row) = self.credentials.get_mut(id) {
            row.refresher.take_if(|(other, _)| other == holder);
        }
    }

    pub(super) fn master(&self) -> Option<String> {
        self.master.clone()
    }

    pub(super) fn set_master(&mut self, master: &str) {
        self.master = Some(master.to_owned());
    }

    pub(super) fn key(&self, workspace: &WorkspaceId) -> Option<VaultKey> {
        self.keys.get(workspace).cloned()
    }

    pub(super) fn keys(&self) -> Vec<VaultKey> {
        self.keys.values().cloned().collect()
    }

    pub(super) fn add_key(&mut self, new: &VaultKey) -> Added {
        if let Some(there) = self.key(&new.workspace) {
            return Added::Kept(there);
        }
        let master = self.master.get_or_insert_with(|| new.master.clone());
        if *master != new.master {
            return Added::Moved(master.clone());
        }
        self.keys.insert(new.workspace.clone(), new.clone());
        Added::Kept(new.clone())
    }

    pub(super) fn rewrap_key(&mut self, before: &VaultKey, after: &VaultKey) -> bool {
        let is_it = self.keys.get(&before.workspace) == Some(before);
        if is_it {
            self.keys.insert(after.workspace.clone(), after.clone());
        }
        is_it
    }
}
