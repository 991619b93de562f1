//! The background from outside: a real store, pretended hands.

mod bucket;
mod packages;
mod reaper;
mod saver;
