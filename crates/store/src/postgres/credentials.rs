//! Credentials, their secrets sealed.

use protocol::credential::Credential;
use protocol::id::{CredentialId, VaultId, WorkspaceId};
use protocol::time::Timestamp;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::error::ChangeError;
use crate::postgres::connect::{Db, storable};
use crate::postgres::fault::Fault;
use crate::postgres::heads::json;
use crate::postgres::resources::{Changed, raced};
use crate::postgres::sessions::Conditions;
use crate::postgres::write::now_sql;
use crate::resources::{Change, ran, unwound};
use crate::vaults::{CREDENTIALS_MAX, CredentialQuery, KeptCredential, Sealed, Wanted, dated, may_join};

const COLUMNS: &str = "body, sealed, updated_at, archived_at, version";

/// Keeps a new credential, if its vault takes it.
pub(crate) async fn create(db: &Db, workspace: &WorkspaceId, kept: &KeptCredential) -> Changed<()> {
    let KeptCredential { credential, sealed } = kept;
    // One after the other in each vault: what is counted cannot change until this one is counted.
    const HOLD: &str =
        "SELECT archived_at IS NOT NULL FROM vault WHERE id = $1 AND workspace = $2 FOR UPDATE";
    const COUNT: &str = "
        SELECT count(*), coalesce(bool_or(key = $2), false) FROM credential WHERE vault = $1 AND archived_at IS NULL";
    let insert = format!(
        "INSERT INTO credential (id, workspace, vault, key, created_at, updated_at, archived_at, body, sealed)
        SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9 FROM vault
        WHERE vault.id = $3 AND vault.workspace = $2 AND vault.archived_at IS NULL
        AND (SELECT count(*) FROM credential WHERE vault = $3 AND archived_at IS NULL) < {CREDENTIALS_MAX}
        ON CONFLICT DO NOTHING"
    );
    let (id, vault, workspace) = (credential.id.as_str(), credential.vault_id.as_str(), workspace.as_str());
    let key = storable(credential.auth.key().as_str());
    let (created_at, updated_at) = (credential.created_at.as_micros(), credential.updated_at.as_micros());
    let archived_at = credential.archived_at.map(Timestamp::as_micros);
    let (body, sealed) = (serde_json::to_string(credential)?, sealed_text(sealed)?);
    let rows = db
        .together(&[
            (HOLD, &[(&vault, Type::TEXT), (&workspace, Type::TEXT)]),
            (COUNT, &[(&vault, Type::TEXT), (&key, Type::TEXT)]),
            (
                &insert,
                &[
                    (&id, Type::TEXT),
                    (&workspace, Type::TEXT),
                    (&vault, Type::TEXT),
                    (&key, Type::TEXT),
                    (&created_at, Type::INT8),
                    (&updated_at, Type::INT8),
                    (&archived_at, Type::INT8),
                    (&body, Type::TEXT),
                    (&sealed, Type::TEXT),
                ],
            ),
        ])
        .await?;
    let is_archived = rows[0].first().map(|row| row.get(0));
    let (active, is_taken) =
        rows[1].first().map_or((0, false), |row| (row.get::<_, i64>(0), row.get::<_, bool>(1)));
    Ok(may_join(is_archived, usize::try_from(active).unwrap_or_default(), is_taken))
}

/// A credential of that vault.
pub(crate) async fn get(
    db: &Db,
    workspace: &WorkspaceId,
    vault: &VaultId,
    id: &CredentialId,
) -> Result<Option<KeptCredential>, Fault> {
    Ok(versioned(db, workspace, vault, id).await?.map(|(kept, _)| kept))
}

async fn versioned(
    db: &Db,
    workspace: &WorkspaceId,
    vault: &VaultId,
    id: &CredentialId,
) -> Result<Option<(KeptCredential, i64)>, Fault> {
    let sql = format!("SELECT {COLUMNS} FROM credential WHERE id = $1 AND vault = $2 AND workspace = $3");
    let params = [
        (&id.as_str() as _, Type::TEXT),
        (&vault.as_str() as _, Type::TEXT),
        (&workspace.as_str() as _, Type::TEXT),
    ];
    let Some(row) = db.query_opt(&sql, &params).await? else { return Ok(None) };
    Ok(Some((kept(&row)?, row.get(4))))
}

/// A vault's credentials, newest first; `None` if there is no such vault.
pub(crate) async fn list(
    db: &Db,
    workspace: &WorkspaceId,
    vault: &VaultId,
    query: &CredentialQuery,
) -> Result<Option<Vec<Credential>>, Fault> {
    const THERE: &str = "SELECT 1 FROM vault WHERE id = $1 AND workspace = $2";
    let params = [(&vault.as_str() as _, Type::TEXT), (&workspace.as_str() as _, Type::TEXT)];
    if db.query_opt(THERE, &params).await?.is_none() {
        return Ok(None);
    }
    let CredentialQuery { include_archived, after, limit } = query;
    let mut conditions = Conditions::default();
    conditions.and_text("vault = ?", vault.as_str());
    if !include_archived {
        conditions.and("archived_at IS NULL", []);
    }
    if let Some(cursor) = after {
        conditions.and_beyond("id", "<", cursor);
    }
    let sql = format!(
        "SELECT {COLUMNS} FROM credential{} ORDER BY created_at DESC, id COLLATE \"C\" DESC LIMIT {}",
        conditions.text(),
        i64::try_from(*limit).unwrap_or(i64::MAX),
    );
    let rows = db.query(&sql, &conditions.params()).await?;
    rows.iter().map(|row| Ok(kept(row)?.credential)).collect::<Result<_, _>>().map(Some)
}

/// Changes a credential, unless somebody else did meanwhile.
pub(crate) async fn change(
    db: &Db,
    workspace: &WorkspaceId,
    vault: &VaultId,
    id: &CredentialId,
    change: Change<KeptCredential>,
) -> Changed<KeptCredential> {
    let Some((before, version)) = versioned(db, workspace, vault, id).await? else {
        return Ok(Err(ChangeError::NotFound));
    };
    let after = match unwound(ran(change, &before)) {
        Ok(Some(after)) => after,
        Ok(None) => return Ok(Ok(before)),
        Err(refused) => return Ok(Err(refused)),
    };
    const WRITE: &str = "
        UPDATE credential SET updated_at = $3, archived_at = $4, body = $5, sealed = $6, version = version + 1
        WHERE id = $1 AND version = $2 RETURNING 1";
    let (body, sealed) = (serde_json::to_string(&after.credential)?, sealed_text(&after.sealed)?);
    let params = [
        (&id.as_str() as _, Type::TEXT),
        (&version as _, Type::INT8),
        (&after.credential.updated_at.as_micros() as _, Type::INT8),
        (&after.credential.archived_at.map(Timestamp::as_micros) as _, Type::INT8),
        (&body as _, Type::TEXT),
        (&sealed as _, Type::TEXT),
    ];
    let is_written = db.query_opt(WRITE, &params).await?.is_some();
    Ok(if is_written { Ok(after) } else { Err(raced("credential")) })
}

/// Deletes a credential; false if there is no such credential.
pub(crate) async fn delete(
    db: &Db,
    workspace: &WorkspaceId,
    vault: &VaultId,
    id: &CredentialId,
) -> Result<bool, Fault> {
    const DELETE: &str = "DELETE FROM credential WHERE id = $1 AND vault = $2 AND workspace = $3 RETURNING 1";
    let params = [
        (&id.as_str() as _, Type::TEXT),
        (&vault.as_str() as _, Type::TEXT),
        (&workspace.as_str() as _, Type::TEXT),
    ];
    Ok(db.query_opt(DELETE, &params).await?.is_some())
}

/// What those vaults have that can be spent.
pub(crate) async fn spendable(
    db: &Db,
    workspace: &WorkspaceId,
    vaults: &[VaultId],
    wanted: &Wanted,
) -> Result<Vec<KeptCredential>, Fault> {
    let sql = format!(
        "SELECT {COLUMNS} FROM credential
        WHERE vault = ANY($1) AND workspace = $2 AND archived_at IS NULL AND key COLLATE \"C\" BETWEEN $3 AND $4"
    );
    let vaults: Vec<&str> = vaults.iter().map(VaultId::as_str).collect();
    let (first, last) = wanted.range();
    let params = [
        (&vaults as _, Type::TEXT_ARRAY),
        (&workspace.as_str() as _, Type::TEXT),
        (&first as _, Type::TEXT),
        (&last as _, Type::TEXT),
    ];
    db.query(&sql, &params).await?.iter().map(kept).collect()
}

/// Takes the right to renew a token, by the database's clock.
pub(crate) async fn claim_refresh(
    db: &Db,
    id: &CredentialId,
    holder: &str,
    micros: i64,
    now: Option<Timestamp>,
) -> Result<bool, Fault> {
    let now = now_sql(now);
    let sql = format!(
        "UPDATE credential SET refresher = $2, refresher_until = {now} + $3
        WHERE id = $1 AND archived_at IS NULL AND (refresher IS NULL OR refresher = $2 OR refresher_until <= {now})
        RETURNING 1"
    );
    let params = [(&id.as_str() as _, Type::TEXT), (&holder as _, Type::TEXT), (&micros as _, Type::INT8)];
    Ok(db.query_opt(&sql, &params).await?.is_some())
}

/// Gives it back.
pub(crate) async fn release_refresh(db: &Db, id: &CredentialId, holder: &str) -> Result<(), Fault> {
    const RELEASE: &str = "
        UPDATE credential SET refresher = NULL, refresher_until = NULL WHERE id = $1 AND refresher = $2";
    db.query(RELEASE, &[(&id.as_str(), Type::TEXT), (&holder, Type::TEXT)]).await?;
    Ok(())
}

fn sealed_text(sealed: &Sealed) -> Result<Option<String>, Fault> {
    Ok(if sealed.is_empty() { None } else { Some(serde_json::to_string(sealed)?) })
}

fn kept(row: &Row) -> Result<KeptCredential, Fault> {
    let sealed: Option<&str> = row.get(1);
    let sealed = sealed.map(serde_json::from_str).transpose()?.unwrap_or_default();
    let updated_at = Timestamp::from_micros(row.get(2));
    let archived_at = row.get::<_, Option<i64>>(3).map(Timestamp::from_micros);
    Ok(dated(KeptCredential { credential: json(row, 0)?, sealed }, updated_at, archived_at))
}
