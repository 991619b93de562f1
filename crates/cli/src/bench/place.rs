//! Where a bench works: a folder of its own, removed afterwards.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tempfile::TempDir;

use super::Common;

/// Kept on disk by every distribution, unlike `/tmp`, which is often memory.
const DEFAULT: &str = "/var/tmp";

/// A folder that is removed with this value.
pub(super) struct Place(TempDir);

impl Place {
    pub(super) fn make(common: &Common) -> anyhow::Result<Self> {
        let default = Path::new(DEFAULT);
        let base = match &common.dir {
            Some(dir) => dir.clone(),
            None if default.is_dir() => default.to_owned(),
            None => std::env::temp_dir(),
        };
        let made = tempfile::Builder::new().prefix("posthouse-bench-").tempdir_in(&base);
        let dir = made.with_context(|| format!("no folder can be made in {}", base.display()))?;
        Ok(Self(dir))
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}
