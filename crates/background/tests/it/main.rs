//! The background from outside: a real store, pretended hands.

mod bucket;
mod reaper;
mod saver;
