//! What this process knows of servers' tools, and the proxy that connects to them.
//!
//! A list is kept for the session that it was given to: what a server lists may hang on whose credential asks. With a list
//! at hand a session's next request leaves at once, and its servers are connected to meanwhile.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mcp::{Proxy, Tool};
use protocol::id::SessionId;
use tokio::time::Instant;

/// How long a model request waits for servers whose lists are not known.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// How long a list is good enough to begin with.
const AGE_MAX: Duration = Duration::from_secs(10 * 60);
/// How many lists are kept, and how much they may take together, roughly: their descriptions and schemas as JSON.
const LISTS_MAX: usize = 4_096;
const BYTES_MAX: usize = 64 << 20;

/// What connects a brain's sessions to MCP servers.
pub struct McpServers {
    pub(super) proxy: Arc<Proxy>,
    pub(super) wait_max: Duration,
    lists: Mutex<Lists>,
}

#[derive(Default)]
struct Lists {
    by_place: HashMap<(SessionId, String), List>,
    bytes: usize,
}

struct List {
    tools: Arc<Vec<Tool>>,
    bytes: usize,
    at: Instant,
}

impl McpServers {
    /// Over a proxy.
    pub fn new(proxy: Arc<Proxy>) -> Self {
        Self { proxy, wait_max: WAIT_MAX, lists: Mutex::default() }
    }

    /// The same, with another bound on how long a request waits for servers that it knows no list of.
    #[must_use]
    pub fn with_wait_max(self, wait_max: Duration) -> Self {
        Self { wait_max, ..self }
    }

    /// The list that a session was given last, if that is not too long ago.
    pub(super) fn known(&self, session: &SessionId, url: &str) -> Option<Arc<Vec<Tool>>> {
        let lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        let list = lists.by_place.get(&(session.clone(), url.to_owned()))?;
        (list.at.elapsed() < AGE_MAX).then(|| Arc::clone(&list.tools))
    }

    pub(super) fn keep(&self, session: &SessionId, url: &str, tools: &Arc<Vec<Tool>>) {
        let mut lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        lists.forget(session, url);
        let bytes = serde_json::to_vec(
            &tools.iter().map(|tool| (&tool.description, &tool.input_schema)).collect::<Vec<_>>(),
        )
        .map_or(0, |json| json.len());
        let list = List { tools: Arc::clone(tools), bytes, at: Instant::now() };
        lists.bytes += bytes;
        lists.by_place.insert((session.clone(), url.to_owned()), list);
        while lists.by_place.len() > LISTS_MAX || lists.bytes > BYTES_MAX {
            let Some((session, url)) =
                lists.by_place.iter().min_by_key(|(_, list)| list.at).map(|(place, _)| place.clone())
            else {
                break;
            };
            lists.forget(&session, &url);
        }
    }

    pub(super) fn forget(&self, session: &SessionId, url: &str) {
        self.lists.lock().unwrap_or_else(PoisonError::into_inner).forget(session, url);
    }
}

impl Lists {
    fn forget(&mut self, session: &SessionId, url: &str) {
        if let Some(list) = self.by_place.remove(&(session.clone(), url.to_owned())) {
            self.bytes -= list.bytes;
        }
    }
}
