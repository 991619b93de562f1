//! `read`: a text file or some of its lines, a picture, a PDF.

use std::io::Read;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::confine::{Opened, Roots, reason};
use crate::tool::Stop;
use crate::wire::{Content, Output, Source};

/// The most of a text file, or of the lines chosen from it.
pub const TEXT_BYTES_MAX: u64 = 256 << 10;

/// The most of a picture: models take 5 MiB of base64.
const IMAGE_BYTES_MAX: u64 = (5 << 20) / 4 * 3;

/// The most of a PDF: its base64 must fit the size of a model request.
const PDF_BYTES_MAX: u64 = 20 << 20;

/// A multiple of 3, so that the base64 of the pieces is the base64 of the whole.
const BASE64_PIECE_BYTES: usize = 48 << 10;

const CHUNK_BYTES: usize = 64 << 10;

/// What the model gives.
#[derive(Deserialize)]
pub struct Input {
    file_path: String,
    view_range: Option<Vec<i64>>,
}

/// Runs the tool.
pub fn run(roots: &Roots, input: Input, stop: &Stop) -> Result<Output, String> {
    let Input { file_path, view_range } = input;
    let place = roots.resolve(&file_path).map_err(|cause| cause.to_string())?;
    let view_range = match view_range.as_deref() {
        None | Some([]) => None,
        Some([start, end]) => Some((*start, *end)),
        Some(_) => return Err("view_range must be [start_line, end_line]".into()),
    };
    let opened = place.open().map_err(|cause| format!("{file_path}: {}", reason(&cause)))?;
    if let Some(media_type) = media_type(&place.path()) {
        if view_range.is_some() {
            return Err("view_range is not supported for image/PDF files".into());
        }
        return media(&opened, &file_path, media_type);
    }
    let text = match view_range {
        None => whole(&opened, &file_path)?,
        Some((start, end)) => lines(&opened, &file_path, start, end, stop)?,
    };
    Ok(Output::text(text))
}

fn whole(opened: &Opened, file_path: &str) -> Result<String, String> {
    let bytes = if opened.size_bytes() > TEXT_BYTES_MAX { None } else { Some(opened.read(TEXT_BYTES_MAX)) };
    match bytes {
        Some(Ok(bytes)) if bytes.len() as u64 <= TEXT_BYTES_MAX => as_text(bytes, file_path),
        Some(Err(cause)) => Err(format!("{file_path}: {}", reason(&cause))),
        // Over the bound when it was opened, or grown over it since.
        Some(Ok(_)) | None => Err(format!(
            "{file_path} is {} bytes, exceeds {TEXT_BYTES_MAX}-byte limit. Use the view_range parameter \
             to read specific line ranges, e.g. view_range: [1, 500].",
            opened.size_bytes().max(TEXT_BYTES_MAX + 1)
        )),
    }
}

/// The lines from `start` to `end`, counted from 1, both included; an `end` of 0 or less is the last.
/// The file is streamed and may have any size.
fn lines(opened: &Opened, file_path: &str, start: i64, end: i64, stop: &Stop) -> Result<String, String> {
    let first = u64::try_from(start.saturating_sub(1)).unwrap_or(0);
    let last = u64::try_from(end).ok().filter(|end| *end > 0).unwrap_or(u64::MAX);
    let mut chosen: Vec<u8> = Vec::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    // The number of the line that the next byte belongs to, from 0.
    let mut line = 0;
    while line < last && first < last {
        stop.check()?;
        let read =
            (&opened.file).read(&mut chunk).map_err(|cause| format!("{file_path}: {}", reason(&cause)))?;
        if read == 0 {
            break;
        }
        let mut rest = &chunk[..read];
        while !rest.is_empty() && line < last {
            let newline = memchr::memchr(b'\n', rest);
            let (bytes, after) = match newline {
                Some(at) => (&rest[..=at], &rest[at + 1..]),
                None => (rest, &rest[rest.len()..]),
            };
            if line >= first {
                chosen.extend_from_slice(bytes);
            }
            line += u64::from(newline.is_some());
            rest = after;
            if chosen.len() as u64 > TEXT_BYTES_MAX + 1 {
                return Err(too_much(file_path, start, end, first + 1 == last));
            }
        }
    }
    // Lines are joined, not ended: the last one's newline belongs to it only when the range goes on after it.
    if line >= last && chosen.last() == Some(&b'\n') {
        chosen.pop();
    }
    if chosen.len() as u64 > TEXT_BYTES_MAX {
        return Err(too_much(file_path, start, end, first + 1 == last));
    }
    as_text(chosen, file_path)
}

fn too_much(file_path: &str, start: i64, end: i64, single_line: bool) -> String {
    if single_line {
        return format!(
            "line {} of {file_path} alone exceeds {TEXT_BYTES_MAX}-byte limit. The read tool cannot return \
             part of a line, so view_range cannot narrow this further.",
            start.max(1)
        );
    }
    format!(
        "view_range [{start}, {end}] of {file_path} exceeds {TEXT_BYTES_MAX}-byte limit. Narrow the \
         view_range to read a smaller portion."
    )
}

fn as_text(bytes: Vec<u8>, file_path: &str) -> Result<String, String> {
    String::from_utf8(bytes).map_err(|_| {
        format!(
            "{file_path}: not valid UTF-8 text (binary files are only supported for image/PDF extensions)"
        )
    })
}

fn media(opened: &Opened, file_path: &str, media_type: &str) -> Result<Output, String> {
    let is_pdf = media_type == "application/pdf";
    let bytes_max = if is_pdf { PDF_BYTES_MAX } else { IMAGE_BYTES_MAX };
    let too_large = |size: u64| {
        Err(format!("{file_path} is {size} bytes, exceeds {bytes_max}-byte limit for image/PDF files."))
    };
    if opened.size_bytes() > bytes_max {
        return too_large(opened.size_bytes());
    }
    let mut data = String::with_capacity((opened.size_bytes() as usize).div_ceil(3) * 4);
    let mut piece = Vec::with_capacity(BASE64_PIECE_BYTES);
    let mut total = 0;
    loop {
        piece.clear();
        let mut source = (&opened.file).take(BASE64_PIECE_BYTES as u64);
        let read =
            source.read_to_end(&mut piece).map_err(|cause| format!("{file_path}: {}", reason(&cause)))?;
        total += read as u64;
        if total > bytes_max {
            return too_large(total);
        }
        STANDARD.encode_string(&piece, &mut data);
        if read < BASE64_PIECE_BYTES {
            break;
        }
    }
    let source = Source::Base64 { media_type: media_type.into(), data };
    let content = if is_pdf { Content::Document { source } } else { Content::Image { source } };
    Ok(Output { content: vec![content], is_error: false })
}

fn media_type(path: &Path) -> Option<&'static str> {
    let extension = path.extension()?.to_str()?.to_ascii_lowercase();
    Some(match extension.as_str() {
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "pdf" => "application/pdf",
        _ => return None,
    })
}
