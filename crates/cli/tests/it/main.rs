//! The real binary, as users meet it.

mod chaos;
mod commands;
mod database;
mod fleet;
mod flows;
mod keys;
mod kill_nine;
mod put_away;
mod roles;
mod run;
mod server;
