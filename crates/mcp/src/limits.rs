//! How much a server may cost: time and size. Each bound is far above what servers do that mean well.

use std::time::Duration;

/// One message of a server: a JSON body, or one event of a stream. A picture of 5 MiB in base64 fits; parsed, a message
/// takes up to some tens of times its size.
pub const MESSAGE_BYTES_MAX: usize = 8 << 20;
/// Everything that one response streams.
pub const STREAM_BYTES_MAX: usize = 64 << 20;
/// What is read of a body that says why not. Far more than is shown: a credential that begins in what is shown ends before
/// this, and so is found and struck.
pub const ERROR_BYTES_MAX: usize = 64 << 10;
/// How often one connection may begin a stream of its own: servers that end theirs are asked again.
pub const STREAMS_MAX: u32 = 64;
/// How long the next stream of its own waits. A server may ask for more, not for less.
pub const STREAM_PAUSE: Duration = Duration::from_millis(500);
/// How many redirects to the same origin are followed.
pub const REDIRECTS_MAX: usize = 3;

/// How many pages a list may have.
pub const PAGES_MAX: usize = 64;
/// How many tools a server may list. An agent may have 256 over all its toolsets.
pub const TOOLS_MAX: usize = 1_024;
/// All descriptions and schemas of one list together, as JSON.
pub const LIST_BYTES_MAX: usize = 4 << 20;
/// A tool's name. The names in an agent's toolset have the same bound.
pub const NAME_CHARS_MAX: usize = 128;
/// A description. What is longer is cut: it is for a model, and paid for with each request.
pub const DESCRIPTION_CHARS_MAX: usize = 8_192;
/// A tool's input schema, as JSON. A tool with a larger one is left out.
pub const SCHEMA_BYTES_MAX: usize = 64 << 10;

/// How many blocks of a result are kept.
pub const BLOCKS_MAX: usize = 100;
/// A picture, base64: the models' own bound.
pub const IMAGE_BYTES_MAX: usize = 5 << 20;
/// All pictures and documents of a result, base64. They go out with each later request, which may have 32 MB.
pub const MEDIA_BYTES_MAX: usize = 6 << 20;
/// A side of a picture, in pixels: the models' own bound.
pub const SIDE_PIXELS_MAX: u32 = 8_000;

/// How many connections are being made at once in one process.
pub const PLACES: usize = 256;

/// How long a server may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// Connecting, every transport tried.
    pub connect_max: Duration,
    /// Listing the tools, all pages.
    pub list_max: Duration,
    /// A call, from the last sign of progress.
    pub call_quiet_max: Duration,
    /// A call, whatever it says of its progress.
    pub call_max: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            connect_max: Duration::from_secs(15),
            list_max: Duration::from_secs(15),
            call_quiet_max: Duration::from_secs(120),
            call_max: Duration::from_secs(600),
        }
    }
}
