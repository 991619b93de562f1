//! What a new sandbox begins with: the session's repositories, or what was saved of its last one.
//!
//! It never guesses: a snapshot that cannot be had right now is an error that passes, and one that can never be restored is
//! recorded as lost and told to the model, before anything runs in an empty workspace.

use std::path::{Path, PathBuf};
use std::pin::pin;

use blobs::{Blobs, Fetched};
use protocol::content::Content;
use protocol::event::{Body, SessionError, Snapshot};
use protocol::id::{EventId, SandboxId};
use repositories::Prepared;
use sandbox::{Error, Provider, Resources, Restore};

use crate::hands::{self, Outcome};
use crate::luggage::{self, Luggage};
use crate::speculation::TOUCH_EVERY;

/// Where snapshots are, and where one lies while a sandbox is made of it.
#[derive(Clone)]
pub struct Snapshots {
    /// Where they last.
    pub blobs: Blobs,
    /// A folder of this machine, which the supervisor can read; made when it is needed.
    pub scratch: PathBuf,
}

/// Why there is no sandbox.
#[derive(Debug)]
pub(crate) enum Unmade {
    /// As with an empty one.
    Outcome(Outcome),
    /// No sandbox can be made of this snapshot, now or later.
    Lost { snapshot: Snapshot, reason: String },
}

/// What a session's sandbox is made of.
#[derive(Clone)]
pub(crate) struct Beginning {
    pub(crate) resources: Resources,
    /// What the session brings into it; asked when it lives.
    pub(crate) luggage: Luggage,
    /// What was saved of the last one.
    pub(crate) snapshot: Option<Snapshot>,
    pub(crate) snapshots: Option<Snapshots>,
}

impl Beginning {
    /// Makes a sandbox with everything that the session brings, and gives what it will miss there. Asking again with the same
    /// id gives the same sandbox.
    pub(crate) async fn provision(
        &self,
        hands: &dyn Provider,
        id: &SandboxId,
        fence: u64,
    ) -> Result<Vec<SessionError>, Unmade> {
        // What a snapshot holds is not fetched again.
        let fetched = match &self.snapshot {
            None => self.make_and_fetch(hands, id, fence).await?,
            Some(_) => {
                self.make(hands, id, fence).await?;
                Prepared::default()
            }
        };
        let mut missed = self.luggage.bring(hands, id, fence).await.map_err(Unmade::Outcome)?;
        missed.extend(luggage::unpack(hands, id, fence, fetched).await.map_err(Unmade::Outcome)?);
        Ok(missed)
    }

    /// Makes a sandbox while the session's repositories are fetched.
    async fn make_and_fetch(
        &self,
        hands: &dyn Provider,
        id: &SandboxId,
        fence: u64,
    ) -> Result<Prepared, Unmade> {
        let mut fetching = pin!(self.luggage.fetch());
        let mut making = pin!(self.make(hands, id, fence));
        let mut fetched = None;
        loop {
            tokio::select! {
                made = &mut making => break made?,
                prepared = &mut fetching, if fetched.is_none() => fetched = Some(prepared),
            }
        }
        if let Some(prepared) = fetched {
            return Ok(prepared);
        }
        loop {
            tokio::select! {
                prepared = &mut fetching => return Ok(prepared),
                // Somebody is to see that it is not forgotten.
                () = tokio::time::sleep(TOUCH_EVERY) => drop(hands.touch(&hands::handle(id), fence).await),
            }
        }
    }

    async fn make(&self, hands: &dyn Provider, id: &SandboxId, fence: u64) -> Result<(), Unmade> {
        let Self { resources, luggage: _, snapshot, snapshots } = self;
        match snapshot {
            None => hands::provision(hands, id, fence, resources).await.map_err(Unmade::Outcome),
            Some(snapshot) => {
                restore(hands, snapshots.as_ref(), id, fence, resources, snapshot.clone()).await
            }
        }
    }
}

async fn restore(
    hands: &dyn Provider,
    snapshots: Option<&Snapshots>,
    id: &SandboxId,
    fence: u64,
    resources: &Resources,
    snapshot: Snapshot,
) -> Result<(), Unmade> {
    let Some(Snapshots { blobs, scratch }) = snapshots else {
        return Err(failed("this server keeps no snapshots, and the session's workspace is one".to_owned()));
    };
    // Another brain may be at the same; its file is another.
    let file = scratch.join(format!("{id}-{fence}-restore"));
    let made = match fetch(blobs, &snapshot, scratch, &file).await {
        Ok(()) => {
            let restore = Restore { file: file.clone(), base: snapshot.base.clone() };
            let resources = Resources { restore: Some(restore), ..resources.clone() };
            match hands::provision(hands, id, fence, &resources).await {
                Err(Outcome::Failed { error: Error::Unrestorable { reason } }) => {
                    Err(Unmade::Lost { snapshot, reason })
                }
                other => other.map_err(Unmade::Outcome),
            }
        }
        Err(Unfetched::Failed(reason)) => Err(failed(reason)),
        Err(Unfetched::Lost(reason)) => Err(Unmade::Lost { snapshot, reason }),
    };
    // The sandbox has read it, or never will.
    let _ = tokio::fs::remove_file(&file).await;
    made
}

enum Unfetched {
    /// It may work later.
    Failed(String),
    Lost(String),
}

async fn fetch(blobs: &Blobs, snapshot: &Snapshot, scratch: &Path, file: &Path) -> Result<(), Unfetched> {
    let local =
        |error: std::io::Error| Unfetched::Failed(format!("the snapshot cannot be stored here: {error}"));
    tokio::fs::DirBuilder::new().recursive(true).mode(0o700).create(scratch).await.map_err(local)?;
    // Of an attempt that was given up.
    let _ = tokio::fs::remove_file(file).await;
    match blobs.get(&snapshot.key, file).await {
        Ok(Fetched { size_bytes, sha256 }) => match corruption(snapshot, size_bytes, &sha256) {
            None => Ok(()),
            Some(what) => {
                let _ = tokio::fs::remove_file(file).await;
                Err(Unfetched::Lost(format!("the snapshot is corrupt: {what}")))
            }
        },
        Err(blobs::Error::Missing { .. }) => Err(Unfetched::Lost("it is missing".to_owned())),
        Err(error) => {
            tracing::warn!(snapshot.key, error = %blobs::with_causes(&error), "a snapshot could not be fetched");
            Err(Unfetched::Failed(error.to_string()))
        }
    }
}

/// In what a blob differs from the one that was recorded.
fn corruption(recorded: &Snapshot, size_bytes: u64, sha256: &str) -> Option<String> {
    if size_bytes != recorded.size_bytes {
        return Some(format!("it has {size_bytes} bytes instead of {}", recorded.size_bytes));
    }
    (sha256 != recorded.sha256).then(|| "its digest is not the one on record".to_owned())
}

fn failed(reason: String) -> Unmade {
    Unmade::Outcome(Outcome::Failed { error: Error::Busy { reason } })
}

/// The events that say that a call did not run because the workspace is lost.
pub(crate) fn lost(call: &EventId, snapshot: Snapshot, reason: String) -> Vec<Body> {
    let text = format!(
        "hand: the workspace that was saved at {} is lost: {reason}. This call was not run. The next call gets a new, empty \
         workspace.",
        snapshot.saved_at
    );
    vec![hands::error(call, text), Body::SnapshotLost { key: snapshot.key, reason, told: true }]
}

/// The same where it was lost before, while nobody was there to be told.
pub(crate) fn was_lost(call: &EventId, reason: String) -> Vec<Body> {
    let text = format!(
        "hand: the saved workspace is lost: {reason}. This call was not run. The next call gets a new, empty workspace."
    );
    vec![hands::error(call, text), Body::SnapshotLost { key: String::new(), reason, told: true }]
}

/// Adds to what a call came to that its sandbox is not the one of the call before.
pub(crate) fn and_restored(mut results: Vec<Body>, snapshot: Option<&Snapshot>) -> Vec<Body> {
    let told = format!("{RESTORED}{}", what_is_missing(snapshot));
    for body in &mut results {
        if let Body::AgentToolResult { content, .. } = body {
            content.push(Content::text(told.clone()));
        }
    }
    results.push(Body::RestorationTold {});
    results
}

const RESTORED: &str = "hand: this sandbox was put away while it was idle, and restored before this call. Files and installed \
    software are as they were. Whatever ran in the background has ended, and the shell began anew: its variables, functions and \
    current directory are gone.";

/// What the model is told of files that no snapshot holds; nothing if there are none.
fn what_is_missing(snapshot: Option<&Snapshot>) -> String {
    match snapshot.map_or(0, |snapshot| snapshot.left_out) {
        0 => String::new(),
        left_out => format!(
            " But {left_out} of them could not be saved and are missing, in whole or in part: sockets, paths of more than 4,095 \
             bytes, extended attributes of more than 128 KiB."
        ),
    }
}

/// What the model is told of the workspace of a sandbox that is gone.
pub(crate) fn what_is_left(snapshot: Option<&Snapshot>) -> String {
    match snapshot {
        None => "Its workspace is gone with it; the next call gets a new, empty workspace.".to_owned(),
        Some(snapshot) => format!(
            "The next call gets the workspace as it was saved at {}: whatever was changed or installed after that is missing, \
             and nothing that ran in the background runs any more.{}",
            snapshot.saved_at,
            what_is_missing(Some(snapshot)),
        ),
    }
}
