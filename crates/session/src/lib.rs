//! What a session's log means.
//!
//! - [`state`]: replay. Folds events into a [`State`], small enough to be kept beside the log as its projection.
//! - [`mod@admit`]: which client events a session accepts now, and whether they wait in the inbox or enter the log at once.
//! - [`step`]: the next [`Step`]: what to append, then what to do.
//! - [`progress`]: which events show that a session got on.
//! - [`record`]: a session's own facts (agent, title, metadata) and how they change.
//!
//! All the rules of the wire's state machine are here and nowhere else. Pure and synchronous: no IO, no clock, no
//! randomness; times and ids arrive as arguments.

pub mod admit;
pub mod progress;
pub mod record;
pub mod state;
pub mod step;

pub use admit::{Admitted, Refusal, admit};
pub use progress::is_progress;
pub use record::Record;
pub use state::State;
pub use step::{Act, Draft, Failure, FailureKind, Step, next_step};
