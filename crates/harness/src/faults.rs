//! Where a brain may die: the crash tests stop it here.

use std::fmt;

use async_trait::async_trait;

/// A place between two effects of a brain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Point {
    /// It has claimed the session.
    Claimed,
    /// It is about to append.
    BeforeAppend,
    /// It has appended.
    Appended,
    /// It is about to ask the model.
    BeforeModel,
    /// The model has answered; nothing is recorded yet.
    ModelAnswered,
    /// It has provisioned a sandbox; nothing is recorded yet.
    Provisioned,
    /// It is about to run a call.
    BeforeCall,
    /// The call has run; nothing is recorded yet.
    CallDone,
}

/// What happens at a [`Point`]. Nothing, outside the crash tests.
#[async_trait]
pub trait Faults: Send + Sync {
    /// Called at each point. A test that wants the brain to die here never returns, and drops the brain.
    async fn reached(&self, point: Point);
}

/// Lets every brain live.
pub struct NoFaults;

#[async_trait]
impl Faults for NoFaults {
    async fn reached(&self, _: Point) {}
}

impl fmt::Debug for NoFaults {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("NoFaults")
    }
}
