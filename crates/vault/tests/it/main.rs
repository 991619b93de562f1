//! The vault over real stores, real files and real HTTP.

mod keys;
mod leaks;
mod renewal;
mod rotation;
mod spending;
mod world;
