//! The lock of a data directory: one server at a time.
//!
//! The kernel holds it for the process, so it is gone with the process, however that ends. The file's content is for
//! people only.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use crate::error::OpenError;

const LOCK: &str = "lock";
/// A log holds whatever its users said: nobody else's business.
const MODE: u32 = 0o700;
/// The same for files, in a directory that somebody else made.
pub(crate) const FILE_MODE: u32 = 0o600;

/// Makes the data directory if need be.
pub(crate) fn make_directory(data_dir: &Path) -> Result<(), OpenError> {
    DirBuilder::new().recursive(true).mode(MODE).create(data_dir).map_err(|error| unusable(data_dir, error))
}

/// Takes the lock; it lasts as long as the file is open.
pub(crate) fn take(data_dir: &Path) -> Result<File, OpenError> {
    let unusable = |error| unusable(data_dir, error);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(FILE_MODE);
    let mut file = options.open(data_dir.join(LOCK)).map_err(unusable)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            file.read_to_string(&mut pid).map_err(unusable)?;
            return Err(OpenError::InUse { path: data_dir.to_owned(), pid: pid.trim().to_owned() });
        }
        Err(TryLockError::Error(error)) => return Err(unusable(error)),
    }
    file.set_len(0).map_err(unusable)?;
    file.rewind().map_err(unusable)?;
    writeln!(file, "{}", std::process::id()).map_err(unusable)?;
    Ok(file)
}

fn unusable(data_dir: &Path, source: io::Error) -> OpenError {
    OpenError::Directory { path: data_dir.to_owned(), source }
}
