//! What stands for a text that is too long to show: whoever has kept it, and wherever.

use std::fmt::Write;

/// More characters than this are not shown; about 25,000 tokens.
pub const SHOWN_CHARS_MAX: usize = 100_000;

/// How many characters of the beginning, and as many of the end, stand for a text that is not shown.
pub const PREVIEW_CHARS: usize = 5_000;

/// Where a sandbox keeps such texts, unless it is told another place.
pub const OVERFLOW_DIR: &str = "/tmp/tool-outputs";

/// The beginning and the end of a text of that many characters, more than [`SHOWN_CHARS_MAX`]. `saved` is a half-sentence
/// that says where all of it is, or that it is nowhere.
pub fn preview(text: &str, chars: usize, saved: &str) -> String {
    let boundary = |nth: usize| text.char_indices().nth(nth).map_or(text.len(), |(at, _)| at);
    let (head, tail) = (boundary(PREVIEW_CHARS), boundary(chars - PREVIEW_CHARS));
    let left_out = chars - 2 * PREVIEW_CHARS;
    let mut shown = String::with_capacity(head + (text.len() - tail) + 256);
    let _ = write!(shown, "[output of {chars} characters is too long to show; {saved}]\n{}", &text[..head]);
    let _ = write!(shown, "\n[{left_out} characters left out]\n{}", &text[tail..]);
    shown
}
