//! Keys of providers: held here, spent in a request header, shown nowhere.

use serde::Deserialize;

/// A provider's key. Has no `Debug`, `Display` or `Serialize`, and leaves this type only as a request header.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub struct ApiKey(String);

impl ApiKey {
    /// A key, without the white space that files and shells leave around it. `None` if nothing is left.
    pub fn new(key: &str) -> Option<Self> {
        let key = key.trim();
        (!key.is_empty()).then(|| Self(key.to_owned()))
    }

    /// The key itself. Only for a request header and for finding it in text that must not hold it.
    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}
