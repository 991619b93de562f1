//! A host in its one canonical form, and the patterns that hosts are matched against.
//!
//! One form only: lower case, ASCII (IDNA), no trailing dot; an address in any of its old spellings (decimal, octal,
//! hexadecimal, IPv4 mapped into IPv6) is an address. Whatever has no such form is refused, so nothing is compared in one
//! spelling and looked up in another.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::refusal::Refusal;

/// The longest name that DNS can carry.
const NAME_CHARS_MAX: usize = 253;
/// The longest label that DNS can carry.
const LABEL_CHARS_MAX: usize = 63;

/// A host as a request names it, in canonical form.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// A name: lower case, ASCII, no trailing dot.
    Name(String),
    /// An address. Never an IPv4 address mapped into IPv6: that is an IPv4 address.
    Address(IpAddr),
}

impl Host {
    /// Parses a host as it stands in a URL: IPv6 addresses in brackets, no port, no user.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let bad = |why: &'static str| Refusal::Host { why };
        // The URL standard would decode it; nobody needs a name written like that, and a zone id is no address of ours.
        if text.contains('%') {
            return Err(bad("it contains `%`"));
        }
        let host = url::Host::parse(text).map_err(|_| bad("it is neither a host name nor an address"))?;
        let name = match host {
            url::Host::Ipv4(address) => return Ok(Self::Address(address.into())),
            url::Host::Ipv6(address) => return Ok(Self::Address(IpAddr::V6(address).to_canonical())),
            url::Host::Domain(name) => name,
        };
        let name = name.strip_suffix('.').unwrap_or(&name);
        if name.len() > NAME_CHARS_MAX {
            return Err(bad("it is longer than DNS allows"));
        }
        for label in name.split('.') {
            if label.is_empty() || label.len() > LABEL_CHARS_MAX {
                return Err(bad("one of its labels is empty or longer than DNS allows"));
            }
            // Underscores are no host name by the book, but stand in names that people use.
            if !label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_') {
                return Err(bad("it has a character that no host name has"));
            }
        }
        Ok(Self::Name(name.to_ascii_lowercase()))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(IpAddr::V4(address)) => write!(f, "{address}"),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

/// What a list of hosts may name: one host, or `*.` and a domain.
///
/// `*.example.com` covers `a.example.com` and `a.b.example.com` but not `example.com`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// This host.
    Exact(Host),
    /// Every name below this one.
    Below(String),
}

/// Why a text is no [`Pattern`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is neither a host name such as `api.example.com` nor `*.` and a domain")]
pub struct PatternError {
    /// The text.
    pub text: String,
}

impl Pattern {
    /// True if the host is covered.
    pub fn covers(&self, host: &Host) -> bool {
        match (self, host) {
            (Self::Exact(exact), host) => exact == host,
            (Self::Below(domain), Host::Name(name)) => {
                name.strip_suffix(domain.as_str()).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
            }
            (Self::Below(_), Host::Address(_)) => false,
        }
    }
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let bad = || PatternError { text: text.to_owned() };
        match text.strip_prefix("*.") {
            Some(domain) => match Host::parse(domain) {
                Ok(Host::Name(name)) => Ok(Self::Below(name)),
                Ok(Host::Address(_)) | Err(_) => Err(bad()),
            },
            None => Host::parse(text).map(Self::Exact).map_err(|_| bad()),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => write!(f, "{host}"),
            Self::Below(domain) => write!(f, "*.{domain}"),
        }
    }
}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}
