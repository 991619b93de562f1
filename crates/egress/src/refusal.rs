//! Why something was not reached, in words for whoever asked.
//!
//! Nothing here tells an address that was looked up: who asks from inside a sandbox could map the operator's network with
//! it. The log has it.

use std::net::IpAddr;

use crate::host::Host;

/// Why a host is not reached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The text is no host.
    #[error("this is no host that can be reached: {why}")]
    Host {
        /// What is wrong with it.
        why: &'static str,
    },
    /// The policy does not name the host.
    #[error("{host} is not among the hosts that this environment may reach")]
    NotAllowed {
        /// The host.
        host: Host,
    },
    /// The port is not open.
    #[error("port {port} of {host} is not open")]
    Port {
        /// The host.
        host: Host,
        /// The port.
        port: u16,
    },
    /// No address of the host may be reached.
    #[error("{host} leads to {kind}")]
    Address {
        /// The host.
        host: Host,
        /// The first address that was refused. For the log, not for who asked.
        address: IpAddr,
        /// What kind of address it is.
        kind: &'static str,
        /// True if an operator could allow it.
        can_be_allowed: bool,
    },
    /// The name has no address.
    #[error("the name {host} cannot be resolved")]
    Unresolved {
        /// The host.
        host: Host,
        /// What the resolver said. For the log.
        reason: String,
    },
    /// The name servers did not answer in time.
    #[error("resolving the name {host} took too long")]
    LookupTimeout {
        /// The host.
        host: Host,
    },
    /// The URL is not one that the guarded client asks.
    #[error("this URL is not asked: {why}")]
    Url {
        /// What is wrong with it.
        why: &'static str,
    },
}

impl Refusal {
    /// The rule's name, as the log and the `x-posthouse-egress` header show it.
    pub fn rule(&self) -> &'static str {
        match self {
            Self::Host { .. } => "host",
            Self::NotAllowed { .. } => "not_allowed",
            Self::Port { .. } => "port",
            Self::Address { .. } => "address",
            Self::Unresolved { .. } => "unresolved",
            Self::LookupTimeout { .. } => "lookup_timeout",
            Self::Url { .. } => "url",
        }
    }

    /// What would allow it, if anything would.
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::NotAllowed { host } => Some(format!(
                "Add `{host}` to `allowed_hosts` of the environment's networking (or use `unrestricted` networking); \
                 it holds for sandboxes made afterwards."
            )),
            Self::Port { host, port } => Some(format!(
                "The operator of this server can open the port for all hosts, or list `{host}:{port}` among the private \
                 hosts that are allowed."
            )),
            Self::Address { host, can_be_allowed: true, .. } => Some(format!(
                "The operator of this server can list `{host}` among the private hosts that are allowed."
            )),
            Self::Address { can_be_allowed: false, .. }
            | Self::Host { .. }
            | Self::Unresolved { .. }
            | Self::LookupTimeout { .. }
            | Self::Url { .. } => None,
        }
    }

    /// The address that was refused, for the log.
    pub(crate) fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Address { address, .. } => Some(*address),
            Self::Host { .. }
            | Self::NotAllowed { .. }
            | Self::Port { .. }
            | Self::Unresolved { .. }
            | Self::LookupTimeout { .. }
            | Self::Url { .. } => None,
        }
    }
}
