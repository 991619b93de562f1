//! What the supervisor and `tools` say to each other over one stream socket.
//!
//! A frame is a little-endian `u32` length and that many bytes of JSON. The supervisor writes
//! [`Request`]s, `tools` writes [`Response`]s; a response carries the id of its request, and responses
//! come in any order. The first frame of `tools` is `Response { id: 0, reply: Reply::Ready { .. } }`.
//!
//! This module refuses to trust a length: a frame over its bound is an error before anything is
//! allocated for it. It does no IO of its own beyond [`read_frame`] and [`write_frame`]; an
//! asynchronous peer uses [`encode`], [`frame_len`] and [`decode`].
//!
//! Neither form is ever stored, but a supervisor may meet a `tools` of another build, so a change that
//! an older peer cannot read moves [`PROTOCOL`].

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

/// The version that [`Reply::Ready`] states.
pub const PROTOCOL: u32 = 5;

/// The largest request. A `write` call with a few megabytes of content fits; nothing that a model
/// writes in one call comes near.
pub const REQUEST_BYTES_MAX: usize = 8 << 20;

/// The largest response. `read` may return a PDF of 20 MiB, which base64 makes 27 MiB.
pub const RESPONSE_BYTES_MAX: usize = 32 << 20;

/// The most that one [`Op::ReadOutput`] returns; a longer `length` is cut to it. Large enough that the
/// round trips do not matter, small enough that a copy never holds up the other calls.
pub const OUTPUT_PIECE_BYTES_MAX: u64 = 4 << 20;

/// The most that one [`Op::Unpack`] brings, before base64.
pub const TREE_PIECE_BYTES_MAX: usize = 4 << 20;

/// The name of the one place in an archive that [`Op::Unpack`] brings ([`crate::archive::pack_places`]).
pub const TREE: &[u8] = b"tree";

/// The text of a call that was cancelled.
pub const INTERRUPTED: &str = "Tool execution was interrupted before completion. Please retry.";

/// What a `tools` that dials finds, and its first bytes.
pub mod dial {
    /// The supervisor's socket, in the folder that `tools` was told of.
    pub const CONTROL: &str = "control.sock";
    /// Another one, for the files of snapshots. Dialled before the first.
    pub const CARGO: &str = "cargo.sock";
    /// The system call filter beside them: the kernel's instructions of eight bytes each.
    pub const FILTER: &str = "filter";
    /// The byte that brings the exit as a descriptor.
    pub const EXIT: u8 = 0;
    /// The byte after which frames follow. Anything else in its place is the start of a complaint.
    pub const GO: u8 = b'g';
    /// The byte before a complaint that says: no sandbox can be made of this snapshot.
    pub const UNRESTORABLE: u8 = 2;
}

/// One question to `tools`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the asker, returned with the reply. 0 is kept for [`Reply::Ready`].
    pub id: u64,
    /// What to do.
    pub op: Op,
}

/// What `tools` can be asked to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Run a tool, or, when this `call_id` has been seen before, return what that run produced (waiting
    /// for it if it still runs). A `call_id` runs at most once in the life of a sandbox.
    Execute {
        /// The ledger's key: the id of the `tool_use`.
        call_id: String,
        /// The tool's name.
        name: String,
        /// The tool's input, as the model gave it.
        input: Value,
        /// How long the call may run, from its start. 0 stands for the default of 150 s.
        timeout_ms: u64,
    },
    /// End a call that waits or runs. Its output becomes an error that says so.
    Cancel {
        /// The call to end.
        call_id: String,
    },
    /// List the regular files below the outputs directory.
    Collect {
        /// Stop before the file that would bring the sum of sizes over this.
        max_bytes: u64,
        /// Stop after this many files.
        max_files: u64,
    },
    /// Read a piece of a file below the outputs directory.
    ReadOutput {
        /// Relative to the outputs directory, as [`OutputFile::path`] gave it.
        path: String,
        /// Where the piece starts.
        offset: u64,
        /// How many bytes, at most [`OUTPUT_PIECE_BYTES_MAX`].
        length: u64,
    },
    /// Make every process of the sandbox stand still. Asked while no call runs. [`Refusal::Busy`] where not all of them do yet;
    /// those that do stand still until [`Op::Resume`] all the same.
    Pause,
    /// Let them go on, those excepted that stood still before.
    Resume,
    /// Take what the session brings. Asked before its first call; asking again is as good as once.
    Equip {
        /// Variables of shells that start from now on.
        variables: BTreeMap<String, String>,
        /// The certificate, in PEM, of an authority that programs are to trust besides the system's.
        trusted: Option<String>,
    },
    /// Send all files of the sandbox on the other line, in the form of [`archive::freight`](crate::archive::freight). Asked
    /// while every process stands still; [`Op::Resume`] breaks it off.
    Pack {
        /// What is sent before them, 16 bytes in hexadecimal.
        mark: String,
    },
    /// Take a piece of an archive ([`crate::archive`]) whose files are to be in a new folder. One piece after the other, each
    /// when the one before is answered; the answer to the last says that all is there. Asked before the first call. A folder
    /// that is there already and holds anything stays as it is, so that asking again is as good as once.
    Unpack {
        /// The folder; absolute. Those above it are made.
        at: String,
        /// Where the piece stands in the archive. 0 begins anew.
        offset: u64,
        /// The piece: standard base64 of at most [`TREE_PIECE_BYTES_MAX`] bytes.
        data: String,
        /// Whether the archive ends with it.
        last: bool,
    },
    /// Are you there?
    Ping,
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// The id of the request; 0 for [`Reply::Ready`].
    pub id: u64,
    /// The answer.
    pub reply: Reply,
}

/// What `tools` answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Sent once, unasked, when requests can be taken.
    Ready {
        /// [`PROTOCOL`] of the `tools` that speaks.
        protocol: u32,
    },
    /// To [`Op::Execute`].
    Output(Output),
    /// To [`Op::Collect`].
    Files {
        /// In the order of their paths.
        files: Vec<OutputFile>,
        /// Whether a bound of the request or of `tools` left some files out.
        truncated: bool,
    },
    /// To [`Op::ReadOutput`].
    Bytes {
        /// Standard base64. Shorter than asked only at the end of the file.
        data: String,
        /// The file's size when it was read.
        size_bytes: u64,
    },
    /// To [`Op::Pause`]: they stand still.
    Paused,
    /// To [`Op::Resume`].
    Resumed,
    /// To [`Op::Equip`].
    Equipped,
    /// To [`Op::Pack`]: it has begun.
    Packing,
    /// To [`Op::Unpack`]: it is taken, and if it was the last, all is there.
    Unpacked,
    /// To [`Op::Ping`].
    Pong,
    /// To [`Op::Cancel`].
    Cancelled {
        /// Whether the ledger knows the call: it waited, ran, or has ended already.
        known: bool,
    },
    /// The request was not carried out.
    Refused {
        /// What the asker can do about it.
        reason: Refusal,
        /// For people.
        message: String,
    },
}

/// Why a request was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// The call ran before and its output is no longer kept. It was not run again and never will be.
    Forgotten,
    /// Too many calls wait. Nothing happened; ask again later.
    Busy,
    /// The request makes no sense, or names a file that is not there or not allowed.
    Invalid,
}

/// What a tool call produced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// Content blocks in the shape of the public API.
    pub content: Vec<Content>,
    /// Whether the model should see this as a failure.
    pub is_error: bool,
}

impl Output {
    /// A success of one text block.
    pub fn text(text: impl Into<String>) -> Output {
        Output { content: vec![Content::Text { text: text.into() }], is_error: false }
    }

    /// A failure of one text block.
    pub fn error(text: impl Into<String>) -> Output {
        Output { content: vec![Content::Text { text: text.into() }], is_error: true }
    }
}

/// One content block, exactly as the public API spells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Content {
    /// Text.
    Text {
        /// The text.
        text: String,
    },
    /// A picture.
    Image {
        /// Where its bytes are.
        source: Source,
    },
    /// A document.
    Document {
        /// Where its bytes are.
        source: Source,
    },
}

/// The bytes of a picture or a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Source {
    /// In place.
    Base64 {
        /// For example `image/png`.
        media_type: String,
        /// Standard base64.
        data: String,
    },
}

/// A deliverable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputFile {
    /// Relative to the outputs directory, `/` between components. A name that is not UTF-8 is left out
    /// of the list, because it could not be asked for.
    pub path: String,
    /// Its size when it was listed.
    pub size_bytes: u64,
    /// When it last changed, in milliseconds since 1970.
    pub modified_ms: i64,
}

/// Why a frame could not be read or written.
#[derive(Debug)]
pub enum Error {
    /// The socket failed, or ended inside a frame.
    Io(io::Error),
    /// The frame is over its bound. Nothing of it was written or allocated.
    TooLarge {
        /// The length of the frame.
        bytes: usize,
        /// Its bound.
        bytes_max: usize,
    },
    /// The frame is whole but is not what was expected.
    Malformed(serde_json::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io(_) => f.write_str("the control socket failed"),
            Error::TooLarge { bytes, bytes_max } => {
                write!(f, "a frame of {bytes} bytes is over the bound of {bytes_max}")
            }
            Error::Malformed(_) => f.write_str("a frame is not what was expected"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io(cause) => Some(cause),
            Error::TooLarge { .. } => None,
            Error::Malformed(cause) => Some(cause),
        }
    }
}

impl From<io::Error> for Error {
    fn from(cause: io::Error) -> Error {
        Error::Io(cause)
    }
}

/// How many bytes of length stand before a frame's JSON.
pub const HEADER_BYTES: usize = 4;

/// A whole frame, header included.
pub fn encode<T: Serialize>(message: &T, bytes_max: usize) -> Result<Vec<u8>, Error> {
    let mut frame = vec![0; HEADER_BYTES];
    serde_json::to_writer(&mut frame, message).map_err(Error::Malformed)?;
    let bytes = frame.len() - HEADER_BYTES;
    let header = u32::try_from(bytes).ok().filter(|_| bytes <= bytes_max);
    let Some(header) = header else {
        return Err(Error::TooLarge { bytes, bytes_max });
    };
    frame[..HEADER_BYTES].copy_from_slice(&header.to_le_bytes());
    Ok(frame)
}

/// The length of the JSON that follows this header.
pub fn frame_len(header: [u8; HEADER_BYTES], bytes_max: usize) -> Result<usize, Error> {
    let bytes = u32::from_le_bytes(header) as usize;
    if bytes > bytes_max {
        return Err(Error::TooLarge { bytes, bytes_max });
    }
    Ok(bytes)
}

/// The message in a frame's JSON.
pub fn decode<T: DeserializeOwned>(json: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(json).map_err(Error::Malformed)
}

/// Writes one frame and flushes.
pub fn write_frame<T: Serialize>(
    writer: &mut impl Write,
    message: &T,
    bytes_max: usize,
) -> Result<(), Error> {
    writer.write_all(&encode(message, bytes_max)?)?;
    Ok(writer.flush()?)
}

/// Reads one frame; `None` is the end of the stream between two frames.
pub fn read_frame<T: DeserializeOwned>(reader: &mut impl Read, bytes_max: usize) -> Result<Option<T>, Error> {
    let mut header = [0; HEADER_BYTES];
    let mut filled = 0;
    while filled < HEADER_BYTES {
        match reader.read(&mut header[filled..]) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(Error::Io(io::ErrorKind::UnexpectedEof.into())),
            Ok(count) => filled += count,
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            Err(cause) => return Err(Error::Io(cause)),
        }
    }
    let bytes = frame_len(header, bytes_max)?;
    // Grown as the bytes come in, so that a peer pays for what it makes us allocate.
    let mut json = Vec::new();
    reader.take(bytes as u64).read_to_end(&mut json)?;
    if json.len() < bytes {
        return Err(Error::Io(io::ErrorKind::UnexpectedEof.into()));
    }
    decode(&json).map(Some)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn round_trip(response: &Response) -> Response {
        let frame = encode(response, RESPONSE_BYTES_MAX).unwrap();
        read_frame(&mut frame.as_slice(), RESPONSE_BYTES_MAX).unwrap().unwrap()
    }

    #[test]
    fn every_reply_survives_a_round_trip() {
        let file = OutputFile { path: "a/b".into(), size_bytes: 3, modified_ms: -1 };
        let replies = [
            Reply::Ready { protocol: PROTOCOL },
            Reply::Output(Output::error("no")),
            Reply::Files { files: vec![file], truncated: true },
            Reply::Bytes { data: "YQ==".into(), size_bytes: 1 },
            Reply::Paused,
            Reply::Resumed,
            Reply::Equipped,
            Reply::Unpacked,
            Reply::Pong,
            Reply::Cancelled { known: false },
            Reply::Refused { reason: Refusal::Forgotten, message: "gone".into() },
        ];
        for (id, reply) in replies.into_iter().enumerate() {
            let response = Response { id: id as u64, reply };
            assert_eq!(round_trip(&response), response);
        }
    }

    #[test]
    fn content_has_the_shape_of_the_public_api() {
        let source = Source::Base64 { media_type: "image/png".into(), data: "YQ==".into() };
        let content = [
            Content::Text { text: "hi".into() },
            Content::Image { source: source.clone() },
            Content::Document { source },
        ];
        let source = json!({"type": "base64", "media_type": "image/png", "data": "YQ=="});
        let expected = json!([
            {"type": "text", "text": "hi"},
            {"type": "image", "source": source},
            {"type": "document", "source": source},
        ]);
        assert_eq!(serde_json::to_value(content).unwrap(), expected);
    }

    #[test]
    fn a_request_is_spelled_as_documented() {
        let request = Request { id: 7, op: Op::Cancel { call_id: "c".into() } };
        assert_eq!(
            serde_json::to_value(request).unwrap(),
            json!({"id": 7, "op": {"cancel": {"call_id": "c"}}})
        );
        assert_eq!(serde_json::to_value(Op::Ping).unwrap(), json!("ping"));
    }

    #[test]
    fn a_frame_over_its_bound_is_refused_on_both_sides() {
        let response = Response { id: 1, reply: Reply::Output(Output::text("x".repeat(100))) };
        assert!(matches!(encode(&response, 100), Err(Error::TooLarge { bytes_max: 100, .. })));
        let endless = u32::MAX.to_le_bytes();
        let read = read_frame::<Response>(&mut endless.as_slice(), RESPONSE_BYTES_MAX);
        assert!(matches!(read, Err(Error::TooLarge { .. })));
    }

    #[test]
    fn the_end_of_the_stream_is_told_from_a_torn_frame() {
        assert!(matches!(read_frame::<Request>(&mut [].as_slice(), REQUEST_BYTES_MAX), Ok(None)));
        let frame = encode(&Request { id: 1, op: Op::Ping }, REQUEST_BYTES_MAX).unwrap();
        for cut in 1..frame.len() {
            let read = read_frame::<Request>(&mut &frame[..cut], REQUEST_BYTES_MAX);
            assert!(matches!(read, Err(Error::Io(_))), "cut at {cut}");
        }
    }

    #[test]
    fn json_of_another_kind_is_malformed() {
        let frame = encode(&json!({"id": 1, "op": "dance"}), REQUEST_BYTES_MAX).unwrap();
        let read = read_frame::<Request>(&mut frame.as_slice(), REQUEST_BYTES_MAX);
        assert!(matches!(read, Err(Error::Malformed(_))));
    }
}
