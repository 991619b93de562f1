//! What was fetched, kept on this machine: one bare repository for each address, which the next session only brings up to date.
//!
//! ```text
//! <folder>/cache/<hash of the address>/   lock · git (the bare repository) · before · address
//! <folder>/work/<random>/                 what is being made for one session
//! ```
//!
//! It is never read on the strength of having been fetched by somebody else: each session asks the host first, with its own
//! token, and gets nothing if the host says no. What no branch or tag leads to any more is removed before anybody reads, and
//! nobody else's fetch comes between a session's own and its reading.
//!
//! The lock is the kernel's, on a file: several processes may share the folder.

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
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

/// Stands among what led to something before, if there may be more to which nothing ever led.
pub(crate) const UNKNOWN: &str = "unknown";

pub(crate) struct Cache {
    folder: PathBuf,
    limits: Limits,
    pruned: Mutex<Option<Instant>>,
}

/// A repository that nobody else reads or changes.
pub(crate) struct Held {
    pub(crate) git: PathBuf,
    /// What its branches and tags led to before a fetch that is not over, or was broken off: such a one may have taken some
    /// away, and what they led to is still there.
    before: PathBuf,
    lock: File,
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
            if is_at(&file, &path) {
                // For operators, and for whoever looks for what is old.
                fs::write(folder.join("address"), format!("{address}\n"))?;
                return Ok(Held { git: folder.join("git"), before: folder.join("before"), lock: file });
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
    /// Removes what a git that was killed left: locks, or nothing could be changed any more; and packs that never became
    /// whole or would be kept for ever, which each clone would link.
    pub(crate) async fn sweep(&self) -> io::Result<()> {
        // It is held until this is over, even if nobody waits for it any more: another's locks are none that were left.
        let held = Self { git: self.git.clone(), before: self.before.clone(), lock: self.lock.try_clone()? };
        spawn_blocking(move || sweep(&held)).await.map_err(io::Error::other)?
    }

    /// Says that there may be what nothing ever led to.
    pub(crate) fn doubt(&self) -> io::Result<()> {
        let mut file = OpenOptions::new().create(true).append(true).open(&self.before)?;
        writeln!(file, "{UNKNOWN}")
    }

    /// Keeps what led to something before a fetch, until that is over. Gives it with what was kept before.
    pub(crate) fn remember(&self, leads: BTreeSet<String>) -> io::Result<BTreeSet<String>> {
        let mut before = leads;
        before.extend(fs::read_to_string(&self.before).unwrap_or_default().lines().map(str::to_owned));
        let new = self.before.with_extension("new");
        fs::write(&new, before.iter().flat_map(|name| [name, "\n"]).collect::<String>())?;
        fs::rename(&new, &self.before)?;
        Ok(before)
    }

    /// The fetch is over, and what it made unreachable is gone.
    pub(crate) fn forget(&self) -> io::Result<()> {
        fs::remove_file(&self.before)
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

/// Whether an open file is the one of that name.
fn is_at(file: &File, path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|there| file.metadata().is_ok_and(|own| own.ino() == there.ino()))
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
        // Somebody is at it, so it is not old; or another server has removed it, and it may be somebody's new one.
        if lock.try_lock().is_err() || !is_at(&lock, &old.join("lock")) {
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

fn sweep(held: &Held) -> io::Result<()> {
    let objects = held.git.join("objects");
    let mut folders = vec![held.git.clone()];
    while let Some(folder) = folders.pop() {
        let is_of_objects = folder.starts_with(&objects);
        for entry in entries(&folder)? {
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.as_encoded_bytes();
            let is_kept = is_of_objects && name.ends_with(b".keep");
            if entry.file_type()?.is_dir() {
                folders.push(path);
            } else if is_kept || name.ends_with(b".lock") || is_of_objects && name.starts_with(b"tmp_") {
                if is_kept {
                    // It came, and perhaps nothing was made to lead to it.
                    held.doubt()?;
                }
                fs::remove_file(path)?;
            }
        }
    }
    Ok(())
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
