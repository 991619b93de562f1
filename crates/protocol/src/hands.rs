//! How an environment's sandboxes are made: settings of this server's own, which the public format has no place for.
//!
//! They are keys of an environment's metadata, so that every client can set them:
//!
//! | key | value |
//! |---|---|
//! | `posthouse.policy` | `lazy`, `speculative` (the default) or `pool` |
//! | `posthouse.pool_size` | how many sandboxes `pool` keeps ready, 1 to 64; 1 if absent |
//! | `posthouse.image` | the name of an image that the operator has made available |
//! | `posthouse.runtime` | the container runtime, one that the operator allows |
//!
//! Other keys that begin with `posthouse.` are refused: a misspelt setting must not pass for metadata.

use serde::{Deserialize, Serialize};

use crate::metadata::Metadata;
use crate::parse::{Invalid, Parsed};

/// What the keys begin with.
const PREFIX: &str = "posthouse.";
/// More ready sandboxes of one environment than this are a mistake, not a plan.
const POOL_SIZE_MAX: u32 = 64;
const NAME_CHARS_MAX: usize = 128;

/// How an environment's sandboxes are made. Stored: fields are only ever added, with a default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandsSettings {
    /// When.
    #[serde(default)]
    pub policy: Policy,
    /// From which image; the server's own choice if `None`.
    #[serde(default)]
    pub image: Option<String>,
    /// By which container runtime; the server's own choice if `None`.
    #[serde(default)]
    pub runtime: Option<String>,
}

/// When a session's sandbox is made. The first token never waits for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// At the first call.
    Lazy,
    /// As soon as the model request is on its way, if the agent has tools that need one.
    #[default]
    Speculative,
    /// At the first call, from some that are kept ready: handing one out takes no time worth speculating on.
    Pool {
        /// How many.
        size: u32,
    },
}

impl HandsSettings {
    /// Reads the settings out of an environment's metadata; `path` names it in errors.
    pub fn of(metadata: &Metadata, path: &str) -> Parsed<Self> {
        let mut settings = Self::default();
        let (mut policy, mut pool_size) = (None, None);
        for (key, value) in metadata.iter().filter(|(key, _)| key.starts_with(PREFIX)) {
            let refuse = |rule: &str| Invalid::new(format!("{path}.{key}"), rule);
            match &key[PREFIX.len()..] {
                "policy" => {
                    policy = Some((value.as_str(), refuse("must be `lazy`, `speculative` or `pool`")))
                }
                "pool_size" => {
                    let size = value.parse::<u32>().ok().filter(|size| (1..=POOL_SIZE_MAX).contains(size));
                    let rule = format!("must be a number from 1 to {POOL_SIZE_MAX}");
                    pool_size = Some((
                        size.ok_or_else(|| refuse(&rule))?,
                        refuse("needs `posthouse.policy` to be `pool`"),
                    ));
                }
                "image" => settings.image = Some(name(value).ok_or_else(|| refuse(NAME_RULE))?),
                "runtime" => settings.runtime = Some(name(value).ok_or_else(|| refuse(NAME_RULE))?),
                _ => {
                    return Err(refuse(
                        "is no setting of this server; the settings are policy, pool_size, image and runtime",
                    ));
                }
            }
        }
        settings.policy = match (policy, pool_size) {
            (Some(("pool", _)), size) => Policy::Pool { size: size.map_or(1, |(size, _)| size) },
            (_, Some((_, refusal))) => return Err(refusal),
            (None | Some(("speculative", _)), None) => Policy::Speculative,
            (Some(("lazy", _)), None) => Policy::Lazy,
            (Some((_, refusal)), None) => return Err(refusal),
        };
        Ok(settings)
    }
}

const NAME_RULE: &str = "must be a plain name of at most 128 letters, digits, `.`, `-`, `_`, `/`, `:` or `@`, not beginning with `.`, `-` or `/`";

fn name(value: &str) -> Option<String> {
    let plain = |char: char| char.is_ascii_alphanumeric() || ".-_/:@".contains(char);
    let fits = (1..=NAME_CHARS_MAX).contains(&value.len())
        && value.chars().all(plain)
        && !value.starts_with(['.', '-', '/'])
        && !value.contains("..");
    fits.then(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Result<HandsSettings, String> {
        let metadata = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        HandsSettings::of(&metadata, "metadata").map_err(|invalid| invalid.to_string())
    }

    #[test]
    fn settings_are_read_and_other_metadata_is_left_alone() {
        assert_eq!(of(&[("team", "x")]), Ok(HandsSettings::default()));
        let pooled = HandsSettings {
            policy: Policy::Pool { size: 3 },
            image: Some("registry.example/python:3.13".to_owned()),
            runtime: None,
        };
        let pairs = [
            ("posthouse.policy", "pool"),
            ("posthouse.pool_size", "3"),
            ("posthouse.image", "registry.example/python:3.13"),
        ];
        assert_eq!(of(&pairs), Ok(pooled));
        assert_eq!(of(&[("posthouse.policy", "lazy")]).unwrap().policy, Policy::Lazy);
    }

    #[test]
    fn what_is_misspelt_is_named() {
        for (key, value) in [
            ("posthouse.polcy", "lazy"),
            ("posthouse.policy", "eager"),
            ("posthouse.pool_size", "2"),
            ("posthouse.pool_size", "0"),
            ("posthouse.image", "../escape"),
            ("posthouse.runtime", "-x"),
        ] {
            let refused = of(&[(key, value)]).expect_err("refused");
            assert!(refused.contains(&format!("metadata.{key}")), "{refused}");
        }
        assert!(of(&[("posthouse.policy", "pool"), ("posthouse.pool_size", "65")]).is_err());
    }
}
