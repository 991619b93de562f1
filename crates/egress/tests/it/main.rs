//! The crate from outside: real sockets on loopback, names from a table.

mod addresses;
mod client;
mod common;
mod connect;
mod log;
mod plain;
mod policy;
mod private;
mod shapes;
mod spending;
