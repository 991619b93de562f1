//! `/v1/sessions/{session_id}/threads`. Every session has exactly one thread, its primary one, whose events are the
//! session's.

mod archive;
mod events;
mod list;
mod retrieve;
mod stream;

use protocol::id::{SessionId, ThreadId};
use session::{Record, State};

pub(crate) use archive::archive;
pub(crate) use events::events;
pub(crate) use list::list;
pub(crate) use retrieve::retrieve;
pub(crate) use stream::stream;

use crate::Door;
use crate::auth::Caller;
use crate::error::Error;
use crate::sessions;
use store::Seen;

/// What errors call it.
const THREAD: &str = "Thread";

/// The caller's session, if that thread is one of its threads.
async fn find(
    door: &Door,
    caller: &Caller,
    id: &SessionId,
    thread: &ThreadId,
) -> Result<(Record, State), Error> {
    let Seen { record, state, .. } = sessions::find(door, caller, id).await?;
    if state.thread_id == *thread { Ok((record, state)) } else { Err(Error::missing(THREAD, thread)) }
}
