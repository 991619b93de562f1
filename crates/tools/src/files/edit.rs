//! `edit`: one text for another, exactly, in a file.

use serde::Deserialize;

use crate::confine::{Roots, reason};
use crate::files::read::TEXT_BYTES_MAX;
use crate::files::write::refuse_read_only;
use crate::wire::Output;

/// What the model gives.
#[derive(Deserialize)]
pub struct Input {
    file_path: String,
    old_string: String,
    new_string: String,
    replace_all: Option<bool>,
}

/// The most that an edited file may become. `replace_all` multiplies: a small file and a long new text
/// could otherwise make more than any sandbox has.
const EDITED_BYTES_MAX: usize = 64 << 20;

/// Runs the tool.
pub fn run(roots: &Roots, input: Input) -> Result<Output, String> {
    let Input { file_path, old_string, new_string, replace_all } = input;
    if old_string.is_empty() {
        return Err("old_string must not be empty".into());
    }
    let place = roots.resolve(&file_path).map_err(|cause| cause.to_string())?;
    refuse_read_only(&place, &file_path)?;
    let failed = |cause| format!("{file_path}: {}", reason(&cause));
    let opened = place.open().map_err(failed)?;
    let too_large = |size: u64| {
        Err(format!(
            "{file_path} is {size} bytes, exceeds {TEXT_BYTES_MAX}-byte limit. The edit tool loads the \
             whole file and cannot modify a file this large."
        ))
    };
    if opened.size_bytes() > TEXT_BYTES_MAX {
        return too_large(opened.size_bytes());
    }
    let bytes = opened.read(TEXT_BYTES_MAX).map_err(failed)?;
    if bytes.len() as u64 > TEXT_BYTES_MAX {
        return too_large(bytes.len() as u64);
    }
    let text = String::from_utf8(bytes)
        .map_err(|_| format!("{file_path}: not valid UTF-8 text (cannot edit binary files)"))?;
    let found = text.matches(&old_string).count();
    let replacements = match (found, replace_all.unwrap_or(false)) {
        (0, _) => return Err(format!("old_string not found in {file_path}")),
        (1, _) => 1,
        (_, true) => found,
        (_, false) => {
            return Err(format!("old_string appears {found} times in {file_path} (must be unique)"));
        }
    };
    let grown = replacements.saturating_mul(new_string.len()).saturating_add(text.len());
    if grown > EDITED_BYTES_MAX {
        return Err(format!("{file_path} would become larger than {EDITED_BYTES_MAX} bytes"));
    }
    let edited = text.replacen(&old_string, &new_string, replacements);
    place.replace(edited.as_bytes()).map_err(failed)?;
    Ok(Output::text(format!("edited {file_path} ({replacements} replacement(s))")))
}
