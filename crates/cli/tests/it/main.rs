//! The real binary, as users meet it.

mod chaos;
mod cleaning;
mod commands;
mod connect;
mod credentials;
mod database;
mod fleet;
mod flows;
mod hunt;
mod images;
mod keys;
mod kill_nine;
mod mcp;
mod network;
mod packages;
mod put_away;
mod repositories;
mod roles;
mod run;
mod secrets;
mod server;
mod site;
mod vaults;
