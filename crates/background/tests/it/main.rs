//! The background from outside: a real store, pretended hands.

mod reaper;
mod saver;
