//! What was fetched, kept on this machine: one bare repository for each address, which the next session only brings up to date.
//!
//! ```text
//! <folder>/cache/<hash of the address>/   lock · git (the bare repository) · address
//! <folder>/work/<random>/                 what is being made for one session
//! ```
//!
//! It is never read on the strength of having been fetched by somebody else: each session asks the host first, with its own
//! token, and gets nothing if the host says no. What no branch or tag leads to any more is removed before anybody reads.
//!
//! The lock is the kernel's, on a file: several processes may share the folder.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::settings::Limits;

/// How often it is looked whether a repository is free.
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// How often what is old is looked for.
const PRUNE_EVERY: Duration = Duration::from_secs(600);
/// What a killed server left of what it was making.
const WORK_TIME_MAX: Duration = Duration::from_secs(24 * 3600);

pub(crate) struct Cache {
    folder: PathBuf,
    limits: Limits,
    pruned: Mutex<Option<Instant>>,
}

/// A repository that nobody else changes, or of which nobody changes anything.
pub(crate) struct Held {
    pub(crate) git: PathBuf,
    file: File,
}

/// A folder for what is made for one session. Removed with this.
pub(crate) struct Work {
    pub(crate) path: PathBuf,
}

impl Cache {
    pub(crate) fn new(folder: PathBuf, limits: Limits) -> Self {
        Self { folder, limits, pruned: Mutex::default() }
    }

    /// Waits until nobody else is at this repository. How long is for the caller.
    pub(crate) async fn hold(&self, address: &str) -> io::Result<Held> {
        let name = hex(digest(&SHA256, address.as_bytes()).as_ref());
        let folder = self.folder.join("cache").join(name);
        loop {
            make_folder(&folder)?;
            let path = folder.join("lock");
            let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path)?;
            loop {
                match file.try_lock() {
                    Ok(()) => break,
                    Err(TryLockError::WouldBlock) => sleep(LOCK_PAUSE).await,
                    Err(TryLockError::Error(error)) => return Err(error),
                }
            }
            // It may have been removed while it was waited for.
            let is_it = fs::metadata(&path)
                .is_ok_and(|there| file.metadata().is_ok_and(|own| own.ino() == there.ino()));
            if is_it {
                // For operators, and for whoever looks for what is old.
                fs::write(folder.join("address"), format!("{address}\n"))?;
                return Ok(Held { git: folder.join("git"), file });
            }
        }
    }

    /// A new folder on the same file system, so that what is in the cache can be linked into it.
    pub(crate) fn work(&self) -> io::Result<Work> {
        let mut bits = [0; 16];
        SystemRandom::new().fill(&mut bits).expect("the system has randomness");
        let path = self.folder.join("work").join(hex(&bits));
        make_folder(&path)?;
        Ok(Work { path })
    }

    /// Removes what is old, and the oldest if there is too much. Now and then.
    pub(crate) async fn prune(&self) {
        {
            let mut pruned = self.pruned.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if pruned.is_some_and(|last| last.elapsed() < PRUNE_EVERY) {
                return;
            }
            *pruned = Some(Instant::now());
        }
        self.prune_now().await;
    }

    pub(crate) async fn prune_now(&self) {
        let (folder, limits) = (self.folder.clone(), self.limits.clone());
        let pruned = spawn_blocking(move || prune(&folder, &limits)).await;
        if let Ok(Err(error)) = pruned {
            tracing::warn!(%error, "kept repositories could not be tidied up");
        }
    }
}

impl Held {
    /// Others may read it from now on, too.
    pub(crate) async fn share(self) -> io::Result<Self> {
        // The kernel changes the lock in one go only if nobody else waits for it; who is quicker only brings it up to date.
        self.file.unlock()?;
        loop {
            match self.file.try_lock_shared() {
                Ok(()) => return Ok(self),
                Err(TryLockError::WouldBlock) => sleep(LOCK_PAUSE).await,
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let path = std::mem::take(&mut self.path);
        let remove = move || drop(fs::remove_dir_all(path));
        // A large tree takes a while.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

fn make_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

struct Kept {
    folder: PathBuf,
    used: SystemTime,
    bytes: u64,
}

fn prune(folder: &Path, limits: &Limits) -> io::Result<()> {
    #[expect(
        clippy::disallowed_methods,
        reason = "files are dated by this machine's clock, not by the store's"
    )]
    let now = SystemTime::now();
    let is_older = |time: SystemTime, age: Duration| now.duration_since(time).is_ok_and(|since| since > age);
    for entry in entries(&folder.join("work"))? {
        if is_older(entry.metadata()?.modified()?, WORK_TIME_MAX) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    let mut kept = Vec::new();
    for entry in entries(&folder.join("cache"))? {
        let folder = entry.path();
        let used = fs::metadata(folder.join("address")).and_then(|address| address.modified());
        kept.push(Kept { used: used.unwrap_or(now), bytes: size(&folder), folder });
    }
    kept.sort_by_key(|kept| kept.used);
    let mut total: u64 = kept.iter().map(|kept| kept.bytes).sum();
    for Kept { folder: old, used, bytes } in kept {
        if !is_older(used, limits.cache_time_max) && total <= limits.cache_bytes_max {
            continue;
        }
        let Ok(lock) = OpenOptions::new().write(true).open(old.join("lock")) else { continue };
        // Somebody is at it, so it is not old.
        if lock.try_lock().is_err() {
            continue;
        }
        // In one go; whoever waited for the lock sees that it is another now.
        let aside = folder
            .join("work")
            .join(format!("{}-old", hex(&old.as_os_str().as_encoded_bytes()[old.as_os_str().len() - 16..])));
        make_folder(&folder.join("work"))?;
        fs::rename(&old, &aside)?;
        fs::remove_dir_all(&aside)?;
        total = total.saturating_sub(bytes);
    }
    Ok(())
}

fn entries(folder: &Path) -> io::Result<Vec<fs::DirEntry>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// What a tree takes. What cannot be read counts as nothing.
pub(crate) fn size(folder: &Path) -> u64 {
    let (mut total, mut folders, mut seen) = (0, vec![folder.to_owned()], HashSet::new());
    while let Some(folder) = folders.pop() {
        for entry in entries(&folder).unwrap_or_default() {
            let Ok(found) = entry.metadata() else { continue };
            if found.is_dir() {
                folders.push(entry.path());
            } else if seen.insert(found.ino()) {
                total += found.blocks() * 512;
            }
        }
    }
    total
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
