//! What a sandbox asks of its own exit: `http://127.0.0.1:3128/git/<resource>/<path>`, which is `origin` of what was brought.
//!
//! For which session is known from the exit. The address only chooses among that session's repositories, so nothing that a
//! sandbox says reaches the repository of another.

use egress::Body;
use http::{Request, Response, StatusCode};
use protocol::id::{ResourceId, SessionId};
use protocol::resource::Resource;
use protocol::resource_request::RepositoryUrl;
use session::Record;
use vault::{Outcome, TokenUse};

use crate::Repositories;
use crate::host::{Asker, said};
use crate::smart;

/// Where a sandbox finds its exit.
pub const EXIT: &str = "http://127.0.0.1:3128";
/// What the paths begin with that are answered here.
const PREFIX: &str = "/git/";

/// The address of a repository inside.
pub(crate) fn origin(resource: &ResourceId, url: &RepositoryUrl) -> String {
    format!("{EXIT}{PREFIX}{resource}/{}", url.path())
}

impl Repositories {
    /// Answers a request that a sandbox of this session sent to its exit itself. `Err` gives back what is for nobody here.
    pub async fn local(
        &self,
        session: &SessionId,
        request: Request<Body>,
    ) -> Result<Response<Body>, Request<Body>> {
        if !request.uri().path().starts_with(PREFIX) {
            return Err(request);
        }
        Ok(self.answer(session, request).await)
    }

    async fn answer(&self, session: &SessionId, request: Request<Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path();
        let below = path.strip_prefix(PREFIX).unwrap_or_default();
        let Some((place, endpoint)) = smart::split(&parts.method, below, parts.uri.query()) else {
            return said(StatusCode::FORBIDDEN, "only what git fetches and pushes with is answered here");
        };
        let view = match self.0.store.look(session).await {
            Ok(Some(view)) => view,
            Ok(None) => return said(StatusCode::NOT_FOUND, UNKNOWN),
            Err(error) => {
                tracing::warn!(session.id = %session, %error, "a session's repositories cannot be looked up");
                return said(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "the repository cannot be looked up at the moment",
                );
            }
        };
        let Some(asker) = self.asker_at(&view.record, &view.workspace, place) else {
            return said(StatusCode::NOT_FOUND, UNKNOWN);
        };
        let asker = match asker {
            Ok(asker) => asker,
            Err(resource) => {
                let agent = &view.record.agent.id;
                TokenUse { session, agent, resource: &resource, host: "", outcome: Outcome::Withheld }
                    .record();
                return said(
                    StatusCode::FORBIDDEN,
                    "the server takes no repositories from this host any more",
                );
            }
        };
        match self.0.host.ask(&asker, endpoint, &parts.headers, body).await {
            Ok(response) => response,
            Err(fault) => {
                tracing::debug!(session.id = %session, resource.id = %asker.resource, %fault, "a sandbox's git was refused");
                fault.response()
            }
        }
    }

    /// The session's repository of that place; the resource if its host is not allowed.
    fn asker_at(
        &self,
        record: &Record,
        workspace: &protocol::id::WorkspaceId,
        place: &str,
    ) -> Option<Result<Asker, ResourceId>> {
        let place = place.strip_suffix(".git").unwrap_or(place);
        let (id, path) = place.split_once('/').map_or((place, None), |(id, path)| (id, Some(path)));
        let mut repositories = record.resources.iter().filter_map(Resource::repository);
        let repository = repositories.find(|repository| repository.id.as_str() == id)?;
        let Some(asker) = self.asker(record, workspace, repository) else {
            return Some(Err(repository.id.clone()));
        };
        path.is_none_or(|path| path == asker.url.path()).then_some(Ok(asker))
    }
}

const UNKNOWN: &str = "this session has no such repository";
