//! What a session brings into its sandbox, and what it will miss there.

use std::collections::BTreeMap;

use egress::{Host, Policy};
use protocol::credential::CredentialNetworking;
use protocol::environment::EnvironmentConfig;
use protocol::id::{CredentialId, VaultId, WorkspaceId};
use session::Record;
use vault::Spendable;

use crate::{Broker, Error};

/// What a session brings into its sandbox.
#[derive(Clone, Debug, Default)]
pub struct Belongings {
    /// By name: what stands for each secret.
    pub variables: BTreeMap<String, String>,
    /// The certificate of the authority to trust, in PEM.
    pub trusted: Option<String>,
    /// Credentials that cannot be spent from there.
    pub unreachable: Vec<Unreachable>,
}

/// A credential for a host that the session's environment does not let out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreachable {
    /// Which one.
    pub credential: CredentialId,
    /// Of which vault.
    pub vault: VaultId,
    /// The hosts, as the credential names them.
    pub hosts: Vec<String>,
}

impl Broker {
    /// What this session brings into a sandbox now. Nothing, if its sandbox reaches nothing.
    pub async fn belongings(&self, workspace: &WorkspaceId, record: &Record) -> Result<Belongings, Error> {
        let Record { id: session, vault_ids, environment, .. } = record;
        let EnvironmentConfig::Cloud { networking, packages: _ } = environment else {
            return Ok(Belongings::default());
        };
        if vault_ids.is_empty() {
            return Ok(Belongings::default());
        }
        let found = self.credentials().for_environment(workspace, vault_ids).await?;
        if found.is_empty() {
            return Ok(Belongings::default());
        }
        let policy = Policy::new(networking, &record.agent.spec.mcp_servers).ok();
        let mut belongings = Belongings {
            trusted: Some(self.authority(workspace, session).await?.certificate().to_owned()),
            unreachable: found
                .iter()
                .filter_map(|spendable| unreachable(policy.as_ref(), spendable))
                .collect(),
            ..Belongings::default()
        };
        for spendable in &found {
            let Some((name, _, _)) = spendable.variable() else { continue };
            let placeholder = self.credentials().placeholder(workspace, session, spendable.id()).await?;
            belongings.variables.insert(name.to_owned(), placeholder);
        }
        Ok(belongings)
    }
}

/// The hosts of a credential that the environment keeps from it.
fn unreachable(policy: Option<&Policy>, spendable: &Spendable) -> Option<Unreachable> {
    let (_, CredentialNetworking::Limited { allowed_hosts }, _) = spendable.variable()? else { return None };
    let hosts = forbidden(policy, allowed_hosts);
    (!hosts.is_empty()).then(|| Unreachable {
        credential: spendable.id().clone(),
        vault: spendable.vault().clone(),
        hosts,
    })
}

/// Without a policy nothing is reached.
fn forbidden(policy: Option<&Policy>, hosts: &[String]) -> Vec<String> {
    let Some(policy) = policy else { return hosts.to_vec() };
    let is_forbidden = |host: &&String| {
        // Any host below stands for all of them: a policy's patterns have no finer grain.
        let one = match host.strip_prefix("*.") {
            Some(domain) => format!("any.{domain}"),
            None => (*host).clone(),
        };
        Host::parse(&one).is_ok_and(|host| policy.decide(&host).is_err())
    };
    hosts.iter().filter(is_forbidden).cloned().collect()
}

#[cfg(test)]
mod tests {
    use protocol::agent::McpServer;
    use protocol::environment::Networking;

    use super::*;

    #[test]
    fn a_host_is_missed_if_the_environment_does_not_let_it_out() {
        let limited = Networking::Limited {
            allowed_hosts: vec!["api.example.com".to_owned(), "*.example.org".to_owned()],
            allow_mcp_servers: true,
            allow_package_managers: true,
        };
        let hosts = [
            "api.example.com",
            "x.example.org",
            "*.example.org",
            "example.org",
            "*.example.com",
            "pypi.org",
            "mcp.example.net",
        ];
        let hosts = hosts.map(str::to_owned);
        let server: McpServer = serde_json::from_value(serde_json::json!({
            "type": "url", "name": "tools", "url": "https://mcp.example.net/mcp",
        }))
        .unwrap();
        let policy =
            |networking: &Networking| Policy::new(networking, std::slice::from_ref(&server)).unwrap();
        assert_eq!(forbidden(Some(&policy(&limited)), &hosts), ["example.org", "*.example.com"]);
        assert_eq!(forbidden(Some(&policy(&Networking::Unrestricted {})), &hosts), [""; 0]);
    }
}
