//! The door: the public HTTP API.
//!
//! One folder per resource, one file per endpoint. A request passes the outermost layer (`envelope`: its id,
//! its line in the trace, the standard error body), then the key (`auth`), then the beta header (`beta`), then its
//! endpoint, which parses what it is given into finished types and asks the store.
//!
//! The door decides nothing about sessions: what a session accepts is decided by `session` inside the store's
//! transaction. It never calls the harness; both meet in the store. Status codes and public text are in `error` and
//! nowhere else.

mod agents;
mod auth;
mod beta;
mod catalog;
mod credentials;
mod cursor;
mod envelope;
mod environments;
mod error;
mod events;
mod extract;
mod health;
mod models;
mod page;
mod query;
mod resources;
mod serve;
mod sessions;
mod sse;
mod threads;
mod vaults;

use std::sync::Arc;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, post};
use protocol::environment::Networking;
use protocol::resource_request::GitHosts;
use store::Store;
use tokio_util::sync::CancellationToken;
use vault::Credentials;

pub use catalog::{Catalog, ModelRule};
pub use health::{Condition, Health};
pub use serve::{serve, serve_health};

/// What the door needs.
#[derive(Clone)]
pub struct App {
    /// Where everything lasts.
    pub store: Store,
    /// What sessions may spend.
    pub credentials: Credentials,
    /// Which models there are.
    pub models: Arc<Catalog>,
    /// What the probes are told.
    pub health: Health,
    /// From which hosts besides GitHub repositories may come.
    pub git_hosts: GitHosts,
    /// What an environment may reach that says nothing about it.
    pub default_networking: Networking,
}

/// The API as a service, for tests and for servers of another kind. Its streams end when their clients go away.
pub fn router(app: App) -> Router {
    router_until(app, CancellationToken::new())
}

/// The API as a service whose streams end as soon as `stop` is cancelled.
pub(crate) fn router_until(app: App, stop: CancellationToken) -> Router {
    let probes = health::router(app.health.clone());
    let door = Door { app, known: Arc::default(), bodies: extract::Bodies::new(), stop };
    let managed = Router::new()
        .route("/v1/agents", post(agents::create).get(agents::list))
        .route("/v1/agents/{agent_id}", get(agents::retrieve).post(agents::update))
        .route("/v1/agents/{agent_id}/archive", post(agents::archive))
        .route("/v1/agents/{agent_id}/versions", get(agents::versions))
        .route("/v1/environments", post(environments::create).get(environments::list))
        .route(
            "/v1/environments/{environment_id}",
            get(environments::retrieve).post(environments::update).delete(environments::delete),
        )
        .route("/v1/environments/{environment_id}/archive", post(environments::archive))
        .route("/v1/vaults", post(vaults::create).get(vaults::list))
        .route("/v1/vaults/{vault_id}", get(vaults::retrieve).post(vaults::update).delete(vaults::delete))
        .route("/v1/vaults/{vault_id}/archive", post(vaults::archive))
        .route("/v1/vaults/{vault_id}/credentials", post(credentials::create).get(credentials::list))
        .route(
            "/v1/vaults/{vault_id}/credentials/{credential_id}",
            get(credentials::retrieve).post(credentials::update).delete(credentials::delete),
        )
        .route("/v1/vaults/{vault_id}/credentials/{credential_id}/archive", post(credentials::archive))
        .route(
            "/v1/vaults/{vault_id}/credentials/{credential_id}/mcp_oauth_validate",
            post(credentials::validate),
        )
        .route("/v1/sessions", post(sessions::create).get(sessions::list))
        .route(
            "/v1/sessions/{session_id}",
            get(sessions::retrieve).post(sessions::update).delete(sessions::delete),
        )
        .route("/v1/sessions/{session_id}/archive", post(sessions::archive))
        .route("/v1/sessions/{session_id}/snapshots", get(sessions::snapshots).post(sessions::take_snapshot))
        .route("/v1/sessions/{session_id}/resources", post(resources::add).get(resources::list))
        .route(
            "/v1/sessions/{session_id}/resources/{resource_id}",
            get(resources::retrieve).post(resources::update).delete(resources::delete),
        )
        .route("/v1/sessions/{session_id}/events", post(events::send).get(events::list))
        .route("/v1/sessions/{session_id}/events/stream", get(events::stream))
        .route_layer(from_fn(beta::required));
    let threads = Router::new()
        .route("/v1/sessions/{session_id}/threads", get(threads::list))
        .route("/v1/sessions/{session_id}/threads/{thread_id}", get(threads::retrieve))
        .route("/v1/sessions/{session_id}/threads/{thread_id}/archive", post(threads::archive))
        .route("/v1/sessions/{session_id}/threads/{thread_id}/events", get(threads::events))
        // Not `events/stream`: the reference has it so.
        .route("/v1/sessions/{session_id}/threads/{thread_id}/stream", get(threads::stream))
        .route_layer(from_fn(beta::required_on_threads));
    let models = Router::new()
        .route("/v1/models", get(models::list))
        .route("/v1/models/{model_id}", get(models::retrieve));
    managed
        .merge(threads)
        .merge(models)
        .route_layer(from_fn_with_state(door.clone(), auth::authenticate))
        .merge(probes.with_state(()))
        .method_not_allowed_fallback(envelope::no_such_method)
        .fallback(envelope::no_such_path)
        .layer(from_fn_with_state(door.clone(), envelope::envelope))
        .with_state(door)
}

/// What every request shares.
#[derive(Clone)]
pub(crate) struct Door {
    app: App,
    known: Arc<auth::Known>,
    bodies: extract::Bodies,
    stop: CancellationToken,
}
