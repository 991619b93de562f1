//! A secret that is about to be spent.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use protocol::secret::Secret;
use zeroize::Zeroizing;

/// An opened secret. What can be done with it is to put it into a request; it is overwritten when it is dropped.
pub struct Opened(Secret);

impl Opened {
    pub(crate) fn new(secret: Secret) -> Self {
        Self(secret)
    }

    /// Lends the secret to whoever puts it into a request. It must not be kept, logged or returned to anybody but the host
    /// that the credential is for.
    pub fn expose<T>(&self, spend: impl FnOnce(&str) -> T) -> T {
        spend(self.0.reveal())
    }

    /// `Authorization: Basic …` with this as the password, marked as below.
    pub fn basic(&self, user: &str) -> HeaderValue {
        let pair = Zeroizing::new(format!("{user}:{}", self.0.reveal()));
        let text = Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())));
        let mut value = HeaderValue::try_from(text.as_str()).unwrap_or(HeaderValue::from_static("Basic"));
        value.set_sensitive(true);
        value
    }

    /// `Authorization: Bearer …`, marked so that no layer prints it.
    pub fn authorization(&self) -> HeaderValue {
        let text = Zeroizing::new(format!("Bearer {}", self.0.reveal()));
        let mut value = HeaderValue::try_from(text.as_str()).unwrap_or(HeaderValue::from_static("Bearer"));
        value.set_sensitive(true);
        value
    }
}

impl fmt::Debug for Opened {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("[opened secret]")
    }
}
