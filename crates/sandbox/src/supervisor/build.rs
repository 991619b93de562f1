//! Making a package layer: the managers run in a sandbox of their own, and what they write is kept.
//!
//! A builder is a sandbox like any other, with a network for package managers only, whose stage is a folder of the disk
//! instead of one in memory, so a layer may be larger than the memory. When every step has succeeded the folder is cleared of
//! what each sandbox makes anew, made durable, and moved into its place; until then it is nothing, and whoever comes
//! next throws it away. A lock on a file, let go by the kernel however its holder ends, makes that one builder at a time,
//! of all servers on this data directory. Whoever tidies up takes the same lock: what is unfinished and not locked is nobody's.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use serde_json::json;
use tokio::time::Instant;
use tools::wire::{Content, Output};

use super::client::Supervised;
use crate::doctor::PACKAGES;
use crate::packages::{Manager, Odd, Packages, Step, blamed};
use crate::provider::{Base, Call, Error, Limits, Network, Progress, Provider, Resources, Rights, SandboxId};
use crate::shelf::{LAYER_FILE, Shape, Shelf};

/// One manager's whole work: a compiler may be part of it.
const STEP_TIME_MAX: Duration = Duration::from_secs(45 * 60);
/// Between two looks at whether another builder is done.
const LOCK_PAUSE: Duration = Duration::from_millis(250);
/// Between two looks at the disk.
const DISK_PAUSE: Duration = Duration::from_secs(2);
/// What a builder leaves free on the disk. Nothing but this bounds the size of a layer.
const DISK_FREE_MIN: u64 = 1 << 30;
/// The last lines of a manager that failed, and how long each may be: enough for a compiler's error.
const LINES_MAX: usize = 20;
const LINE_CHARS_MAX: usize = 400;
/// What the ids of builders begin with. They are nobody's sandboxes, and no list shows them.
pub(crate) const BUILDER: &str = "builder-";
/// What the folder of a layer that is being made begins with.
const UNFINISHED: &str = ".new-";
/// What the name of a layer's lock begins with; its key follows.
const LOCK: &str = ".lock-";

/// What of a builder's stage is no part of a layer.
const OF_THE_STAGE: &[&str] = &["w", "l", "d", "e"];
/// Below its plain folders, and below the upper folder of an image.
const OF_THE_SANDBOX: &[&str] = &[
    "dev",
    "proc",
    "sys",
    "tmp",
    "run",
    "workspace",
    "mnt/session",
    "root/.cache",
    "root/.npm",
    "root/.cargo/registry",
    "var/tmp",
];

/// What could not be installed a moment ago, so that a session that asks again and again does not keep the machine busy with
/// it, and does not hear another reason than the one before.
#[derive(Default)]
pub(crate) struct Failures(Mutex<HashMap<Base, (Instant, Error)>>);

/// How long a failed install is not tried again.
const FAILURE_KEPT: Duration = Duration::from_secs(30);
/// Bases that fail at once; beyond it the list starts anew.
const FAILURES_MAX: usize = 1_000;

impl Failures {
    fn lock(&self) -> MutexGuard<'_, HashMap<Base, (Instant, Error)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn find(&self, base: &Base) -> Option<Error> {
        let failures = self.lock();
        let (_, error) = failures.get(base).filter(|(at, _)| at.elapsed() < FAILURE_KEPT)?;
        Some(error.clone())
    }

    pub(crate) fn keep(&self, base: &Base, error: &Error) {
        let mut failures = self.lock();
        if failures.len() >= FAILURES_MAX {
            failures.clear();
        }
        failures.insert(base.clone(), (Instant::now(), error.clone()));
    }
}

/// Makes the layer of a base that has packages, unless it is there.
pub(crate) async fn prepare(
    hands: &Supervised,
    shelf: &Shelf,
    failures: &Failures,
    network: Option<Network>,
    base: &Base,
    progress: &Progress<'_>,
) -> Result<(), Error> {
    let steps = base.packages.steps().map_err(odd)?;
    if steps.is_empty() {
        return Ok(());
    }
    let report = hands.report().await?;
    let shape = if report.can(PACKAGES) { Shape::Installs } else { Shape::Plain };
    let layer = shelf.layer(base, shape)?;
    if layer.join(LAYER_FILE).is_file() {
        return Ok(());
    }
    if shape == Shape::Plain && !base.packages.of(Manager::Apt).is_empty() {
        let why = report.abilities.iter().find(|ability| ability.name == PACKAGES);
        let lines = vec![why.map_or_else(String::new, |ability| ability.detail.clone())];
        return Err(Error::Packages { manager: Manager::Apt, package: None, lines });
    }
    let key = layer.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    let lock = Arc::new(lock(shelf, &key, progress).await?);
    if layer.join(LAYER_FILE).is_file() {
        return Ok(());
    }
    // Whoever held the lock before may have failed.
    if let Some(error) = failures.find(base) {
        return Err(error);
    }
    let builder = Builder { hands, shelf, network, key, lock };
    builder.clear().await?;
    let built = builder.build(base, &steps, progress).await;
    if let Err(error) = &built {
        if matches!(error, Error::Packages { .. }) {
            failures.keep(base, error);
        }
        // What failed is not looked at again; the reason is in the error.
        builder.clear().await?;
    }
    built
}

/// Says that no manager is asked for such a package.
pub(crate) fn odd(Odd { manager, package, rule }: Odd) -> Error {
    Error::Packages { manager, package: Some(package), lines: vec![rule.to_owned()] }
}

/// The lock of one layer.
pub(crate) async fn lock(shelf: &Shelf, key: &str, progress: &Progress<'_>) -> Result<fs::File, Error> {
    let layers = shelf.layers();
    let open = || -> io::Result<fs::File> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&layers)?;
        fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(layers.join(format!("{LOCK}{key}")))
    };
    let file = open().map_err(Error::unavailable)?;
    let mut told = false;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                if !std::mem::replace(&mut told, true) {
                    progress("waiting for another server that installs the same packages");
                }
                tokio::time::sleep(LOCK_PAUSE).await;
            }
            Err(error) => return Err(Error::unavailable(error)),
        }
    }
}

/// What the ids of a layer's builders begin with.
pub(crate) fn builders(key: &str) -> String {
    format!("{BUILDER}{}-", key.get(..16).unwrap_or(key))
}

/// A layer that was begun, and that nobody is making.
pub(crate) struct Abandoned {
    /// What the ids of its builders begin with.
    pub(crate) builders: String,
    folder: PathBuf,
    lock: fs::File,
}

impl Abandoned {
    /// Throws away what was made of it. Its builders have ended.
    pub(crate) fn remove(self) -> io::Result<()> {
        remove_tree(&self.folder)?;
        drop(self.lock);
        Ok(())
    }
}

/// What was begun and is nobody's, of which there is a folder or one of these builders. Nobody begins it anew meanwhile.
pub(crate) fn abandoned(shelf: &Shelf, living: &[SandboxId]) -> io::Result<Vec<Abandoned>> {
    let entries = match fs::read_dir(shelf.layers()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let Some(key) = name.to_str().and_then(|name| name.strip_prefix(LOCK)) else { continue };
        let (builders, folder) = (builders(key), shelf.layers().join(unfinished(key)));
        let lives = living.iter().any(|id| id.as_str().starts_with(&builders));
        if !lives && fs::symlink_metadata(&folder).is_err() {
            continue;
        }
        let lock = fs::OpenOptions::new().write(true).open(entry.path())?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => found.push(Abandoned { builders, folder, lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}

struct Builder<'a> {
    hands: &'a Supervised,
    shelf: &'a Shelf,
    network: Option<Network>,
    key: String,
    /// Held by whatever still works on the disk when nobody waits for it any more.
    lock: Arc<fs::File>,
}

impl Builder<'_> {
    fn prefix(&self) -> String {
        builders(&self.key)
    }

    /// Works on the disk under the lock.
    async fn on_disk(&self, work: impl FnOnce() -> io::Result<()> + Send + 'static) -> Result<(), Error> {
        let lock = Arc::clone(&self.lock);
        on_disk(move || {
            let done = work();
            drop(lock);
            done
        })
        .await
    }

    fn folder(&self) -> PathBuf {
        self.shelf.layers().join(unfinished(&self.key))
    }

    /// Ends builders whose servers are gone, and throws away what they made. The lock is held, so nobody's is at work.
    async fn clear(&self) -> Result<(), Error> {
        for sandbox in self.hands.list_all().await? {
            if sandbox.id.as_str().starts_with(&self.prefix()) {
                self.hands.destroy(&sandbox.id).await?;
            }
        }
        let folder = self.folder();
        self.on_disk(move || remove_tree(&folder)).await
    }

    async fn build(&self, base: &Base, steps: &[Step], progress: &Progress<'_>) -> Result<(), Error> {
        let folder = self.folder();
        // Open to all, below a folder that is open to us alone, as the supervisor's own work folder is.
        self.on_disk(move || fs::DirBuilder::new().mode(0o755).create(folder)).await?;
        let mut unique = [0; 8];
        ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut unique)
            .map_err(|_| Error::unavailable("no randomness"))?;
        let name = format!("{}{}", self.prefix(), crate::packages::hex(&unique));
        let id = SandboxId::parse(&name).expect("letters, digits and hyphens");
        let resources = Resources {
            limits: Limits { file_size_bytes: 8 << 30, ..Limits::default() },
            network: self.network.clone(),
            rights: Rights::Install,
            base: Base { image: base.image.clone(), packages: Packages::default() },
            ..Resources::default()
        };
        self.hands.provision_builder(&id, &resources, &self.key).await?;
        let mut done = Ok(());
        for step in steps {
            let list = base.packages.of(step.manager);
            progress(&format!("{} installs {}", step.manager, list.join(", ")));
            let installer = Installer { hands: self.hands, id: &id, disk: self.shelf.layers() };
            done = installer.run(step, list).await;
            if done.is_err() {
                break;
            }
        }
        // The end of its processes is the end of its writing.
        self.hands.destroy(&id).await?;
        done?;
        progress("keeping what was installed");
        let (folder, layer) = (self.folder(), self.shelf.layers().join(&self.key));
        let card = serde_json::to_vec_pretty(&json!({"image": base.image, "packages": base.packages}))
            .map_err(Error::unavailable)?;
        self.on_disk(move || finish(&folder, &layer, &card)).await
    }
}

/// Runs package managers in a builder.
pub(crate) struct Installer<'a> {
    pub(crate) hands: &'a Supervised,
    pub(crate) id: &'a SandboxId,
    /// A folder of the disk that it writes to.
    pub(crate) disk: PathBuf,
}

impl Installer<'_> {
    /// Has one manager install its packages, as long as there is room on the disk.
    pub(crate) async fn run(&self, Step { manager, command }: &Step, list: &[String]) -> Result<(), Error> {
        // The manager's words go to a file: what a call returns is bounded from the front.
        let command = format!(
            "{{ {command}; }} > /tmp/install.log 2>&1 < /dev/null; status=$?; tail -n {LINES_MAX} /tmp/install.log; \
             (exit $status)"
        );
        let call = Call {
            sandbox: self.id.clone(),
            call_id: format!("install-{manager}"),
            fence: 1,
            name: "bash".to_owned(),
            input: json!({"command": command, "timeout_ms": STEP_TIME_MAX.as_millis() as u64}),
            timeout: STEP_TIME_MAX,
        };
        let full = disk_runs_full(self.disk.clone());
        let output = tokio::select! {
            output = self.hands.execute(call) => output,
            () = full => {
                let lines = vec!["less than 1 GiB is left on the disk".to_owned()];
                return Err(Error::Packages { manager: *manager, package: None, lines });
            }
        };
        // A builder that died has told why; for whoever waits that is a failed install.
        let output = output.unwrap_or_else(|error| Output::error(error.to_string()));
        if !output.is_error {
            return Ok(());
        }
        let lines = last_lines(&output);
        let package = blamed(list, &lines).map(str::to_owned);
        Err(Error::Packages { manager: *manager, package, lines })
    }
}

/// The folder of a layer that is being made.
pub(crate) fn unfinished(key: &str) -> String {
    format!("{UNFINISHED}{key}")
}

fn last_lines(output: &Output) -> Vec<String> {
    let texts = output.content.iter().map(|block| match block {
        Content::Text { text } => text.as_str(),
        Content::Image { .. } | Content::Document { .. } => "",
    });
    let text: String = texts.collect();
    let shown = |line: &str| line.chars().filter(|char| !char.is_control()).take(LINE_CHARS_MAX).collect();
    let lines: Vec<String> =
        text.lines().map(str::trim_end).filter(|line| !line.is_empty()).map(shown).collect();
    lines[lines.len().saturating_sub(LINES_MAX)..].to_vec()
}

/// Ends when too little of the disk is left.
async fn disk_runs_full(folder: PathBuf) {
    loop {
        tokio::time::sleep(DISK_PAUSE).await;
        let free = rustix::fs::statvfs(&folder).map(|found| found.f_bavail * found.f_frsize);
        if free.is_ok_and(|free| free < DISK_FREE_MIN) {
            return;
        }
    }
}

/// Turns a builder's stage into a layer.
fn finish(stage: &Path, layer: &Path, card: &[u8]) -> io::Result<()> {
    for name in OF_THE_STAGE {
        remove_tree(&stage.join(name))?;
    }
    for name in OF_THE_SANDBOX {
        for top in ["r", "u/image"] {
            remove_below(&stage.join(top), name)?;
        }
    }
    // The builder's plain folders have those of the overlays in them, empty.
    fs::write(stage.join(LAYER_FILE), card)?;
    let folder = fs::File::open(stage)?;
    rustix::fs::syncfs(&folder)?;
    // What an older version left in this place.
    remove_tree(layer)?;
    fs::rename(stage, layer)
}

/// Removes what lies at a plain path below a folder that a sandbox has written: a link on the way would lead out of it.
fn remove_below(folder: &Path, path: &str) -> io::Result<()> {
    let mut target = folder.to_owned();
    for part in Path::new(path) {
        match fs::symlink_metadata(&target) {
            Ok(found) if found.is_dir() => target.push(part),
            _ => return Ok(()),
        }
    }
    remove_tree(&target)
}

/// Removes a tree, or a file, or nothing. The kernel leaves folders in it that even their owner may not enter.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    if !found.is_dir() {
        return fs::remove_file(path);
    }
    if found.permissions().mode() & 0o700 != 0o700 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    }
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            for entry in fs::read_dir(path)? {
                remove_tree(&entry?.path())?;
            }
            fs::remove_dir(path)
        }
        done => done,
    }
}

pub(crate) async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await.map_err(Error::unavailable)?;
    done.map_err(Error::unavailable)
}
