//! The keys that secrets are sealed with, wrapped.

use protocol::id::WorkspaceId;
use protocol::time::Timestamp;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::postgres::connect::Db;
use crate::postgres::fault::Fault;
use crate::vaults::{Added, VaultKey};

/// The name of the master key for what is new.
pub(crate) async fn master(db: &Db) -> Result<Option<String>, Fault> {
    Ok(db.query_opt("SELECT name FROM vault_master", &[]).await?.map(|row| row.get(0)))
}

/// Sets it.
pub(crate) async fn set_master(db: &Db, name: &str) -> Result<(), Fault> {
    const SET: &str = "
        INSERT INTO vault_master (only_one, name) VALUES (true, $1)
        ON CONFLICT (only_one) DO UPDATE SET name = excluded.name";
    db.query(SET, &[(&name, Type::TEXT)]).await?;
    Ok(())
}

/// The key of a workspace.
pub(crate) async fn get(db: &Db, workspace: &WorkspaceId) -> Result<Option<VaultKey>, Fault> {
    const GET: &str = "SELECT workspace, master, wrapped FROM vault_key WHERE workspace = $1";
    Ok(db.query_opt(GET, &[(&workspace.as_str(), Type::TEXT)]).await?.as_ref().map(key))
}

/// The keys of all workspaces.
pub(crate) async fn all(db: &Db) -> Result<Vec<VaultKey>, Fault> {
    let rows = db.query("SELECT workspace, master, wrapped FROM vault_key ORDER BY workspace", &[]).await?;
    Ok(rows.iter().map(key).collect())
}

/// Keeps the first key of a workspace.
pub(crate) async fn add(db: &Db, new: &VaultKey, now: Timestamp) -> Result<Added, Fault> {
    const FIRST: &str = "INSERT INTO vault_master (only_one, name) VALUES (true, $1) ON CONFLICT DO NOTHING";
    // The lock makes whoever changes the master key wait until this key can be seen, and be wrapped anew.
    const HOLD: &str = "SELECT name FROM vault_master FOR SHARE";
    const INSERT: &str = "
        INSERT INTO vault_key (workspace, master, wrapped, created_at)
        SELECT $1, $2, $3, $4 FROM vault_master WHERE name = $2 ON CONFLICT DO NOTHING";
    const THERE: &str = "SELECT workspace, master, wrapped FROM vault_key WHERE workspace = $1";
    let (workspace, now) = (new.workspace.as_str(), now.as_micros());
    let rows = db
        .together(&[
            (FIRST, &[(&new.master, Type::TEXT)]),
            (HOLD, &[]),
            (
                INSERT,
                &[
                    (&workspace, Type::TEXT),
                    (&new.master, Type::TEXT),
                    (&new.wrapped, Type::TEXT),
                    (&now, Type::INT8),
                ],
            ),
            (THERE, &[(&workspace, Type::TEXT)]),
        ])
        .await?;
    Ok(match rows[3].first() {
        Some(there) => Added::Kept(key(there)),
        None => Added::Moved(rows[1].first().map(|row| row.get(0)).unwrap_or_default()),
    })
}

/// Puts a key that is wrapped anew in the place of what it was.
pub(crate) async fn rewrap(db: &Db, before: &VaultKey, after: &VaultKey) -> Result<bool, Fault> {
    const REWRAP: &str = "
        UPDATE vault_key SET master = $4, wrapped = $5 WHERE workspace = $1 AND master = $2 AND wrapped = $3
        RETURNING 1";
    let params = [
        (&before.workspace.as_str() as _, Type::TEXT),
        (&before.master as _, Type::TEXT),
        (&before.wrapped as _, Type::TEXT),
        (&after.master as _, Type::TEXT),
        (&after.wrapped as _, Type::TEXT),
    ];
    Ok(db.query_opt(REWRAP, &params).await?.is_some())
}

fn key(row: &Row) -> VaultKey {
    VaultKey {
        workspace: WorkspaceId::from_text(row.get::<_, String>(0)),
        master: row.get(1),
        wrapped: row.get(2),
    }
}
