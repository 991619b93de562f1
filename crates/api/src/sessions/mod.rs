//! `/v1/sessions`.

mod archive;
mod create;
mod delete;
mod list;
mod retrieve;
mod snapshots;
mod take_snapshot;
mod update;

use protocol::id::SessionId;
use protocol::session::Session;
use store::{Seen, Store};

pub(crate) use archive::archive;
pub(crate) use create::create;
pub(crate) use delete::delete;
pub(crate) use list::{list, statuses};
pub(crate) use retrieve::retrieve;
pub(crate) use snapshots::snapshots;
pub(crate) use take_snapshot::take_snapshot;
pub(crate) use update::update;

use crate::Door;
use crate::auth::Caller;
use crate::error::Error;

/// What errors call it.
pub(crate) const SESSION: &str = "Session";

/// A session as clients see it now.
pub(crate) fn shown(seen: &Seen, store: &Store) -> Session {
    let Seen { record, state, waiting } = seen;
    Session { waiting: *waiting, ..record.show(state, store.now()) }
}

/// The caller's session of that id.
pub(crate) async fn find(door: &Door, caller: &Caller, id: &SessionId) -> Result<Seen, Error> {
    let found = door.app.store.get_session(&caller.workspace, id).await?;
    found.ok_or_else(|| Error::missing(SESSION, id))
}
