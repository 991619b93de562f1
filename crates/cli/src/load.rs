//! Settings of the limits: how much runs and waits at once.

use clap::Args;
use harness::ModelLimits;
use serde::Deserialize;

/// How many sessions of a workspace may wait for a brain, unless told otherwise. A full brain takes some rounds over
/// so many, so that what is refused would have waited longer than its client; and it is fewer than the queue keeps of
/// one workspace, so that the count is exact. It is there so that one client in a loop cannot fill the disk.
const WAITING_DEFAULT: u32 = 10_000;
/// How many sessions one brain drives at once, unless told otherwise: each has a transcript in memory and a connection
/// to a model.
const BRAIN_DEFAULT: u32 = 1_024;

/// How much runs and waits at once. 0 is no limit.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Limits (0: none)")]
pub(crate) struct LoadOptions {
    /// Sessions that one brain process drives at once. [default: 1024]
    #[arg(long, env = "POSTHOUSE_SESSIONS_PER_BRAIN_MAX", value_name = "COUNT")]
    sessions_per_brain_max: Option<u32>,

    /// Sessions that run at once, in all processes. [default: what the brains hold]
    #[arg(long, env = "POSTHOUSE_SESSIONS_RUNNING_MAX", value_name = "COUNT")]
    sessions_running_max: Option<u32>,

    /// The same of one workspace. [default: 0]
    #[arg(long, env = "POSTHOUSE_SESSIONS_RUNNING_PER_WORKSPACE_MAX", value_name = "COUNT")]
    sessions_running_per_workspace_max: Option<u32>,

    /// Sessions of one workspace that wait for a brain; one more is refused with a 429. [default: 10000]
    #[arg(long, env = "POSTHOUSE_SESSIONS_WAITING_PER_WORKSPACE_MAX", value_name = "COUNT")]
    sessions_waiting_per_workspace_max: Option<u32>,

    /// Model requests in flight, in all processes. [default: 0]
    #[arg(long, env = "POSTHOUSE_MODEL_REQUESTS_MAX", value_name = "COUNT")]
    model_requests_max: Option<u32>,

    /// The same of one workspace. [default: 0]
    #[arg(long, env = "POSTHOUSE_MODEL_REQUESTS_PER_WORKSPACE_MAX", value_name = "COUNT")]
    model_requests_per_workspace_max: Option<u32>,
}

/// The same in the configuration file, and as settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Load {
    sessions_per_brain_max: u32,
    sessions_running_max: u32,
    sessions_running_per_workspace_max: u32,
    sessions_waiting_per_workspace_max: u32,
    model_requests_max: u32,
    model_requests_per_workspace_max: u32,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            sessions_per_brain_max: BRAIN_DEFAULT,
            sessions_running_max: 0,
            sessions_running_per_workspace_max: 0,
            sessions_waiting_per_workspace_max: WAITING_DEFAULT,
            model_requests_max: 0,
            model_requests_per_workspace_max: 0,
        }
    }
}

impl LoadOptions {
    pub(crate) fn over(self, file: Load) -> Load {
        Load {
            sessions_per_brain_max: self.sessions_per_brain_max.unwrap_or(file.sessions_per_brain_max),
            sessions_running_max: self.sessions_running_max.unwrap_or(file.sessions_running_max),
            sessions_running_per_workspace_max: self
                .sessions_running_per_workspace_max
                .unwrap_or(file.sessions_running_per_workspace_max),
            sessions_waiting_per_workspace_max: self
                .sessions_waiting_per_workspace_max
                .unwrap_or(file.sessions_waiting_per_workspace_max),
            model_requests_max: self.model_requests_max.unwrap_or(file.model_requests_max),
            model_requests_per_workspace_max: self
                .model_requests_per_workspace_max
                .unwrap_or(file.model_requests_per_workspace_max),
        }
    }
}

impl Load {
    /// What the store keeps to.
    pub(crate) fn sessions(self) -> store::Limits {
        store::Limits {
            running_max: limit(self.sessions_running_max),
            running_per_workspace_max: limit(self.sessions_running_per_workspace_max),
            waiting_per_workspace_max: limit(self.sessions_waiting_per_workspace_max),
        }
    }

    /// What a brain keeps to.
    pub(crate) fn model_requests(self) -> ModelLimits {
        ModelLimits {
            in_flight_max: limit(self.model_requests_max),
            in_flight_per_workspace_max: limit(self.model_requests_per_workspace_max),
        }
    }

    /// How many sessions a brain drives at once.
    pub(crate) fn sessions_per_brain(self) -> usize {
        // As many as a semaphore can count is as good as no limit.
        limit(self.sessions_per_brain_max).map_or(tokio::sync::Semaphore::MAX_PERMITS, |max| max as usize)
    }
}

fn limit(max: u32) -> Option<u32> {
    (max > 0).then_some(max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default_and_zero_is_no_limit() {
        let file: Load = toml::from_str("sessions_running_max = 7\nmodel_requests_max = 3").expect("reads");
        let flags = LoadOptions { model_requests_max: Some(0), ..LoadOptions::default() };
        let load = flags.over(file);
        let expected = store::Limits {
            running_max: Some(7),
            running_per_workspace_max: None,
            waiting_per_workspace_max: Some(WAITING_DEFAULT),
        };
        assert_eq!(load.sessions(), expected);
        assert_eq!(load.model_requests(), ModelLimits::default());
        assert_eq!(load.sessions_per_brain(), 1_024);
        let none = LoadOptions { sessions_waiting_per_workspace_max: Some(0), ..LoadOptions::default() };
        assert_eq!(none.over(Load::default()).sessions(), store::Limits::default());
    }
}
