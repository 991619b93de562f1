//! What all tests of this crate need.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use egress::{Guard, PrivateHosts};
use mcp::proxy::{Bearer, CredentialError, Used};
use mcp::{Connection, Credentials, Error, NoCredentials, Output, Proxy, Times};
use protocol::agent::{McpServer, McpServerTag};
use protocol::content::Content;
use protocol::id::{AgentId, CredentialId, SessionId, VaultId};
use serde_json::{Map, Value};
use tokio::time::Instant;

/// What is not about time does not hang on how busy the machine is.
pub(crate) const PATIENT: Times = Times {
    connect_max: Duration::from_secs(300),
    list_max: Duration::from_secs(300),
    call_quiet_max: Duration::from_secs(300),
    call_max: Duration::from_secs(300),
};

pub(crate) fn server(url: &str) -> McpServer {
    McpServer { tag: McpServerTag::Url, name: "linear".to_owned(), url: url.to_owned() }
}

pub(crate) fn session() -> SessionId {
    SessionId::from_text("sesn_1")
}

pub(crate) fn agent() -> AgentId {
    AgentId::from_text("agent_1")
}

pub(crate) fn later() -> Instant {
    Instant::now() + Duration::from_secs(3_600)
}

pub(crate) fn proxy_with(credentials: Arc<dyn Credentials>, times: Times) -> Arc<Proxy> {
    // The only error is that another test was faster.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let private: PrivateHosts = "127.0.0.1".parse().expect("valid");
    Proxy::new(Arc::new(Guard::new(private, 1..=u16::MAX)), credentials, times).expect("a client")
}

pub(crate) async fn connect_to(proxy: &Arc<Proxy>, url: &str) -> Result<Connection, Error> {
    let server = server(url);
    let token = proxy.issue(&session(), &agent(), std::slice::from_ref(&server), later());
    proxy.connect(&token, &session(), &server).await
}

pub(crate) async fn connect(url: &str) -> Result<Connection, Error> {
    connect_to(&proxy_with(Arc::new(NoCredentials), PATIENT), url).await
}

/// Lists and calls, as a brain does.
pub(crate) async fn called(connection: &Connection, tool: &str, arguments: Value) -> Result<Output, Error> {
    let arguments: Map<String, Value> = arguments.as_object().expect("an object").clone();
    connection.call(tool, arguments).await?.output().await
}

pub(crate) fn text_of(output: &Output) -> String {
    let texts = output.content.iter().filter_map(|block| match block {
        Content::Text { text } => Some(text.as_str()),
        _ => None,
    });
    texts.collect::<Vec<_>>().join("\n")
}

pub(crate) fn failed<T>(result: Result<T, Error>) -> Error {
    match result {
        Ok(_) => panic!("it worked"),
        Err(error) => error,
    }
}

/// A vault with one credential, and what it is renewed to.
#[derive(Default)]
pub(crate) struct Vault {
    pub(crate) token: Mutex<Option<String>>,
    pub(crate) renewed: Mutex<VecDeque<String>>,
    pub(crate) lookups: Mutex<Vec<String>>,
    pub(crate) uses: Mutex<Vec<String>>,
}

fn bearer(token: &str) -> Option<Bearer> {
    Bearer::new(token, VaultId::from_text("vlt_1"), CredentialId::from_text("vcrd_1"))
}

impl Vault {
    pub(crate) fn with(token: &str, renewed: &[&str]) -> Arc<Self> {
        let renewed = renewed.iter().map(|token| (*token).to_owned()).collect();
        let vault = Self {
            token: Mutex::new(Some(token.to_owned())),
            renewed: Mutex::new(renewed),
            ..Self::default()
        };
        Arc::new(vault)
    }
}

#[async_trait]
impl Credentials for Vault {
    async fn bearer(&self, session: &SessionId, url: &str) -> Result<Option<Bearer>, CredentialError> {
        self.lookups.lock().expect("not poisoned").push(format!("{session} {url}"));
        let token = self.token.lock().expect("not poisoned").clone();
        Ok(token.and_then(|token| bearer(&token)))
    }

    async fn after_401(
        &self,
        _: &SessionId,
        _: &str,
        refused: &Bearer,
    ) -> Result<Option<Bearer>, CredentialError> {
        assert_eq!(refused.credential().as_str(), "vcrd_1");
        let renewed = self.renewed.lock().expect("not poisoned").pop_front();
        if let Some(token) = &renewed {
            *self.token.lock().expect("not poisoned") = Some(token.clone());
        }
        Ok(renewed.and_then(|token| bearer(&token)))
    }

    fn used(&self, used: Used<'_>) {
        let Used { session, agent, bearer, host, was_accepted } = used;
        let (vault, credential) = (bearer.vault(), bearer.credential());
        let line = format!("{session} {agent} {vault} {credential} {host} {was_accepted}");
        self.uses.lock().expect("not poisoned").push(line);
    }
}
