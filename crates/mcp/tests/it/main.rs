//! The client and the proxy over real sockets: servers that mean well, real ones, and hostile ones.

mod common;
mod hostile;
mod proxy;
mod real;
mod usual;
