//! What one sandbox may reach, by name. Whether the addresses behind a name may be reached is the guard's question.

use std::fmt;
use std::sync::LazyLock;

use protocol::agent::McpServer;
use protocol::environment::Networking;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::host::{Host, Pattern, PatternError};
use crate::refusal::Refusal;
use crate::registries::PACKAGE_REGISTRIES;

/// What one sandbox may reach. Handed from process to process as JSON; a field that is not known is refused, as it could
/// only limit more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Policy {
    /// Everything public, and the private hosts that the operator allows.
    Unrestricted {},
    /// Only what is listed. A listed host is still refused if it leads to an address that the guard refuses.
    Limited {
        /// The environment's own list.
        allowed_hosts: Vec<Pattern>,
        /// The hosts of the agent's MCP servers, if the environment allows them.
        mcp_hosts: Vec<Pattern>,
        /// Whether the hosts of [`PACKAGE_REGISTRIES`] may be reached too.
        allow_package_managers: bool,
    },
}

/// What a sandbox may reach and for whom, as it is handed from process to process beside its listener. Fields are only
/// ever added, with a default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The session's id: whose credentials are spent by this exit, and for the log.
    #[serde(default)]
    pub session: Option<String>,
    /// What it may reach.
    pub policy: Policy,
}

impl Grant {
    /// As text.
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).expect("a grant is plain data")
    }

    /// From text.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }
}

/// By which rule a host is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// The policy is unrestricted.
    Unrestricted,
    /// The environment lists it: the entry.
    Host(Pattern),
    /// It is the host of an MCP server.
    McpServer,
    /// It is a package registry.
    PackageRegistry,
}

static REGISTRIES: LazyLock<Vec<Pattern>> = LazyLock::new(|| {
    PACKAGE_REGISTRIES.iter().map(|host| host.parse().expect("the list holds host patterns")).collect()
});

impl Policy {
    /// Nothing may be reached.
    pub const NOTHING: Self =
        Self::Limited { allowed_hosts: Vec::new(), mcp_hosts: Vec::new(), allow_package_managers: false };

    /// The policy of a sandbox in an environment. The hosts of the agent's MCP servers count only if the environment allows
    /// them. Fails on an entry that is no host pattern.
    pub fn new(networking: &Networking, mcp_servers: &[McpServer]) -> Result<Self, PatternError> {
        match networking {
            Networking::Unrestricted {} => Ok(Self::Unrestricted {}),
            Networking::Limited { allowed_hosts, allow_mcp_servers, allow_package_managers } => {
                let mcp_servers = mcp_servers.iter().filter(|_| *allow_mcp_servers);
                let mcp_hosts =
                    mcp_servers.filter_map(|server| Url::parse(&server.url).ok()?.host_str().map(str::parse));
                Ok(Self::Limited {
                    allowed_hosts: allowed_hosts.iter().map(|host| host.parse()).collect::<Result<_, _>>()?,
                    mcp_hosts: mcp_hosts.collect::<Result<_, _>>()?,
                    allow_package_managers: *allow_package_managers,
                })
            }
        }
    }

    /// By which rule the host may be reached, or that it may not.
    pub fn decide(&self, host: &Host) -> Result<Allowed, Refusal> {
        let (allowed_hosts, mcp_hosts, allow_package_managers) = match self {
            Self::Unrestricted {} => return Ok(Allowed::Unrestricted),
            Self::Limited { allowed_hosts, mcp_hosts, allow_package_managers } => {
                (allowed_hosts, mcp_hosts, *allow_package_managers)
            }
        };
        if let Some(pattern) = allowed_hosts.iter().find(|pattern| pattern.covers(host)) {
            return Ok(Allowed::Host(pattern.clone()));
        }
        if mcp_hosts.iter().any(|pattern| pattern.covers(host)) {
            return Ok(Allowed::McpServer);
        }
        if allow_package_managers && REGISTRIES.iter().any(|pattern| pattern.covers(host)) {
            return Ok(Allowed::PackageRegistry);
        }
        Err(Refusal::NotAllowed { host: host.clone() })
    }

    /// True if only what is listed may be reached, so that what is asked for must be seen to be what is reached.
    pub(crate) fn is_limited(&self) -> bool {
        match self {
            Self::Unrestricted {} => false,
            Self::Limited { .. } => true,
        }
    }
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unrestricted => f.write_str("unrestricted"),
            Self::Host(pattern) => write!(f, "allowed_hosts:{pattern}"),
            Self::McpServer => f.write_str("allow_mcp_servers"),
            Self::PackageRegistry => f.write_str("allow_package_managers"),
        }
    }
}
