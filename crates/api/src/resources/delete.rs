//! `DELETE /v1/sessions/{session_id}/resources/{resource_id}`: a repository stays as long as its session.

use axum::extract::State;
use protocol::id::{ResourceId, SessionId};
use protocol::parse::Invalid;
use protocol::resource::Resource;

use super::find;
use crate::Door;
use crate::auth::Caller;
use crate::error::Error;
use crate::extract::{Ids, NoBody, NoQuery};

pub(crate) async fn delete(
    State(door): State<Door>,
    caller: Caller,
    Ids((session, id)): Ids<(SessionId, ResourceId)>,
    _: NoQuery,
    _: NoBody,
) -> Result<(), Error> {
    match find(&door, &caller, &session, &id).await? {
        Resource::GithubRepository(_) => {
            let rule = "is a repository, which stays attached as long as the session lives";
            Err(Invalid::new("resource_id", rule).into())
        }
    }
}
