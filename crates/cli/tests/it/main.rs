//! The real binary, as users meet it.

mod chaos;
mod cleaning;
mod commands;
mod credentials;
mod database;
mod fleet;
mod flows;
mod images;
mod keys;
mod kill_nine;
mod network;
mod packages;
mod put_away;
mod repositories;
mod roles;
mod run;
mod server;
mod vaults;
