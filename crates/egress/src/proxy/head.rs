//! The shape that the head of a request must have before anything interprets it.
//!
//! hyper parses what passes here. It is lenient where the standard lets a server choose: it takes a bare LF for a line's
//! end, and where a request has both Content-Length and Transfer-Encoding, or the same Content-Length twice, it silently
//! drops one. Each is safe by itself, as what goes out is written anew; each is also how requests are smuggled past the
//! next server that chooses otherwise. Nobody's honest client sends them, so they are refused, by name.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::time::timeout;

/// The largest head of a request: twice what common servers take.
pub(super) const HEAD_BYTES_MAX: usize = 32 * 1024;

/// Why there is no head.
#[derive(Debug)]
pub(super) enum Broken {
    /// Whoever connected has gone.
    Closed,
    /// It did not arrive in time.
    Slow,
    /// It is larger than [`HEAD_BYTES_MAX`].
    Large,
    /// It is none that is taken; the text says why.
    Shape(&'static str),
}

impl From<io::Error> for Broken {
    fn from(_: io::Error) -> Self {
        Self::Closed
    }
}

/// Reads a head, and what came with it. Returns the bytes as they came, once the head's shape is good.
pub(super) async fn read(
    stream: &mut (impl AsyncRead + Unpin),
    time_max: Duration,
) -> Result<BytesMut, Broken> {
    timeout(time_max, async {
        let mut bytes = BytesMut::with_capacity(4 * 1024);
        loop {
            let seen = bytes.len();
            if stream.read_buf(&mut bytes).await? == 0 {
                return Err(Broken::Closed);
            }
            // The end may straddle two reads.
            let from = seen.saturating_sub(3);
            if let Some(end) = bytes[from..].windows(4).position(|four| four == b"\r\n\r\n") {
                let end = from + end;
                if end > HEAD_BYTES_MAX {
                    return Err(Broken::Large);
                }
                check(&bytes[..end]).map_err(Broken::Shape)?;
                return Ok(bytes);
            }
            // At once: who ends lines like this would wait for an answer for ever.
            check_line_ends(&bytes).map_err(Broken::Shape)?;
            if bytes.len() > HEAD_BYTES_MAX {
                return Err(Broken::Large);
            }
        }
    })
    .await
    .unwrap_or(Err(Broken::Slow))
}

fn check_line_ends(bytes: &[u8]) -> Result<(), &'static str> {
    let mut before = 0;
    for &byte in bytes {
        if (before == b'\r') != (byte == b'\n') {
            return Err("a line ends in something other than CR LF");
        }
        before = byte;
    }
    Ok(())
}

/// Checks a head without its last empty line.
fn check(head: &[u8]) -> Result<(), &'static str> {
    check_line_ends(head)?;
    let mut lines = head.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let is_connect = check_request_line(lines.next().unwrap_or_default())?;
    let (mut hosts, mut lengths, mut encodings) = (0, 0, 0);
    for line in lines {
        if line.starts_with(b" ") || line.starts_with(b"\t") {
            return Err("a header is folded over two lines");
        }
        let colon = line.iter().position(|&byte| byte == b':').ok_or("a header has no colon")?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.is_empty() || !name.iter().all(|&byte| is_token(byte)) {
            return Err("a header's name has a character that none has");
        }
        if value.iter().any(|&byte| byte.is_ascii_control() && byte != b'\t') {
            return Err("a header's value has a control character");
        }
        if name.eq_ignore_ascii_case(b"host") {
            hosts += 1;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            lengths += 1;
            if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
                return Err("Content-Length is no number");
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            encodings += 1;
            if !value.eq_ignore_ascii_case(b"chunked") {
                return Err("Transfer-Encoding is something other than `chunked`");
            }
        }
    }
    if hosts > 1 {
        return Err("there is more than one Host");
    }
    if lengths > 1 || encodings > 1 || lengths + encodings > 1 {
        return Err("there is more than one of Content-Length and Transfer-Encoding");
    }
    if is_connect && lengths + encodings > 0 {
        return Err("CONNECT has a body");
    }
    Ok(())
}

/// Checks the first line, and says whether it is a CONNECT.
fn check_request_line(line: &[u8]) -> Result<bool, &'static str> {
    let mut parts = line.split(|&byte| byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err("the first line is not a method, a target and a version with one space between");
    };
    if method.is_empty() || !method.iter().all(|&byte| is_token(byte)) {
        return Err("the method has a character that none has");
    }
    if target.is_empty() || !target.iter().all(u8::is_ascii_graphic) {
        return Err("the target has a character that no URL has");
    }
    if target.contains(&b'#') {
        return Err("the target has a fragment, which is never sent");
    }
    if version != b"HTTP/1.1" && version != b"HTTP/1.0" {
        return Err("the version is neither HTTP/1.1 nor HTTP/1.0");
    }
    Ok(method == b"CONNECT")
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
