//! What a hostile agent tries first: the list of attacks that the sandbox must hold, each a program that runs inside a real one.
//!
//! The numbers are those of the project's list of attacks. All but those on resources are made once more in sandboxes that
//! have an exit (`ordinary_user`, `docker`). Not here: names that change their addresses, of which `egress`'s own tests tell, 33 (nothing is
//! paused yet), 35 (`snapshots`).

mod control;
mod exit;
mod kernel;
mod leaks;
mod resources;
