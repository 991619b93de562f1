//! A typed client of our own API, for the command line and for tests.
//!
//! Answers are typed; requests are JSON as the reference has it, because whoever writes one knows its shape and the
//! server names what is wrong. Nothing is retried and nothing reconnects by itself: [`Stream::position`] is what a
//! caller needs to do so.
//!
//! The key goes into one header and nowhere else: neither `Debug` nor any error shows it.

mod error;
mod request;
mod stream;

use protocol::agent::Agent;
use protocol::credential::Credential;
use protocol::credential_validation::CredentialValidation;
use protocol::environment::Environment;
use protocol::event::{Event, PreviewKind};
use protocol::model::ModelPage;
use protocol::page::{BidirectionalPage, Page};
use protocol::position::Position;
use protocol::session::{Session, Thread};
use protocol::vault::Vault;
use serde::Deserialize;
use serde_json::{Value, json};

pub use error::Error;
pub use request::Client;
pub use stream::{Item, Stream};

/// The parameters of a list: names and values as they stand in the address, unencoded.
pub type Query<'a> = &'a [(&'a str, &'a str)];

/// A list that comes whole, such as the echoes of what was sent.
#[derive(Deserialize)]
struct Data<T> {
    data: Vec<T>,
}

/// What is left of something deleted.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub struct Deleted {
    /// Its id.
    pub id: String,
}

impl Client {
    /// Makes an agent.
    pub async fn create_agent(&self, body: Value) -> Result<Agent, Error> {
        self.post(&["v1", "agents"], &body).await
    }

    /// An agent at its latest version.
    pub async fn get_agent(&self, id: &str) -> Result<Agent, Error> {
        self.get(&["v1", "agents", id], &[]).await
    }

    /// A page of agents.
    pub async fn list_agents(&self, query: Query<'_>) -> Result<Page<Agent>, Error> {
        self.get(&["v1", "agents"], query).await
    }

    /// Changes an agent.
    pub async fn update_agent(&self, id: &str, body: Value) -> Result<Agent, Error> {
        self.post(&["v1", "agents", id], &body).await
    }

    /// Archives an agent.
    pub async fn archive_agent(&self, id: &str) -> Result<Agent, Error> {
        self.post(&["v1", "agents", id, "archive"], &json!({})).await
    }

    /// A page of an agent's versions.
    pub async fn list_agent_versions(&self, id: &str, query: Query<'_>) -> Result<Page<Agent>, Error> {
        self.get(&["v1", "agents", id, "versions"], query).await
    }

    /// Makes an environment.
    pub async fn create_environment(&self, body: Value) -> Result<Environment, Error> {
        self.post(&["v1", "environments"], &body).await
    }

    /// An environment.
    pub async fn get_environment(&self, id: &str) -> Result<Environment, Error> {
        self.get(&["v1", "environments", id], &[]).await
    }

    /// A page of environments.
    pub async fn list_environments(&self, query: Query<'_>) -> Result<Page<Environment>, Error> {
        self.get(&["v1", "environments"], query).await
    }

    /// Changes an environment.
    pub async fn update_environment(&self, id: &str, body: Value) -> Result<Environment, Error> {
        self.post(&["v1", "environments", id], &body).await
    }

    /// Archives an environment.
    pub async fn archive_environment(&self, id: &str) -> Result<Environment, Error> {
        self.post(&["v1", "environments", id, "archive"], &json!({})).await
    }

    /// Deletes an environment.
    pub async fn delete_environment(&self, id: &str) -> Result<Deleted, Error> {
        self.delete(&["v1", "environments", id]).await
    }

    /// Makes a vault.
    pub async fn create_vault(&self, body: Value) -> Result<Vault, Error> {
        self.post(&["v1", "vaults"], &body).await
    }

    /// A page of vaults.
    pub async fn list_vaults(&self, query: Query<'_>) -> Result<Page<Vault>, Error> {
        self.get(&["v1", "vaults"], query).await
    }

    /// Archives a vault and what it holds.
    pub async fn archive_vault(&self, id: &str) -> Result<Vault, Error> {
        self.post(&["v1", "vaults", id, "archive"], &json!({})).await
    }

    /// Deletes a vault and what it holds.
    pub async fn delete_vault(&self, id: &str) -> Result<Deleted, Error> {
        self.delete(&["v1", "vaults", id]).await
    }

    /// Puts a credential into a vault.
    pub async fn create_credential(&self, vault: &str, body: Value) -> Result<Credential, Error> {
        self.post(&["v1", "vaults", vault, "credentials"], &body).await
    }

    /// A page of a vault's credentials.
    pub async fn list_credentials(&self, vault: &str, query: Query<'_>) -> Result<Page<Credential>, Error> {
        self.get(&["v1", "vaults", vault, "credentials"], query).await
    }

    /// Changes a credential.
    pub async fn update_credential(&self, vault: &str, id: &str, body: Value) -> Result<Credential, Error> {
        self.post(&["v1", "vaults", vault, "credentials", id], &body).await
    }

    /// Archives a credential.
    pub async fn archive_credential(&self, vault: &str, id: &str) -> Result<Credential, Error> {
        self.post(&["v1", "vaults", vault, "credentials", id, "archive"], &json!({})).await
    }

    /// Deletes a credential.
    pub async fn delete_credential(&self, vault: &str, id: &str) -> Result<Deleted, Error> {
        self.delete(&["v1", "vaults", vault, "credentials", id]).await
    }

    /// Tries a credential of the type `mcp_oauth` out at its server.
    pub async fn validate_credential(&self, vault: &str, id: &str) -> Result<CredentialValidation, Error> {
        self.post(&["v1", "vaults", vault, "credentials", id, "mcp_oauth_validate"], &json!({})).await
    }

    /// Makes a session.
    pub async fn create_session(&self, body: Value) -> Result<Session, Error> {
        self.post(&["v1", "sessions"], &body).await
    }

    /// A session.
    pub async fn get_session(&self, id: &str) -> Result<Session, Error> {
        self.get(&["v1", "sessions", id], &[]).await
    }

    /// A page of sessions.
    pub async fn list_sessions(&self, query: Query<'_>) -> Result<BidirectionalPage<Session>, Error> {
        self.get(&["v1", "sessions"], query).await
    }

    /// Changes a session.
    pub async fn update_session(&self, id: &str, body: Value) -> Result<Session, Error> {
        self.post(&["v1", "sessions", id], &body).await
    }

    /// Archives a session.
    pub async fn archive_session(&self, id: &str) -> Result<Session, Error> {
        self.post(&["v1", "sessions", id, "archive"], &json!({})).await
    }

    /// What is saved of a session's workspace, as the extension shows it.
    pub async fn list_snapshots(&self, id: &str) -> Result<Value, Error> {
        self.get(&["v1", "sessions", id, "snapshots"], &[]).await
    }

    /// Asks that a session's workspace be saved now; gives the snapshot, or that it is pending.
    pub async fn take_snapshot(&self, id: &str) -> Result<Value, Error> {
        self.post(&["v1", "sessions", id, "snapshots"], &json!({})).await
    }

    /// Deletes a session.
    pub async fn delete_session(&self, id: &str) -> Result<Deleted, Error> {
        self.delete(&["v1", "sessions", id]).await
    }

    /// Sends events; gives them back as the session took them, in order.
    pub async fn send_events(&self, id: &str, events: Value) -> Result<Vec<Event>, Error> {
        let sent: Data<Event> =
            self.post(&["v1", "sessions", id, "events"], &json!({ "events": events })).await?;
        Ok(sent.data)
    }

    /// Sends a `user.message` of one text.
    pub async fn send_message(&self, id: &str, text: &str) -> Result<Vec<Event>, Error> {
        let content = json!([{"type": "text", "text": text}]);
        self.send_events(id, json!([{"type": "user.message", "content": content}])).await
    }

    /// Sends a `user.interrupt`.
    pub async fn interrupt(&self, id: &str) -> Result<Vec<Event>, Error> {
        self.send_events(id, json!([{"type": "user.interrupt"}])).await
    }

    /// A page of a session's events.
    pub async fn list_events(&self, id: &str, query: Query<'_>) -> Result<Page<Event>, Error> {
        self.get(&["v1", "sessions", id, "events"], query).await
    }

    /// All of a session's events, oldest first, page by page.
    pub async fn all_events(&self, id: &str) -> Result<Vec<Event>, Error> {
        let mut page = self.list_events(id, &[]).await?;
        let mut events = page.data;
        while let Some(next) = page.next_page.take() {
            page = self.list_events(id, &[("page", &next)]).await?;
            events.append(&mut page.data);
        }
        Ok(events)
    }

    /// Follows a session: from now on, or from the event after a position. Shows the previews asked for.
    pub async fn stream(
        &self,
        id: &str,
        after: Option<Position>,
        deltas: &[PreviewKind],
    ) -> Result<Stream, Error> {
        let after = after.map(|position| position.to_string());
        let mut query: Vec<(&str, &str)> =
            deltas.iter().map(|kind| ("event_deltas[]", name(*kind))).collect();
        query.extend(after.as_deref().map(|after| ("after", after)));
        let answer = self.open(&["v1", "sessions", id, "events", "stream"], &query).await?;
        Ok(Stream::new(answer))
    }

    /// A session's threads.
    pub async fn list_threads(&self, id: &str) -> Result<Page<Thread>, Error> {
        self.get(&["v1", "sessions", id, "threads"], &[]).await
    }

    /// The server's models.
    pub async fn list_models(&self, query: Query<'_>) -> Result<ModelPage, Error> {
        self.get(&["v1", "models"], query).await
    }

    /// Whether the server answers.
    pub async fn health(&self) -> Result<(), Error> {
        let _: Value = self.get(&["health"], &[]).await?;
        Ok(())
    }
}

fn name(kind: PreviewKind) -> &'static str {
    match kind {
        PreviewKind::Message => "agent.message",
        PreviewKind::Thinking => "agent.thinking",
    }
}
