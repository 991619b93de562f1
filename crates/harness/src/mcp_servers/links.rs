//! One drive's links to its agent's MCP servers.
//!
//! ```text
//!   connecting ──▶ up ──────────────┐ connection lost, and a call wants it
//!       │   ▲                       ▼
//!       └──▶ down ───────────▶ connecting
//! ```
//!
//! All are begun together when a turn first wants them, and go on by themselves. What a turn's first request finds decides
//! what the model is offered until the turn is over; what comes later is for the next. A turn that follows in the same drive
//! has links of its own, so that what could not be reached is tried again.

use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt as _, Shared, join_all};
use mcp::{Connection, Error, SessionToken, Tool};
use protocol::agent::{AgentSpec, McpServer};
use protocol::id::{AgentId, SessionId};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;

use super::{McpServers, Offer};

/// What comes of connecting.
type Attempt = Shared<BoxFuture<'static, Result<Arc<Linked>, Error>>>;

/// A connection, with what its server listed.
pub(crate) struct Linked {
    pub(crate) connection: Connection,
    tools: Arc<Vec<Tool>>,
}

impl Linked {
    /// Whether the server says of a tool that it may be called again.
    pub(crate) fn is_repeatable(&self, tool: &str) -> bool {
        self.tools.iter().any(|known| known.name == tool && known.repeatable)
    }
}

/// The links of one turn.
pub(crate) struct Links {
    servers: Arc<McpServers>,
    tracker: TaskTracker,
    session: SessionId,
    token: SessionToken,
    links: Vec<Link>,
    /// What the model is offered, once that is settled.
    offer: Option<Arc<Offer>>,
}

struct Link {
    server: McpServer,
    attempt: Attempt,
    task: AbortHandle,
    /// The list from before, while there is none from this attempt.
    known: Option<Arc<Vec<Tool>>>,
    /// Whether the client has been told that it failed.
    is_told: bool,
}

impl Links {
    /// Begins to connect to all servers of an agent. The lease is held until then.
    pub(crate) fn begin(
        servers: &Arc<McpServers>,
        tracker: &TaskTracker,
        session: &SessionId,
        agent: &AgentId,
        spec: &AgentSpec,
        held_until: Instant,
    ) -> Self {
        let token = servers.proxy.issue(session, agent, &spec.mcp_servers, held_until);
        let mut links = Self {
            servers: Arc::clone(servers),
            tracker: tracker.clone(),
            session: session.clone(),
            token,
            links: Vec::new(),
            offer: None,
        };
        links.links = spec
            .mcp_servers
            .iter()
            .map(|server| {
                let (attempt, task) = links.connect(server);
                let known = servers.known(session, &server.url);
                Link { server: server.clone(), attempt, task, known, is_told: false }
            })
            .collect();
        links
    }

    fn connect(&self, server: &McpServer) -> (Attempt, AbortHandle) {
        let (servers, session) = (Arc::clone(&self.servers), self.session.clone());
        let (token, server) = (self.token.clone(), server.clone());
        let connecting = async move {
            let connection = servers.proxy.connect(&token, &session, &server).await?;
            let tools = Arc::new(connection.tools().await?);
            servers.keep(&session, &server.url, &tools);
            Ok(Arc::new(Linked { connection, tools }))
        };
        let task = self.tracker.spawn(connecting);
        let abort = task.abort_handle();
        let ended = async { Err(Error::Unreachable("the attempt to connect ended".to_owned())) };
        let attempt = async move {
            match task.await {
                Ok(linked) => linked,
                Err(_) => ended.await,
            }
        };
        (attempt.boxed().shared(), abort)
    }

    /// The lease was confirmed: it is held until then.
    pub(crate) fn extend(&self, held_until: Instant) {
        self.servers.proxy.extend(&self.token, held_until);
    }

    /// Whether a request has to wait before it is known what it can offer, or there is news for the client.
    pub(crate) fn is_unsettled(&self) -> bool {
        self.offer.is_none() || self.links.iter().any(Link::has_news)
    }

    /// Waits until every server has a list or has failed, but no longer than it is worth.
    pub(crate) fn ready(&self) -> impl Future<Output = ()> + Send + 'static {
        let missing = self.links.iter().filter(|link| link.known.is_none());
        let missing = join_all(missing.map(|link| link.attempt.clone()));
        let limit = self.servers.wait_max;
        async move {
            let _ = timeout(limit, missing).await;
        }
    }

    /// Decides what the turn's requests offer, if that is open, and gives the failures that the client has not heard of.
    pub(crate) fn settle(&mut self, spec: &AgentSpec) -> Vec<(String, Error)> {
        if self.offer.is_none() {
            let lists: Vec<(&str, Arc<Vec<Tool>>)> = self
                .links
                .iter()
                .filter_map(|link| Some((link.server.name.as_str(), link.tools()?)))
                .collect();
            self.offer = Some(Arc::new(Offer::new(spec, &lists)));
        }
        let limit = self.servers.wait_max;
        let mut failures = Vec::new();
        for link in &mut self.links {
            if link.is_told {
                continue;
            }
            let failure = match link.attempt.peek() {
                Some(Ok(_)) => None,
                Some(Err(error)) => {
                    // What it listed once is not worth beginning with any more.
                    self.servers.forget(&self.session, &link.server.url);
                    Some(error.clone())
                }
                None if link.known.is_none() => {
                    let text = format!("the server was not ready within {} s", limit.as_secs_f64());
                    Some(Error::Unreachable(text))
                }
                None => None,
            };
            if let Some(failure) = failure {
                link.is_told = true;
                failures.push((link.server.name.clone(), failure));
            }
        }
        failures
    }

    /// What the model is offered in this turn; nothing before that is settled.
    pub(crate) fn offer(&self) -> Option<Arc<Offer>> {
        self.offer.clone()
    }

    /// The connection to a server, made anew if it is lost or was never had; `None` if the agent has no such server.
    pub(crate) fn linked(&mut self, server: &str) -> Option<Attempt> {
        let index = self.links.iter().position(|link| link.server.name == server)?;
        let is_over = match self.links[index].attempt.peek() {
            Some(Ok(linked)) => linked.connection.is_closed(),
            Some(Err(_)) => true,
            None => false,
        };
        if is_over {
            let (attempt, task) = self.connect(&self.links[index].server);
            self.links[index].attempt = attempt;
            self.links[index].task = task;
        }
        Some(self.links[index].attempt.clone())
    }

    /// Says goodbye to the servers, beside whatever comes next, and gives the token back.
    pub(crate) fn finish(mut self) {
        let links = std::mem::take(&mut self.links);
        let tracker = self.tracker.clone();
        tracker.spawn(async move {
            let farewells = links.into_iter().map(|link| {
                let Link { server, attempt, task, known: _, is_told: _ } = link;
                task.abort();
                let ended = attempt.peek().cloned();
                drop(attempt);
                let linked = match ended {
                    Some(Ok(linked)) => Some(linked),
                    // The next turn waits, and its client hears of it.
                    Some(Err(_)) => {
                        self.servers.forget(&self.session, &server.url);
                        None
                    }
                    None => None,
                };
                if linked.as_ref().is_some_and(|linked| linked.connection.is_stale()) {
                    self.servers.forget(&self.session, &server.url);
                }
                async move {
                    // Nobody else holds it: calls are over when a drive is.
                    if let Some(linked) = linked.and_then(Arc::into_inner) {
                        linked.connection.close().await;
                    }
                }
            });
            join_all(farewells).await;
            drop(self);
        });
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.servers.proxy.revoke(&self.token);
        for link in &self.links {
            link.task.abort();
        }
    }
}

impl Link {
    fn has_news(&self) -> bool {
        !self.is_told && matches!(self.attempt.peek(), Some(Err(_)))
    }

    fn tools(&self) -> Option<Arc<Vec<Tool>>> {
        match self.attempt.peek() {
            Some(Ok(linked)) => Some(Arc::clone(&linked.tools)),
            Some(Err(_)) => None,
            None => self.known.clone(),
        }
    }
}
