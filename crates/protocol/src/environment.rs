//! Environments: the kind of place in which a session's hands work.

use serde::{Deserialize, Serialize};

use crate::id::EnvironmentId;
use crate::metadata::Metadata;
use crate::time::Timestamp;

/// An environment, as the wire shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// Always `environment`.
    #[serde(rename = "type")]
    pub tag: EnvironmentTag,
    /// Its id.
    pub id: EnvironmentId,
    /// 1 to 256 characters, unique among those not archived.
    pub name: String,
    /// At most 1,024 characters.
    pub description: Option<String>,
    /// What it is.
    pub config: EnvironmentConfig,
    /// What its owner hung on it.
    pub metadata: Metadata,
    /// Always `organization` or null.
    pub scope: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// When it was archived, if it was.
    pub archived_at: Option<Timestamp>,
}

/// The tag of an environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EnvironmentTag {
    /// The only tag there is.
    Environment,
}

/// What an environment is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum EnvironmentConfig {
    /// A sandbox that this server provides.
    Cloud {
        /// What it may reach.
        networking: Networking,
        /// What is installed in it.
        packages: Packages,
    },
    /// A worker that somebody else runs.
    SelfHosted {},
}

/// What a sandbox may reach.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Networking {
    /// Everything public.
    Unrestricted {},
    /// Only what is listed.
    Limited {
        /// Host names, or `*.` and a domain.
        allowed_hosts: Vec<String>,
        /// Also the hosts of the agent's MCP servers.
        allow_mcp_servers: bool,
        /// Also the public package registries.
        allow_package_managers: bool,
    },
}

/// What is installed in a sandbox, by package manager.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are the names of the package managers")]
pub struct Packages {
    /// Always `packages`.
    #[serde(rename = "type", default)]
    pub tag: PackagesTag,
    pub apt: Vec<String>,
    pub cargo: Vec<String>,
    pub gem: Vec<String>,
    pub go: Vec<String>,
    pub npm: Vec<String>,
    pub pip: Vec<String>,
}

/// The tag of [`Packages`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PackagesTag {
    /// The only tag there is.
    #[default]
    Packages,
}

impl Packages {
    /// True if nothing is to be installed.
    pub fn is_empty(&self) -> bool {
        let Self { tag: _, apt, cargo, gem, go, npm, pip } = self;
        [apt, cargo, gem, go, npm, pip].into_iter().all(Vec::is_empty)
    }
}
