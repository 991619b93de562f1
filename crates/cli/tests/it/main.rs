//! The real binary, as users meet it.

mod commands;
mod flows;
mod kill_nine;
mod server;
