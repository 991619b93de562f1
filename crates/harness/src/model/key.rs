//! Keys of providers: held here, spent in a request header, shown nowhere.

use std::path::Path;

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

    /// The key from where the configuration says, if it says. `lookup` reads an environment variable.
    pub(crate) fn settle(
        key: Option<Self>,
        variable: Option<&str>,
        file: Option<&Path>,
        lookup: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, String> {
        let (text, source) = match (key, variable, file) {
            (None, None, None) => return Ok(None),
            (Some(key), None, None) => (key.0, "`api_key`".to_owned()),
            (None, Some(name), None) => {
                let text =
                    lookup(name).ok_or_else(|| format!("the environment variable {name} is not set"))?;
                (text, format!("the environment variable {name}"))
            }
            (None, None, Some(path)) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
                (text, path.display().to_string())
            }
            _ => return Err("`api_key`, `api_key_env` and `api_key_file` exclude each other".to_owned()),
        };
        Self::new(&text).map(Some).ok_or_else(|| format!("{source} is empty"))
    }

    /// The key itself. Only for a request header and for finding it in text that must not hold it.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}
