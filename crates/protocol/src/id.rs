//! Ids: one type per kind of thing, shown with the prefix of the public API.
//!
//! An id is its prefix, the marker `01` and 22 base-58 digits that encode 128 bits. The bits are a version-7
//! UUID, so ids of one kind sort by the time they were made. Ids from requests are opaque: any text of at most
//! [`ID_CHARS_MAX`] characters is carried, and what was never made is simply not found.
//!
//! Nothing here reads a clock or makes randomness: whoever needs an id brings the bits.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The longest id accepted in a request, in characters (api reference, agents.md §0.5).
pub const ID_CHARS_MAX: usize = 128;

const ALPHABET: &[u8; 58] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
const BODY_DIGITS: usize = 22;

/// An id that can be made from 128 bits.
pub trait FromBits: Sized {
    /// The id that carries these bits.
    fn from_bits(bits: u128) -> Self;
}

/// Writes `bits` as 22 base-58 digits, most significant first, so that text order is number order.
fn encode(prefix: &str, bits: u128) -> String {
    let mut digits = [b'1'; BODY_DIGITS];
    let mut rest = bits;
    for digit in digits.iter_mut().rev() {
        *digit = ALPHABET[(rest % 58) as usize];
        rest /= 58;
    }
    let mut text = String::with_capacity(prefix.len() + 2 + BODY_DIGITS);
    text.push_str(prefix);
    text.push_str("01");
    text.extend(digits.iter().map(|digit| char::from(*digit)));
    text
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// The prefix that marks this kind of id on the wire.
            pub const PREFIX: &'static str = $prefix;

            /// Takes an id as a client or the store wrote it. Not checked: an id that was never made is not found.
            pub fn from_text(text: impl Into<String>) -> Self {
                Self(text.into())
            }

            /// The id as shown on the wire.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromBits for $name {
            fn from_bits(bits: u128) -> Self {
                Self(encode($prefix, bits))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }
    )*};
}

ids! {
    /// A workspace: what an API key belongs to and all it can see.
    WorkspaceId = "wrkspc_";
    /// An API key's record (not the key itself).
    ApiKeyId = "apikey_";
    /// An agent: a named, versioned configuration.
    AgentId = "agent_";
    /// An environment: the kind of place in which a session's hands work.
    EnvironmentId = "env_";
    /// A vault: where credentials are kept.
    VaultId = "vlt_";
    /// A credential of a vault.
    CredentialId = "vcrd_";
    /// A resource of a session: a repository.
    ResourceId = "sesrsc_";
    /// A session.
    SessionId = "sesn_";
    /// A thread of a session.
    ThreadId = "sthr_";
    /// An event. The id of a tool-use event doubles as the `tool_use_id` of its result.
    EventId = "sevt_";
    /// A sandbox. Private: never shown on the public wire.
    SandboxId = "sbx_";
    /// One HTTP request, for the operator's logs.
    RequestId = "req_";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_shows_its_prefix_and_twenty_four_characters() {
        let id = SessionId::from_bits(u128::MAX);
        assert_eq!(id.as_str().len(), "sesn_".len() + 24);
        assert!(id.as_str().starts_with("sesn_01"));
    }

    #[test]
    fn ids_sort_as_their_bits_do() {
        let ids: Vec<_> = [0, 1, 57, 58, 1 << 64, u128::MAX].map(EventId::from_bits).into();
        assert!(ids.is_sorted());
    }
}
