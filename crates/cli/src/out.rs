//! Standard output, checked: a reader that has seen enough closes the pipe, and that is no reason to panic.
//!
//! What the commands print goes through here. An error is handed on with `?`, so that who prints ends in order.

use std::fmt;
use std::io::{self, Write as _};

use anyhow::Context as _;

/// Nobody reads standard output any more.
#[derive(Debug)]
pub(crate) struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("standard output is closed")
    }
}

impl std::error::Error for Closed {}

/// Writes to standard output, at once.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Closed.into()),
        written => written.context("standard output cannot be written"),
    }
}

/// Writes a line to standard output, at once.
pub(crate) fn line(text: &str) -> anyhow::Result<()> {
    print(&format!("{text}\n"))
}

/// Writes a line to standard error. Nobody is left to tell if that fails.
pub(crate) fn remark(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}
