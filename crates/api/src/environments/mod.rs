//! `/v1/environments`.

mod archive;
mod create;
mod delete;
mod list;
mod retrieve;
mod update;

pub(crate) use archive::archive;
pub(crate) use create::create;
pub(crate) use delete::delete;
pub(crate) use list::list;
pub(crate) use retrieve::retrieve;
pub(crate) use update::update;

/// What errors call it.
pub(crate) const ENVIRONMENT: &str = "Environment";
/// The `error_code` of an environment that is not there.
const NOT_FOUND: &str = "environment_not_found";

impl crate::error::Error {
    /// No such environment.
    pub(crate) fn missing_environment(id: &protocol::id::EnvironmentId) -> Self {
        Self::Missing { what: ENVIRONMENT, id: id.to_string(), code: Some(NOT_FOUND) }
    }

    /// What the store says to a change of an environment.
    pub(crate) fn environment_change(error: store::ChangeError, id: &protocol::id::EnvironmentId) -> Self {
        match error {
            store::ChangeError::NotFound => Self::missing_environment(id),
            other => Self::change(other, ENVIRONMENT, id),
        }
    }
}
