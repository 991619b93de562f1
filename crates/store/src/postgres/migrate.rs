//! The format of the database, brought up to date under a lock of the database itself: of many processes that start at
//! once one does the work.

use crate::error::{Error, OpenError};
use crate::postgres::connect::{Address, Db};
use crate::postgres::fault::Fault;

/// Numbered from 1. Only ever add to the end.
const MIGRATIONS: [&str; 3] = [
    include_str!("migrations/0001_first.sql"),
    include_str!("migrations/0002_vaults.sql"),
    include_str!("migrations/0003_session_tokens.sql"),
];

/// The newest format that this version knows.
pub(crate) const FORMAT: u32 = MIGRATIONS.len() as u32;

/// Any number will do, as long as it is always the same: "post" in ASCII.
const LOCK: i64 = 0x706f_7374;

/// Brings the database to the format of this version; gives the one that was found.
pub(crate) async fn migrate(db: &Db) -> Result<u32, OpenError> {
    let found = format(db).await.map_err(failed)?;
    if found > FORMAT {
        return Err(OpenError::Newer { found, known: FORMAT });
    }
    if found == FORMAT {
        return Ok(found);
    }
    for (index, migration) in MIGRATIONS.iter().enumerate().skip(found as usize) {
        // One message, one transaction. Whoever waits for the lock finds the number changed and fails on it, because
        // the format of the database is not the one that it thinks.
        let (before, after) = (index, index + 1);
        let text = format!(
            "SELECT pg_advisory_xact_lock({LOCK});
             CREATE TABLE IF NOT EXISTS posthouse_format (number integer NOT NULL);
             INSERT INTO posthouse_format SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM posthouse_format);
             DO $check$ BEGIN
                 IF (SELECT number FROM posthouse_format) <> {before} THEN
                     RAISE EXCEPTION 'the format has changed meanwhile' USING ERRCODE = 'PH001';
                 END IF;
             END $check$;
             {migration}
             UPDATE posthouse_format SET number = {after};"
        );
        match db.simple(&text).await {
            Ok(_) => {}
            // Somebody was quicker.
            Err(Fault::Sql(error)) if error.code().is_some_and(|code| code.code() == "PH001") => {}
            Err(fault) => return Err(failed(fault)),
        }
    }
    let reached = format(db).await.map_err(failed)?;
    if reached > FORMAT { Err(OpenError::Newer { found: reached, known: FORMAT }) } else { Ok(found) }
}

/// The format of the database; 0 if it is empty.
async fn format(db: &Db) -> Result<u32, Fault> {
    let is_there = db.query("SELECT to_regclass('posthouse_format') IS NOT NULL", &[]).await?;
    if !is_there[0].get::<_, bool>(0) {
        return Ok(0);
    }
    let row = db.query_opt("SELECT number FROM posthouse_format", &[]).await?;
    Ok(row.map_or(0, |row| u32::try_from(row.get::<_, i32>(0)).unwrap_or_default()))
}

/// Brings the database at this address up to date; gives the format found and the one reached.
pub(crate) async fn migrate_at(url: &str) -> Result<(u32, u32), OpenError> {
    let db = Db::new(&Address::parse(url)?);
    let found = migrate(&db).await?;
    db.close();
    Ok((found, FORMAT))
}

/// Refuses a database of any other format than this version's, and leaves it as it is.
pub(crate) async fn check_format_at(url: &str) -> Result<(), OpenError> {
    let db = Db::new(&Address::parse(url)?);
    let found = format(&db).await.map_err(failed)?;
    db.close();
    match found {
        FORMAT => Ok(()),
        found if found > FORMAT => Err(OpenError::Newer { found, known: FORMAT }),
        found => Err(OpenError::Older { found, known: FORMAT }),
    }
}

fn failed(fault: Fault) -> OpenError {
    OpenError::Store(Error::from(fault))
}
