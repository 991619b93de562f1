//! Settings of what may be reached: by sandboxes, and by the server itself where agents or web pages choose the address.

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use egress::{Guard, Pattern, PrivateHosts, Uninspected};
use protocol::environment::Networking;
use protocol::environment_request::networking_setting;
use serde::Deserialize;

use crate::exits::Rules;

/// What may be reached.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Network (what may be reached)")]
pub(crate) struct NetworkOptions {
    /// Hosts, addresses and ranges that may be reached although they are not public, each with a port if need be, such as
    /// `registry.corp:5000,10.1.0.0/16`. [default: none]
    #[arg(long, env = "POSTHOUSE_ALLOW_PRIVATE_HOSTS", value_name = "HOSTS")]
    allow_private_hosts: Option<String>,

    /// Ports that may be reached besides 80 and 443, with commas. [default: none]
    #[arg(long, env = "POSTHOUSE_ALLOW_PORTS", value_name = "PORTS", value_delimiter = ',')]
    allow_ports: Option<Vec<u16>>,

    /// What an environment reaches that says nothing about it: `unrestricted`, or `limited` for nothing. More can be said
    /// in the file. [default: unrestricted]
    #[arg(long, env = "POSTHOUSE_DEFAULT_NETWORKING", value_name = "TYPE", value_parser = ["unrestricted", "limited"])]
    default_networking: Option<String>,

    /// Ports on which TLS is expected besides 443, with commas: there the name that TLS asks for must be the one that was
    /// allowed, and credentials can be spent. [default: none]
    #[arg(long, env = "POSTHOUSE_TLS_PORTS", value_name = "PORTS", value_delimiter = ',')]
    tls_ports: Option<Vec<u16>>,

    /// What becomes of TLS to a host of a credential that is not for HTTP, so that the secret cannot be put in: `refuse`,
    /// or `pass` for as it is. [default: refuse]
    #[arg(long, env = "POSTHOUSE_UNINSPECTED_TLS", value_name = "RULE")]
    uninspected_tls: Option<UninspectedTls>,

    /// Hosts, with wildcards and commas, to which no credential is ever put in and TLS passes as it is: for programs that
    /// know their host's certificate and trust no other. [default: none]
    #[arg(long, env = "POSTHOUSE_UNINSPECTED_HOSTS", value_name = "HOSTS", value_delimiter = ',')]
    uninspected_hosts: Option<Vec<Pattern>>,
}

/// See [`Uninspected`].
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum UninspectedTls {
    /// Refuse it, and say so.
    #[default]
    Refuse,
    /// Let it pass, with its placeholders.
    Pass,
}

impl From<UninspectedTls> for Uninspected {
    fn from(rule: UninspectedTls) -> Self {
        match rule {
            UninspectedTls::Refuse => Self::Refuse,
            UninspectedTls::Pass => Self::Pass,
        }
    }
}

/// The same in the configuration file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct NetworkFile {
    allow_private_hosts: PrivateHosts,
    allow_ports: Vec<u16>,
    /// In the words of the wire format.
    default_networking: Option<serde_json::Value>,
    tls_ports: Vec<u16>,
    uninspected_tls: UninspectedTls,
    uninspected_hosts: Vec<Pattern>,
}

/// As settled.
#[derive(Clone, Debug, Default)]
pub(crate) struct Network {
    pub(crate) private_hosts: PrivateHosts,
    pub(crate) ports: Vec<u16>,
    pub(crate) default_networking: Networking,
    pub(crate) tls: Rules,
}

impl NetworkOptions {
    pub(crate) fn over(self, file: NetworkFile) -> anyhow::Result<Network> {
        let private_hosts = match self.allow_private_hosts {
            Some(text) => text.parse().context("--allow-private-hosts cannot be used")?,
            None => file.allow_private_hosts,
        };
        let default_networking = self.default_networking.map(|kind| serde_json::json!({ "type": kind }));
        let default_networking = match default_networking.or(file.default_networking) {
            Some(value) => networking_setting(value, "network.default_networking")?,
            None => Networking::default(),
        };
        let mut tls_ports = self.tls_ports.unwrap_or(file.tls_ports);
        tls_ports.push(443);
        let uninspected = self.uninspected_tls.unwrap_or(file.uninspected_tls).into();
        let uninspected_hosts = self.uninspected_hosts.unwrap_or(file.uninspected_hosts);
        Ok(Network {
            private_hosts,
            ports: self.allow_ports.unwrap_or(file.allow_ports),
            default_networking,
            tls: Rules { tls_ports, uninspected, uninspected_hosts },
        })
    }
}

impl Network {
    /// The guard of everything that leaves.
    pub(crate) fn guard(&self) -> Guard {
        Guard::new(self.private_hosts.clone(), self.ports.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_speaks_the_wire_format() {
        let text = r#"
            allow_private_hosts = ["10.0.0.0/8", "registry.corp:5000"]
            default_networking = { type = "limited", allowed_hosts = ["docs.example"] }
        "#;
        let file: NetworkFile = toml::from_str(text).expect("reads");
        let network = NetworkOptions::default().over(file.clone()).expect("settles");
        let Networking::Limited { allowed_hosts, allow_mcp_servers: false, allow_package_managers: false } =
            &network.default_networking
        else {
            panic!("{network:?}")
        };
        assert_eq!(allowed_hosts, &["docs.example"]);
        assert!(!network.private_hosts.is_empty());

        let flags = NetworkOptions {
            allow_private_hosts: Some(String::new()),
            default_networking: Some("unrestricted".to_owned()),
            ..NetworkOptions::default()
        };
        let network = flags.over(file).expect("settles");
        assert!(network.private_hosts.is_empty());
        assert_eq!(network.default_networking, Networking::Unrestricted {});
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let flags =
            NetworkOptions { allow_private_hosts: Some("10.0.0.0/99".to_owned()), ..Default::default() };
        let error = flags.over(NetworkFile::default()).expect_err("no such range");
        assert!(format!("{error:#}").contains("10.0.0.0/99"), "{error:#}");
        let file: NetworkFile =
            toml::from_str("default_networking = { type = \"limited\", hosts = [] }").expect("reads");
        let error = NetworkOptions::default().over(file).expect_err("no such field");
        assert!(error.to_string().contains("network.default_networking.hosts"), "{error}");
    }
}
