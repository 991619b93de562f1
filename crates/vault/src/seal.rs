//! The cryptography: AES-256-GCM by `ring`, a fresh key for each sealed secret, and associated data that says what it is.
//!
//! Sealed text is `v1.` and base64url of: nonce, wrapped key, nonce, sealed secret. Both are bound to workspace, vault,
//! credential and field, so what is moved elsewhere does not open. As each secret has a key of its own, no key is used
//! often enough for its nonces to meet: a workspace's key wraps as many keys as secrets are written.
//!
//! Keys and opened secrets are overwritten when they are dropped; `ring`'s own schedules of a key are not.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use protocol::credential_request::SecretField;
use protocol::id::{CredentialId, ResourceId, SessionId, VaultId, WorkspaceId};
use protocol::secret::Secret;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};
use zeroize::{Zeroize as _, Zeroizing};

/// Of every key, in bytes.
pub(crate) const KEY_BYTES: usize = 32;
const TAG_BYTES: usize = 16;
const WRAPPED_BYTES: usize = NONCE_LEN + KEY_BYTES + TAG_BYTES;
/// Stored: raised when the form changes, never used for another.
const VERSION: &str = "v1.";

/// The raw bits of a key.
pub(crate) struct Key(Zeroizing<[u8; KEY_BYTES]>);

/// It did not open: other key, other place, or damage. Which of these cannot be told.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unopened;

/// What a sealed secret belongs to.
#[derive(Clone, Copy)]
pub(crate) enum Place<'a> {
    /// A field of a vault's credential.
    Credential {
        workspace: &'a WorkspaceId,
        vault: &'a VaultId,
        credential: &'a CredentialId,
        field: SecretField,
    },
    /// The token of a session's resource.
    Resource { workspace: &'a WorkspaceId, session: &'a SessionId, resource: &'a ResourceId },
}

impl Key {
    /// New random bits.
    pub(crate) fn random() -> Self {
        let mut bits = Zeroizing::new([0; KEY_BYTES]);
        SystemRandom::new().fill(&mut *bits).expect("the system has randomness");
        Self(bits)
    }

    pub(crate) fn from_bits(bits: Zeroizing<[u8; KEY_BYTES]>) -> Self {
        Self(bits)
    }

    pub(crate) fn bits(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// Appends a nonce and the sealed bytes to `out`.
    fn seal_onto(&self, out: &mut Vec<u8>, plain: &[u8], bound_to: &[u8]) {
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).expect("the system has randomness");
        out.extend_from_slice(&nonce);
        let start = out.len();
        // Sealed in place: no plain copy is left in a buffer that was given back. The space is made by the caller.
        out.extend_from_slice(plain);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self
            .cipher()
            .seal_in_place_separate_tag(nonce, Aad::from(bound_to), &mut out[start..])
            .expect("far below the most that may be sealed at once");
        out.extend_from_slice(tag.as_ref());
    }

    /// Opens a nonce and sealed bytes in place.
    fn open_in<'b>(&self, sealed: &'b mut [u8], bound_to: &[u8]) -> Result<&'b mut [u8], Unopened> {
        let (nonce, body) = sealed.split_at_mut_checked(NONCE_LEN).ok_or(Unopened)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| Unopened)?;
        self.cipher().open_in_place(nonce, Aad::from(bound_to), body).map_err(|_| Unopened)
    }

    fn cipher(&self) -> LessSafeKey {
        LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &*self.0).expect("the key has the right length"))
    }

    /// Wraps another key.
    pub(crate) fn wrap(&self, key: &Self, bound_to: &[u8]) -> String {
        let mut out = Vec::with_capacity(WRAPPED_BYTES);
        self.seal_onto(&mut out, key.bits(), bound_to);
        encoded(&out)
    }

    /// The key that was wrapped.
    pub(crate) fn unwrap(&self, wrapped: &str, bound_to: &[u8]) -> Result<Self, Unopened> {
        let mut bytes = decoded(wrapped)?;
        self.unwrap_bytes(&mut bytes, bound_to)
    }

    fn unwrap_bytes(&self, wrapped: &mut [u8], bound_to: &[u8]) -> Result<Self, Unopened> {
        let plain = self.open_in(wrapped, bound_to)?;
        let mut bits = Zeroizing::new([0; KEY_BYTES]);
        if plain.len() != KEY_BYTES {
            return Err(Unopened);
        }
        bits.copy_from_slice(plain);
        plain.zeroize();
        Ok(Self(bits))
    }

    /// Seals a secret for its place.
    pub(crate) fn seal(&self, place: Place<'_>, secret: &Secret) -> String {
        let plain = secret.reveal().as_bytes();
        let key = Self::random();
        let mut out = Vec::with_capacity(WRAPPED_BYTES + NONCE_LEN + plain.len() + TAG_BYTES);
        self.seal_onto(&mut out, key.bits(), &place.bytes("key"));
        key.seal_onto(&mut out, plain, &place.bytes("secret"));
        encoded(&out)
    }

    /// Opens what was sealed for that place.
    pub(crate) fn open(&self, place: Place<'_>, sealed: &str) -> Result<Secret, Unopened> {
        let mut bytes = decoded(sealed)?;
        let (wrapped, body) = bytes.split_at_mut_checked(WRAPPED_BYTES).ok_or(Unopened)?;
        let key = self.unwrap_bytes(wrapped, &place.bytes("key"))?;
        let plain = key.open_in(body, &place.bytes("secret"))?;
        let text = std::str::from_utf8(plain).map(|text| Secret::new(text.to_owned())).map_err(|_| Unopened);
        plain.zeroize();
        text
    }
}

impl Place<'_> {
    /// The same as bytes that mean this place and no other. Stored, as part of every seal.
    fn bytes(&self, what: &str) -> Vec<u8> {
        match self {
            Self::Credential { workspace, vault, credential, field } => {
                bound(&[what, workspace.as_str(), vault.as_str(), credential.as_str(), field.as_str()])
            }
            // One part more than above, so that neither can be taken for the other.
            Self::Resource { workspace, session, resource } => {
                let token = "authorization_token";
                bound(&[what, workspace.as_str(), "session", session.as_str(), resource.as_str(), token])
            }
        }
    }
}

/// Associated data: each part with its length before it, so that no two lists of parts are the same.
pub(crate) fn bound(parts: &[&str]) -> Vec<u8> {
    let mut bytes = b"posthouse vault 1".to_vec();
    for part in parts {
        bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
        bytes.extend_from_slice(part.as_bytes());
    }
    bytes
}

fn encoded(bytes: &[u8]) -> String {
    format!("{VERSION}{}", URL_SAFE_NO_PAD.encode(bytes))
}

fn decoded(text: &str) -> Result<Vec<u8>, Unopened> {
    URL_SAFE_NO_PAD.decode(text.strip_prefix(VERSION).ok_or(Unopened)?).map_err(|_| Unopened)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Ids(WorkspaceId, VaultId, CredentialId);

    impl Ids {
        fn new() -> Self {
            Self(WorkspaceId::from_text("w"), VaultId::from_text("v"), CredentialId::from_text("c"))
        }

        fn place(&self, field: SecretField) -> Place<'_> {
            Place::Credential { workspace: &self.0, vault: &self.1, credential: &self.2, field }
        }
    }

    fn secret() -> Secret {
        Secret::new("hush, hush".to_owned())
    }

    #[test]
    fn what_is_sealed_opens_where_it_belongs() {
        let (key, ids) = (Key::random(), Ids::new());
        let sealed = key.seal(ids.place(SecretField::Token), &secret());
        assert!(!sealed.contains("hush"));
        assert_eq!(key.open(ids.place(SecretField::Token), &sealed), Ok(secret()));
    }

    #[test]
    fn what_is_moved_to_another_place_does_not_open() {
        let (key, ids) = (Key::random(), Ids::new());
        let sealed = key.seal(ids.place(SecretField::Token), &secret());
        let others = [
            Ids(WorkspaceId::from_text("x"), ids.1.clone(), ids.2.clone()),
            Ids(ids.0.clone(), VaultId::from_text("x"), ids.2.clone()),
            Ids(ids.0.clone(), ids.1.clone(), CredentialId::from_text("x")),
            // The same letters, divided otherwise.
            Ids(WorkspaceId::from_text("wv"), VaultId::from_text(""), ids.2.clone()),
        ];
        for other in &others {
            assert_eq!(key.open(other.place(SecretField::Token), &sealed), Err(Unopened));
        }
        assert_eq!(key.open(ids.place(SecretField::AccessToken), &sealed), Err(Unopened));
        assert_eq!(Key::random().open(ids.place(SecretField::Token), &sealed), Err(Unopened));
    }

    #[test]
    fn the_token_of_a_resource_opens_for_that_resource_of_that_session_alone() {
        let (key, ids) = (Key::random(), Ids::new());
        let (session, resource) = (SessionId::from_text("s"), ResourceId::from_text("r"));
        let place = Place::Resource { workspace: &ids.0, session: &session, resource: &resource };
        let sealed = key.seal(place, &secret());
        assert_eq!(key.open(place, &sealed), Ok(secret()));
        let (other_session, other_resource) = (SessionId::from_text("x"), ResourceId::from_text("x"));
        for place in [
            Place::Resource { workspace: &ids.0, session: &other_session, resource: &resource },
            Place::Resource { workspace: &ids.0, session: &session, resource: &other_resource },
            ids.place(SecretField::Token),
        ] {
            assert_eq!(key.open(place, &sealed), Err(Unopened));
        }
    }

    #[test]
    fn no_changed_letter_and_no_shorter_text_opens() {
        let (key, ids) = (Key::random(), Ids::new());
        let place = ids.place(SecretField::Token);
        let sealed = key.seal(place, &secret());
        for index in 0..sealed.len() {
            let mut changed = sealed.clone().into_bytes();
            changed[index] = if changed[index] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).expect("ASCII");
            assert_eq!(key.open(place, &changed), Err(Unopened), "{index}");
            assert_eq!(key.open(place, &sealed[..index]), Err(Unopened), "{index}");
        }
    }

    #[test]
    fn the_same_secret_is_never_sealed_the_same_way_twice() {
        let (key, ids) = (Key::random(), Ids::new());
        let place = ids.place(SecretField::Token);
        assert_ne!(key.seal(place, &secret()), key.seal(place, &secret()));
    }
}
