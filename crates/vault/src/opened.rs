//! A secret that is about to be spent.

use std::fmt;

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
