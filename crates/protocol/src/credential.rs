//! Credentials: what a vault keeps. Their secrets are no part of these shapes: the wire never shows one.

use serde::{Deserialize, Serialize};
use url::Url;

use crate::id::{CredentialId, VaultId};
use crate::metadata::Metadata;
use crate::time::Timestamp;

/// A credential, as the wire shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Credential {
    /// Always `vault_credential`.
    #[serde(rename = "type")]
    pub tag: CredentialTag,
    /// Its id.
    pub id: CredentialId,
    /// The vault that keeps it.
    pub vault_id: VaultId,
    /// What it is for, without the secrets.
    pub auth: CredentialAuth,
    /// At most 255 characters.
    pub display_name: Option<String>,
    /// What its owner hung on it.
    pub metadata: Metadata,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// When it was archived, if it was: then it holds no secret any more.
    pub archived_at: Option<Timestamp>,
}

/// The tag of a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CredentialTag {
    /// The only tag there is.
    VaultCredential,
}

/// What a credential is for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum CredentialAuth {
    /// An OAuth access token for an MCP server, and how to renew it.
    McpOauth {
        /// The server, as its owner wrote it.
        mcp_server_url: String,
        /// When the access token ends, if that is known.
        expires_at: Option<Timestamp>,
        /// How to renew it, if it can be.
        refresh: Option<OauthRefresh>,
    },
    /// A token for an MCP server that stays as it is.
    StaticBearer {
        /// The server, as its owner wrote it.
        mcp_server_url: String,
    },
    /// A secret that a sandbox names by a variable and never sees.
    EnvironmentVariable {
        /// The variable.
        secret_name: String,
        /// On the way to which hosts it is put in.
        networking: CredentialNetworking,
        /// Where in a request it is put in.
        injection_location: InjectionLocation,
    },
}

/// How an access token is renewed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OauthRefresh {
    /// Who asks.
    pub client_id: String,
    /// Who is asked.
    pub token_endpoint: String,
    /// How the asker proves who it is.
    pub token_endpoint_auth: TokenEndpointAuth,
    /// What is asked for.
    pub scope: Option<String>,
    /// For which resource.
    pub resource: Option<String>,
}

/// How a client proves who it is at a token endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum TokenEndpointAuth {
    /// Not at all.
    None {},
    /// By HTTP Basic.
    ClientSecretBasic {},
    /// In the body.
    ClientSecretPost {},
}

/// On the way to which hosts a secret is put in. The environment's own networking comes besides.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum CredentialNetworking {
    /// To all that the environment reaches.
    Unrestricted {},
    /// To these.
    Limited {
        /// 1 to 16 host names, IPv4 addresses, or `*.` and a domain, which stands for all below the domain and not for it.
        allowed_hosts: Vec<String>,
    },
}

impl CredentialNetworking {
    /// Whether the secret may be put into a request to this host: a name or an IPv4 address, without a port, in any case.
    pub fn allows(&self, host: &str) -> bool {
        match self {
            Self::Unrestricted {} => true,
            Self::Limited { allowed_hosts } => {
                let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
                allowed_hosts.iter().any(|allowed| {
                    let allowed = allowed.to_ascii_lowercase();
                    match allowed.strip_prefix('*') {
                        // The dot is part of the suffix, so the apex is none of its subdomains.
                        Some(suffix) => host.len() > suffix.len() && host.ends_with(suffix),
                        None => host == allowed,
                    }
                })
            }
        }
    }
}

/// Where in a request a secret is put in. At least one of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InjectionLocation {
    /// In the values of headers.
    pub header: bool,
    /// In the body.
    pub body: bool,
}

impl CredentialAuth {
    /// What tells it from the other credentials of its vault. Stored; the form never changes. It holds no secret.
    pub fn key(&self) -> CredentialKey {
        match self {
            Self::McpOauth { mcp_server_url, .. } | Self::StaticBearer { mcp_server_url } => {
                CredentialKey::of_server(mcp_server_url)
                    .unwrap_or_else(|| CredentialKey(format!("mcp {mcp_server_url}")))
            }
            Self::EnvironmentVariable { secret_name, .. } => CredentialKey::of_variable(secret_name),
        }
    }
}

/// What tells a credential from the others of its vault: which MCP server, or which variable.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CredentialKey(String);

impl CredentialKey {
    /// How the keys of all variables begin.
    pub const VARIABLES: &'static str = "env ";

    /// The key of an MCP server; `None` if that is no address of one.
    pub fn of_server(url: &str) -> Option<Self> {
        Some(Self(format!("mcp {}", normalized(url)?)))
    }

    /// The key of an environment variable.
    pub fn of_variable(name: &str) -> Self {
        Self(format!("{}{name}", Self::VARIABLES))
    }

    /// As it is stored.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The one form of all addresses that mean the same MCP server: scheme and host in lower case, without the default port,
/// trailing slashes and fragment. Path and query are compared as they are. `None` if it is no such address.
pub fn normalized(url: &str) -> Option<String> {
    let mut url = Url::parse(url).ok()?;
    let is_server = matches!(url.scheme(), "http" | "https") && url.has_host();
    if !is_server || !url.username().is_empty() || url.password().is_some() {
        return None;
    }
    url.set_fragment(None);
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&path);
    let mut text = url.as_str().to_owned();
    // The parser gives an empty path its slash back.
    if url.query().is_none() && text.ends_with('/') {
        text.pop();
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_mean_the_same_server_have_one_form() {
        let same = [
            ("HTTPS://MCP.Example.com:443/mcp/", "https://mcp.example.com/mcp"),
            ("https://mcp.example.com", "https://mcp.example.com"),
            ("https://mcp.example.com/", "https://mcp.example.com"),
            ("https://mcp.example.com//", "https://mcp.example.com"),
            ("http://mcp.example.com:80/#here", "http://mcp.example.com"),
            ("https://mcp.example.com/?a=b", "https://mcp.example.com/?a=b"),
        ];
        for (given, form) in same {
            assert_eq!(normalized(given).as_deref(), Some(form), "{given}");
            assert_eq!(normalized(form).as_deref(), Some(form), "{form}");
        }
    }

    #[test]
    fn path_port_subdomain_and_query_tell_servers_apart() {
        let forms: std::collections::BTreeSet<_> = [
            "https://a.example",
            "http://a.example",
            "https://b.a.example",
            "https://a.example:8443",
            "https://a.example/mcp",
            "https://a.example/MCP",
            "https://a.example/mcp?x=1",
            "https://a.example/mcp?x=2",
        ]
        .map(|url| normalized(url).expect("an address"))
        .into();
        assert_eq!(forms.len(), 8);
    }

    #[test]
    fn what_is_no_address_of_a_server_has_no_form() {
        for text in [
            "",
            "mcp.example.com",
            "ftp://a.example",
            "https://",
            "https://u:p@a.example",
            "https://u@a.example",
        ] {
            assert_eq!(normalized(text), None, "{text}");
        }
    }

    #[test]
    fn a_wildcard_stands_for_subdomains_and_not_for_the_apex() {
        let limited = |hosts: &[&str]| CredentialNetworking::Limited {
            allowed_hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
        };
        let wild = limited(&["*.example.com"]);
        assert!(wild.allows("a.example.com") && wild.allows("A.B.example.com."));
        for host in ["example.com", "badexample.com", ".example.com.evil", "example.com.evil"] {
            assert!(!wild.allows(host), "{host}");
        }
        let exact = limited(&["API.example.com", "192.0.2.1"]);
        assert!(exact.allows("api.example.com") && exact.allows("192.0.2.1"));
        assert!(!exact.allows("x.api.example.com") && !exact.allows("192.0.2.10"));
        assert!(CredentialNetworking::Unrestricted {}.allows("anything.example"));
    }
}
