//! `POST /v1/sessions`: takes a snapshot of the agent and of the environment's configuration.

use axum::Json;
use axum::extract::State;
use protocol::agent::{Agent, SessionAgent};
use protocol::environment::{Environment, EnvironmentConfig};
use protocol::environment_request::ENVIRONMENT_ARCHIVED;
use protocol::event::Snapshot;
use protocol::hands::HandsSettings;
use protocol::id::{SessionId, VaultId};
use protocol::parse::Invalid;
use protocol::resource::Resource;
use protocol::resource_request::{RepositoryCreate, check_places};
use protocol::session::{Session, Status};
use protocol::session_request::SessionCreate;
use protocol::time::Timestamp;
use protocol::vault_request::VAULT_ARCHIVED;
use session::Record;
use store::{Brought, NewSession, SealedToken};

use super::{SESSION, shown};
use crate::auth::Caller;
use crate::error::Error;
use crate::extract::{Body, NoQuery};
use crate::vaults::VAULT;
use crate::{App, Catalog, Door};

pub(crate) async fn create(
    State(door): State<Door>,
    caller: Caller,
    _: NoQuery,
    Body(body): Body,
) -> Result<Json<Session>, Error> {
    let SessionCreate {
        agent: choice,
        environment_id,
        title,
        metadata,
        vault_ids,
        initial_events,
        resources,
        workspace_from,
    } = SessionCreate::parse(body)?;
    let store = &door.app.store;

    let agent = store.get_agent(&caller.workspace, &choice.id, choice.version).await?;
    let agent = agent.ok_or_else(|| Error::missing_agent(&choice.id, choice.version))?;
    refuse_archived(&agent)?;
    let agent = choice.snapshot(&agent)?;
    refuse_unserved_model(&door.app.models, &agent)?;

    let environment = store.get_environment(&caller.workspace, &environment_id).await?;
    let environment = environment.ok_or_else(|| Error::missing_environment(&environment_id))?;
    refuse_unbuilt(&environment)?;

    find_vaults(&door, &caller, &vault_ids).await?;

    let now = store.now();
    if workspace_from.is_some() && !resources.is_empty() {
        let rule = "cannot be used with `workspace.from_session`: what was saved is not added to";
        return Err(Invalid::new("resources", rule).into());
    }
    let snapshot = match workspace_from {
        None => None,
        Some(from) => Some(saved_workspace(&door, &caller, &from, now).await?),
    };
    let id: SessionId = store.ids().make();
    let (resources, tokens) = attach(&door, &caller, &id, resources, now).await?;
    let record = Record {
        id: id.clone(),
        agent,
        environment_id,
        hands: HandsSettings::of(&environment.metadata, "environment_id")?,
        environment: environment.config,
        title,
        metadata,
        vault_ids,
        resources,
        created_at: now,
        updated_at: now,
        archived_at: None,
    };
    let new = NewSession {
        workspace: caller.workspace,
        record,
        thread_id: store.ids().make(),
        initial: initial_events,
    };
    let brought = Brought { snapshot, tokens };
    let made =
        store.create_session_with(new, brought).await.map_err(|error| Error::change(error, SESSION, id))?;
    Ok(Json(shown(&made, store)))
}

/// What is put into the session's workspace, and its tokens, sealed. Nothing is asked of a host yet.
async fn attach(
    door: &Door,
    caller: &Caller,
    session: &SessionId,
    creates: Vec<RepositoryCreate>,
    now: Timestamp,
) -> Result<(Vec<Resource>, Vec<SealedToken>), Error> {
    let App { store, credentials, git_hosts, .. } = &door.app;
    let mut attached = Vec::with_capacity(creates.len());
    for (index, create) in creates.into_iter().enumerate() {
        let path = format!("resources[{index}]");
        attached.push(create.into_resource(store.ids().make(), git_hosts, now, &path)?);
    }
    let (mut resources, mut tokens) = (Vec::new(), Vec::new());
    let mut secrets = Vec::new();
    for (repository, token) in attached {
        secrets.extend(token.map(|token| (repository.id.clone(), token)));
        resources.push(Resource::GithubRepository(repository));
    }
    check_places(&resources, "resources")?;
    for (id, token) in secrets {
        tokens.push(credentials.seal_token(&caller.workspace, session, &id, &token).await?);
    }
    Ok((resources, tokens))
}

/// What was saved of that session's workspace last. How long this one's is kept counts from now.
async fn saved_workspace(
    door: &Door,
    caller: &Caller,
    from: &SessionId,
    now: Timestamp,
) -> Result<Snapshot, Error> {
    let path = "workspace.from_session";
    let found = door.app.store.get_session(&caller.workspace, from).await?;
    let found = found.ok_or_else(|| Invalid::new(path, format!("there is no session {from}")))?;
    let snapshot = found.state.snapshot.filter(|_| found.state.status != Status::Terminated).ok_or_else(|| {
        let rule = format!(
            "{from} has no saved workspace: one is saved when nobody has used its sandbox for a while, or at once by POST \
             /v1/sessions/{from}/snapshots, and is kept as long as the session is not over"
        );
        Invalid::new(path, rule).with_code(NO_SNAPSHOT)
    })?;
    Ok(Snapshot { begun_at: now, ..snapshot })
}

/// Only vaults that are there, and not archived. What they hold is looked for when it is spent.
async fn find_vaults(door: &Door, caller: &Caller, ids: &[VaultId]) -> Result<(), Error> {
    for (index, id) in ids.iter().enumerate() {
        let vault = door.app.store.get_vault(&caller.workspace, id).await?;
        let vault = vault.ok_or_else(|| Error::missing(VAULT, id))?;
        if vault.archived_at.is_some() {
            let rule = format!("{id} is archived; no new session can spend what it held");
            return Err(Invalid::new(format!("vault_ids[{index}]"), rule).with_code(VAULT_ARCHIVED).into());
        }
    }
    Ok(())
}

/// The code of a refusal: that session has nothing saved.
const NO_SNAPSHOT: &str = "workspace_not_saved";

fn refuse_archived(agent: &Agent) -> Result<(), Invalid> {
    match agent.archived_at {
        None => Ok(()),
        Some(_) => Err(Invalid::new("agent", format!("{} is archived; no new session can run it", agent.id))),
    }
}

fn refuse_unserved_model(models: &Catalog, agent: &SessionAgent) -> Result<(), Invalid> {
    let model = &agent.spec.model.id;
    if models.resolves(model) {
        return Ok(());
    }
    let rule = format!(
        "no provider serves the model `{model}`: name it in the server's configuration, or set the key of a \
         provider that serves it"
    );
    Err(Invalid::new("agent.model", rule))
}

fn refuse_unbuilt(environment: &Environment) -> Result<(), Invalid> {
    let path = "environment_id";
    if environment.archived_at.is_some() {
        let rule = format!("{} is archived; no new session can be made in it", environment.id);
        return Err(Invalid::new(path, rule).with_code(ENVIRONMENT_ARCHIVED));
    }
    match &environment.config {
        EnvironmentConfig::SelfHosted {} => {
            Err(Invalid::unbuilt(path, "a session in a `self_hosted` environment"))
        }
        EnvironmentConfig::Cloud { .. } => Ok(()),
    }
}
