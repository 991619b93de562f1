//! Looking after a database: its format, and reading it beside whoever serves it. For the command line.

use std::path::Path;
use std::sync::Arc;

use crate::error::OpenError;
use crate::hub::Hub;
use crate::lock::make_directory;
use crate::sqlite::{Database, Sqlite};
use crate::{Options, Store, postgres};

/// Brings the database of a data directory to this version's format, making it if need be; gives the format found, 0 if
/// there was none, and the one reached. Takes no lock: a server that runs on it goes on, because what is added does not
/// concern it. Blocks.
pub fn migrate_directory(data_dir: &Path) -> Result<(u32, u32), OpenError> {
    make_directory(data_dir)?;
    Database::migrated(data_dir).map(|(_, formats)| formats)
}

/// Refuses a database of PostgreSQL that has any other format than this version's: for whoever is to change nothing.
pub async fn check_format(url: &str) -> Result<(), OpenError> {
    postgres::check_format_at(url).await
}

impl Store {
    /// Opens the database of a data directory as it is, without its lock, to be read beside whoever serves it. What would
    /// change anything is refused with [`Error::Closed`](crate::Error::Closed), and followers hear of nothing.
    pub fn open_beside(data_dir: &Path, options: Options) -> Result<Self, OpenError> {
        let hub = Arc::new(Hub::default());
        let engine = Sqlite::open_beside(data_dir, options.clone())?;
        Ok(Self::over(options, hub, Arc::new(engine)))
    }
}
