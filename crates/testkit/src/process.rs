//! Programs that tests run, and ports for those that serve.

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::net::TcpListener;
use std::process::{Command, Stdio};

/// A program could not do what a test needs; the text is for whoever runs the tests.
#[derive(Debug)]
pub struct Error(String);

impl Error {
    pub(crate) fn new(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// Runs a program to its end; gives what it wrote.
pub(crate) fn ask(command: &mut Command) -> Result<String, Error> {
    let shown = shown(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Error(format!("`{shown}` cannot be started: {error}")))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    Err(Error(format!(
        "`{shown}` ended with {}: {}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    )))
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// A port of the loopback that nobody listens at now.
///
/// It lies below the ports that the kernel gives to outgoing connections. A server that is stopped and started again
/// would otherwise find its port taken by some client's own end, and a client that tries again and again while nobody
/// listens would in the end connect to itself.
pub(crate) fn free_port() -> u16 {
    const FIRST: u64 = 12_000;
    const LAST: u64 = 32_000;
    loop {
        let random = RandomState::new().hash_one(std::process::id());
        let port = u16::try_from(FIRST + random % (LAST - FIRST)).expect("it is below 32,000");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
