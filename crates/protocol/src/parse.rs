//! Reading request bodies: every refusal names the field and the rule.
//!
//! Requests are closed: a key that is not known is refused (one rule, in [`Fields::finish`]). A request type has a
//! `parse` function that takes its fields one by one and ends with `finish`. Nothing below the door checks again.

use std::fmt;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::metadata::{Metadata, MetadataPatch};

/// Why a request was refused: which field, which rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// The field, such as `tools[0].name`; empty for the body itself.
    pub path: String,
    /// The rule, as a fragment: "must be 1 to 256 characters".
    pub rule: String,
    /// The `error_code` that programs can match, where the wire has one.
    pub code: Option<&'static str>,
}

impl Invalid {
    /// A refusal of the field at `path`.
    pub fn new(path: impl Into<String>, rule: impl Into<String>) -> Self {
        Self { path: path.into(), rule: rule.into(), code: None }
    }

    /// The same refusal with a code for programs.
    pub fn with_code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    /// The field asks for something that this server does not do.
    pub fn unbuilt(path: impl Into<String>, what: &str) -> Self {
        Self::new(path, format!("{what} is not supported by this server"))
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            write!(formatter, "request body: {}", self.rule)
        } else {
            write!(formatter, "{}: {}", self.path, self.rule)
        }
    }
}

impl std::error::Error for Invalid {}

/// What parsing gives.
pub type Parsed<T> = Result<T, Invalid>;

/// A field of an update: kept, cleared or set.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Patch<T> {
    /// The key was absent.
    #[default]
    Keep,
    /// The key was null.
    Clear,
    /// The key had a value.
    Set(T),
}

/// The fields of one JSON object that are not read yet.
#[derive(Debug)]
pub struct Fields {
    path: String,
    map: Map<String, Value>,
}

impl Fields {
    /// Takes an object apart. `path` is where it stands in the body, empty for the body itself.
    pub fn new(value: Value, path: &str) -> Parsed<Self> {
        match value {
            Value::Object(map) => Ok(Self { path: path.to_owned(), map }),
            other => Err(Invalid::new(path, format!("must be an object, not {}", kind_of(&other)))),
        }
    }

    /// Where a field of this object stands in the body.
    pub fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// A refusal of one of this object's fields.
    pub fn invalid(&self, name: &str, rule: impl Into<String>) -> Invalid {
        Invalid::new(self.path_of(name), rule)
    }

    /// A field that must be there and not null.
    pub fn required<T>(&mut self, name: &str, parse: impl FnOnce(Value, &str) -> Parsed<T>) -> Parsed<T> {
        let path = self.path_of(name);
        match self.map.remove(name) {
            None => Err(Invalid::new(path, "is required")),
            Some(value) => parse(value, &path),
        }
    }

    /// A field that may be absent or null.
    pub fn optional<T>(
        &mut self,
        name: &str,
        parse: impl FnOnce(Value, &str) -> Parsed<T>,
    ) -> Parsed<Option<T>> {
        Ok(match self.patch(name, parse)? {
            Patch::Set(value) => Some(value),
            Patch::Keep | Patch::Clear => None,
        })
    }

    /// A field of an update.
    pub fn patch<T>(&mut self, name: &str, parse: impl FnOnce(Value, &str) -> Parsed<T>) -> Parsed<Patch<T>> {
        let path = self.path_of(name);
        match self.map.remove(name) {
            None => Ok(Patch::Keep),
            Some(Value::Null) => Ok(Patch::Clear),
            Some(value) => parse(value, &path).map(Patch::Set),
        }
    }

    /// The object's `type`, which must be one of `allowed`.
    pub fn tag(&mut self, allowed: &[&'static str]) -> Parsed<&'static str> {
        self.required("type", one_of(allowed))
    }

    /// Refuses what nobody read.
    pub fn finish(self) -> Parsed<()> {
        match self.map.keys().next() {
            None => Ok(()),
            Some(name) => Err(Invalid::new(self.path_of(name), "unknown field")),
        }
    }
}

/// What a JSON value is, for messages.
pub fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// A string of so many characters.
pub fn text(chars: RangeInclusive<usize>) -> impl Fn(Value, &str) -> Parsed<String> {
    move |value, path| match value {
        Value::String(text) => {
            let count = text.chars().count();
            if chars.contains(&count) {
                Ok(text)
            } else if chars.start() == &0 {
                Err(Invalid::new(path, format!("must be at most {} characters, not {count}", chars.end())))
            } else if chars.end() == &usize::MAX {
                Err(Invalid::new(path, format!("must be at least {} characters", chars.start())))
            } else {
                Err(Invalid::new(
                    path,
                    format!("must be {} to {} characters, not {count}", chars.start(), chars.end()),
                ))
            }
        }
        other => Err(Invalid::new(path, format!("must be a string, not {}", kind_of(&other)))),
    }
}

/// An id in a request: opaque text of 1 to 128 characters.
pub fn id_text(value: Value, path: &str) -> Parsed<String> {
    text(1..=crate::id::ID_CHARS_MAX)(value, path)
}

/// One of a closed set of strings.
pub fn one_of<'a>(allowed: &'a [&'static str]) -> impl Fn(Value, &str) -> Parsed<&'static str> + 'a {
    move |value, path| {
        let refusal =
            |got: &str| Invalid::new(path, format!("must be one of {}, not {got}", quoted(allowed)));
        match &value {
            Value::String(text) => allowed
                .iter()
                .find(|known| **known == text)
                .copied()
                .ok_or_else(|| refusal(&format!("`{}`", clipped(text)))),
            other => Err(refusal(kind_of(other))),
        }
    }
}

/// Text from a client, cut short so that a message stays readable.
pub fn clipped(text: &str) -> &str {
    match text.char_indices().nth(64) {
        Some((end, _)) => &text[..end],
        None => text,
    }
}

fn quoted(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// A boolean.
pub fn boolean(value: Value, path: &str) -> Parsed<bool> {
    value.as_bool().ok_or_else(|| Invalid::new(path, format!("must be a boolean, not {}", kind_of(&value))))
}

/// A whole number in a range.
pub fn integer(range: RangeInclusive<i64>) -> impl Fn(Value, &str) -> Parsed<i64> {
    move |value, path| match value.as_i64() {
        Some(number) if range.contains(&number) => Ok(number),
        _ => Err(Invalid::new(
            path,
            if *range.end() == i64::MAX {
                format!("must be a whole number of at least {}", range.start())
            } else {
                format!("must be a whole number from {} to {}", range.start(), range.end())
            },
        )),
    }
}

/// An array of so many items.
pub fn list<T>(
    count: RangeInclusive<usize>,
    item: impl Fn(Value, &str) -> Parsed<T>,
) -> impl Fn(Value, &str) -> Parsed<Vec<T>> {
    move |value, path| match value {
        Value::Array(values) if count.contains(&values.len()) => values
            .into_iter()
            .enumerate()
            .map(|(index, value)| item(value, &format!("{path}[{index}]")))
            .collect(),
        Value::Array(values) if *count.start() > values.len() => Err(Invalid::new(
            path,
            format!("must have at least {} item(s), not {}", count.start(), values.len()),
        )),
        Value::Array(values) => {
            Err(Invalid::new(path, format!("must have at most {} items, not {}", count.end(), values.len())))
        }
        other => Err(Invalid::new(path, format!("must be an array, not {}", kind_of(&other)))),
    }
}

/// Any object, kept as it came.
pub fn object(value: Value, path: &str) -> Parsed<Map<String, Value>> {
    match value {
        Value::Object(map) => Ok(map),
        other => Err(Invalid::new(path, format!("must be an object, not {}", kind_of(&other)))),
    }
}

const METADATA_PAIRS_MAX: usize = 16;
const METADATA_KEY_CHARS: RangeInclusive<usize> = 1..=64;
const METADATA_VALUE_CHARS_MAX: usize = 512;
const METADATA_CODE: &str = "invalid_metadata";

/// A whole metadata map.
pub fn metadata(value: Value, path: &str) -> Parsed<Metadata> {
    let mut map = Metadata::new();
    for (key, value) in object(value, path)? {
        match value {
            Value::String(value) => map.insert(key, value),
            other => {
                let rule = format!("must be a string, not {}", kind_of(&other));
                return Err(Invalid::new(format!("{path}.{}", clipped(&key)), rule).with_code(METADATA_CODE));
            }
        };
    }
    check_metadata(&map, path)?;
    Ok(map)
}

/// A change of metadata. The limits are checked on the result, by [`check_metadata`].
pub fn metadata_patch(value: Value, path: &str) -> Parsed<MetadataPatch> {
    let mut patch = MetadataPatch::new();
    for (key, value) in object(value, path)? {
        match value {
            Value::String(value) => patch.insert(key, Some(value)),
            Value::Null => patch.insert(key, None),
            other => {
                let rule = format!("must be a string or null, not {}", kind_of(&other));
                return Err(Invalid::new(format!("{path}.{}", clipped(&key)), rule).with_code(METADATA_CODE));
            }
        };
    }
    Ok(patch)
}

/// The limits of a metadata map: 16 pairs, keys of 1 to 64 characters, values of at most 512.
pub fn check_metadata(map: &Metadata, path: &str) -> Parsed<()> {
    if map.len() > METADATA_PAIRS_MAX {
        let rule = format!("must have at most {METADATA_PAIRS_MAX} pairs, not {}", map.len());
        return Err(Invalid::new(path, rule).with_code(METADATA_CODE));
    }
    for (key, value) in map {
        if !METADATA_KEY_CHARS.contains(&key.chars().count()) {
            let rule = "keys must be 1 to 64 characters";
            return Err(Invalid::new(format!("{path}.{}", clipped(key)), rule).with_code(METADATA_CODE));
        }
        if value.chars().count() > METADATA_VALUE_CHARS_MAX {
            let rule = format!("must be at most {METADATA_VALUE_CHARS_MAX} characters");
            return Err(Invalid::new(format!("{path}.{key}"), rule).with_code(METADATA_CODE));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_refusal_names_the_field_and_the_rule() {
        let mut fields = Fields::new(json!({"name": ""}), "tools[0]").expect("object");
        let refusal = fields.required("name", text(1..=256)).expect_err("empty");
        assert_eq!(refusal.to_string(), "tools[0].name: must be 1 to 256 characters, not 0");
    }

    #[test]
    fn an_unknown_field_is_refused_by_name() {
        let fields = Fields::new(json!({"colour": 1}), "").expect("object");
        assert_eq!(fields.finish().expect_err("closed").to_string(), "colour: unknown field");
    }

    #[test]
    fn absent_null_and_value_are_told_apart() {
        let mut fields = Fields::new(json!({"a": null, "b": true}), "").expect("object");
        assert_eq!(fields.patch("a", boolean), Ok(Patch::Clear));
        assert_eq!(fields.patch("b", boolean), Ok(Patch::Set(true)));
        assert_eq!(fields.patch("c", boolean), Ok(Patch::Keep));
    }

    #[test]
    fn metadata_has_its_limits_and_its_code() {
        let many: serde_json::Map<_, _> = (0..17).map(|n| (n.to_string(), json!("v"))).collect();
        let refusal = metadata(Value::Object(many), "metadata").expect_err("17 pairs");
        assert_eq!((refusal.path.as_str(), refusal.code), ("metadata", Some("invalid_metadata")));
        let refusal = metadata(json!({"k": "v".repeat(513)}), "metadata").expect_err("long value");
        assert_eq!(refusal.path, "metadata.k");
    }
}
