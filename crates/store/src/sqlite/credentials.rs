//! Credentials, their secrets sealed.

use protocol::credential::Credential;
use protocol::id::{CredentialId, VaultId, WorkspaceId};
use protocol::time::Timestamp;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Row, params, params_from_iter};

use crate::error::ChangeError;
use crate::sqlite::fault::Fault;
use crate::sqlite::heads::json;
use crate::sqlite::listing::Conditions;
use crate::sqlite::slices::limit_of;
use crate::sqlite::vaults;
use crate::vaults::{CredentialQuery, KeptCredential, Sealed, Wanted, dated, may_join};

const COLUMNS: &str = "body, sealed, updated_at, archived_at";

/// Keeps a new credential, if its vault takes it.
pub(crate) fn create(
    conn: &Connection,
    workspace: &WorkspaceId,
    kept: &KeptCredential,
) -> Result<Result<(), ChangeError>, Fault> {
    let KeptCredential { credential, sealed } = kept;
    let vault = vaults::get(conn, workspace, &credential.vault_id)?;
    let key = credential.auth.key();
    const COUNT: &str = "
        SELECT count(*), ifnull(max(key = ?2), 0) FROM credential WHERE vault = ?1 AND archived_at IS NULL";
    let (active, is_taken): (usize, bool) = conn
        .prepare_cached(COUNT)?
        .query_row([credential.vault_id.as_str(), key.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))?;
    if let Err(refused) = may_join(vault.map(|vault| vault.archived_at.is_some()), active, is_taken) {
        return Ok(Err(refused));
    }
    const CREATE: &str = "
        INSERT INTO credential (id, workspace, vault, key, created_at, updated_at, archived_at, body, sealed)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
    conn.prepare_cached(CREATE)?.execute(params![
        credential.id.as_str(),
        workspace.as_str(),
        credential.vault_id.as_str(),
        key.as_str(),
        credential.created_at.as_micros(),
        credential.updated_at.as_micros(),
        credential.archived_at.map(Timestamp::as_micros),
        serde_json::to_string(credential)?,
        sealed_text(sealed)?,
    ])?;
    Ok(Ok(()))
}

/// A credential of that vault.
pub(crate) fn get(
    conn: &Connection,
    workspace: &WorkspaceId,
    vault: &VaultId,
    id: &CredentialId,
) -> Result<Option<KeptCredential>, Fault> {
    let sql = format!("SELECT {COLUMNS} FROM credential WHERE id = ?1 AND vault = ?2 AND workspace = ?3");
    let mut statement = conn.prepare_cached(&sql)?;
    let mut rows = statement.query([id.as_str(), vault.as_str(), workspace.as_str()])?;
    rows.next()?.map(kept).transpose()
}

/// A vault's credentials, newest first; `None` if there is no such vault.
pub(crate) fn list(
    conn: &Connection,
    workspace: &WorkspaceId,
    vault: &VaultId,
    query: &CredentialQuery,
) -> Result<Option<Vec<Credential>>, Fault> {
    if vaults::get(conn, workspace, vault)?.is_none() {
        return Ok(None);
    }
    let CredentialQuery { include_archived, after, limit } = query;
    let mut conditions = Conditions::default();
    conditions.and("vault = ?", [Value::from(vault.as_str().to_owned())]);
    if !include_archived {
        conditions.and("archived_at IS NULL", []);
    }
    if let Some(cursor) = after {
        conditions.and_beyond("<", cursor);
    }
    let statement = format!(
        "SELECT {COLUMNS} FROM credential{} ORDER BY created_at DESC, id DESC LIMIT {}",
        conditions.text(),
        limit_of(*limit),
    );
    let mut statement = conn.prepare_cached(&statement)?;
    let mut rows = statement.query(params_from_iter(conditions.values))?;
    let mut page = Vec::new();
    while let Some(row) = rows.next()? {
        page.push(kept(row)?.credential);
    }
    Ok(Some(page))
}

/// Puts a changed credential in the place of what it was.
pub(crate) fn replace(conn: &Connection, changed: &KeptCredential) -> Result<(), Fault> {
    let KeptCredential { credential, sealed } = changed;
    const REPLACE: &str = "
        UPDATE credential SET updated_at = ?2, archived_at = ?3, body = ?4, sealed = ?5 WHERE id = ?1";
    conn.prepare_cached(REPLACE)?.execute(params![
        credential.id.as_str(),
        credential.updated_at.as_micros(),
        credential.archived_at.map(Timestamp::as_micros),
        serde_json::to_string(credential)?,
        sealed_text(sealed)?,
    ])?;
    Ok(())
}

/// Deletes a credential; false if there is no such credential.
pub(crate) fn delete(
    conn: &Connection,
    workspace: &WorkspaceId,
    vault: &VaultId,
    id: &CredentialId,
) -> Result<bool, Fault> {
    const DELETE: &str = "DELETE FROM credential WHERE id = ?1 AND vault = ?2 AND workspace = ?3";
    let key = [id.as_str(), vault.as_str(), workspace.as_str()];
    Ok(conn.prepare_cached(DELETE)?.execute(key)? == 1)
}

/// What those vaults have that can be spent.
pub(crate) fn spendable(
    conn: &Connection,
    workspace: &WorkspaceId,
    vaults: &[VaultId],
    wanted: &Wanted,
) -> Result<Vec<KeptCredential>, Fault> {
    let sql = format!(
        "SELECT {COLUMNS} FROM credential
        WHERE vault = ?1 AND workspace = ?2 AND archived_at IS NULL AND key BETWEEN ?3 AND ?4"
    );
    let mut statement = conn.prepare_cached(&sql)?;
    let (first, last) = wanted.range();
    let mut found = Vec::new();
    for vault in vaults {
        let mut rows = statement.query([vault.as_str(), workspace.as_str(), &first, &last])?;
        while let Some(row) = rows.next()? {
            found.push(kept(row)?);
        }
    }
    Ok(found)
}

/// Takes the right to renew a token.
pub(crate) fn claim_refresh(
    conn: &Connection,
    id: &CredentialId,
    holder: &str,
    now: Timestamp,
    until: Timestamp,
) -> Result<bool, Fault> {
    const CLAIM: &str = "
        UPDATE credential SET refresher = ?2, refresher_until = ?4
        WHERE id = ?1 AND archived_at IS NULL AND (refresher IS NULL OR refresher = ?2 OR refresher_until <= ?3)
        RETURNING 1";
    let values = params![id.as_str(), holder, now.as_micros(), until.as_micros()];
    Ok(conn.prepare_cached(CLAIM)?.query_row(values, |_| Ok(())).optional()?.is_some())
}

/// Gives it back.
pub(crate) fn release_refresh(conn: &Connection, id: &CredentialId, holder: &str) -> Result<(), Fault> {
    const RELEASE: &str = "
        UPDATE credential SET refresher = NULL, refresher_until = NULL WHERE id = ?1 AND refresher = ?2";
    conn.prepare_cached(RELEASE)?.execute([id.as_str(), holder])?;
    Ok(())
}

fn sealed_text(sealed: &Sealed) -> Result<Option<String>, Fault> {
    Ok(if sealed.is_empty() { None } else { Some(serde_json::to_string(sealed)?) })
}

fn kept(row: &Row<'_>) -> Result<KeptCredential, Fault> {
    let sealed: Option<String> = row.get(1)?;
    let sealed = sealed.map(|sealed| serde_json::from_str(&sealed)).transpose()?.unwrap_or_default();
    let updated_at = Timestamp::from_micros(row.get(2)?);
    let archived_at = row.get::<_, Option<i64>>(3)?.map(Timestamp::from_micros);
    Ok(dated(KeptCredential { credential: json(row, 0)?, sealed }, updated_at, archived_at))
}
