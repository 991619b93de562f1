//! What follows from a workspace's key and is kept nowhere: any process that can open the vault finds the same.
//!
//! HMAC-SHA256 over a text that says what it is for, so that nothing derived for one purpose is of use for another. The
//! workspace's key is also used to wrap keys (AES-256-GCM); one key for two algorithms is sound here because neither shows
//! anything of it.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use protocol::id::{CredentialId, SessionId, WorkspaceId};
use ring::hmac;
use zeroize::Zeroizing;

use crate::credentials::Credentials;
use crate::error::Error;
use crate::seal::{Key, bound};

/// How a placeholder begins, so that people and programs can tell what it is.
pub const PLACEHOLDER_PREFIX: &str = "phsec_";

impl Credentials {
    /// What a session's sandbox has in the place of a credential's secret: header-safe ASCII that nobody can guess, the same
    /// each time, and another for each session.
    pub async fn placeholder(
        &self,
        workspace: &WorkspaceId,
        session: &SessionId,
        credential: &CredentialId,
    ) -> Result<String, Error> {
        let key = self.key(workspace).await?;
        let derived = derive(&key, &["placeholder", session.as_str(), credential.as_str()]);
        Ok(format!("{PLACEHOLDER_PREFIX}{}", URL_SAFE_NO_PAD.encode(&derived[..])))
    }

    /// The 32 secret bytes of which the authority of a session's sandboxes is made: the `turn`th attempt, as not all bytes
    /// are a key.
    pub async fn authority_seed(
        &self,
        workspace: &WorkspaceId,
        session: &SessionId,
        turn: u8,
    ) -> Result<Zeroizing<[u8; 32]>, Error> {
        let key = self.key(workspace).await?;
        Ok(derive(&key, &["authority", session.as_str(), &turn.to_string()]))
    }
}

fn derive(key: &Key, purpose: &[&str]) -> Zeroizing<[u8; 32]> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key.bits());
    let mut derived = Zeroizing::new([0; 32]);
    derived.copy_from_slice(hmac::sign(&key, &bound(purpose)).as_ref());
    derived
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_derived_depends_on_the_key_and_on_all_of_the_purpose() {
        let key = Key::random();
        let one = derive(&key, &["placeholder", "a", "b"]);
        assert_eq!(*one, *derive(&key, &["placeholder", "a", "b"]));
        for other in [["placeholder", "a", "c"], ["placeholder", "ab", ""], ["authority", "a", "b"]] {
            assert_ne!(*one, *derive(&key, &other));
        }
        assert_ne!(*one, *derive(&Key::random(), &["placeholder", "a", "b"]));
    }
}
