//! What of a session's repositories can be brought into its sandbox, and what cannot, and why.

use std::path::Path;

use futures_util::future::join_all;
use protocol::event::SessionError;
use protocol::id::WorkspaceId;
use protocol::resource::{Repository, Resource};
use protocol::resource_request::RepositoryUrl;
use session::Record;

use crate::host::Asker;
use crate::trouble::Trouble;
use crate::{Repositories, tree};

/// What was made of a session's repositories.
#[derive(Debug, Default)]
pub struct Prepared {
    /// What can be brought, those first that others lie in.
    pub trees: Vec<Ready>,
    /// Why the others cannot, as the client is told.
    pub errors: Vec<SessionError>,
}

/// A repository that is ready to be brought.
pub struct Ready {
    repository: Repository,
    made: tree::Made,
}

impl Ready {
    /// The folder inside.
    pub fn at(&self) -> &str {
        &self.repository.mount_path
    }

    /// Its archive: on this machine, as long as this is held.
    pub fn archive(&self) -> &Path {
        &self.made.archive
    }

    /// The error that says that no sandbox would take it.
    pub fn refused(&self, reason: &str) -> SessionError {
        Trouble::Sandbox(reason.to_owned()).error(&self.repository)
    }
}

impl std::fmt::Debug for Ready {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ready({})", self.repository.id)
    }
}

impl Repositories {
    /// Whether a session has any.
    pub fn has_any(record: &Record) -> bool {
        record.resources.iter().any(|resource| resource.repository().is_some())
    }

    /// Fetches a session's repositories with the tokens that it has now. Never fails: what cannot be had is said.
    pub async fn prepare(&self, workspace: &WorkspaceId, record: &Record) -> Prepared {
        let repositories: Vec<&Repository> =
            record.resources.iter().filter_map(Resource::repository).collect();
        let all =
            join_all(repositories.iter().map(|repository| self.one(workspace, record, repository))).await;
        let mut prepared = Prepared::default();
        for (repository, made) in repositories.into_iter().zip(all) {
            match made {
                Ok(made) => prepared.trees.push(Ready { repository: repository.clone(), made }),
                Err(trouble) => {
                    tracing::info!(
                        { session.id = %record.id, resource.id = %repository.id, %trouble },
                        "a session goes on without a repository"
                    );
                    prepared.errors.push(trouble.error(repository));
                }
            }
        }
        prepared.trees.sort_by(|one, other| one.at().cmp(other.at()));
        prepared
    }

    async fn one(
        &self,
        workspace: &WorkspaceId,
        record: &Record,
        repository: &Repository,
    ) -> Result<tree::Made, Trouble> {
        let asker = self.asker(record, workspace, repository).ok_or(Trouble::NotAllowed)?;
        tree::make(&self.0, asker, repository).await
    }

    /// Who asks for a repository; `None` if its host is not allowed any more.
    pub(crate) fn asker(
        &self,
        record: &Record,
        workspace: &WorkspaceId,
        repository: &Repository,
    ) -> Option<Asker> {
        let url = RepositoryUrl::parse(&repository.url, &self.0.settings.hosts).ok()?;
        Some(Asker {
            workspace: workspace.clone(),
            session: record.id.clone(),
            agent: record.agent.id.clone(),
            resource: repository.id.clone(),
            url,
        })
    }
}
