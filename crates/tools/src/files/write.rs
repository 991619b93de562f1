//! `write`: a whole file.

use serde::Deserialize;

use crate::confine::{Place, Roots, reason};
use crate::wire::Output;

/// What the model gives.
#[derive(Deserialize)]
pub struct Input {
    file_path: String,
    content: String,
}

/// Runs the tool.
pub fn run(roots: &Roots, input: Input) -> Result<Output, String> {
    let Input { file_path, content } = input;
    let place = roots.resolve(&file_path).map_err(|cause| cause.to_string())?;
    refuse_read_only(&place, &file_path)?;
    place.replace(content.as_bytes()).map_err(|cause| format!("{file_path}: {}", reason(&cause)))?;
    Ok(Output::text(format!("wrote {} bytes to {file_path}", content.len())))
}

/// An error when the place lies in a directory that the file tools may only read.
pub fn refuse_read_only(place: &Place, file_path: &str) -> Result<(), String> {
    match place.read_only_root() {
        Some(root) => Err(format!("{file_path} is inside read-only directory {}", root.display())),
        None => Ok(()),
    }
}
