//! Requests about environments: what may be asked, and what an environment looks like after a change.

use serde_json::Value;

use crate::agent_request::not_cleared;
use crate::environment::{Environment, EnvironmentConfig, EnvironmentTag, Networking, Packages, PackagesTag};
use crate::hands::HandsSettings;
use crate::id::EnvironmentId;
use crate::metadata::{Metadata, MetadataPatch, patched};
use crate::parse::{
    Fields, Invalid, Parsed, Patch, boolean, check_metadata, list, metadata, metadata_patch, one_of, text,
};
use crate::time::Timestamp;

const NAME_CHARS_MAX: usize = 256;
const DESCRIPTION_CHARS_MAX: usize = 1_024;
/// Not stated by the reference; bounds what one environment can make the server keep and match against.
const ALLOWED_HOSTS_MAX: usize = 1_000;
/// Not stated by the reference; the same.
const PACKAGES_MAX: usize = 1_000;
const PACKAGE_CHARS_MAX: usize = 256;
const HOST_CHARS_MAX: usize = 253;
const LABEL_CHARS_MAX: usize = 63;
/// The only scope that a self-hosted server knows.
const SCOPE: &str = "organization";
/// The `error_code` of what an archived environment refuses.
pub const ENVIRONMENT_ARCHIVED: &str = "environment_archived";

/// The body of `POST /v1/environments`.
#[derive(Clone, Debug, PartialEq)]
pub struct EnvironmentCreate {
    name: String,
    description: Option<String>,
    config: EnvironmentConfig,
    metadata: Metadata,
}

impl EnvironmentCreate {
    /// Reads the body. Who says nothing about networking gets `default_networking`, the operator's choice.
    pub fn parse(body: Value, default_networking: &Networking) -> Parsed<Self> {
        let mut fields = Fields::new(body, "")?;
        let name = fields.required("name", text(1..=NAME_CHARS_MAX))?;
        let description = fields.optional("description", text(0..=DESCRIPTION_CHARS_MAX))?;
        let config = fields.optional("config", config)?.unwrap_or(ConfigRequest::CLOUD);
        let metadata = fields.optional("metadata", metadata)?.unwrap_or_default();
        HandsSettings::of(&metadata, "metadata")?;
        scope(&mut fields)?;
        fields.finish()?;
        let config = match &config {
            ConfigRequest::Cloud { networking, .. } => {
                // Whoever says something says all of it: the operator's choice is no base to add to.
                let networking = match networking {
                    Some(_) => Networking::Unrestricted {},
                    None => default_networking.clone(),
                };
                config.merge(&EnvironmentConfig::Cloud { networking, packages: Packages::default() })?
            }
            ConfigRequest::SelfHosted => EnvironmentConfig::SelfHosted {},
        };
        Ok(Self { name, description, config, metadata })
    }

    /// The new environment.
    pub fn into_environment(self, id: EnvironmentId, now: Timestamp) -> Environment {
        let Self { name, description, config, metadata } = self;
        Environment {
            tag: EnvironmentTag::Environment,
            id,
            name,
            description,
            config,
            metadata,
            scope: Some(SCOPE.to_owned()),
            created_at: now,
            updated_at: now,
            archived_at: None,
        }
    }
}

/// The body of `POST /v1/environments/{environment_id}`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EnvironmentUpdate {
    name: Option<String>,
    description: Patch<String>,
    config: Option<ConfigRequest>,
    metadata: MetadataPatch,
}

impl EnvironmentUpdate {
    /// Reads the body. `config` and `scope` may be null, which keeps them.
    pub fn parse(body: Value) -> Parsed<Self> {
        let mut fields = Fields::new(body, "")?;
        let update = Self {
            name: not_cleared(&fields.path_of("name"), fields.patch("name", text(1..=NAME_CHARS_MAX))?)?,
            description: fields.patch("description", text(0..=DESCRIPTION_CHARS_MAX))?,
            config: fields.optional("config", config)?,
            metadata: fields.optional("metadata", metadata_patch)?.unwrap_or_default(),
        };
        scope(&mut fields)?;
        fields.finish()?;
        Ok(update)
    }

    /// The environment after the change, or `None` if nothing would change.
    pub fn apply(self, current: &Environment, now: Timestamp) -> Parsed<Option<Environment>> {
        let Self { name, description, config, metadata } = self;
        if current.archived_at.is_some() {
            let rule = "the environment is archived and can no longer be changed";
            return Err(Invalid::new("environment_id", rule).with_code(ENVIRONMENT_ARCHIVED));
        }
        let mut changed = current.clone();
        if let Some(name) = name {
            changed.name = name;
        }
        match description {
            Patch::Keep => {}
            Patch::Clear => changed.description = None,
            Patch::Set(description) => changed.description = Some(description),
        }
        if let Some(config) = config {
            changed.config = config.merge(&current.config)?;
        }
        // Unlike elsewhere, the empty string deletes a key too.
        let patch =
            metadata.into_iter().map(|(key, value)| (key, value.filter(|value| !value.is_empty()))).collect();
        changed.metadata = patched(&current.metadata, &patch);
        check_metadata(&changed.metadata, "metadata")?;
        HandsSettings::of(&changed.metadata, "metadata")?;
        if changed == *current {
            return Ok(None);
        }
        changed.updated_at = now;
        Ok(Some(changed))
    }
}

/// A configuration as a client writes it: what is left out is kept, or is the default of a new environment.
#[derive(Clone, Debug, PartialEq)]
enum ConfigRequest {
    Cloud { networking: Option<NetworkingRequest>, packages: Option<PackagesRequest> },
    SelfHosted,
}

#[derive(Clone, Debug, PartialEq)]
enum NetworkingRequest {
    Unrestricted,
    Limited {
        allowed_hosts: Option<Vec<String>>,
        allow_mcp_servers: Option<bool>,
        allow_package_managers: Option<bool>,
    },
}

impl ConfigRequest {
    const CLOUD: Self = Self::Cloud { networking: None, packages: None };

    fn merge(self, stored: &EnvironmentConfig) -> Parsed<EnvironmentConfig> {
        let (networking, packages) = match (self, stored) {
            (Self::SelfHosted, EnvironmentConfig::SelfHosted {}) => {
                return Ok(EnvironmentConfig::SelfHosted {});
            }
            (
                Self::Cloud { networking, packages },
                EnvironmentConfig::Cloud { networking: kept, packages: installed },
            ) => {
                let networking = networking.map_or_else(|| kept.clone(), |networking| networking.merge(kept));
                (networking, packages.map_or_else(|| installed.clone(), |packages| packages.merge(installed)))
            }
            (Self::SelfHosted, EnvironmentConfig::Cloud { .. })
            | (Self::Cloud { .. }, EnvironmentConfig::SelfHosted {}) => {
                return Err(
                    Invalid::new("config.type", "cannot be changed").with_code("invalid_config_type_change")
                );
            }
        };
        if let Networking::Limited { allow_package_managers: false, .. } = networking
            && !packages.is_empty()
        {
            let rule = "must be true when `packages` are given under `limited` networking";
            return Err(Invalid::new("config.networking.allow_package_managers", rule));
        }
        Ok(EnvironmentConfig::Cloud { networking, packages })
    }
}

impl NetworkingRequest {
    fn merge(self, stored: &Networking) -> Networking {
        let Self::Limited { allowed_hosts, allow_mcp_servers, allow_package_managers } = self else {
            return Networking::Unrestricted {};
        };
        let (hosts, mcp_servers, package_managers) = match stored {
            Networking::Limited { allowed_hosts, allow_mcp_servers, allow_package_managers } => {
                (allowed_hosts.clone(), *allow_mcp_servers, *allow_package_managers)
            }
            Networking::Unrestricted {} => (Vec::new(), false, false),
        };
        Networking::Limited {
            allowed_hosts: allowed_hosts.unwrap_or(hosts),
            allow_mcp_servers: allow_mcp_servers.unwrap_or(mcp_servers),
            allow_package_managers: allow_package_managers.unwrap_or(package_managers),
        }
    }
}

/// Packages by manager; those of a manager that is left out are kept.
#[derive(Clone, Debug, PartialEq)]
struct PackagesRequest {
    apt: Option<Vec<String>>,
    cargo: Option<Vec<String>>,
    gem: Option<Vec<String>>,
    go: Option<Vec<String>>,
    npm: Option<Vec<String>>,
    pip: Option<Vec<String>>,
}

impl PackagesRequest {
    fn merge(self, stored: &Packages) -> Packages {
        let Self { apt, cargo, gem, go, npm, pip } = self;
        let or = |given: Option<Vec<String>>, kept: &Vec<String>| given.unwrap_or_else(|| kept.clone());
        Packages {
            tag: PackagesTag::Packages,
            apt: or(apt, &stored.apt),
            cargo: or(cargo, &stored.cargo),
            gem: or(gem, &stored.gem),
            go: or(go, &stored.go),
            npm: or(npm, &stored.npm),
            pip: or(pip, &stored.pip),
        }
    }
}

/// Networking in the words of the wire format, for an operator's configuration.
pub fn networking_setting(value: Value, path: &str) -> Parsed<Networking> {
    Ok(networking(value, path)?.merge(&Networking::Unrestricted {}))
}

fn config(value: Value, path: &str) -> Parsed<ConfigRequest> {
    let mut fields = Fields::new(value, path)?;
    let config = match fields.tag(&["cloud", "self_hosted"])? {
        "cloud" => ConfigRequest::Cloud {
            networking: fields.optional("networking", networking)?,
            packages: fields.optional("packages", packages)?,
        },
        _ => ConfigRequest::SelfHosted,
    };
    fields.finish()?;
    Ok(config)
}

fn networking(value: Value, path: &str) -> Parsed<NetworkingRequest> {
    let mut fields = Fields::new(value, path)?;
    let networking = match fields.tag(&["unrestricted", "limited"])? {
        "unrestricted" => NetworkingRequest::Unrestricted,
        _ => NetworkingRequest::Limited {
            allowed_hosts: fields.optional("allowed_hosts", list(0..=ALLOWED_HOSTS_MAX, host))?,
            allow_mcp_servers: fields.optional("allow_mcp_servers", boolean)?,
            allow_package_managers: fields.optional("allow_package_managers", boolean)?,
        },
    };
    fields.finish()?;
    Ok(networking)
}

/// A bare host name, or `*.` and a domain. No scheme, port, path or address.
fn host(value: Value, path: &str) -> Parsed<String> {
    let host = text(1..=HOST_CHARS_MAX)(value, path)?;
    if is_host(&host) {
        return Ok(host);
    }
    let rule =
        "must be a host name such as `api.example.com`, or `*.example.com`, without scheme, port or path";
    Err(Invalid::new(path, rule))
}

pub(crate) fn is_host(host: &str) -> bool {
    let (name, labels_min) = match host.strip_prefix("*.") {
        Some(domain) => (domain, 2),
        None => (host, 1),
    };
    let labels: Vec<&str> = name.split('.').collect();
    let is_label = |label: &&str| {
        (1..=LABEL_CHARS_MAX).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // A last label of digits only can only be meant as an address.
    let is_address = labels.last().is_some_and(|label| label.bytes().all(|byte| byte.is_ascii_digit()));
    labels.len() >= labels_min && labels.iter().all(is_label) && !is_address
}

fn packages(value: Value, path: &str) -> Parsed<PackagesRequest> {
    let mut fields = Fields::new(value, path)?;
    fields.optional("type", one_of(&["packages"]))?;
    let mut take = |name: &str| fields.optional(name, list(0..=PACKAGES_MAX, package));
    let packages = PackagesRequest {
        apt: take("apt")?,
        cargo: take("cargo")?,
        gem: take("gem")?,
        go: take("go")?,
        npm: take("npm")?,
        pip: take("pip")?,
    };
    fields.finish()?;
    Ok(packages)
}

/// One package in its manager's own syntax. What could be read as an option or as two arguments is refused.
fn package(value: Value, path: &str) -> Parsed<String> {
    let package = text(1..=PACKAGE_CHARS_MAX)(value, path)?;
    if package.starts_with('-') {
        return Err(Invalid::new(path, "must not start with `-`"));
    }
    if package.chars().any(|char| char.is_whitespace() || char.is_control()) {
        return Err(Invalid::new(path, "must not contain spaces or control characters"));
    }
    Ok(package)
}

fn scope(fields: &mut Fields) -> Parsed<()> {
    let scope = fields.optional("scope", one_of(&[SCOPE, "account"]))?;
    match scope {
        Some("account") => Err(Invalid::unbuilt(fields.path_of("scope"), "the scope `account`")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
