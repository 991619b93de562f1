//! What PostgreSQL says, as the store's errors.

use std::sync::Arc;

use deadpool_postgres::PoolError;
use tokio_postgres::error::SqlState;

use crate::error::Error;

/// Something went wrong below; shared by all who waited for it.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// The store is closed: nothing was asked.
    #[error("the store is closed")]
    Closed,
    /// There is no connection: nothing was asked.
    #[error("no connection to the database: {0}")]
    Connect(Arc<str>),
    /// It was asked, and did not answer in time.
    #[error("the database did not answer in time")]
    Late,
    /// It said no, or the connection broke.
    #[error("postgres")]
    Sql(#[source] Arc<tokio_postgres::Error>),
    /// What is stored does not read as what it should be.
    #[error("stored JSON")]
    Json(#[source] Arc<serde_json::Error>),
}

impl From<PoolError> for Fault {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::Closed => Self::Closed,
            error => Self::Connect(chain(&error).into()),
        }
    }
}

impl From<tokio_postgres::Error> for Fault {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Sql(Arc::new(error))
    }
}

impl From<serde_json::Error> for Fault {
    fn from(error: serde_json::Error) -> Self {
        Self::Json(Arc::new(error))
    }
}

/// An error and its sources in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

impl Fault {
    /// Whether what was asked may have happened all the same.
    pub(crate) fn is_doubtful(&self) -> bool {
        match self {
            Self::Closed | Self::Connect(_) | Self::Json(_) => false,
            Self::Late => true,
            Self::Sql(error) => match error.code() {
                // The server went down in the middle, perhaps of the commit, or a pooler lost its connection to it.
                Some(code) => {
                    let (is_down, is_lost) = (code.code().starts_with("57P"), code.code().starts_with("08"));
                    (is_down && *code != SqlState::CANNOT_CONNECT_NOW)
                        || is_lost
                        || *code == SqlState::T_R_STATEMENT_COMPLETION_UNKNOWN
                }
                // The connection broke.
                None => true,
            },
        }
    }

    /// Whether the database is away and may be back soon.
    pub(crate) fn is_away(&self) -> bool {
        match self {
            Self::Connect(_) | Self::Late => true,
            Self::Closed | Self::Json(_) => false,
            Self::Sql(error) => match error.code() {
                Some(code) => is_away(code),
                None => true,
            },
        }
    }

    /// Whether it met another statement on its way, and nothing else is wrong.
    pub(crate) fn is_collision(&self) -> bool {
        match self {
            Self::Sql(error) => error.code().is_some_and(|code| {
                *code == SqlState::T_R_DEADLOCK_DETECTED || *code == SqlState::T_R_SERIALIZATION_FAILURE
            }),
            Self::Closed | Self::Connect(_) | Self::Late | Self::Json(_) => false,
        }
    }

    /// Whether something else has that name.
    pub(crate) fn is_taken(&self) -> bool {
        matches!(self, Self::Sql(error) if error.code() == Some(&SqlState::UNIQUE_VIOLATION))
    }

    /// The error of a write.
    pub(crate) fn of_write(&self) -> Error {
        if self.is_doubtful() { Error::Unknown(Box::new(self.clone())) } else { self.clone().into() }
    }
}

fn is_away(code: &SqlState) -> bool {
    // Operator intervention, connection trouble, and a server that is a standby for the moment.
    code.code().starts_with("57P")
        || code.code().starts_with("08")
        || *code == SqlState::TOO_MANY_CONNECTIONS
        || *code == SqlState::READ_ONLY_SQL_TRANSACTION
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        let code = match &fault {
            Fault::Sql(error) => error.code().cloned(),
            _ => None,
        };
        if matches!(fault, Fault::Closed) {
            return Self::Closed;
        }
        let is_away = fault.is_away();
        let source = Box::new(fault);
        match code {
            _ if is_away => Self::Unreachable(source),
            Some(code) if code == SqlState::DISK_FULL => Self::Full(source),
            Some(code)
                if code == SqlState::T_R_DEADLOCK_DETECTED
                    || code == SqlState::T_R_SERIALIZATION_FAILURE
                    || code == SqlState::LOCK_NOT_AVAILABLE =>
            {
                Self::Busy(source)
            }
            Some(_) | None => Self::Corrupt(source),
        }
    }
}
