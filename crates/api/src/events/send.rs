//! `POST /v1/sessions/{session_id}/events`: all of them are taken or none; the answer repeats them with their ids.

use axum::extract::State;
use axum::response::Response;
use protocol::event::Body as EventBody;
use protocol::id::SessionId;
use protocol::parse::Invalid;
use protocol::send::parse_send;

use crate::Door;
use crate::auth::Caller;
use crate::error::Error;
use crate::extract::{Body, Ids, NoQuery};
use crate::page::data;
use crate::sessions::{SESSION, find};

pub(crate) async fn send(
    State(door): State<Door>,
    caller: Caller,
    Ids(id): Ids<SessionId>,
    _: NoQuery,
    Body(body): Body,
) -> Result<Response, Error> {
    let sent = parse_send(body)?;
    let system = sent.iter().position(|event| matches!(event, EventBody::SystemMessage { .. }));
    if let Some(index) = system {
        refuse_unfit_model(&door, &caller, &id, index).await?;
    }
    let echoes = door.app.store.send_events(&caller.workspace, &id, sent).await;
    let echoes = echoes.map_err(|error| Error::change(error, SESSION, &id))?;
    Ok(data(echoes.iter().map(|stored| &stored.json)))
}

/// A `system.message` needs a model that takes one in the middle of a conversation. The model of a session never
/// changes, so that looking before the store's transaction is as good as looking inside it.
async fn refuse_unfit_model(door: &Door, caller: &Caller, id: &SessionId, index: usize) -> Result<(), Error> {
    let record = find(door, caller, id).await?.record;
    let model = &record.agent.spec.model.id;
    if door.app.models.has_mid_conversation_system(model) {
        return Ok(());
    }
    let rule = format!("the model `{model}` takes no `system.message` in the middle of a conversation");
    let refusal = Invalid::new(format!("events[{index}].type"), rule);
    Err(refusal.with_code("model_does_not_support_mid_conversation_system").into())
}
