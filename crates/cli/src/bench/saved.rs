//! The part of `posthouse bench sandbox` about sandboxes that start from more than nothing: with the rights and the exit
//! that a session's sandbox has, from a layer of installed packages, and from snapshots.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use sandbox::supervisor::Supervised;
use sandbox::{Base, Call, Network, Packages, Provider, Resources, Restore, Rights, SandboxId};
use serde_json::json;

use super::report::Table;
use super::samples::{Samples, millis};
use super::sandbox::{FENCE, PAUSE, sandbox_id};

/// What is installed for the layer: small, and only Python.
const PACKAGE: &str = "cowsay==6.1";
/// The registry may be out of reach; then that row is left out, and it is said.
const PREPARE_TIME_MAX: Duration = Duration::from_secs(120);
/// Files of each snapshot's workspace.
const FILES: usize = 100;
/// Making and reading half a gigabyte takes a while on a busy machine.
const FILL_TIME_MAX: Duration = Duration::from_secs(120);

/// How long such sandboxes take.
pub(super) struct Starts {
    session: Samples,
    prepared: Option<Samples>,
    snapshots: Vec<Snapshot>,
    pub(super) notes: Vec<String>,
}

/// A workspace that was saved once and restored several times.
struct Snapshot {
    megabytes: usize,
    save_ms: f64,
    stored_bytes: u64,
    restores: Samples,
}

/// Measures each; `count` starts of the small ones.
pub(super) async fn starts(
    hands: &Arc<Supervised>,
    folder: &Path,
    count: usize,
    quick: bool,
) -> anyhow::Result<Starts> {
    let session = Resources {
        network: Some(Network("bench".to_owned())),
        rights: Rights::Install,
        ..Resources::default()
    };
    let mut notes = Vec::new();
    // The first look at what of the host is private is once for each server.
    timed(hands, "session-warm", 1, &session).await?;
    let started = timed(hands, "session", count, &session).await?;
    let base = Base {
        packages: Packages { pip: vec![PACKAGE.to_owned()], ..Packages::default() },
        ..Base::default()
    };
    let prepared = match tokio::time::timeout(PREPARE_TIME_MAX, hands.prepare(&base, &|_| ())).await {
        Ok(Ok(())) => Some(timed(hands, "layer", count, &Resources { base, ..session }).await?),
        Ok(Err(error)) => {
            notes.push(format!("No layer could be prepared, so its row is left out: {error}"));
            None
        }
        Err(_) => {
            notes.push("No layer could be prepared in time, so its row is left out.".to_owned());
            None
        }
    };
    let sizes: &[(usize, usize)] = if quick { &[(10, 3)] } else { &[(10, 30), (500, 5)] };
    let mut snapshots = Vec::new();
    for (megabytes, restores) in sizes {
        snapshots.push(snapshot(hands, folder, *megabytes, *restores).await?);
    }
    Ok(Starts { session: started, prepared, snapshots, notes })
}

/// Starts of sandboxes of these resources.
async fn timed(
    hands: &Supervised,
    name: &str,
    count: usize,
    resources: &Resources,
) -> anyhow::Result<Samples> {
    let mut times = Vec::new();
    for number in 0..count {
        tokio::time::sleep(PAUSE).await;
        let id = sandbox_id(&format!("{name}-{number}"));
        let asked = Instant::now();
        hands.provision(&id, FENCE, resources).await?;
        times.push(asked.elapsed());
        hands.destroy(&id).await?;
    }
    Ok(times.into_iter().collect())
}

async fn snapshot(
    hands: &Supervised,
    folder: &Path,
    megabytes: usize,
    restores: usize,
) -> anyhow::Result<Snapshot> {
    let id = sandbox_id(&format!("saved-{megabytes}"));
    hands.provision(&id, FENCE, &Resources::default()).await?;
    // Random, so that nothing is won by packing it.
    let bytes = (megabytes << 20) / FILES;
    let fill =
        format!("mkdir d; for i in $(seq {FILES}); do head -c {bytes} /dev/urandom > d/$i; done; echo done");
    shell(hands, &id, "fill", &fill).await?;
    let file = folder.join(format!("{megabytes}.snapshot"));
    let asked = Instant::now();
    let saved = hands.save(&id, FENCE, &file).await?;
    let save_ms = millis(asked.elapsed());
    hands.destroy(&id).await?;
    let restore = Restore { file: file.clone(), base: saved.base };
    let resources = Resources { restore: Some(restore), ..Resources::default() };
    let restores = timed(hands, &format!("restored-{megabytes}"), restores, &resources).await?;
    std::fs::remove_file(&file).context("the snapshot cannot be removed")?;
    Ok(Snapshot { megabytes, save_ms, stored_bytes: saved.written.size_bytes, restores })
}

async fn shell(hands: &Supervised, id: &SandboxId, call_id: &str, command: &str) -> anyhow::Result<()> {
    let call = Call {
        sandbox: id.clone(),
        call_id: call_id.to_owned(),
        fence: FENCE,
        name: "bash".to_owned(),
        input: json!({ "command": command }),
        timeout: FILL_TIME_MAX,
    };
    let output = hands.execute(call).await?;
    anyhow::ensure!(!output.is_error, "the workspace could not be filled: {output:?}");
    Ok(())
}

impl Starts {
    /// The median time of restoring 10 MB, in milliseconds.
    pub(super) fn restore_small_p50(&self) -> f64 {
        self.snapshots.first().map_or(0.0, |snapshot| snapshot.restores.p50())
    }

    /// How they compare with the bare clone.
    pub(super) fn table(&self, bare: &Samples) -> Table {
        let title = "Starting from more than nothing";
        let columns = [
            ("what", "what"),
            ("starts", "starts"),
            ("p50_ms", "p50 ms"),
            ("p95_ms", "p95 ms"),
            ("p99_ms", "p99 ms"),
            ("of_bare_p50", ": bare, p50"),
        ];
        let mut table = Table::new("more", title, columns);
        let mut rows = vec![("as a session's: may install, has an exit".to_owned(), &self.session)];
        rows.extend(self.prepared.iter().map(|times| ("the same from a prepared layer".to_owned(), times)));
        rows.extend(self.snapshots.iter().map(|snapshot| {
            (format!("from a snapshot of {} MB in {FILES} files", snapshot.megabytes), &snapshot.restores)
        }));
        for (what, times) in rows {
            table.row([
                what.into(),
                times.len().into(),
                times.p50().into(),
                times.p95().into(),
                times.p99().into(),
                (times.p50() / bare.p50()).into(),
            ]);
        }
        table
    }

    /// What saving took.
    pub(super) fn saves_table(&self) -> Table {
        let columns = [("what", "what"), ("ms", "ms"), ("stored_mb", "stored MB")];
        let mut table = Table::new("save", "Saving", columns);
        for Snapshot { megabytes, save_ms, stored_bytes, restores: _ } in &self.snapshots {
            #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
            let stored = *stored_bytes as f64 / f64::from(1 << 20);
            let what = format!("{megabytes} MB in {FILES} files, random");
            table.row([what.into(), (*save_ms).into(), stored.into()]);
        }
        table
    }
}
