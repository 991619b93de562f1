//! What a hostile agent tries first: the list of attacks that the sandbox must hold, each a program that runs inside a real one.
//!
//! The numbers are those of the project's list of attacks. Not here: 14 and the proxy halves of 12 and 13 (there is no egress proxy
//! yet), 33 (nothing is paused yet), 35 (no snapshots yet).

mod control;
mod kernel;
mod leaks;
mod resources;
