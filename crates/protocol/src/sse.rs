//! Server-sent events, the reading side: bytes in, frames out.
//!
//! Pure and push-driven: whoever owns the socket feeds chunks as they come, cut anywhere (inside a line, a
//! `\r\n` pair or a UTF-8 sequence), and takes the frames that are complete. The same bytes give the same frames
//! however they are cut. It does no IO, does not reconnect, and does not look inside `data`.
//!
//! Memory is bounded: a line or a frame over the limit is an error, after which the stream cannot be trusted and
//! the parser stays failed.

use std::time::Duration;

/// The largest frame a [`Parser::new`] accepts: the biggest event anybody sends us (a message with a picture in
/// base64) with room to spare, and small enough that a broken peer cannot fill the memory.
pub const FRAME_BYTES_MAX: usize = 32 * 1024 * 1024;

/// One event of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The `event:` field, if the frame had one.
    pub event: Option<String>,
    /// The `data:` lines, joined by line feeds.
    pub data: String,
    /// The `id:` that this very frame carried. For the id to resume from, see [`Parser::last_event_id`].
    pub id: Option<String>,
}

/// Why a stream cannot be read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A line or a frame grew over the limit.
    #[error("an event of the stream is larger than {limit_bytes} bytes")]
    TooLarge {
        /// The limit that was exceeded.
        limit_bytes: usize,
    },
}

/// Turns chunks of bytes into frames.
#[derive(Debug)]
pub struct Parser {
    limit_bytes: usize,
    /// What was pushed and not yet consumed. Bytes before `start` are consumed.
    buffer: Vec<u8>,
    start: usize,
    /// Bytes from `start` to `scanned` are known to hold no line end, so that a long line is searched once.
    scanned: usize,
    /// The last line ended in `\r` at the end of what we had; a `\n` that comes first now belongs to it.
    after_cr: bool,
    at_stream_start: bool,
    failed: bool,
    event: Option<String>,
    data: Option<String>,
    id: Option<String>,
    last_event_id: Option<String>,
    retry: Option<Duration>,
}

impl Default for Parser {
    fn default() -> Self {
        Self::new()
    }
}

impl Parser {
    /// A parser with the usual limit, [`FRAME_BYTES_MAX`].
    pub fn new() -> Self {
        Self::with_limit(FRAME_BYTES_MAX)
    }

    /// A parser that refuses lines and frames over `limit_bytes`.
    pub fn with_limit(limit_bytes: usize) -> Self {
        Self {
            limit_bytes,
            buffer: Vec::new(),
            start: 0,
            scanned: 0,
            after_cr: false,
            at_stream_start: true,
            failed: false,
            event: None,
            data: None,
            id: None,
            last_event_id: None,
            retry: None,
        }
    }

    /// Takes the next chunk, cut anywhere. Then call [`Parser::next_frame`] until it gives `None`.
    pub fn push(&mut self, chunk: &[u8]) {
        if self.failed {
            return;
        }
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.scanned -= self.start;
            self.start = 0;
        }
        self.buffer.extend_from_slice(chunk);
    }

    /// The next complete frame, or `None` when more bytes are needed. What follows the last blank line at the end
    /// of a stream is no frame, as the standard has it.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, Error> {
        if self.failed {
            return Err(self.too_large());
        }
        while let Some(line) = self.next_line()? {
            let line = String::from_utf8_lossy(&self.buffer[line]).into_owned();
            if line.is_empty() {
                if let Some(frame) = self.dispatch() {
                    return Ok(Some(frame));
                }
                continue;
            }
            self.field(&line)?;
        }
        Ok(None)
    }

    /// The id to resume after: the last `id:` of a frame that was dispatched.
    pub fn last_event_id(&self) -> Option<&str> {
        self.last_event_id.as_deref()
    }

    /// How long the server asks clients to wait before they reconnect, if it said so.
    pub fn retry(&self) -> Option<Duration> {
        self.retry
    }

    /// The range of the next complete line without its end, consumed.
    fn next_line(&mut self) -> Result<Option<std::ops::Range<usize>>, Error> {
        if self.after_cr && self.start < self.buffer.len() {
            if self.buffer[self.start] == b'\n' {
                self.start += 1;
                self.scanned = self.scanned.max(self.start);
            }
            self.after_cr = false;
        }
        if self.at_stream_start {
            const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";
            let seen = &self.buffer[self.start..];
            if seen.len() < BYTE_ORDER_MARK.len() && BYTE_ORDER_MARK.starts_with(seen) {
                return Ok(None);
            }
            if seen.starts_with(BYTE_ORDER_MARK) {
                self.start += BYTE_ORDER_MARK.len();
                self.scanned = self.start;
            }
            self.at_stream_start = false;
        }
        let found = self.buffer[self.scanned..].iter().position(|byte| matches!(byte, b'\r' | b'\n'));
        let Some(offset) = found else {
            self.scanned = self.buffer.len();
            if self.buffer.len() - self.start > self.limit_bytes {
                self.failed = true;
                return Err(self.too_large());
            }
            return Ok(None);
        };
        let end = self.scanned + offset;
        let line = self.start..end;
        if line.len() > self.limit_bytes {
            self.failed = true;
            return Err(self.too_large());
        }
        // A lone `\r` ends the line at once; waiting for a possible `\n` would hold the frame back.
        self.after_cr = self.buffer[end] == b'\r';
        self.start = end + 1;
        self.scanned = self.start;
        Ok(Some(line))
    }

    fn field(&mut self, line: &str) -> Result<(), Error> {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "event" => self.event = Some(value.to_owned()),
            "data" => {
                let size_bytes = self.data.as_ref().map_or(0, |data| data.len() + 1) + value.len();
                if size_bytes > self.limit_bytes {
                    self.failed = true;
                    return Err(self.too_large());
                }
                match &mut self.data {
                    Some(data) => {
                        data.push('\n');
                        data.push_str(value);
                    }
                    None => self.data = Some(value.to_owned()),
                }
            }
            "id" if !value.contains('\0') => self.id = Some(value.to_owned()),
            "retry" if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) => {
                self.retry = value.parse().ok().map(Duration::from_millis);
            }
            // Comments have an empty name; unknown fields are ignored, as the standard has it.
            _ => {}
        }
        Ok(())
    }

    fn dispatch(&mut self) -> Option<Frame> {
        let event = self.event.take().filter(|event| !event.is_empty());
        let id = self.id.take();
        if let Some(id) = &id {
            self.last_event_id = Some(id.clone());
        }
        // A frame without data is none; its id counts all the same.
        let data = self.data.take()?;
        Some(Frame { event, data, id })
    }

    fn too_large(&self) -> Error {
        Error::TooLarge { limit_bytes: self.limit_bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AWKWARD: &str = "\u{feff}: a comment\nretry: 2500\nevent: greeting\r\ndata: grüße 🐎\r\ndata:  two spaces\rdata\r\r\
        id: 7\ndata: {\"a\":1}\n\n\n\n:ping\n\nevent: no data\nid: 8\n\ndata:x\r\n\r\nunknown: field\nretry: soon\ndata: tail\n";

    fn parse<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Frame>, Parser) {
        let mut parser = Parser::new();
        let mut frames = Vec::new();
        for chunk in chunks {
            parser.push(chunk);
            while let Some(frame) = parser.next_frame().expect("within the limit") {
                frames.push(frame);
            }
        }
        (frames, parser)
    }

    fn frame(event: Option<&str>, data: &str, id: Option<&str>) -> Frame {
        Frame { event: event.map(Into::into), data: data.into(), id: id.map(Into::into) }
    }

    #[test]
    fn comments_line_ends_multi_line_data_ids_and_retry_are_read_as_the_standard_has_it() {
        let (frames, parser) = parse([AWKWARD.as_bytes()]);
        let expected = vec![
            frame(Some("greeting"), "grüße 🐎\n two spaces\n", None),
            frame(None, "{\"a\":1}", Some("7")),
            frame(None, "x", None),
        ];
        assert_eq!(frames, expected);
        assert_eq!(parser.last_event_id(), Some("8"));
        assert_eq!(parser.retry(), Some(Duration::from_millis(2500)));
    }

    #[test]
    fn any_chunking_gives_the_same_frames() {
        let bytes = AWKWARD.as_bytes();
        let (whole, _) = parse([bytes]);
        assert_eq!(parse(bytes.chunks(1)).0, whole);
        for first in 0..=bytes.len() {
            for second in first..=bytes.len() {
                let cut = [&bytes[..first], &bytes[first..second], &bytes[second..]];
                assert_eq!(parse(cut).0, whole, "cut at {first} and {second}");
            }
        }
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..2_000 {
            let mut rest = bytes;
            let mut cut = Vec::new();
            while !rest.is_empty() {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let (chunk, after) = rest.split_at(((state >> 60) as usize).min(rest.len()));
                cut.push(chunk);
                rest = after;
            }
            assert_eq!(parse(cut.iter().copied()).0, whole, "cut as {cut:?}");
        }
    }

    #[test]
    fn a_frame_is_given_out_as_soon_as_its_blank_line_is_there() {
        let mut parser = Parser::new();
        parser.push(b"data: now\r\r");
        assert_eq!(parser.next_frame(), Ok(Some(frame(None, "now", None))));
        parser.push(b"\ndata: later\n");
        assert_eq!(parser.next_frame(), Ok(None));
    }

    #[test]
    fn bytes_that_are_not_text_become_replacement_characters() {
        assert_eq!(parse([&b"data: a\xff\xfeb\n\n"[..]]).0, vec![frame(None, "a\u{fffd}\u{fffd}b", None)]);
    }

    #[test]
    fn a_line_or_a_frame_over_the_limit_ends_the_stream() {
        let error = Err(Error::TooLarge { limit_bytes: 16 });
        for endless in [
            &b"data: 0123456789abcdef"[..],
            b": a comment without an end",
            b"data: 01234567\ndata: 01234567\n",
        ] {
            for chunk_bytes in [1, 5, endless.len()] {
                let mut parser = Parser::with_limit(16);
                parser.push(b"data: fits\n\n");
                assert_eq!(parser.next_frame(), Ok(Some(frame(None, "fits", None))));
                let mut last = Ok(None);
                for chunk in endless.chunks(chunk_bytes) {
                    parser.push(chunk);
                    last = parser.next_frame();
                }
                assert_eq!(last, error);
                parser.push(b"\n\ndata: fits\n\n");
                assert_eq!(parser.next_frame(), error, "a failed stream stays failed");
            }
        }
    }
}
