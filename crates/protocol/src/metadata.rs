//! Metadata: a small map of strings that clients hang on things.

use std::collections::BTreeMap;

/// A thing's metadata. At most 16 pairs, keys of 1 to 64 characters, values of at most 512.
pub type Metadata = BTreeMap<String, String>;

/// A change of metadata: a value upserts its key, `None` deletes it.
pub type MetadataPatch = BTreeMap<String, Option<String>>;

/// The metadata after the change. The limits are checked on the result by the caller (see [`crate::parse`]).
pub fn patched(current: &Metadata, patch: &MetadataPatch) -> Metadata {
    let mut merged = current.clone();
    for (key, value) in patch {
        match value {
            Some(value) => merged.insert(key.clone(), value.clone()),
            None => merged.remove(key),
        };
    }
    merged
}
