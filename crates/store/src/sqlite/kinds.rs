//! Kinds of event by number: small in the index, and private ones are told by their sign.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use protocol::event::PRIVATE_PREFIX;
use rusqlite::{Connection, params};

use crate::sqlite::fault::Fault;

/// The kinds that occur in this database. Shared by the writer, who adds, and all readers.
#[derive(Clone, Default)]
pub(crate) struct Kinds(Arc<RwLock<Names>>);

#[derive(Default)]
struct Names {
    by_name: HashMap<Arc<str>, i64>,
    by_number: HashMap<i64, Arc<str>>,
}

impl Kinds {
    /// Reads them anew: at the start, and after a transaction that may have added some came to nothing.
    pub(crate) fn load(&self, conn: &Connection) -> Result<(), Fault> {
        let mut names = Names::default();
        let mut statement = conn.prepare("SELECT number, name FROM kind")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let name: Arc<str> = row.get::<_, String>(1)?.into();
            names.insert(row.get(0)?, name);
        }
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = names;
        Ok(())
    }

    /// The number of a kind, if it occurs.
    pub(crate) fn number(&self, name: &str) -> Option<i64> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).by_name.get(name).copied()
    }

    /// The name of a number that was read from the database.
    pub(crate) fn name(&self, number: i64) -> Arc<str> {
        let names = self.0.read().unwrap_or_else(PoisonError::into_inner);
        names
            .by_number
            .get(&number)
            .cloned()
            .expect("a kind is known before the first event of it is committed")
    }

    /// The number of a kind, given out now if it is new. Only for the writer.
    pub(crate) fn number_or_new(&self, conn: &Connection, name: &str) -> Result<i64, Fault> {
        if let Some(number) = self.number(name) {
            return Ok(number);
        }
        let is_private = name.starts_with(PRIVATE_PREFIX);
        let next = if is_private {
            "SELECT min(ifnull(min(number), 0), 0) - 1 FROM kind"
        } else {
            "SELECT max(ifnull(max(number), 0), 0) + 1 FROM kind"
        };
        let number: i64 = conn.query_row(next, [], |row| row.get(0))?;
        conn.execute("INSERT INTO kind (number, name) VALUES (?1, ?2)", params![number, name])?;
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(number, name.into());
        Ok(number)
    }
}

impl Names {
    fn insert(&mut self, number: i64, name: Arc<str>) {
        self.by_name.insert(name.clone(), number);
        self.by_number.insert(number, name);
    }
}
