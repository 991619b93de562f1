//! What SQLite says, as the store's errors.

use std::sync::Arc;

use rusqlite::ErrorCode;

use crate::error::Error;

/// Something went wrong below; shared by all who waited for it.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// SQLite refused.
    #[error("sqlite")]
    Sql(#[source] Arc<rusqlite::Error>),
    /// What is stored does not read as what it should be.
    #[error("stored JSON")]
    Json(#[source] Arc<serde_json::Error>),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(Arc::new(error))
    }
}

impl From<serde_json::Error> for Fault {
    fn from(error: serde_json::Error) -> Self {
        Self::Json(Arc::new(error))
    }
}

/// How far a write had come when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Before its commit: it has not happened.
    Before,
    /// In its commit: the disk may hold all of it, and a crash now would bring it to light.
    Commit,
}

impl Fault {
    pub(crate) fn at(&self, stage: Stage) -> Error {
        let source = Box::new(self.clone());
        match self.code() {
            Some(ErrorCode::DiskFull) => Error::Full(source),
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Error::Busy(source),
            Some(_) | None if stage == Stage::Commit => Error::Unknown(source),
            Some(_) | None => Error::Corrupt(source),
        }
    }

    fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Sql(error) => error.sqlite_error_code(),
            Self::Json(_) => None,
        }
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        fault.at(Stage::Before)
    }
}
