//! Connections, their settings, and the format of the database.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use crate::error::{Error, OpenError};
use crate::lock::FILE_MODE;
use crate::sqlite::fault::{Fault, Stage};

/// Numbered from 1; stored as `user_version`. Only ever add to the end.
const MIGRATIONS: [&str; 4] = [
    include_str!("migrations/0001_first.sql"),
    include_str!("migrations/0002_many_brains.sql"),
    include_str!("migrations/0003_vaults.sql"),
    include_str!("migrations/0004_session_tokens.sql"),
];

/// The newest format that this version knows.
pub(crate) const FORMAT: u32 = MIGRATIONS.len() as u32;

/// How long to wait for another process that is writing (`posthouse keys`, a backup).
const BUSY: Duration = Duration::from_secs(5);
/// Pages that the writer keeps: enough that the ends of all busy sessions' indexes stay in memory.
const WRITER_CACHE_KIB: i64 = 128 << 10;
/// Readers lean on the operating system's page cache instead.
const READER_CACHE_KIB: i64 = 4 << 10;
/// Written at once when space is made.
const SPACE_STEP: usize = 1 << 20;
/// Statements that each connection keeps prepared.
const STATEMENTS: usize = 128;

/// The database of a data directory.
pub(crate) fn database(data_dir: &Path) -> PathBuf {
    data_dir.join("posthouse.db")
}

/// A connection that writes.
pub(crate) fn writer(path: &Path) -> Result<Connection, Fault> {
    // Made here and not by SQLite, so that nobody else may read it; the files beside it take after it. If it cannot be
    // made SQLite says why.
    let _ = OpenOptions::new().create(true).append(true).mode(FILE_MODE).open(path);
    let conn = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    conn.busy_timeout(BUSY)?;
    // Has effect only on an empty file. Events of a kilobyte or so fill such a page well.
    conn.pragma_update(None, "page_size", 8192)?;
    let mode: String = conn.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    if mode != "wal" {
        // A network file system, mostly. Without the log a reader blocks the writer, and the other way round.
        let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CANTOPEN);
        let text = "the data directory's file system does not support a write-ahead log".to_owned();
        return Err(rusqlite::Error::SqliteFailure(code, Some(text)).into());
    }
    // What is acknowledged survives the power.
    conn.pragma_update(None, "synchronous", "FULL")?;
    // Checkpoints are made on another thread; and never truncate the log, so that it is overwritten in place: a file
    // that grows makes each sync wait for the file system's journal.
    conn.pragma_update(None, "wal_autocheckpoint", 0)?;
    conn.pragma_update(None, "journal_size_limit", -1)?;
    conn.pragma_update(None, "cache_size", -WRITER_CACHE_KIB)?;
    conn.pragma_update(None, "temp_store", "MEMORY")?;
    // What is deleted is overwritten where its page is written anyway: sealed secrets that were purged, above all.
    conn.pragma_update_and_check(None, "secure_delete", "FAST", |_| Ok(()))?;
    prepare_once(&conn)?;
    Ok(conn)
}

/// Writes out the first bytes of the write-ahead log's file. What SQLite finds there is no frame of the log: it has
/// the salt of none. To be called while a connection is open that has not written yet.
pub(crate) fn make_space(path: &Path, size_bytes: u64) {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    if let Err(error) = fill(Path::new(&log), size_bytes) {
        // Only slower for a while.
        tracing::warn!(error = %error, "no space could be made for the write-ahead log");
    }
}

fn fill(file: &Path, size_bytes: u64) -> std::io::Result<()> {
    let zeros = vec![0; SPACE_STEP];
    let mut file = OpenOptions::new().append(true).open(file)?;
    let mut length = file.metadata()?.len();
    if length >= size_bytes {
        return Ok(());
    }
    while length < size_bytes {
        file.write_all(&zeros)?;
        length += SPACE_STEP as u64;
    }
    file.sync_all()
}

/// A connection that only reads.
pub(crate) fn reader(path: &Path) -> Result<Connection, Fault> {
    let conn = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    conn.busy_timeout(BUSY)?;
    conn.pragma_update(None, "query_only", true)?;
    conn.pragma_update(None, "wal_autocheckpoint", 0)?;
    conn.pragma_update(None, "cache_size", -READER_CACHE_KIB)?;
    // Mapped pages would count as this process's memory, once for each reader, and reading is no slower without.
    conn.pragma_update(None, "mmap_size", 0)?;
    prepare_once(&conn)?;
    Ok(conn)
}

/// Statements are planned once, whatever is bound to them. SQLite otherwise plans most of ours anew for each use,
/// because a bound value might call for another plan; here that never is so, and it takes longer than the reading.
fn prepare_once(conn: &Connection) -> Result<(), Fault> {
    conn.set_prepared_statement_cache_capacity(STATEMENTS);
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(())
}

/// A database that somebody else may be serving, for a few short transactions.
pub(crate) struct Database(Connection);

impl Database {
    pub(crate) fn open(data_dir: &Path) -> Result<Self, OpenError> {
        Ok(Self::migrated(data_dir)?.0)
    }

    /// The same; gives the format found and the one reached, too.
    pub(crate) fn migrated(data_dir: &Path) -> Result<(Self, (u32, u32)), OpenError> {
        let mut conn = writer(&database(data_dir)).map_err(|fault| OpenError::Store(fault.into()))?;
        let from = migrate(&mut conn)?;
        Ok((Self(conn), (from, FORMAT)))
    }

    /// Runs `write` in a transaction of its own.
    pub(crate) fn write<T>(
        &mut self,
        write: impl FnOnce(&Connection) -> Result<T, Fault>,
    ) -> Result<T, Error> {
        let transaction =
            self.0.transaction_with_behavior(TransactionBehavior::Immediate).map_err(Fault::from)?;
        let value = write(&transaction)?;
        transaction.commit().map_err(|error| Fault::from(error).at(Stage::Commit))?;
        Ok(value)
    }
}

/// Brings the database to the format of this version; gives the one that it had, 0 for a new one. Several processes may
/// do so at once: one does the work.
pub(crate) fn migrate(conn: &mut Connection) -> Result<u32, OpenError> {
    if known_format(conn)? == FORMAT {
        return Ok(FORMAT);
    }
    let transaction = conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    // Somebody else may have been quicker.
    let found = known_format(&transaction)?;
    for migration in MIGRATIONS.iter().skip(found as usize) {
        transaction.execute_batch(migration).map_err(failed)?;
    }
    transaction.pragma_update(None, "user_version", FORMAT).map_err(failed)?;
    transaction.commit().map_err(failed)?;
    Ok(found)
}

/// Refuses a database of any other format than this version's.
pub(crate) fn check_format(conn: &Connection) -> Result<(), OpenError> {
    match known_format(conn)? {
        FORMAT => Ok(()),
        found => Err(OpenError::Older { found, known: FORMAT }),
    }
}

fn known_format(conn: &Connection) -> Result<u32, OpenError> {
    let found: u32 = conn.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
    if found > FORMAT { Err(OpenError::Newer { found, known: FORMAT }) } else { Ok(found) }
}

fn failed(error: rusqlite::Error) -> OpenError {
    OpenError::Store(Fault::from(error).into())
}
