//! Sandboxes made of Linux namespaces, without an image, a daemon or root.
//!
//! In reading order: what is tried and prepared once (`probe`, `profile`, `etc`, `agent`, `seccomp`), how one sandbox is
//! started (`start`: the parent's side; `child`: its own), what it sees and may do (`root`, `landlock`, `cgroups`), what becomes of its files (`snapshot`), what watches it
//! where the kernel does not (`watchdog`), and the system calls below all this (`sys`).

pub(crate) mod agent;
pub(crate) mod bare;
pub(crate) mod cgroups;
pub(crate) mod child;
pub(crate) mod etc;
pub(crate) mod landlock;
pub(crate) mod probe;
pub(crate) mod profile;
pub(crate) mod root;
pub(crate) mod seccomp;
pub(crate) mod snapshot;
pub(crate) mod start;
pub(crate) mod sys;
pub(crate) mod watchdog;

#[cfg(test)]
mod guards_matter;
