//! Read connections on blocking threads. Reads are short: a long one would keep the write-ahead log from being
//! reused.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::Connection;
use tokio::sync::Semaphore;

use crate::error::Error;
use crate::sqlite::connect;
use crate::sqlite::fault::Fault;

/// Reads at the same time. More than there are cores gains nothing; each holds a connection's cache.
const READERS: usize = 4;

/// The read connections.
pub(crate) struct Readers {
    path: PathBuf,
    idle: Arc<Mutex<Vec<Connection>>>,
    permits: Arc<Semaphore>,
}

impl Readers {
    pub(crate) fn open(path: PathBuf) -> Result<Self, Fault> {
        // The first is opened now, so that a database that cannot be read is found at the start.
        let first = connect::reader(&path)?;
        Ok(Self { path, idle: Arc::new(Mutex::new(vec![first])), permits: Arc::new(Semaphore::new(READERS)) })
    }

    /// Reads in one transaction: all that `read` sees is of the same moment.
    pub(crate) async fn read<T, Read>(&self, read: Read) -> Result<T, Error>
    where
        T: Send + 'static,
        Read: FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
    {
        let permit = self.permits.clone().acquire_owned().await.map_err(|_| Error::Closed)?;
        let (path, idle) = (self.path.clone(), self.idle.clone());
        let task = tokio::task::spawn_blocking(move || {
            // Given back last, so that there is an idle connection for whoever gets the permit.
            let _permit = permit;
            let taken = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let conn = match taken {
                Some(conn) => conn,
                None => connect::reader(&path)?,
            };
            let result = in_transaction(&conn, read);
            idle.lock().unwrap_or_else(PoisonError::into_inner).push(conn);
            result
        });
        match task.await {
            Ok(result) => result.map_err(Error::from),
            Err(failed) if failed.is_panic() => std::panic::resume_unwind(failed.into_panic()),
            // The runtime is going down.
            Err(_) => Err(Error::Closed),
        }
    }

    /// Refuses further reads and lets go of the idle connections.
    pub(crate) fn close(&self) {
        self.permits.close();
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

fn in_transaction<T>(
    conn: &Connection,
    read: impl FnOnce(&Connection) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let transaction = conn.unchecked_transaction()?;
    let result = read(&transaction)?;
    transaction.commit()?;
    Ok(result)
}
