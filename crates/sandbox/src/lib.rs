//! Places to run tools.
//!
//! One seam, [`Provider`], and two implementations: [`Supervised`], sandboxes of Linux namespaces on this machine, owned
//! by a small supervisor process that outlives the server which asked for them; and [`Docker`], containers that an engine
//! starts and the same supervisor adopts. In reading order: [`provider`] (the seam
//! and its contract), [`supervisor`] (the process, its protocol and the client of it), `namespaces` (how one sandbox is
//! made and which guards it gets), [`docker`] (how a container is), [`doctor`] (what this machine allows),
//! `packages`, `shelf` and [`images`] (what sandboxes can start from besides the host's tools).
//!
//! This crate never decides when a sandbox is needed, never reads a session, holds no secret, and never makes a sandbox
//! with fewer guards than [`doctor::Report`] names.

pub mod archive;
pub mod conformance;
pub mod docker;
pub mod doctor;
pub mod images;
mod namespaces;
mod packages;
pub mod provider;
mod shelf;
pub mod supervisor;

pub use docker::Docker;
pub use packages::{Manager, Packages};
pub use provider::{
    Access, Base, Call, Collected, EXIT_PORT, Equipment, Error, Exit, ExitNews, Exits, Limits, Mount,
    Network, Occupancy, Pool, Progress, Provider, Resources, Restore, Rights, SandboxId, SandboxInfo, Saved,
    Tree,
};
/// Yardsticks for benchmarks.
pub mod bench {
    pub use crate::namespaces::bare::Bare;
}

pub use supervisor::{Capacity, Patience, Program, Settings, Supervised};
pub use tools::wire::Output;
