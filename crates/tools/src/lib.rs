//! What hands can do: bash, read, write, edit, glob and grep, and the ledger that keeps a call from
//! running twice.
//!
//! Without the feature `bin` this is only [`wire`], what the supervisor and `tools` say to each other, and [`preview`].
//! The feature `archive` adds [`archive`], which makes and reads snapshots.
//! With `bin`, [`server::serve`] is the whole of process 1 of a sandbox. In reading order: the wire, the
//! main loop ([`server`]), what its threads share ([`desk`], [`ledger`]), the shell ([`bash`],
//! [`terminal`], [`processes`]), the file tools ([`tool`], [`files`], [`confine`]), and how a container comes
//! and goes with its files ([`luggage`]).
//!
//! This crate does not guard anything from the commands it runs: namespaces, Landlock and seccomp are
//! in place before it starts; in a container, whose engine starts it, it puts on the filter that it finds
//! beside its socket ([`dial`]). It has no database, no TLS and no async runtime.

pub mod preview;
pub mod wire;

#[cfg(feature = "archive")]
pub mod archive;

#[cfg(feature = "bin")]
pub mod bash;
#[cfg(feature = "bin")]
pub mod config;
#[cfg(feature = "bin")]
pub mod confine;
#[cfg(feature = "bin")]
pub mod desk;
#[cfg(feature = "bin")]
pub mod dial;
#[cfg(feature = "bin")]
pub mod equipment;
#[cfg(feature = "bin")]
pub mod files;
#[cfg(feature = "bin")]
pub mod ledger;
#[cfg(feature = "bin")]
pub mod luggage;
#[cfg(feature = "bin")]
pub mod outputs;
#[cfg(feature = "bin")]
pub mod overflow;
#[cfg(feature = "bin")]
pub mod processes;
#[cfg(feature = "bin")]
pub mod server;
#[cfg(feature = "bin")]
pub mod sys;
#[cfg(feature = "bin")]
pub mod terminal;
#[cfg(feature = "bin")]
pub mod tool;
#[cfg(feature = "bin")]
mod trees;
#[cfg(feature = "bin")]
pub mod walk;
