//! The door over real HTTP: a real store in a directory of its own, a real listener, no brain but what a test plays.

mod agents;
mod bad_input;
mod brain;
mod environments;
mod events;
mod headers;
mod health;
mod limits;
mod models;
mod server;
mod sessions;
mod shutdown;
mod snapshots;
mod streams;
mod threads;
mod vaults;
