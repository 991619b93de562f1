//! The outputs directory, read by the host: a list of the files and pieces of their bytes.
//!
//! Whatever a command has put there, the answer stays below the directory, is bounded, and never waits.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::FileType;

use crate::config::Config;
use crate::confine::{Place, reason};
use crate::walk::{Found, LeaveOut, Walk};
use crate::wire::{OUTPUT_PIECE_BYTES_MAX, OutputFile, Refusal, Reply};

/// As many files and directories as are looked at.
const WALKED_MAX: usize = 50_000;

/// The sum of the listed paths' lengths. With the escapes of JSON it stays far below a response's bound.
const PATH_BYTES_MAX: usize = 2 << 20;

/// Lists the regular files, in the order of their paths.
pub fn collect(config: &Config, bytes_max: u64, files_max: u64) -> Reply {
    let outputs = Place::root(&config.outputs);
    let mut files = Vec::new();
    let mut bytes = 0u64;
    let mut path_bytes = 0;
    let mut truncated = false;
    let mut walk = Walk::new(&outputs, LeaveOut::Below(&[]), WALKED_MAX);
    for Found { relative, kind } in walk.by_ref() {
        let Some(path) = relative.to_str().filter(|_| kind.is_file()) else {
            continue;
        };
        let Ok(stat) = outputs.below(&relative).stat() else {
            continue;
        };
        if !FileType::from_raw_mode(stat.st_mode).is_file() {
            continue;
        }
        let size_bytes = u64::try_from(stat.st_size).unwrap_or(0);
        bytes = bytes.saturating_add(size_bytes);
        path_bytes += path.len();
        if bytes > bytes_max || files.len() as u64 >= files_max || path_bytes > PATH_BYTES_MAX {
            truncated = true;
            break;
        }
        // A command may set any time, the end of all times included.
        let modified_ms =
            stat.st_mtime.saturating_mul(1000).saturating_add((stat.st_mtime_nsec / 1_000_000) as i64);
        files.push(OutputFile { path: path.to_owned(), size_bytes, modified_ms });
    }
    truncated |= walk.is_cut();
    Reply::Files { files, truncated }
}

/// Reads a piece of one file.
pub fn read(config: &Config, path: &str, offset: u64, length: u64) -> Reply {
    let invalid = |message: String| Reply::Refused { reason: Refusal::Invalid, message };
    let Some(relative) = plain(path) else {
        return invalid(format!("'{path}' is not a path below the outputs directory"));
    };
    match piece(&Place::root(&config.outputs).below(&relative), offset, length) {
        Ok((bytes, size_bytes)) => Reply::Bytes { data: STANDARD.encode(bytes), size_bytes },
        Err(cause) => invalid(format!("{path}: {}", reason(&cause))),
    }
}

/// The path if it goes down only.
fn plain(path: &str) -> Option<PathBuf> {
    let relative = Path::new(path);
    let goes_down = relative.components().all(|component| matches!(component, Component::Normal(_)));
    (goes_down && !path.is_empty() && !path.contains('\0')).then(|| relative.to_owned())
}

fn piece(place: &Place, offset: u64, length: u64) -> io::Result<(Vec<u8>, u64)> {
    let opened = place.open()?;
    let left = opened.size_bytes().saturating_sub(offset);
    let mut bytes = vec![0; left.min(length).min(OUTPUT_PIECE_BYTES_MAX) as usize];
    let mut filled = 0;
    while filled < bytes.len() {
        match opened.file.read_at(&mut bytes[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            Err(cause) => return Err(cause),
        }
    }
    bytes.truncate(filled);
    Ok((bytes, opened.size_bytes()))
}
