//! How many sessions may run and wait.
//!
//! A session **runs** while a brain holds it and **waits** while it wants a brain and none holds it. It is counted
//! in its workspace and in all. Running ones are bounded by not being claimed: they wait. Waiting ones are bounded by
//! being refused: nothing else stops a client that sends faster than brains work.

/// The limits of a store. `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Sessions that run at once, in all.
    pub running_max: Option<u32>,
    /// Sessions of one workspace that run at once.
    pub running_per_workspace_max: Option<u32>,
    /// Sessions of one workspace that wait at once. What would make one more wait is refused.
    pub waiting_per_workspace_max: Option<u32>,
}
