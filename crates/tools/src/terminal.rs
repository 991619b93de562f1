//! What a command printed, as text: escape sequences removed while it flows, only the end kept.
//!
//! Memory is bounded whatever is printed, and at whatever length: a sequence that never ends is given up.

use std::borrow::Cow;

/// How much of a command's output is kept, counted from its end.
pub const OUTPUT_BYTES_MAX: usize = 100 << 10;

/// A sequence longer than this is not one; binary output has started it by chance.
const SEQUENCE_BYTES_MAX: usize = 4096;

const ESCAPE: u8 = 0x1b;
const BELL: u8 = 0x07;

/// The end of a stream of bytes.
#[derive(Default)]
pub struct Tail {
    kept: Vec<u8>,
    dropped: bool,
    at: At,
}

/// Where in an escape sequence the stream is.
///
/// ```text
/// Text -ESC-> Escape -[-> Control -final-> Text
///                    -]PX^_-> String -BEL-> Text
///                                    -ESC-> StringEscape -\-> Text
///                    -space../-> Charset -final-> Text
///                    -other-> Text
/// ```
#[derive(Clone, Copy, Default)]
enum At {
    #[default]
    Text,
    Escape,
    Charset,
    Control(usize),
    String(usize),
    StringEscape,
}

impl Tail {
    /// Takes what was printed next.
    pub fn push(&mut self, mut bytes: &[u8]) {
        while let Some(&byte) = bytes.first() {
            if matches!(self.at, At::Text) {
                let text = memchr(ESCAPE, bytes);
                self.keep(&bytes[..text]);
                bytes = &bytes[text..];
                if !bytes.is_empty() {
                    self.at = At::Escape;
                    bytes = &bytes[1..];
                }
                continue;
            }
            let (next, consumed) = step(self.at, byte);
            self.at = next;
            bytes = &bytes[usize::from(consumed)..];
        }
    }

    /// Forgets all but the last `bytes_max` bytes.
    pub fn shorten(&mut self, bytes_max: usize) {
        if self.kept.len() > bytes_max {
            self.kept.drain(..self.kept.len() - bytes_max);
            self.kept.shrink_to_fit();
            self.dropped = true;
        }
    }

    /// The text, with a first line that says so if it is only the end.
    pub fn finish(mut self) -> String {
        self.shorten(OUTPUT_BYTES_MAX);
        let mut text = match String::from_utf8_lossy(&self.kept) {
            Cow::Borrowed(text) => text.to_owned(),
            Cow::Owned(text) => text,
        };
        if text.contains('\0') {
            // A zero byte is no text, and not every store and model takes one.
            text = text.replace('\0', "\u{fffd}");
        }
        // Replacement characters are longer than what they replace.
        if text.len() > OUTPUT_BYTES_MAX {
            let cut = text.ceil_char_boundary(text.len() - OUTPUT_BYTES_MAX);
            text.drain(..cut);
            self.dropped = true;
        } else if self.dropped {
            // The cut may have gone through a character; what is left of it is at most three of these.
            let broken = text.chars().take(3).take_while(|c| *c == char::REPLACEMENT_CHARACTER).count();
            text.drain(..broken * char::REPLACEMENT_CHARACTER.len_utf8());
        }
        text.truncate(text.trim_end_matches('\n').len());
        if self.dropped {
            text.insert_str(0, "[output truncated]\n");
        }
        text
    }

    fn keep(&mut self, text: &[u8]) {
        self.kept.extend_from_slice(text);
        // Twice the bound before anything moves, so that each byte moves once on average.
        if self.kept.len() > 2 * OUTPUT_BYTES_MAX {
            self.kept.drain(..self.kept.len() - OUTPUT_BYTES_MAX);
            self.dropped = true;
        }
    }
}

/// Where a byte leads, and whether it belonged to the sequence.
fn step(at: At, byte: u8) -> (At, bool) {
    match at {
        At::Text => (At::Text, false),
        At::Escape => match byte {
            b'[' => (At::Control(0), true),
            b']' | b'P' | b'X' | b'^' | b'_' => (At::String(0), true),
            b' '..=b'/' => (At::Charset, true),
            b'0'..=b'~' => (At::Text, true),
            _ => (At::Text, false),
        },
        At::Charset => match byte {
            b' '..=b'/' => (At::Charset, true),
            b'0'..=b'~' => (At::Text, true),
            _ => (At::Text, false),
        },
        At::Control(length) => match byte {
            b' '..=b'?' if length < SEQUENCE_BYTES_MAX => (At::Control(length + 1), true),
            b'@'..=b'~' => (At::Text, true),
            _ => (At::Text, false),
        },
        At::String(length) => match byte {
            BELL => (At::Text, true),
            ESCAPE => (At::StringEscape, true),
            // A title or a link has no line end; what has one is not a sequence.
            b'\n' => (At::Text, false),
            _ if length < SEQUENCE_BYTES_MAX => (At::String(length + 1), true),
            _ => (At::Text, false),
        },
        At::StringEscape if byte == b'\\' => (At::Text, true),
        // The string was never ended; this is the next sequence.
        At::StringEscape => (At::Escape, false),
    }
}

/// Where the byte is, or the length.
fn memchr(byte: u8, bytes: &[u8]) -> usize {
    memchr::memchr(byte, bytes).unwrap_or(bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(chunks: &[&[u8]]) -> String {
        let mut tail = Tail::default();
        for chunk in chunks {
            tail.push(chunk);
        }
        tail.finish()
    }

    #[test]
    fn escape_sequences_are_removed() {
        let cases: [(&[u8], &str); 9] = [
            (b"\x1b[1;31mred\x1b[0m", "red"),
            (b"\x1b[?25lhidden\x1b[?25h", "hidden"),
            (b"\x1b]0;title\x07text", "text"),
            (b"\x1b]8;;http://a\x1b\\link\x1b]8;;\x1b\\", "link"),
            (b"\x1b(Bplain\x1b=", "plain"),
            (b"\x1b]never ended\nnext", "\nnext"),
            (b"a\x1b[3\nb", "a\nb"),
            (b"\x1b", ""),
            (b"\x1b]x\x1b[1mbold", "bold"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(printed(&[bytes]), expected, "{bytes:?}");
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            assert_eq!(printed(&single), expected, "{bytes:?} byte by byte");
        }
    }

    #[test]
    fn a_string_that_never_ends_hides_only_its_bound() {
        let mut bytes = b"\x1b]".to_vec();
        bytes.extend([b'x'; SEQUENCE_BYTES_MAX + 10]);
        assert_eq!(printed(&[&bytes]), "x".repeat(10));
    }

    #[test]
    fn only_trailing_newlines_are_cut() {
        assert_eq!(printed(&[b"\n a \r\n\n\n"]), "\n a \r");
    }

    #[test]
    fn the_end_is_kept_and_the_cut_is_told() {
        let mut tail = Tail::default();
        for _ in 0..100 {
            tail.push(&[b'a'; 10_000]);
            assert!(tail.kept.capacity() <= 8 * OUTPUT_BYTES_MAX);
        }
        tail.push(b"end\n");
        let text = tail.finish();
        assert_eq!(text, format!("[output truncated]\n{}end", "a".repeat(OUTPUT_BYTES_MAX - 4)));
    }

    #[test]
    fn exactly_the_bound_is_not_truncated() {
        let bytes = [b'a'; OUTPUT_BYTES_MAX];
        assert_eq!(printed(&[&bytes]), "a".repeat(OUTPUT_BYTES_MAX));
    }

    #[test]
    fn a_cut_never_leaves_half_a_character() {
        for shift in 0..4 {
            let bytes = format!("{}{}", "é".repeat(OUTPUT_BYTES_MAX), "x".repeat(shift));
            let text = printed(&[bytes.as_bytes()]);
            assert!(!text.contains('\u{fffd}'), "shift {shift}");
            assert!(text.len() <= OUTPUT_BYTES_MAX + "[output truncated]\n".len());
        }
    }

    #[test]
    fn binary_output_is_text_within_the_bound() {
        let text = printed(&[&[0xff; 3 * OUTPUT_BYTES_MAX], b"a\0b"]);
        assert!(text.ends_with("\u{fffd}a\u{fffd}b"));
        assert!(text.len() <= OUTPUT_BYTES_MAX + "[output truncated]\n".len());
    }
}
